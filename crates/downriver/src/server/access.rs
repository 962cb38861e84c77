//! Who may call: whoever shows a certificate of the clients' authority or sends the token; on loopback addresses anybody,
//! where neither is asked for.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use axum::Json;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use downriver_event::problem::Problem;
use downriver_service::problem::status;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use subtle::ConstantTimeEq as _;

use super::door::{Caller, with_protocols};

/// What is asked without saying who asks: whether the node is up.
const OPEN: [&str; 3] = ["/livez", "/readyz", "/grpc.health.v1.Health/"];

/// PEM files, and a secret.
#[derive(Clone, Debug, Default)]
pub(crate) struct AccessOptions {
    /// What the node shows to clients, and its key; `None`: no TLS.
    pub(crate) shows: Option<(PathBuf, PathBuf)>,
    /// The authority of the clients' certificates.
    pub(crate) client_ca: Option<PathBuf>,
    pub(crate) token: Option<Token>,
}

/// What clients send as `Authorization: Bearer`.
#[derive(Clone)]
pub(crate) struct Token(String);

impl Token {
    /// # Errors
    /// It is too short to be a secret, or cannot be sent.
    pub(crate) fn new(token: String) -> anyhow::Result<Self> {
        ensure!(
            token.len() >= 16 && token.bytes().all(|byte| byte.is_ascii_graphic()),
            "the token has to be 16 characters or more, of ASCII without spaces: openssl rand -hex 32 makes one"
        );
        Ok(Self(token))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(***)")
    }
}

pub(super) struct Access {
    tls: Option<Arc<ServerConfig>>,
    token: Option<Token>,
    knows_clients: bool,
}

impl Access {
    /// # Errors
    /// A file cannot be read, or holds no certificates or no key.
    pub(super) fn new(options: AccessOptions) -> anyhow::Result<Self> {
        Ok(Self {
            knows_clients: options.client_ca.is_some(),
            tls: tls(&options)?,
            token: options.token,
        })
    }

    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.clone()
    }

    /// # Errors
    /// What comes to the address could be read on its way, or be anybody's.
    pub(super) fn check(&self, address: SocketAddr) -> anyhow::Result<()> {
        ensure!(
            address.ip().is_loopback() || self.tls.is_some() && self.asks(),
            "DR-2090: {address} is not a loopback address: give the node a certificate, and a token or an authority of \
             clients, under [access]"
        );
        Ok(())
    }

    fn asks(&self) -> bool {
        self.knows_clients || self.token.is_some()
    }

    fn admits(&self, request: &Request) -> bool {
        let path = request.uri().path();
        if !self.asks() || OPEN.iter().any(|open| path.starts_with(open)) {
            return true;
        }
        let caller = request.extensions().get::<ConnectInfo<Caller>>();
        caller.is_some_and(|ConnectInfo(caller)| caller.has_certificate) || self.has_token(request)
    }

    fn has_token(&self, request: &Request) -> bool {
        let sent = request.headers().get(header::AUTHORIZATION);
        let sent = sent.and_then(|value| value.to_str().ok()).unwrap_or("");
        let (Some(Token(token)), Some((scheme, sent))) = (&self.token, sent.split_once(' ')) else {
            return false;
        };
        scheme.eq_ignore_ascii_case("bearer") && bool::from(token.as_bytes().ct_eq(sent.as_bytes()))
    }
}

fn tls(options: &AccessOptions) -> anyhow::Result<Option<Arc<ServerConfig>>> {
    let Some((certificate, key)) = &options.shows else {
        return Ok(None);
    };
    let config = match &options.client_ca {
        None => ServerConfig::builder().with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(authority)? {
                roots.add(certificate)?;
            }
            // Health is told to everybody, and whoever sends the token needs none.
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated();
            ServerConfig::builder().with_client_cert_verifier(verifier.build()?)
        }
    };
    let secret = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("{} holds no private key", key.display()))?;
    let config = config
        .with_single_cert(certificates(certificate)?, secret)
        .with_context(|| {
            format!(
                "{} and {} do not belong to each other",
                certificate.display(),
                key.display()
            )
        })?;
    Ok(Some(with_protocols(config)))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let certificates =
        read().with_context(|| format!("{} holds no certificates", path.display()))?;
    ensure!(
        !certificates.is_empty(),
        "{} holds no certificates",
        path.display()
    );
    Ok(certificates)
}

/// Lets a call pass, or says what is missing in the caller's protocol.
pub(super) async fn admit(
    State(access): State<Arc<Access>>,
    request: Request,
    next: Next,
) -> Response {
    if access.admits(&request) {
        return next.run(request).await;
    }
    let problem = Problem::new(
        "DR-2092",
        "the node does not know who calls",
        "give the client the node's token (DOWNRIVER_TOKEN), or a certificate of the authority that it believes",
    );
    let content = request.headers().get(header::CONTENT_TYPE);
    if content.is_some_and(|content| content.as_bytes().starts_with(b"application/grpc")) {
        return status(tonic::Code::Unauthenticated, &problem).into_http();
    }
    let told = serde_json::json!({ "error": {
        "message": format!("{}: {}; {}", problem.code, problem.reason, problem.fix),
        "type": "NotAuthorizedException",
        "code": 401,
    }});
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    (StatusCode::UNAUTHORIZED, challenge, Json(told)).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use axum::body::Body;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn asks(token: Option<&str>, knows_clients: bool) -> Access {
        Access {
            tls: None,
            token: token.map(|token| Token::new(token.to_owned()).unwrap()),
            knows_clients,
        }
    }

    fn call(path: &str, authorization: &str, has_certificate: bool) -> Request {
        let mut request = Request::builder().uri(path);
        if !authorization.is_empty() {
            request = request.header("Authorization", authorization);
        }
        let mut request = request.body(Body::empty()).unwrap();
        let caller = ConnectInfo(Caller { has_certificate });
        request.extensions_mut().insert(caller);
        request
    }

    #[test]
    fn who_is_asked_shows_a_certificate_or_sends_the_token() {
        let sent = format!("Bearer {TOKEN}");
        let open = asks(None, false);
        assert!(open.admits(&call("/metrics", "", false)));
        let with_token = asks(Some(TOKEN), false);
        for (authorization, is_admitted) in [
            (sent.as_str(), true),
            (&sent.to_lowercase(), true),
            ("", false),
            ("Bearer", false),
            ("Bearer ", false),
            (&sent[..sent.len() - 1], false),
            (&format!("{sent}0"), false),
            (&sent.replace("Bearer", "Basic"), false),
        ] {
            let call = call("/metrics", authorization, false);
            assert_eq!(with_token.admits(&call), is_admitted, "{authorization}");
        }
        assert!(!asks(None, true).admits(&call("/metrics", &sent, false)));
        assert!(asks(None, true).admits(&call("/metrics", "", true)));
    }

    #[test]
    fn everybody_may_ask_whether_the_node_is_up() {
        for path in OPEN {
            assert!(asks(Some(TOKEN), true).admits(&call(path, "", false)));
        }
        for path in [
            "/",
            "/metrics",
            "/iceberg/v1/config",
            "/downriver.admin.v1.AdminService/Get",
        ] {
            assert!(
                !asks(Some(TOKEN), true).admits(&call(path, "", false)),
                "{path}"
            );
        }
    }

    #[test]
    fn other_than_loopback_addresses_need_tls_and_to_know_who_calls() {
        let (near, far) = (
            "127.0.0.1:1".parse().unwrap(),
            "10.0.0.1:1".parse().unwrap(),
        );
        assert!(asks(None, false).check(near).is_ok());
        assert!(asks(Some(TOKEN), true).check(far).is_err());
    }

    #[test]
    fn a_token_is_long_and_is_never_shown() {
        assert!(Token::new("secret".into()).is_err());
        assert!(Token::new("with spaces in it".into()).is_err());
        assert!(!format!("{:?}", Token::new(TOKEN.into()).unwrap()).contains(TOKEN));
    }
}
