//! The connection to a node, and how failures are shown.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use downriver_api::admin::v1 as pb;
use downriver_api::admin::v1::admin_service_client::AdminServiceClient;
use downriver_api::connect::tcp;
use downriver_api::log::v1::log_service_client::LogServiceClient;
use downriver_event::problem::Problem;
use downriver_service::MESSAGE_BYTES_MAX;
use downriver_service::problem::{of_status, to_pb};
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

/// How a node is reached, and who calls.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Node")]
pub(super) struct Reach {
    /// The node's gRPC address; with https:// before it, or one of the files below, over TLS.
    #[arg(
        long,
        global = true,
        env = "DOWNRIVER_ADDR",
        default_value = "127.0.0.1:7070"
    )]
    addr: String,
    /// The authority of the node's certificate (PEM). Default: those that this machine believes.
    #[arg(long, global = true, value_name = "FILE", env = "DOWNRIVER_CA")]
    ca: Option<PathBuf>,
    /// The certificate to show to the node (PEM), if it asks for one.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "DOWNRIVER_CERTIFICATE",
        requires = "key"
    )]
    certificate: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "DOWNRIVER_KEY",
        requires = "certificate"
    )]
    key: Option<PathBuf>,
    /// A file with the node's token. Default: the token in DOWNRIVER_TOKEN, if there is one.
    #[arg(long, global = true, value_name = "FILE", env = "DOWNRIVER_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

/// TCP and TLS.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A node from which nothing comes for so long, not even that it is there, is not there.
const ALIVE_WITHIN: Duration = Duration::from_secs(20);

type Service = InterceptedService<Channel, Bearer>;

pub(super) struct Client {
    pub(super) admin: AdminServiceClient<Service>,
    pub(super) log: LogServiceClient<Service>,
}

/// Sends the token, if there is one, with every call.
#[derive(Clone)]
pub(super) struct Bearer(Option<AsciiMetadataValue>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// Why a command did not do what it should.
#[derive(Debug)]
pub(super) enum Failure {
    /// Bad usage: exit code 2.
    Usage(String),
    Problems(Vec<pb::Problem>),
    Other(String),
    /// Everything was said already.
    Silent,
}

impl Reach {
    fn endpoint(&self) -> Result<Endpoint, Failure> {
        let over_tls = self.ca.is_some() || self.certificate.is_some();
        let url = match (self.addr.contains("://"), over_tls) {
            (true, _) => self.addr.clone(),
            (false, true) => format!("https://{}", self.addr),
            (false, false) => format!("http://{}", self.addr),
        };
        if over_tls && url.starts_with("http://") {
            return Err(Failure::Usage(format!(
                "{url} is not over TLS: write https://, or give neither --ca nor --certificate"
            )));
        }
        let is_tls = url.starts_with("https://");
        let endpoint = Endpoint::from_shared(url)
            .map_err(|_| Failure::Usage(format!("{:?} is not an address", self.addr)))?
            .connect_timeout(CONNECT_WITHIN)
            .http2_keep_alive_interval(ALIVE_WITHIN / 2)
            .keep_alive_timeout(ALIVE_WITHIN / 2);
        if !is_tls {
            return Ok(endpoint);
        }
        let mut tls = match &self.ca {
            Some(ca) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let (Some(certificate), Some(key)) = (&self.certificate, &self.key) {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        let endpoint = endpoint.tls_config(tls);
        endpoint.map_err(|error| Failure::Usage(format!("TLS cannot be used: {error}")))
    }

    /// The token, for a node that is reached over TLS or is on this machine: anybody between could read it.
    fn bearer(&self, to: &Endpoint) -> Result<Bearer, Failure> {
        let token = match &self.token_file {
            Some(file) => String::from_utf8_lossy(&read(file)?).into_owned(),
            None => std::env::var("DOWNRIVER_TOKEN").unwrap_or_default(),
        };
        let token = token.trim();
        if token.is_empty() {
            return Ok(Bearer(None));
        }
        let is_open = to.uri().scheme_str() != Some("https") && !is_local(to);
        if is_open {
            return Err(Failure::Usage(format!(
                "the token would be sent to {} where others can read it: write https://, or give --ca",
                self.addr
            )));
        }
        let mut value = AsciiMetadataValue::try_from(format!("Bearer {token}"))
            .map_err(|_| Failure::Usage("the token has characters that cannot be sent".into()))?;
        value.set_sensitive(true);
        Ok(Bearer(Some(value)))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = std::fs::read(path);
    bytes.map_err(|error| Failure::Usage(format!("{} cannot be read: {error}", path.display())))
}

fn is_local(to: &Endpoint) -> bool {
    let host = to.uri().host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = host.parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The innermost reason.
fn reason(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

impl Client {
    pub(super) async fn connect(reach: Reach) -> Result<Self, Failure> {
        let endpoint = reach.endpoint()?;
        let bearer = reach.bearer(&endpoint)?;
        let channel = endpoint.connect_with_connector(tcp(CONNECT_WITHIN)).await;
        let channel = channel.map_err(|error| {
            Failure::Other(format!(
                "no downriver answers at {} ({}): start one with downriver dev, or give --addr",
                reach.addr,
                reason(&error)
            ))
        })?;
        Ok(Self {
            admin: AdminServiceClient::with_interceptor(channel.clone(), bearer.clone())
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX),
            log: LogServiceClient::with_interceptor(channel, bearer)
                .max_decoding_message_size(MESSAGE_BYTES_MAX),
        })
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        match (of_status(&status), std::error::Error::source(&status)) {
            (Some(problem), _) => Self::Problems(vec![problem]),
            (None, Some(ended)) => Self::Other(format!(
                "the connection with the node ended ({}): see whether it runs, can be reached, and lets this caller in",
                reason(ended)
            )),
            (None, None) => Self::Other(format!("{}: {}", status.code(), status.message())),
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Problems(vec![to_pb(&problem)])
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        // Whoever read our output has enough.
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::Silent
        } else {
            Self::Other(error.to_string())
        }
    }
}

impl Failure {
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }

    pub(super) fn print(&self) {
        match self {
            Self::Usage(text) | Self::Other(text) => eprintln!("downriver: {text}"),
            Self::Problems(problems) => problems
                .iter()
                .for_each(|problem| print_problem("error", problem)),
            Self::Silent => {}
        }
    }
}

/// Code, place, reason and fix on standard error.
pub(super) fn print_problem(severity: &str, problem: &pb::Problem) {
    let place = if problem.field.is_empty() {
        String::new()
    } else {
        format!(" at {}", problem.field)
    };
    eprintln!("{severity} {}{place}: {}", problem.code, problem.reason);
    eprintln!("  fix: {}", problem.fix);
}
