//! pause, resume, resnapshot, wait: what is asked of a pipeline.

use std::io::Write as _;

use downriver_api::admin::v1 as pb;
use downriver_service::spec::parse_duration;
use serde_json::json;

use super::Output;
use super::client::{Client, Failure};
use super::show::print_value;

#[derive(clap::Args, Debug)]
pub(super) struct Selection {
    pub(super) pipeline: String,
    /// Tables such as public.orders, or patterns; without: the whole pipeline.
    #[arg(long, value_delimiter = ',')]
    pub(super) tables: Vec<String>,
    #[arg(short, long, default_value = "table")]
    pub(super) output: Output,
}

#[derive(clap::Args, Debug)]
pub(super) struct Resnapshot {
    #[command(flatten)]
    selection: Selection,
    /// Read just the rows whose key fulfils this, such as "tenant = 7 and id between 100 and 199".
    #[arg(long = "where", value_name = "CONDITION")]
    condition: Option<String>,
}

#[derive(clap::Args, Debug)]
pub(super) struct Wait {
    pipeline: String,
    #[arg(long = "for", default_value = "caught-up")]
    condition: Condition,
    /// How long: 500ms, 60s, 5m.
    #[arg(long, default_value = "60s")]
    timeout: String,
    #[arg(short, long, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Condition {
    /// Everything committed at the source before the call is delivered.
    CaughtUp,
}

pub(super) async fn pause(mut client: Client, selection: Selection) -> Result<(), Failure> {
    let request = pb::PauseRequest {
        pipeline: selection.pipeline.clone(),
        tables: selection.tables.clone(),
    };
    client.admin.pause(request).await?;
    say("paused", &selection)
}

pub(super) async fn resume(mut client: Client, selection: Selection) -> Result<(), Failure> {
    let request = pb::ResumeRequest {
        pipeline: selection.pipeline.clone(),
        tables: selection.tables.clone(),
    };
    client.admin.resume(request).await?;
    say("resumed", &selection)
}

fn say(done: &str, selection: &Selection) -> Result<(), Failure> {
    let (pipeline, tables) = (&selection.pipeline, &selection.tables);
    if selection.output != Output::Table {
        let value = json!({ "pipeline": pipeline, "action": done, "tables": tables });
        return print_value(&value, selection.output);
    }
    if tables.is_empty() {
        writeln!(std::io::stdout(), "pipeline {pipeline} {done}")?;
    } else {
        writeln!(
            std::io::stdout(),
            "{} of pipeline {pipeline} {done}",
            tables.join(", ")
        )?;
    }
    Ok(())
}

pub(super) async fn resnapshot(mut client: Client, resnapshot: Resnapshot) -> Result<(), Failure> {
    let selection = resnapshot.selection;
    let request = pb::ResnapshotRequest {
        pipeline: selection.pipeline.clone(),
        tables: selection.tables.clone(),
        condition: resnapshot.condition.clone(),
    };
    let tables = client.admin.resnapshot(request).await?.into_inner().tables;
    let pipeline = &selection.pipeline;
    if selection.output != Output::Table {
        let tables: Vec<_> = tables
            .iter()
            .map(|t| json!({ "table": t.table, "generation": t.generation }))
            .collect();
        let mut value = json!({ "pipeline": pipeline, "action": "resnapshot", "tables": tables });
        if let Some(condition) = &resnapshot.condition {
            value["where"] = json!(condition);
        }
        return print_value(&value, selection.output);
    }
    let part = resnapshot.condition.as_deref();
    let part = part.map_or_else(String::new, |condition| format!(" where {condition}"));
    let names: Vec<&str> = tables.iter().map(|table| table.table.as_str()).collect();
    writeln!(
        std::io::stdout(),
        "{} of pipeline {pipeline} to be read again{part}: downriver status --watch shows how far it is",
        names.join(", ")
    )?;
    Ok(())
}

pub(super) async fn wait(mut client: Client, wait: Wait) -> Result<(), Failure> {
    let Condition::CaughtUp = wait.condition;
    let timeout = parse_duration(&wait.timeout)
        .and_then(|timeout| prost_types::Duration::try_from(timeout).ok())
        .ok_or_else(|| {
            Failure::Usage(format!(
                "--timeout {:?} is not a time such as 500ms, 60s or 5m",
                wait.timeout
            ))
        })?;
    let request = pb::WaitRequest {
        offset: None,
        pipeline: wait.pipeline.clone(),
        timeout: Some(timeout),
    };
    let reached = client.admin.wait(request).await?.into_inner();
    if wait.output != Output::Table {
        let value = json!({
            "pipeline": wait.pipeline,
            "position": reached.position,
            "delivered_offset": reached.delivered_offset,
        });
        return print_value(&value, wait.output);
    }
    writeln!(
        std::io::stdout(),
        "pipeline {} is caught up with {}: offset {}",
        wait.pipeline,
        reached.position,
        reached.delivered_offset
    )?;
    Ok(())
}
