//! The connection to a node, and how failures are shown.

use std::process::ExitCode;

use downriver_api::admin::v1 as pb;
use downriver_api::admin::v1::admin_service_client::AdminServiceClient;
use downriver_api::log::v1::log_service_client::LogServiceClient;
use downriver_event::problem::Problem;
use downriver_service::MESSAGE_BYTES_MAX;
use downriver_service::problem::{of_status, to_pb};
use tonic::transport::{Channel, Endpoint};

pub(super) struct Client {
    pub(super) admin: AdminServiceClient<Channel>,
    pub(super) log: LogServiceClient<Channel>,
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

impl Client {
    pub(super) async fn connect(addr: &str) -> Result<Self, Failure> {
        let url = if addr.contains("://") {
            addr.to_owned()
        } else {
            format!("http://{addr}")
        };
        let endpoint = Endpoint::from_shared(url)
            .map_err(|_| Failure::Usage(format!("{addr:?} is not an address")))?;
        let channel = endpoint.connect().await.map_err(|_| {
            Failure::Other(format!(
                "no downriver answers at {addr}: start one with downriver dev, or give --addr"
            ))
        })?;
        Ok(Self {
            admin: AdminServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX),
            log: LogServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX),
        })
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        match of_status(&status) {
            Some(problem) => Self::Problems(vec![problem]),
            None => Self::Other(format!("{}: {}", status.code(), status.message())),
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
