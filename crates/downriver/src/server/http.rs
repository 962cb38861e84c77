//! The HTTP port: health and metrics.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use downriver_pipeline::SourceStatus;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::engine::NodeEngine;

pub(super) async fn serve(listener: TcpListener, engine: Arc<NodeEngine>, stop: CancellationToken) {
    let app = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(engine);
    let served = axum::serve(listener, app)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(error = %error, "the HTTP server ended");
    }
}

async fn ready(State(engine): State<Arc<NodeEngine>>) -> (StatusCode, String) {
    match engine.node().store_problem() {
        None => (StatusCode::OK, "ok\n".into()),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
    }
}

/// Every source's figures in the Prometheus text format.
async fn metrics(State(engine): State<Arc<NodeEngine>>) -> String {
    let sources = engine.sources();
    let mut text = String::new();
    let mut write = |name: &str, kind: &str, help: &str, value: fn(&SourceStatus) -> f64| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (source, status) in &sources {
            let _ = writeln!(text, "{name}{{source=\"{source}\"}} {}", value(status));
        }
    };
    write(
        "downriver_source_events_total",
        "counter",
        "Events captured since the start.",
        |s| s.events as f64,
    );
    write(
        "downriver_source_passed_lsn",
        "gauge",
        "Everything committed up to here is in the log.",
        |s| s.passed.0 as f64,
    );
    write(
        "downriver_source_acknowledged_lsn",
        "gauge",
        "The source may forget what lies before.",
        |s| s.acknowledged.0 as f64,
    );
    write(
        "downriver_source_problem",
        "gauge",
        "1 while a problem holds it up.",
        |s| f64::from(u8::from(s.problem.is_some())),
    );
    text
}
