//! Backups of the cluster: taken through a node that runs, restored where none does.

use std::path::PathBuf;
use std::time::SystemTime;

use downriver_api::admin::v1 as pb;
use serde_json::{Value, json};

use super::client::{Client, Failure};
use super::show::print;
use super::{Output, render};
use crate::server;

#[derive(clap::Args, Debug)]
pub(super) struct Restore {
    /// The file of the node that others join.
    #[arg(long)]
    config: PathBuf,
    /// The key of the backup; default: the newest.
    #[arg(long, value_name = "KEY")]
    backup: Option<String>,
    /// Only list those that are there.
    #[arg(long, conflicts_with = "backup")]
    list: bool,
    #[arg(short, long, default_value = "table")]
    output: Output,
}

/// A backup as it is shown.
struct Shown {
    key: String,
    taken: Option<SystemTime>,
    bytes: u64,
}

/// Takes one, or lists those that are there.
pub(super) async fn run(client: &mut Client, list: bool, output: Output) -> Result<(), Failure> {
    let backups = if list {
        let backups = client.admin.backups(pb::BackupsRequest {}).await?;
        backups.into_inner().backups
    } else {
        let taken = client.admin.back_up(pb::BackUpRequest {}).await?;
        taken.into_inner().backup.into_iter().collect()
    };
    let shown = backups.into_iter().map(|backup| Shown {
        taken: backup.taken.and_then(|taken| taken.try_into().ok()),
        key: backup.key,
        bytes: backup.bytes,
    });
    show(&shown.collect::<Vec<_>>(), output)
}

fn show(backups: &[Shown], output: Output) -> Result<(), Failure> {
    let taken = |backup: &Shown| {
        let since = backup.taken?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(render::timestamp(i64::try_from(since.as_micros()).ok()?))
    };
    let row = |backup: &Shown| {
        vec![
            backup.key.clone(),
            taken(backup).unwrap_or_default(),
            format!("{} KiB", backup.bytes.div_ceil(1024)),
        ]
    };
    let rows: Vec<_> = backups.iter().map(row).collect();
    let values = backups
        .iter()
        .map(|backup| json!({ "key": backup.key, "taken": taken(backup), "bytes": backup.bytes }));
    let table = render::table(&["BACKUP", "TAKEN", "SIZE"], &rows);
    print(&table, &values.collect(), output)
}

/// Makes the data folder of a node's file one of a new cluster.
pub(super) async fn restore(arguments: Restore) -> Result<(), Failure> {
    let failed = |error: anyhow::Error| Failure::Other(format!("{error:#}"));
    let options = server::config::read(&arguments.config).map_err(failed)?;
    if arguments.list {
        let backups = server::restore::backups(&options).await.map_err(failed)?;
        let shown = backups.into_iter().map(|backup| Shown {
            key: backup.key,
            taken: Some(backup.taken),
            bytes: backup.bytes,
        });
        return show(&shown.collect::<Vec<_>>(), arguments.output);
    }
    let restored = server::restore::run(options, arguments.backup.as_deref()).await;
    let restored = restored.map_err(failed)?;
    let rows = restored.streams.iter().map(|stream| {
        vec![
            stream.stream.clone(),
            stream.incarnation.0.to_string(),
            stream.from.to_string(),
            stream.next.to_string(),
            match stream.is_cut {
                true => "older events were deleted since".to_owned(),
                false => String::new(),
            },
        ]
    });
    let header = ["LOG", "INCARNATION", "FROM", "NEXT", "NOTE"];
    let table = render::table(&header, &rows.collect::<Vec<_>>());
    let values: Value = restored
        .streams
        .iter()
        .map(|stream| {
            json!({
                "log": stream.stream,
                "incarnation": stream.incarnation.0,
                "from": stream.from.0,
                "next": stream.next.0,
                "is_cut": stream.is_cut,
            })
        })
        .collect();
    print(&table, &values, arguments.output)?;
    eprintln!(
        "{} is restored. Start this node, then the others, which join it with empty data folders; then see downriver status: \
         a table whose changes are lost needs downriver resnapshot",
        restored.backup.key
    );
    Ok(())
}
