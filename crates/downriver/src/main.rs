//! Downriver: one binary that is the node and its command line.

mod cli;
mod server;

use std::process::ExitCode;

use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    keep_pages_small();
    let arguments = cli::Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| {
                // Raft says of each attempt to reach a node that it failed; the cluster says when a node is lost.
                "warn,openraft=off,downriver=info,downriver_pipeline=info,downriver_cluster=info"
                    .into()
            }),
        )
        .with_writer(std::io::stderr)
        .init();
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing installed a provider before");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(cli::run(arguments)),
        Err(error) => {
            eprintln!("downriver: no threads can be started: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Huge pages, which the allocator asks for, would be cleared and kept whole where a few kilobytes of them are used: without
/// them a node under load has half the memory, and takes less time.
fn keep_pages_small() {
    // A kernel that has none refuses.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}
