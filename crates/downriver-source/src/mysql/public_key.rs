//! The RSA key that a server without TLS has its passwords encrypted with.
//!
//! Source: MySQL's internals, "Caching_sha2_password information"; RFC 8017, appendix A.1.1, for the key's form. What the
//! server sent is read here, because the library's reader panics at what is no key.

use mysql_common::crypto::rsa::{GetRandom, Pkcs1OaepPadding, PublicKey};
use num_bigint::BigUint;
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;
/// A key of 16,384 bits, the largest that OpenSSL works with.
const MODULUS_BYTES_MAX: usize = 2048;
/// Servers' keys have 3 or 4.
const EXPONENT_BYTES_MAX: usize = 8;
/// What the padding takes: two hashes and two bytes.
const PADDING_BYTES: usize = 2 * 20 + 2;

/// Why a password cannot be encrypted with a server's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum UnusableKey {
    #[error("is no RSA key that can be used")]
    Invalid,
    #[error("is too short for the password")]
    Short,
}

/// Encrypts a password with a key in PEM form. On its own a password would give the same bytes each time: it is mixed with
/// what the server sent for this login.
pub(super) fn encrypt(password: &str, nonce: &[u8], pem: &[u8]) -> Result<Vec<u8>, UnusableKey> {
    let key = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| UnusableKey::Invalid)?;
    let key = public_key(&key).ok_or(UnusableKey::Invalid)?;
    let mut mixed: Vec<u8> = password.bytes().chain([0]).collect();
    for (byte, other) in mixed.iter_mut().zip(nonce.iter().cycle()) {
        *byte ^= other;
    }
    if mixed.len() + PADDING_BYTES > key.num_octets() {
        return Err(UnusableKey::Short);
    }
    Ok(key.encrypt_block(mixed, Pkcs1OaepPadding::new(GetRandom)))
}

fn public_key(der: &[u8]) -> Option<PublicKey> {
    let (info, _) = element(SEQUENCE, der)?;
    let (_algorithm, info) = element(SEQUENCE, info)?;
    let (key, _) = element(BIT_STRING, info)?;
    let (numbers, _) = element(SEQUENCE, key.strip_prefix(&[0])?)?;
    let (modulus, numbers) = element(INTEGER, numbers)?;
    let (exponent, _) = element(INTEGER, numbers)?;
    if modulus.len() > MODULUS_BYTES_MAX || exponent.len() > EXPONENT_BYTES_MAX {
        return None;
    }
    let key = PublicKey::new(
        BigUint::from_bytes_be(modulus),
        BigUint::from_bytes_be(exponent),
    );
    // The library's count of bytes is one short for some lengths that no key has.
    let is_usual = key.modulus().bits().is_multiple_of(8) && key.exponent().bits() > 1;
    is_usual.then_some(key)
}

/// What is in the element at the start, and what comes after it.
fn element(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (first, rest) = der.strip_prefix(&[tag])?.split_first()?;
    let (bytes, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let bytes = digits
                .iter()
                .fold(0, |sum, digit| sum << 8 | usize::from(*digit));
            (bytes, rest)
        }
        _ => return None,
    };
    rest.split_at_checked(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAxSKOcxiet8lLMn8ImyUE
bGGKob5EdRz/4wdiw12ED0GfKKTKhVnodFCfm1mdy7bKOX5QxL9skrvYodpW43eR
R5bfOzIgy1qIB8RYb6qOXRBw1oA4snBDqtUjDv/lbHLJN+IbzM4oU+e3Lt9rXyLX
VY289ewONPweXHqSCnTL91w+wkU1peIFV2QhZ+upUCdCtwOn5hnJPNgxtbklFoya
C8W3Z7Xx7He2QDJsEWAqX197efw0L6j8X8Tyd8Uwb7zUB1tfMGhHfm9EwejPAtzx
4GztQNtNMtGS2oGZLQBLV9hib4dDL92iiZeckg2LAf4GsJofLLR8mcHCRoqVbQJ1
YQIDAQAB
-----END PUBLIC KEY-----
";

    #[test]
    fn a_password_is_encrypted_otherwise_each_time() {
        let encrypted = |password: &str| encrypt(password, &[7; 20], PEM.as_bytes());
        let (one, two) = (encrypted("secret"), encrypted("secret"));
        assert_eq!(one.as_ref().map(Vec::len), Ok(256));
        assert_ne!(one, two);
        assert!(encrypted(&"x".repeat(213)).is_ok());
        assert_eq!(encrypted(&"x".repeat(214)), Err(UnusableKey::Short));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let invalid = |pem: &str| {
            assert_eq!(
                encrypt("p", &[7; 20], pem.as_bytes()),
                Err(UnusableKey::Invalid),
                "{pem}"
            );
        };
        invalid("");
        invalid("no key");
        invalid(&PEM.replace("PUBLIC", "PRIVATE"));
        invalid(&PEM.replace("MIIBIjAN", "MIIBIjAO"));
        let lines: Vec<_> = PEM.lines().collect();
        for left_out in 1..lines.len() - 1 {
            let mut lines = lines.clone();
            lines.remove(left_out);
            let _ = encrypt("p", &[7; 20], lines.join("\n").as_bytes());
        }
    }

    #[test]
    fn no_bytes_of_a_key_make_it_panic() {
        let key = SubjectPublicKeyInfoDer::from_pem_slice(PEM.as_bytes()).expect("a key");
        for at in 0..60 {
            for byte in 0..=255 {
                let mut changed = key.to_vec();
                changed[at] = byte;
                if let Some(key) = public_key(&changed) {
                    assert!(key.num_octets() <= MODULUS_BYTES_MAX);
                }
            }
            assert!(public_key(&key[..at]).is_none());
        }
    }
}
