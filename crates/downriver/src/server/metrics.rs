//! What Prometheus reads, in its text format.

use std::fmt::Write as _;

use downriver_pipeline::{SourceStatus, TableState};

use super::engine::{NodeEngine, NodeFigures, PipelineView};

/// The figures of this node, and of every source and pipeline that it runs.
pub(super) fn text(engine: &NodeEngine) -> String {
    let mut text = String::new();
    write_node(&mut text, &engine.figures());
    write_sources(&mut text, &engine.sources());
    write_pipelines(&mut text, &engine.pipelines());
    text
}

fn write_node(text: &mut String, node: &NodeFigures) {
    let mut write = |(name, help): (&str, &str), value: Option<f64>| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        if let Some(value) = value {
            let _ = writeln!(text, "{name} {value}");
        }
    };
    let flag = |is: bool| Some(f64::from(u8::from(is)));
    let problem = "1 while its disk or the object store keeps the node from its work.";
    write(("downriver_node_problem", problem), flag(node.has_problem));
    let leads = "1 if the node leads the cluster.";
    write(("downriver_node_leads", leads), flag(node.leads));
    let hears = "1 if the node hears a leader that most voters hear.";
    write(
        ("downriver_node_hears_leader", hears),
        flag(node.hears_leader),
    );
    let free = "Bytes that are free on the disk of the data folder.";
    let free_bytes = node.disk_free_bytes.map(|bytes| bytes as f64);
    write(("downriver_node_disk_free_bytes", free), free_bytes);
    let age = "Age of the newest backup, by the clocks of the node and of the one that took it; at the leader only.";
    let backup = node.backup_age.map(|age| age.as_secs_f64());
    write(("downriver_backup_age_seconds", age), backup);
    let (name, help) = (
        "downriver_cluster_nodes",
        "Nodes by state, as the leader sees them; at the leader only.",
    );
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
    for (state, count) in &node.nodes {
        let _ = writeln!(text, "{name}{{state=\"{state}\"}} {count}");
    }
}

/// One metric: a line for each of what it is about. Those that have no value now have no line.
fn write_metric<T>(
    text: &mut String,
    (name, kind, help): (&str, &str, &str),
    label: &str,
    of: &[(String, T)],
    value: impl Fn(&T) -> Option<f64>,
) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (which, it) in of {
        if let Some(value) = value(it) {
            let _ = writeln!(text, "{name}{{{label}=\"{which}\"}} {value}");
        }
    }
}

/// How many of its tables are in each state.
fn write_tables<T>(
    text: &mut String,
    (name, help): (&str, &str),
    label: &str,
    of: &[(String, T)],
    states: impl Fn(&T) -> Vec<TableState>,
) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
    for (which, it) in of {
        let states = states(it);
        for state in TableState::ALL {
            let count = states.iter().filter(|one| **one == state).count();
            let state = state.name();
            let _ = writeln!(
                text,
                "{name}{{{label}=\"{which}\",state=\"{state}\"}} {count}"
            );
        }
    }
}

fn write_sources(text: &mut String, sources: &[(String, SourceStatus)]) {
    let tables = "Tables of the source by what becomes of them.";
    let metric = ("downriver_source_tables", tables);
    write_tables(text, metric, "source", sources, |s| {
        s.tables.values().map(|table| table.state).collect()
    });
    let mut write = |metric, value: fn(&SourceStatus) -> Option<f64>| {
        write_metric(text, metric, "source", sources, value);
    };
    let events = "Events captured since the start.";
    write(("downriver_source_events_total", "counter", events), |s| {
        Some(s.events as f64)
    });
    let passed = "Everything committed up to here is in the log.";
    write(("downriver_source_passed_lsn", "gauge", passed), |s| {
        Some(s.passed.as_ref()?.lsn()?.0 as f64)
    });
    let acknowledged = "The source may forget what lies before.";
    let name = "downriver_source_acknowledged_lsn";
    write((name, "gauge", acknowledged), |s| {
        Some(s.acknowledged.as_ref()?.lsn()?.0 as f64)
    });
    let retained = "Bytes of WAL that the database keeps for the slot.";
    let name = "downriver_source_slot_retained_bytes";
    write((name, "gauge", retained), |s| {
        Some(s.slot.as_ref()?.retained_bytes as f64)
    });
    let safe =
        "Bytes of WAL that may be written before the slot can be lost; no line without a limit.";
    write(("downriver_source_slot_safe_bytes", "gauge", safe), |s| {
        Some(s.slot.as_ref()?.safe_bytes? as f64)
    });
    let behind = "Age of the newest transaction that came, while there are more in the binlog; 0 when there are none.";
    write(("downriver_source_behind_seconds", "gauge", behind), |s| {
        Some(s.binlog.as_ref()?.behind?.as_secs_f64())
    });
    let behind = "Bytes of the binlog that are not captured yet.";
    write(("downriver_source_behind_bytes", "gauge", behind), |s| {
        Some(s.binlog.as_ref()?.behind_bytes? as f64)
    });
    let kept = "Bytes of its binlog that the database keeps.";
    let name = "downriver_source_binlog_kept_bytes";
    write((name, "gauge", kept), |s| {
        Some(s.binlog.as_ref()?.kept_bytes as f64)
    });
    let safe = "Seconds until the database may purge binlog that is not captured yet; no line if it purges none by age.";
    let name = "downriver_source_binlog_safe_seconds";
    write((name, "gauge", safe), |s| {
        Some(s.binlog.as_ref()?.safe?.as_secs_f64())
    });
    let safe = "Bytes that may be logged before the database may purge binlog that is not captured yet; no line without a limit.";
    let name = "downriver_source_binlog_safe_bytes";
    write((name, "gauge", safe), |s| {
        Some(s.binlog.as_ref()?.safe_bytes? as f64)
    });
    let warning = "1 while something is about to go wrong.";
    write(("downriver_source_warning", "gauge", warning), |s| {
        Some(f64::from(u8::from(s.warning.is_some())))
    });
    let problem = "1 while a problem holds it up.";
    write(("downriver_source_problem", "gauge", problem), |s| {
        Some(f64::from(u8::from(s.problem.is_some())))
    });
}

fn write_pipelines(text: &mut String, pipelines: &[(String, PipelineView)]) {
    let mut write = |metric, value: fn(&PipelineView) -> Option<f64>| {
        write_metric(text, metric, "pipeline", pipelines, value);
    };
    let events = "Events delivered since the start.";
    write(
        ("downriver_pipeline_events_total", "counter", events),
        |p| Some(p.status.events as f64),
    );
    let delivered = "Everything before this offset is in the sink.";
    let name = "downriver_pipeline_delivered_offset";
    write((name, "gauge", delivered), |p| {
        Some(p.status.delivered.0 as f64)
    });
    let lag = "Age of the oldest commit that is not in the sink.";
    write(("downriver_pipeline_lag_seconds", "gauge", lag), |p| {
        p.lag.map(|lag| lag.as_secs_f64())
    });
    let problem = "1 while a problem holds up the pipeline or one of its tables.";
    write(("downriver_pipeline_problem", "gauge", problem), |p| {
        let of_table = p
            .status
            .tables
            .values()
            .any(|table| table.problem.is_some());
        Some(f64::from(u8::from(of_table || p.status.problem.is_some())))
    });
    let tables = "Tables of the pipeline by what becomes of them.";
    let metric = ("downriver_pipeline_tables", tables);
    write_tables(text, metric, "pipeline", pipelines, |p| {
        p.status.tables.values().map(|table| table.state).collect()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alerts_are_over_metrics_that_there_are() {
        const PREFIX: &str = "downriver_";
        const ALERTS: &str = include_str!("../../../../deploy/prometheus/alerts.yaml");
        let mut text = String::new();
        write_node(&mut text, &NodeFigures::default());
        write_sources(&mut text, &[]);
        write_pipelines(&mut text, &[]);
        let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
        let mut named = 0;
        for (at, _) in ALERTS.match_indices(PREFIX) {
            let name = &ALERTS[at..];
            let end = name.find(|c| !is_name(c)).unwrap_or(name.len());
            let name = &name[..end];
            assert!(text.contains(&format!("# TYPE {name} ")), "{name}");
            named += 1;
        }
        assert!(named > 10, "{named} metrics in the alerts");
    }
}
