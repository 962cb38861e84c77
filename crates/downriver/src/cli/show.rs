//! get, describe, status: what there is and how it does, as tables, JSON or YAML.

use std::io::{IsTerminal as _, Write as _};

use downriver_api::admin::v1 as pb;
use downriver_event::problem::Problem;
use serde_json::{Value, json};

use super::client::{Client, Failure};
use super::{KindName, Output, groups, render};

pub(super) fn kind_name(kind: i32) -> &'static str {
    match pb::Kind::try_from(kind) {
        Ok(pb::Kind::Source) => "source",
        Ok(pb::Kind::Sink) => "sink",
        Ok(pb::Kind::Pipeline) => "pipeline",
        _ => "resource",
    }
}

async fn list(client: &mut Client, kind: pb::Kind) -> Result<Vec<pb::Resource>, Failure> {
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListRequest {
            kind: kind as i32,
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

async fn one(client: &mut Client, kind: pb::Kind, name: &str) -> Result<pb::Resource, Failure> {
    let request = pb::GetRequest {
        kind: kind as i32,
        name: name.to_owned(),
    };
    let resource = client.admin.get(request).await?.into_inner().resource;
    resource.ok_or_else(|| Failure::Other("the node answered nothing".into()))
}

/// A table of a source or of a pipeline.
struct OwnedTable {
    kind: &'static str,
    owner: String,
    status: pb::TableStatus,
}

async fn owned_tables(client: &mut Client, name: Option<&str>) -> Result<Vec<OwnedTable>, Failure> {
    let mut owners = list(client, pb::Kind::Source).await?;
    owners.extend(list(client, pb::Kind::Pipeline).await?);
    let tables = owners.into_iter().flat_map(|owner| {
        let kind = kind_name(owner.kind);
        let tables = owner.status.unwrap_or_default().tables.into_iter();
        tables.map(move |status| OwnedTable {
            kind,
            owner: owner.name.clone(),
            status,
        })
    });
    let tables: Vec<OwnedTable> = tables
        .filter(|table| name.is_none_or(|name| table.status.table == name))
        .collect();
    match name {
        Some(name) if tables.is_empty() => Err(not_there("table", name)),
        _ => Ok(tables),
    }
}

async fn nodes(client: &mut Client, id: Option<&str>) -> Result<Vec<pb::Node>, Failure> {
    let mut nodes = client.admin.nodes(pb::NodesRequest {}).await?.into_inner();
    if let Some(id) = id {
        nodes
            .nodes
            .retain(|node| node.name == id || node.id.to_string() == id);
        if nodes.nodes.is_empty() {
            return Err(not_there("node", id));
        }
    }
    Ok(nodes.nodes)
}

fn not_there(kind: &str, name: &str) -> Failure {
    Problem::new(
        "DR-2020",
        format!("there is no {kind} {name:?}"),
        format!("see downriver get {kind}s"),
    )
    .into()
}

pub(super) async fn get(
    mut client: Client,
    kind: KindName,
    name: Option<String>,
    output: Output,
) -> Result<(), Failure> {
    let name = name.as_deref();
    let (table, values) = match (kind, kind.resource()) {
        (_, Some(kind)) => {
            let resources = match name {
                Some(name) => vec![one(&mut client, kind, name).await?],
                None => list(&mut client, kind).await?,
            };
            let values = resources.iter().map(to_json).collect();
            (overview(kind, &resources), values)
        }
        (KindName::Tables, None) => {
            let tables = owned_tables(&mut client, name).await?;
            let values = tables.iter().map(owned_json).collect();
            (owned_overview(&tables), values)
        }
        (KindName::Nodes, None) => {
            let nodes = nodes(&mut client, name).await?;
            let values = nodes.iter().map(node_json).collect();
            (node_overview(&nodes), values)
        }
        _ => {
            let groups = groups::groups(&mut client, name).await?;
            let values = groups.iter().map(groups::to_json).collect();
            (groups::overview(&groups), values)
        }
    };
    print(&table, &Value::Array(values), output)
}

pub(super) async fn describe(
    mut client: Client,
    kind: KindName,
    name: &str,
    output: Output,
) -> Result<(), Failure> {
    let (table, value) = match (kind, kind.resource()) {
        (_, Some(kind)) => {
            let resource = one(&mut client, kind, name).await?;
            let mut text = overview(kind, std::slice::from_ref(&resource));
            if kind != pb::Kind::Sink {
                text.push('\n');
                text.push_str(&tables(&resource));
            }
            text.push_str(&problem_lines(
                resource.status.as_ref().and_then(|s| s.problem.as_ref()),
            ));
            text.push_str(&resource.status.as_ref().map(kept_lines).unwrap_or_default());
            (text, to_json(&resource))
        }
        (KindName::Tables, None) => {
            let tables = owned_tables(&mut client, Some(name)).await?;
            let mut text = owned_overview(&tables);
            for table in &tables {
                text.push_str(&problem_lines(table.status.problem.as_ref()));
            }
            (text, tables.iter().map(owned_json).collect())
        }
        (KindName::Nodes, None) => {
            let nodes = nodes(&mut client, Some(name)).await?;
            let value = nodes.first().map_or(Value::Null, node_json);
            (node_overview(&nodes), value)
        }
        _ => {
            let groups = groups::groups(&mut client, Some(name)).await?;
            (
                groups::overview(&groups),
                groups.iter().map(groups::to_json).collect(),
            )
        }
    };
    print(&table, &value, output)
}

/// What is running, and sinks that cannot be used.
fn is_shown(resource: &pb::Resource) -> bool {
    resource.kind() != pb::Kind::Sink
        || resource
            .status
            .as_ref()
            .is_some_and(|status| status.problem.is_some())
}

pub(super) async fn status(mut client: Client, watch: bool, output: Output) -> Result<(), Failure> {
    if !watch {
        let mut resources = Vec::new();
        for kind in [pb::Kind::Source, pb::Kind::Pipeline, pb::Kind::Sink] {
            resources.extend(list(&mut client, kind).await?);
        }
        resources.retain(is_shown);
        let values = resources.iter().map(to_json).collect();
        return print(&health(&resources), &values, output);
    }
    let request = pb::WatchRequest {
        kind: pb::Kind::Unspecified as i32,
        name: String::new(),
    };
    let mut updates = client.admin.watch(request).await?.into_inner();
    let in_place = std::io::stdout().is_terminal();
    while let Some(update) = updates.message().await? {
        let mut resources = update.resources;
        resources.retain(is_shown);
        resources.sort_by_key(|resource| match resource.kind() {
            pb::Kind::Source => 0,
            pb::Kind::Pipeline => 1,
            _ => 2,
        });
        let text = match output {
            Output::Table => {
                let mut text = if in_place {
                    "\x1b[H\x1b[2J".to_owned()
                } else {
                    String::new()
                };
                text.push_str(&health(&resources));
                for resource in &resources {
                    text.push_str(&format!(
                        "\n{} {}\n",
                        kind_name(resource.kind),
                        resource.name
                    ));
                    text.push_str(&tables(resource));
                }
                text
            }
            // One document an update, each on a line of its own.
            _ => format!("{}\n", resources.iter().map(to_json).collect::<Value>()),
        };
        std::io::stdout().write_all(text.as_bytes())?;
        std::io::stdout().flush()?;
    }
    Ok(())
}

pub(super) fn print(table: &str, value: &Value, output: Output) -> Result<(), Failure> {
    match output {
        Output::Table => Ok(std::io::stdout().write_all(table.as_bytes())?),
        _ => print_value(value, output),
    }
}

pub(super) fn print_value(value: &Value, output: Output) -> Result<(), Failure> {
    let text = match output {
        Output::Yaml => {
            serde_yaml_ng::to_string(value).map_err(|error| Failure::Other(error.to_string()))?
        }
        _ => format!("{value:#}\n"),
    };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

// ---- JSON

fn spec(resource: &pb::Resource) -> Value {
    serde_json::from_str(&resource.spec_json).unwrap_or(Value::Null)
}

fn to_json(resource: &pb::Resource) -> Value {
    let status = resource.status.clone().unwrap_or_default();
    let mut value = json!({
        "kind": kind_name(resource.kind),
        "name": resource.name,
        "etag": resource.etag,
        "spec": spec(resource),
        "state": status.state,
    });
    if resource.kind() != pb::Kind::Sink {
        value["next_offset"] = json!(status.next_offset);
        value["events"] = json!(status.events);
        value["rows_per_second"] = json!(status.rows_per_second.round());
        let of = resource.kind();
        value["tables"] = status.tables.iter().map(|t| table_json(of, t)).collect();
    }
    match resource.kind() {
        pb::Kind::Source => {
            value["position"] = json!(status.position);
            value["acknowledged_position"] = json!(status.acknowledged_position);
            value["slot"] = status.slot.as_ref().map_or(Value::Null, slot_json);
            value["binlog"] = status.binlog.as_ref().map_or(Value::Null, binlog_json);
            if let Some(warning) = &status.warning {
                value["warning"] = json!({
                    "code": warning.code,
                    "reason": warning.reason,
                    "fix": warning.fix,
                });
            }
        }
        pb::Kind::Pipeline => {
            value["delivered_offset"] = json!(status.delivered_offset);
            value["lag_seconds"] = json!(status.lag.as_ref().map(seconds));
        }
        _ => {}
    }
    add_problem(&mut value, status.problem.as_ref());
    value
}

fn slot_json(slot: &pb::Slot) -> Value {
    let mut value = json!({
        "wal_status": slot.wal_status,
        "retained_bytes": slot.retained_bytes,
        "safe_bytes": slot.safe_bytes,
        "catalog_xmin_age": slot.catalog_xmin_age,
        "active": slot.active,
    });
    if !slot.invalidation_reason.is_empty() {
        value["invalidation_reason"] = json!(slot.invalidation_reason);
    }
    value
}

fn binlog_json(binlog: &pb::Binlog) -> Value {
    json!({
        "behind_seconds": binlog.behind.as_ref().map(seconds),
        "behind_bytes": binlog.behind_bytes,
        "kept_bytes": binlog.kept_bytes,
        "safe_seconds": binlog.safe.as_ref().map(seconds),
        "safe_bytes": binlog.safe_bytes,
    })
}

fn seconds(duration: &prost_types::Duration) -> f64 {
    let millis = duration.seconds * 1_000 + i64::from(duration.nanos / 1_000_000);
    millis as f64 / 1_000.0
}

fn table_json(of: pb::Kind, table: &pb::TableStatus) -> Value {
    let mut value = json!({ "table": table.table, "state": table.state });
    if of == pb::Kind::Pipeline {
        value["target"] = json!(table.target);
        value["delivered_offset"] = json!(table.delivered_offset);
    }
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

fn owned_json(table: &OwnedTable) -> Value {
    let kind = if table.kind == "pipeline" {
        pb::Kind::Pipeline
    } else {
        pb::Kind::Source
    };
    let mut value = table_json(kind, &table.status);
    value["kind"] = json!(table.kind);
    value["name"] = json!(table.owner);
    value
}

fn node_json(node: &pb::Node) -> Value {
    let mut value = json!({
        "id": node.id,
        "name": node.name,
        "state": node.state,
        "runs": node.runs,
        "peer": node.peer,
        "version": node.version,
        "grpc": node.grpc,
        "http": node.http,
        "store": node.store,
    });
    if let Some(behind) = node.behind {
        value["behind"] = json!(behind);
    }
    add_problem(&mut value, node.problem.as_ref());
    value
}

pub(super) fn add_problem(value: &mut Value, problem: Option<&pb::Problem>) {
    if let Some(problem) = problem {
        value["code"] = json!(problem.code);
        value["reason"] = json!(problem.reason);
        value["fix"] = json!(problem.fix);
    }
}

// ---- tables

fn problem(problem: Option<&pb::Problem>) -> String {
    problem.map_or_else(String::new, |p| format!("{}: {}", p.code, p.reason))
}

fn problem_or_warning(status: &pb::Status) -> String {
    problem(status.problem.as_ref().or(status.warning.as_ref()))
}

/// What the database keeps for a source in one line, and what will become of it.
fn kept_lines(status: &pb::Status) -> String {
    let mut text = status.binlog.as_ref().map(binlog_line).unwrap_or_default();
    if let Some(slot) = &status.slot {
        let mib = |bytes: u64| bytes >> 20;
        let safe = slot.safe_bytes.map_or_else(String::new, |safe| {
            format!(", {} MiB more may be written", mib(safe))
        });
        text = format!(
            "\nslot: {} {}, {} MiB of WAL kept{safe}, catalog rows of the last {} transactions kept\n",
            if slot.active { "read," } else { "not read," },
            slot.wal_status,
            mib(slot.retained_bytes),
            slot.catalog_xmin_age
        );
    }
    text.push_str(&problem_lines(status.warning.as_ref()));
    text
}

fn binlog_line(binlog: &pb::Binlog) -> String {
    let mib = |bytes: u64| bytes >> 20;
    let behind = binlog.behind.as_ref().map(|d| format!("{} s", d.seconds));
    let bytes = binlog
        .behind_bytes
        .map(|bytes| format!("{} MiB", mib(bytes)));
    let behind: Vec<String> = behind.into_iter().chain(bytes).collect();
    let behind = match behind.is_empty() {
        true => "not known how far behind".to_owned(),
        false => format!("{} behind", behind.join(", ")),
    };
    let safe = binlog.safe.as_ref();
    let safe = safe.map_or_else(String::new, |safe| {
        format!(
            ", what is behind stays for {} min at least",
            safe.seconds / 60
        )
    });
    let safe_bytes = binlog.safe_bytes.map_or_else(String::new, |safe| {
        format!(", {} MiB more may be logged", mib(safe))
    });
    let kept = mib(binlog.kept_bytes);
    format!("\nbinlog: {behind}, {kept} MiB kept{safe}{safe_bytes}\n")
}

fn problem_lines(problem: Option<&pb::Problem>) -> String {
    problem.map_or_else(String::new, |p| {
        format!("\n{}: {}\n  fix: {}\n", p.code, p.reason, p.fix)
    })
}

fn lag(status: &pb::Status) -> String {
    let lag = status.lag.as_ref().map(seconds);
    lag.map_or_else(String::new, |lag| format!("{lag:.1} s"))
}

fn overview(kind: pb::Kind, resources: &[pb::Resource]) -> String {
    let rows = |row: fn(&pb::Resource, pb::Status) -> Vec<String>| -> Vec<Vec<String>> {
        resources
            .iter()
            .map(|resource| row(resource, resource.status.clone().unwrap_or_default()))
            .collect()
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match kind {
        pb::Kind::Sink => {
            let header = ["NAME", "STATE", "CATALOG", "WAREHOUSE", "PROBLEM"];
            let rows = resources.iter().map(|resource| {
                let status = resource.status.clone().unwrap_or_default();
                let iceberg = &spec(resource)["iceberg"];
                let catalog = match &iceberg["catalog"]["rest"]["uri"] {
                    Value::String(uri) => uri.clone(),
                    _ => "builtin".to_owned(),
                };
                vec![
                    resource.name.clone(),
                    status.state,
                    catalog,
                    text(&iceberg["warehouse"]),
                    problem(status.problem.as_ref()),
                ]
            });
            render::table(&header, &rows.collect::<Vec<_>>())
        }
        pb::Kind::Pipeline => {
            let header = [
                "NAME",
                "STATE",
                "SOURCE",
                "SINK",
                "TABLES",
                "DELIVERED",
                "OF",
                "LAG",
                "ROWS/S",
                "PROBLEM",
            ];
            let rows = rows(|resource, status| {
                let spec = spec(resource);
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                vec![
                    resource.name.clone(),
                    status.state.clone(),
                    text(&spec["source"]),
                    text(&spec["sink"]),
                    status.tables.len().to_string(),
                    status.delivered_offset.to_string(),
                    status.next_offset.to_string(),
                    lag(&status),
                    format!("{:.0}", status.rows_per_second),
                    problem(status.problem.as_ref()),
                ]
            });
            render::table(&header, &rows)
        }
        _ => {
            let header = [
                "NAME",
                "STATE",
                "TABLES",
                "OFFSET",
                "POSITION",
                "ACKNOWLEDGED",
                "ROWS/S",
                "PROBLEM",
            ];
            let rows = rows(|resource, status| {
                vec![
                    resource.name.clone(),
                    status.state.clone(),
                    status.tables.len().to_string(),
                    status.next_offset.to_string(),
                    status.position.clone(),
                    status.acknowledged_position.clone(),
                    format!("{:.0}", status.rows_per_second),
                    problem_or_warning(&status),
                ]
            });
            render::table(&header, &rows)
        }
    }
}

/// Everything that runs in one table.
fn health(resources: &[pb::Resource]) -> String {
    let header = [
        "KIND", "NAME", "STATE", "TABLES", "OFFSET", "LAG", "ROWS/S", "POSITION", "PROBLEM",
    ];
    let rows = resources.iter().map(|resource| {
        let status = resource.status.clone().unwrap_or_default();
        let offset = match resource.kind() {
            pb::Kind::Pipeline => format!("{} of {}", status.delivered_offset, status.next_offset),
            _ => status.next_offset.to_string(),
        };
        vec![
            kind_name(resource.kind).to_owned(),
            resource.name.clone(),
            status.state.clone(),
            status.tables.len().to_string(),
            offset,
            lag(&status),
            format!("{:.0}", status.rows_per_second),
            status.position.clone(),
            problem_or_warning(&status),
        ]
    });
    render::table(&header, &rows.collect::<Vec<_>>())
}

/// How far a snapshot is, or what is wrong.
fn remark(table: &pb::TableStatus) -> String {
    let unfinished = table
        .snapshot
        .as_ref()
        .filter(|s| s.rows_done < s.rows_estimated);
    match (unfinished, &table.problem) {
        (Some(s), _) => {
            let left = s
                .time_left
                .map_or_else(String::new, |left| format!(", {} s left", left.seconds));
            format!(
                "{} of {} rows, {:.0} rows/s{left}",
                s.rows_done, s.rows_estimated, s.rows_per_second
            )
        }
        (None, Some(p)) => format!("{}: {}; fix: {}", p.code, p.reason, p.fix),
        (None, None) => String::new(),
    }
}

fn tables(resource: &pb::Resource) -> String {
    let status = resource.status.clone().unwrap_or_default();
    if resource.kind() == pb::Kind::Pipeline {
        let rows = status.tables.iter().map(|table| {
            vec![
                table.table.clone(),
                table.state.clone(),
                table.target.clone(),
                table.delivered_offset.to_string(),
                remark(table),
            ]
        });
        let header = ["TABLE", "STATE", "TARGET", "DELIVERED", ""];
        return render::table(&header, &rows.collect::<Vec<_>>());
    }
    let rows = status
        .tables
        .iter()
        .map(|table| vec![table.table.clone(), table.state.clone(), remark(table)]);
    render::table(&["TABLE", "STATE", ""], &rows.collect::<Vec<_>>())
}

fn owned_overview(tables: &[OwnedTable]) -> String {
    let rows = tables.iter().map(|table| {
        let delivered = if table.kind == "pipeline" {
            table.status.delivered_offset.to_string()
        } else {
            String::new()
        };
        vec![
            table.kind.to_owned(),
            table.owner.clone(),
            table.status.table.clone(),
            table.status.state.clone(),
            table.status.target.clone(),
            delivered,
            remark(&table.status),
        ]
    });
    let header = ["KIND", "NAME", "TABLE", "STATE", "TARGET", "DELIVERED", ""];
    render::table(&header, &rows.collect::<Vec<_>>())
}

fn node_overview(nodes: &[pb::Node]) -> String {
    let rows = nodes.iter().map(|node| {
        vec![
            node.name.clone(),
            node.id.to_string(),
            node.state.clone(),
            node.runs.join(" "),
            node.version.clone(),
            node.grpc.clone(),
            node.http.clone(),
            node.store.clone(),
            problem(node.problem.as_ref()),
        ]
    });
    let header = [
        "NAME", "ID", "STATE", "RUNS", "VERSION", "GRPC", "HTTP", "STORE", "",
    ];
    render::table(&header, &rows.collect::<Vec<_>>())
}
