//! What the urls of all databases have in common.

use crate::transport::SslMode;

/// The url is not one of such a database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidUrl(pub String);

/// Of an address without a port it is `default`.
pub(crate) fn host_and_port(address: &str, default: u16) -> Result<(String, u16), &'static str> {
    let (host, port) = match address.strip_prefix('[') {
        Some(v6) => {
            let (host, port) = v6.split_once(']').ok_or("the host is not closed by ]")?;
            (host, port.strip_prefix(':'))
        }
        None => match address.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    if host.is_empty() {
        return Err("the url names no host");
    }
    let port = port.map_or(Ok(default), |port| {
        port.parse().map_err(|_| "the port is not a number")
    })?;
    let host = unescape(host).map_err(|_| "the host has an invalid % escape")?;
    Ok((host, port))
}

pub(crate) fn ssl_mode(mode: &str) -> Result<SslMode, InvalidUrl> {
    Ok(match mode {
        "disable" => SslMode::Disable,
        "allow" | "prefer" => SslMode::Prefer,
        "require" => SslMode::Require,
        "verify-ca" => SslMode::VerifyCa,
        "verify-full" => SslMode::VerifyFull,
        other => {
            return Err(InvalidUrl(format!(
                "sslmode {other:?} is not known: use disable, allow, prefer, require, verify-ca or verify-full"
            )));
        }
    })
}

/// Resolves `%xx`.
pub(crate) fn unescape(text: &str) -> Result<String, InvalidUrl> {
    let invalid = || InvalidUrl(format!("{text:?} has an invalid % escape"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (pair, after) = rest.split_at_checked(2).ok_or_else(invalid)?;
        rest = after;
        let pair = std::str::from_utf8(pair).map_err(|_| invalid())?;
        bytes.push(u8::from_str_radix(pair, 16).map_err(|_| invalid())?);
    }
    String::from_utf8(bytes).map_err(|_| invalid())
}
