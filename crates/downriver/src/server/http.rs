//! The HTTP port: health, metrics, and the Iceberg REST catalog under `/iceberg`.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::engine::NodeEngine;

pub(super) async fn serve(listener: TcpListener, engine: Arc<NodeEngine>, stop: CancellationToken) {
    let directory = Arc::clone(&engine) as Arc<dyn downriver_lake::catalog::server::CatalogDirectory>;
    let app = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(engine)
        .nest("/iceberg", downriver_lake::catalog::server::router(directory));
    if let Err(error) =
        axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await
    {
        tracing::error!(error = %error, "the HTTP server ended");
    }
}

async fn ready(State(engine): State<Arc<NodeEngine>>) -> (StatusCode, String) {
    match engine.node().store_problem() {
        None => (StatusCode::OK, "ok\n".into()),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
    }
}

/// The figures of every source and pipeline, in the Prometheus text format.
async fn metrics(State(engine): State<Arc<NodeEngine>>) -> String {
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, samples: Vec<(String, f64)>| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{{{labels}}} {value}");
        }
    };
    let sources = engine.sources();
    let of = |value: fn(&downriver_pipeline::SourceStatus) -> f64| {
        let samples = sources.iter().map(|(name, status)| (format!("source=\"{name}\""), value(status)));
        samples.collect::<Vec<_>>()
    };
    gauge("downriver_source_events", "Events captured since the start.", of(|s| s.events as f64));
    gauge("downriver_source_passed_lsn", "Everything committed up to here is in the log.", of(|s| s.passed.0 as f64));
    gauge("downriver_source_acknowledged_lsn", "The source may forget what lies before.", of(|s| s.acknowledged.0 as f64));
    gauge("downriver_source_stopped", "1 when a problem stopped it.", of(|s| f64::from(u8::from(s.problem.is_some()))));
    let pipelines = engine.pipelines();
    let delivered = pipelines.iter().map(|(name, status)| {
        (format!("pipeline=\"{name}\""), status.delivered().map_or(0.0, |offset| offset.0 as f64))
    });
    gauge("downriver_pipeline_delivered_offset", "Everything before it is in the sink.", delivered.collect());
    let problems = pipelines.iter().flat_map(|(name, status)| {
        let stopped = status.tables.iter().filter(|(_, table)| table.problem.is_some());
        stopped.map(move |(table, _)| (format!("pipeline=\"{name}\",table=\"{table}\""), 1.0))
    });
    gauge("downriver_pipeline_table_stopped", "1 when a problem holds the table.", problems.collect());
    text
}
