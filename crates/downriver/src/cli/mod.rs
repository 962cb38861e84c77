//! The command line: every command but `dev` and `server` is a thin call of the gRPC API.
//!
//! Exit codes: 0 done, 1 failed, 2 bad usage.

mod backups;
mod client;
mod cluster;
mod groups;
mod pipelines;
mod render;
mod resources;
mod show;
mod tail;
mod verify;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use downriver_api::admin::v1 as pb;
use downriver_cluster::{Backups, Retention};
use downriver_log::store::S3Options;
use downriver_service::spec::{parse_bytes, parse_duration};

use crate::server;
use client::{Client, Failure, Reach};

#[derive(Parser, Debug)]
#[command(
    name = "downriver",
    version,
    about = "Change data capture from PostgreSQL into a durable, replayable log and Iceberg tables"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// One node with everything embedded.
    Dev(Dev),
    /// A node of a cluster.
    Server {
        #[arg(long)]
        config: PathBuf,
    },
    /// Plan, show the difference, apply.
    Apply {
        #[arg(short, long)]
        file: PathBuf,
        /// Only show what would be done.
        #[arg(long)]
        dry_run: bool,
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// List resources of a kind.
    Get {
        kind: KindName,
        name: Option<String>,
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// Everything about one resource.
    Describe {
        kind: KindName,
        name: String,
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// Delete a resource and what was made for it.
    Delete {
        kind: KindName,
        name: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// Stop delivering, to the whole pipeline or some of its tables. The log is kept meanwhile.
    Pause(pipelines::Selection),
    /// Go on delivering.
    Resume(pipelines::Selection),
    /// Take the snapshot again, while changes flow on; rows that are gone at the source go at its end.
    Resnapshot(pipelines::Resnapshot),
    /// Return when everything committed at the source before the call is delivered.
    Wait(pipelines::Wait),
    /// Compare source and target row by row.
    Verify(pipelines::Selection),
    /// Read a source's log.
    Tail(tail::Tail),
    /// Lag, throughput and health of everything.
    Status {
        #[arg(long)]
        watch: bool,
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// The cluster: let a node in, take one out, let another lead; backups.
    Cluster {
        #[command(subcommand)]
        command: cluster::ClusterCommand,
    },
    /// Preflight: what is missing on the database, with the fix.
    Check {
        #[arg(short, long)]
        file: PathBuf,
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
}

#[derive(clap::Args, Debug)]
struct Dev {
    #[arg(long, default_value = "./downriver-data")]
    data: PathBuf,
    /// Object store: file:///folder or s3://bucket/prefix. Default: a folder under the data folder.
    #[arg(long)]
    store: Option<String>,
    /// S3 endpoint, if it is not AWS's; keys and region come from the environment.
    #[arg(long, env = "DOWNRIVER_S3_ENDPOINT")]
    s3_endpoint: Option<String>,
    #[arg(long, default_value = "127.0.0.1:7070")]
    grpc: SocketAddr,
    #[arg(long, default_value = "127.0.0.1:7071")]
    http: SocketAddr,
    /// How long the log is kept after every pipeline has read it.
    #[arg(long, value_name = "AGE", default_value = "7d", value_parser = age)]
    retention: Duration,
    /// How large a source's log may grow after every pipeline has read it, such as 100GiB. Default: no limit.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    retention_bytes: Option<u64>,
    /// How long the log is kept for a pipeline that does not read it.
    #[arg(long, value_name = "AGE", default_value = "30d", value_parser = age)]
    retention_max: Duration,
}

fn age(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write a whole number with s, m, h or d: 7d".into())
}

fn bytes(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| "write a whole number with MiB, GiB or TiB: 100GiB".into())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KindName {
    #[value(alias = "source")]
    Sources,
    #[value(alias = "sink")]
    Sinks,
    #[value(alias = "pipeline")]
    Pipelines,
    #[value(alias = "table")]
    Tables,
    #[value(alias = "node")]
    Nodes,
    #[value(alias = "group")]
    Groups,
}

impl KindName {
    /// The kind of resource, if it is one.
    fn resource(self) -> Option<pb::Kind> {
        match self {
            Self::Sources => Some(pb::Kind::Source),
            Self::Sinks => Some(pb::Kind::Sink),
            Self::Pipelines => Some(pb::Kind::Pipeline),
            Self::Tables | Self::Nodes | Self::Groups => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
    Yaml,
}

pub(crate) async fn run(arguments: Arguments) -> ExitCode {
    let done = match arguments.command {
        Command::Dev(dev) => run_dev(dev).await,
        Command::Server { config } => run_server(&config).await,
        Command::Cluster {
            command: cluster::ClusterCommand::Restore(restore),
        } => backups::restore(restore).await,
        command => match Client::connect(arguments.reach).await {
            Ok(client) => run_client(command, client).await,
            Err(failure) => Err(failure),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            failure.exit_code()
        }
    }
}

async fn run_server(config: &std::path::Path) -> Result<(), Failure> {
    let run = async { server::run(server::config::read(config)?).await };
    let done: anyhow::Result<()> = run.await;
    done.map_err(|error| Failure::Other(format!("{error:#}")))
}

async fn run_dev(dev: Dev) -> Result<(), Failure> {
    let path_style = dev.s3_endpoint.is_some();
    let options = server::NodeOptions {
        data: dev.data,
        store: dev.store,
        s3: S3Options {
            endpoint: dev.s3_endpoint,
            path_style,
            ..S3Options::default()
        },
        grpc: dev.grpc,
        http: dev.http,
        access: server::AccessOptions::default(),
        retention: Retention {
            max_age: dev.retention,
            max_bytes: dev.retention_bytes,
            protected_max_age: dev.retention_max,
        },
        backups: Backups::default(),
        cluster: None,
    };
    server::run(options)
        .await
        .map_err(|error| Failure::Other(format!("{error:#}")))
}

async fn run_client(command: Command, client: Client) -> Result<(), Failure> {
    match command {
        Command::Dev(_) | Command::Server { .. } => {
            unreachable!("they need no client")
        }
        Command::Apply {
            file,
            dry_run,
            output,
        } => resources::apply(client, &file, dry_run, output).await,
        Command::Get { kind, name, output } => show::get(client, kind, name, output).await,
        Command::Describe { kind, name, output } => {
            show::describe(client, kind, &name, output).await
        }
        Command::Delete {
            kind,
            name,
            yes,
            output,
        } => resources::delete(client, kind, &name, yes, output).await,
        Command::Pause(selection) => pipelines::pause(client, selection).await,
        Command::Resume(selection) => pipelines::resume(client, selection).await,
        Command::Resnapshot(resnapshot) => pipelines::resnapshot(client, resnapshot).await,
        Command::Wait(wait) => pipelines::wait(client, wait).await,
        Command::Verify(selection) => verify::run(client, selection).await,
        Command::Tail(tail) => tail::run(client, tail).await,
        Command::Status { watch, output } => show::status(client, watch, output).await,
        Command::Cluster { command } => cluster::run(command, client).await,
        Command::Check { file, output } => resources::check(client, &file, output).await,
    }
}
