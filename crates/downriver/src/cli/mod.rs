//! The command line: every command but `dev` is a thin call of the gRPC API.
//!
//! Exit codes: 0 done, 1 failed, 2 bad usage.

mod client;
mod render;
mod resources;
mod tail;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use downriver_log::store::S3Options;

use crate::server;
use client::{Client, Failure};

#[derive(Parser, Debug)]
#[command(
    name = "downriver",
    version,
    about = "Change data capture from PostgreSQL into a durable, replayable log"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// The node's gRPC address.
    #[arg(
        long,
        global = true,
        env = "DOWNRIVER_ADDR",
        default_value = "127.0.0.1:7070"
    )]
    addr: String,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// One node with everything embedded.
    Dev(Dev),
    /// Plan, show the difference, apply.
    Apply {
        #[arg(short, long)]
        file: PathBuf,
        /// Only show what would be done.
        #[arg(long)]
        dry_run: bool,
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
    },
    /// Read a source's log.
    Tail(tail::Tail),
    /// Lag, throughput and health of everything.
    Status {
        #[arg(long)]
        watch: bool,
        #[arg(short, long, default_value = "table")]
        output: Output,
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KindName {
    #[value(alias = "source")]
    Sources,
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
        command => match Client::connect(&arguments.addr).await {
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

async fn run_dev(dev: Dev) -> Result<(), Failure> {
    let path_style = dev.s3_endpoint.is_some();
    let options = server::DevOptions {
        data: dev.data,
        store: dev.store,
        s3: S3Options {
            endpoint: dev.s3_endpoint,
            path_style,
            ..S3Options::default()
        },
        grpc: dev.grpc,
        http: dev.http,
    };
    server::dev(options)
        .await
        .map_err(|error| Failure::Other(format!("{error:#}")))
}

async fn run_client(command: Command, client: Client) -> Result<(), Failure> {
    match command {
        Command::Dev(_) => unreachable!("dev needs no client"),
        Command::Apply { file, dry_run } => resources::apply(client, &file, dry_run).await,
        Command::Get {
            kind: KindName::Sources,
            name,
            output,
        } => resources::get(client, name, output).await,
        Command::Describe {
            kind: KindName::Sources,
            name,
            output,
        } => resources::describe(client, &name, output).await,
        Command::Delete {
            kind: KindName::Sources,
            name,
            yes,
        } => resources::delete(client, &name, yes).await,
        Command::Tail(tail) => tail::run(client, tail).await,
        Command::Status { watch, output } => resources::status(client, watch, output).await,
        Command::Check { file, output } => resources::check(client, &file, output).await,
    }
}
