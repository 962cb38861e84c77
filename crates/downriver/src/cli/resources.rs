//! apply, get, describe, delete, status, check.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

use downriver_api::admin::v1 as pb;
use downriver_service::spec::{Document, read_documents};
use serde_json::{Value, json};

use super::client::{Client, Failure, print_problem};
use super::{Output, render};

fn resources(file: &Path) -> Result<Vec<pb::Resource>, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
    read_documents(&text)?.into_iter().map(resource).collect()
}

fn resource(document: Document) -> Result<pb::Resource, Failure> {
    let kind = match document.kind.as_str() {
        "Source" => pb::Kind::Source,
        "Sink" => pb::Kind::Sink,
        "Pipeline" => pb::Kind::Pipeline,
        other => {
            return Err(Failure::Usage(format!(
                "kind {other:?} is not known: use Source, Sink or Pipeline"
            )));
        }
    };
    Ok(pb::Resource {
        kind: kind as i32,
        name: document.name,
        spec_json: document.spec.to_string(),
        ..pb::Resource::default()
    })
}

fn kind_name(kind: i32) -> &'static str {
    match pb::Kind::try_from(kind) {
        Ok(pb::Kind::Source) => "source",
        Ok(pb::Kind::Sink) => "sink",
        Ok(pb::Kind::Pipeline) => "pipeline",
        _ => "resource",
    }
}

pub(super) async fn apply(mut client: Client, file: &Path, dry_run: bool) -> Result<(), Failure> {
    let resources = resources(file)?;
    let plan = client
        .admin
        .plan(pb::PlanRequest {
            resources: resources.clone(),
        })
        .await?
        .into_inner();
    for warning in &plan.warnings {
        print_problem("warning", warning);
    }
    if !plan.problems.is_empty() {
        return Err(Failure::Problems(plan.problems));
    }
    for change in &plan.changes {
        println!(
            "{} {}: {}",
            kind_name(change.kind),
            change.name,
            change.action
        );
        for line in change.difference.lines() {
            println!("  {line}");
        }
    }
    if !dry_run
        && plan
            .changes
            .iter()
            .any(|change| change.action != "unchanged")
    {
        client.admin.apply(pb::ApplyRequest { resources }).await?;
    }
    Ok(())
}

async fn list(client: &mut Client) -> Result<Vec<pb::Resource>, Failure> {
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListRequest {
            kind: pb::Kind::Source as i32,
            page_size: 0,
            page_token,
        };
        let page = client.admin.list(request).await?.into_inner();
        all.extend(page.resources);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(all);
        }
    }
}

async fn one(client: &mut Client, name: &str) -> Result<pb::Resource, Failure> {
    let request = pb::GetRequest {
        kind: pb::Kind::Source as i32,
        name: name.to_owned(),
    };
    let resource = client.admin.get(request).await?.into_inner().resource;
    resource.ok_or_else(|| Failure::Other("the node answered nothing".into()))
}

fn to_json(resource: &pb::Resource) -> Value {
    let status = resource.status.clone().unwrap_or_default();
    let tables: Vec<Value> = status.tables.iter().map(table_json).collect();
    let mut value = json!({
        "kind": kind_name(resource.kind),
        "name": resource.name,
        "etag": resource.etag,
        "spec": serde_json::from_str::<Value>(&resource.spec_json).unwrap_or(Value::Null),
        "state": status.state,
        "position": status.position,
        "acknowledged_position": status.acknowledged_position,
        "next_offset": status.next_offset,
        "events": status.events,
        "tables": tables,
    });
    add_problem(&mut value, status.problem.as_ref());
    value
}

fn table_json(table: &pb::TableStatus) -> Value {
    let mut value = json!({ "table": table.table, "state": table.state });
    add_problem(&mut value, table.problem.as_ref());
    if let Some(snapshot) = &table.snapshot {
        value["snapshot"] = json!({
            "rows_done": snapshot.rows_done,
            "rows_estimated": snapshot.rows_estimated,
            "rows_per_second": snapshot.rows_per_second.round(),
            "seconds_left": snapshot.time_left.map(|left| left.seconds),
        });
    }
    value
}

fn add_problem(value: &mut Value, problem: Option<&pb::Problem>) {
    if let Some(problem) = problem {
        value["code"] = json!(problem.code);
        value["reason"] = json!(problem.reason);
        value["fix"] = json!(problem.fix);
    }
}

fn print_value(value: &Value, output: Output) -> Result<(), Failure> {
    let text = match output {
        Output::Yaml => {
            serde_yaml_ng::to_string(value).map_err(|error| Failure::Other(error.to_string()))?
        }
        _ => format!("{value:#}\n"),
    };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn overview(resources: &[pb::Resource]) -> String {
    let rows: Vec<Vec<String>> = resources
        .iter()
        .map(|resource| {
            let status = resource.status.clone().unwrap_or_default();
            let problem = status
                .problem
                .map_or_else(String::new, |p| format!("{}: {}", p.code, p.reason));
            vec![
                kind_name(resource.kind).to_owned(),
                resource.name.clone(),
                status.state,
                status.tables.len().to_string(),
                status.next_offset.to_string(),
                status.position,
                status.acknowledged_position,
                problem,
            ]
        })
        .collect();
    render::table(
        &[
            "KIND",
            "NAME",
            "STATE",
            "TABLES",
            "OFFSET",
            "POSITION",
            "ACKNOWLEDGED",
            "PROBLEM",
        ],
        &rows,
    )
}

fn tables(resource: &pb::Resource) -> String {
    let status = resource.status.clone().unwrap_or_default();
    let rows: Vec<Vec<String>> = status
        .tables
        .iter()
        .map(|table| {
            let progress = table
                .snapshot
                .as_ref()
                .filter(|s| s.rows_done < s.rows_estimated)
                .map(|s| {
                    let left = s
                        .time_left
                        .map_or_else(String::new, |left| format!(", {} s left", left.seconds));
                    format!(
                        "{} of {} rows, {:.0} rows/s{left}",
                        s.rows_done, s.rows_estimated, s.rows_per_second
                    )
                });
            let problem = table
                .problem
                .as_ref()
                .map(|p| format!("{}: {}; fix: {}", p.code, p.reason, p.fix));
            vec![
                table.table.clone(),
                table.state.clone(),
                progress.or(problem).unwrap_or_default(),
            ]
        })
        .collect();
    render::table(&["TABLE", "STATE", ""], &rows)
}

pub(super) async fn get(
    mut client: Client,
    name: Option<String>,
    output: Output,
) -> Result<(), Failure> {
    let resources = match name {
        Some(name) => vec![one(&mut client, &name).await?],
        None => list(&mut client).await?,
    };
    match output {
        Output::Table => Ok(std::io::stdout().write_all(overview(&resources).as_bytes())?),
        _ => print_value(&resources.iter().map(to_json).collect(), output),
    }
}

pub(super) async fn describe(
    mut client: Client,
    name: &str,
    output: Output,
) -> Result<(), Failure> {
    let resource = one(&mut client, name).await?;
    match output {
        Output::Table => {
            print!(
                "{}\n{}",
                overview(std::slice::from_ref(&resource)),
                tables(&resource)
            );
            Ok(())
        }
        _ => print_value(&to_json(&resource), output),
    }
}

pub(super) async fn delete(mut client: Client, name: &str, yes: bool) -> Result<(), Failure> {
    let request = |dry_run| pb::DeleteRequest {
        kind: pb::Kind::Source as i32,
        name: name.to_owned(),
        etag: String::new(),
        dry_run,
    };
    let would = client.admin.delete(request(true)).await?.into_inner();
    println!("deleting source {name} drops:");
    for dropped in &would.dropped {
        println!("  {dropped}");
    }
    if !yes {
        if !std::io::stdin().is_terminal() {
            return Err(Failure::Usage(
                "nobody can be asked without a terminal: give --yes".into(),
            ));
        }
        print!("delete it? [y/N] ");
        std::io::stdout().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if !answer.trim().eq_ignore_ascii_case("y") {
            return Err(Failure::Other("nothing was deleted".into()));
        }
    }
    client.admin.delete(request(false)).await?;
    println!("deleted");
    Ok(())
}

pub(super) async fn status(mut client: Client, watch: bool, output: Output) -> Result<(), Failure> {
    if !watch {
        return get(client, None, output).await;
    }
    let request = pb::WatchRequest {
        kind: pb::Kind::Unspecified as i32,
        name: String::new(),
    };
    let mut updates = client.admin.watch(request).await?.into_inner();
    let in_place = std::io::stdout().is_terminal();
    while let Some(update) = updates.message().await? {
        let mut text = if in_place {
            "\x1b[H\x1b[2J".to_owned()
        } else {
            String::new()
        };
        match output {
            Output::Table => {
                text.push_str(&overview(&update.resources));
                for resource in &update.resources {
                    text.push('\n');
                    text.push_str(&tables(resource));
                }
            }
            _ => {
                text = format!(
                    "{}\n",
                    update.resources.iter().map(to_json).collect::<Value>()
                )
            }
        }
        std::io::stdout().write_all(text.as_bytes())?;
        std::io::stdout().flush()?;
    }
    Ok(())
}

pub(super) async fn check(mut client: Client, file: &Path, output: Output) -> Result<(), Failure> {
    let resources = resources(file)?;
    let findings = client
        .admin
        .check(pb::CheckRequest { resources })
        .await?
        .into_inner()
        .findings;
    let failed = findings.iter().any(|finding| finding.severity == "error");
    if output == Output::Table {
        for finding in &findings {
            match &finding.problem {
                Some(problem) => print_problem(&finding.severity, problem),
                None => println!("ok {}", finding.subject),
            }
        }
    } else {
        let value = findings.iter().map(|finding| {
            let mut value = json!({ "severity": finding.severity, "subject": finding.subject });
            add_problem(&mut value, finding.problem.as_ref());
            value
        });
        print_value(&value.collect(), output)?;
    }
    if failed { Err(Failure::Silent) } else { Ok(()) }
}
