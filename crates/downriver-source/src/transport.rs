//! The byte stream to a server: TCP, and TLS where it is asked for.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::error::SourceError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// As libpq's sslmode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    /// TLS if the server has it, unverified.
    Prefer,
    /// TLS, unverified unless a CA is given.
    Require,
    /// TLS, the certificate's chain verified.
    VerifyCa,
    /// TLS, chain and host name verified.
    VerifyFull,
}

/// How a connection is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    pub mode: SslMode,
    /// Certificates in PEM form; `None`: the system's.
    pub ca_file: Option<PathBuf>,
}

pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}

pub(crate) type Stream = Box<dyn Duplex>;

pub(crate) fn unreachable(host: &str, port: u16, reason: impl std::fmt::Display) -> SourceError {
    SourceError::transient(
        "DR-1002",
        format!("{host}:{port} cannot be reached: {reason}"),
        "see that the host and port are right and that the server runs",
    )
}

pub(crate) fn without_tls(host: &str, port: u16, fix: &str) -> SourceError {
    SourceError::definite("DR-1006", format!("{host}:{port} does not offer TLS"), fix)
}

pub(crate) async fn open(host: &str, port: u16) -> Result<TcpStream, SourceError> {
    let tcp = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port)))
        .await
        .map_err(|_| unreachable(host, port, "no answer in 10 s"))?
        .map_err(|error| unreachable(host, port, error))?;
    tcp.set_nodelay(true).map_err(SourceError::Connection)?;
    Ok(tcp)
}

/// Encrypts a connection whose server is ready for it.
pub(crate) async fn encrypt(
    tcp: TcpStream,
    host: &str,
    port: u16,
    tls: &Tls,
) -> Result<Stream, SourceError> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| unreachable(host, port, "the host is not a valid name"))?;
    let connector = TlsConnector::from(Arc::new(client_config(tls)?));
    let encrypted = connector.connect(name, tcp).await.map_err(|error| {
        // The server or the network may also go away meanwhile.
        if !error
            .get_ref()
            .is_some_and(|cause| cause.is::<rustls::Error>())
        {
            return SourceError::Connection(error);
        }
        SourceError::definite(
            "DR-1006",
            format!("TLS with {host}:{port} failed: {error}"),
            "give the server's CA in tls.ca, and connect by the name in its certificate",
        )
    })?;
    Ok(Box::new(encrypted))
}

fn client_config(tls: &Tls) -> Result<ClientConfig, SourceError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions");
    let verified = matches!(tls.mode, SslMode::VerifyCa | SslMode::VerifyFull)
        || (tls.mode == SslMode::Require && tls.ca_file.is_some());
    if !verified {
        let any = Arc::new(AnyCertificate(provider));
        return Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(any)
            .with_no_client_auth());
    }
    let roots = Arc::new(roots(tls)?);
    if tls.mode == SslMode::VerifyFull {
        return Ok(builder.with_root_certificates(roots).with_no_client_auth());
    }
    let inner = WebPkiServerVerifier::builder_with_provider(roots, provider)
        .build()
        .map_err(|error| {
            SourceError::definite(
                "DR-1006",
                format!("the CA cannot be used: {error}"),
                "give a CA in PEM form",
            )
        })?;
    let any_name = Arc::new(AnyName(inner));
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(any_name)
        .with_no_client_auth())
}

fn roots(tls: &Tls) -> Result<RootCertStore, SourceError> {
    let mut roots = RootCertStore::empty();
    let Some(file) = &tls.ca_file else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    let unusable = |reason: String| {
        let reason = format!("the CA file {} cannot be used: {reason}", file.display());
        SourceError::definite(
            "DR-1006",
            reason,
            "give a readable file of PEM certificates in tls.ca",
        )
    };
    for certificate in CertificateDer::pem_file_iter(file).map_err(|e| unusable(e.to_string()))? {
        let certificate = certificate.map_err(|e| unusable(e.to_string()))?;
        roots
            .add(certificate)
            .map_err(|e| unusable(e.to_string()))?;
    }
    if roots.is_empty() {
        Err(unusable("it has no certificate".into()))
    } else {
        Ok(roots)
    }
}

/// Encrypts without knowing to whom: what sslmode prefer and require ask for.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Verifies the chain and not the name: sslmode verify-ca.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.0
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
