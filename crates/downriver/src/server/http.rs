//! The HTTP port: health, metrics, and the built-in catalogs for other engines.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use downriver_lake::catalog::server::{self as catalog, Catalogs};

use super::engine::NodeEngine;
use super::metrics;

pub(super) fn router(engine: Arc<NodeEngine>) -> Router {
    let catalogs: Arc<dyn Catalogs> = engine.clone();
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(figures))
        .with_state(engine)
        .nest("/iceberg", catalog::router(catalogs))
}

async fn ready(State(engine): State<Arc<NodeEngine>>) -> (StatusCode, String) {
    match engine.problem_here() {
        None => (StatusCode::OK, "ok\n".into()),
        Some(problem) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{}\n", problem.reason),
        ),
    }
}

async fn figures(State(engine): State<Arc<NodeEngine>>) -> String {
    metrics::text(&engine)
}
