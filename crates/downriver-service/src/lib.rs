//! The admin and log services: requests in, state or streams out. What a specification may say is decided here;
//! what runs is decided by the `Engine` that the binary provides.

mod admin;
mod condition;
mod log_service;
mod plan;
pub mod problem;
mod route;
pub mod spec;

use std::sync::Arc;

use downriver_api::admin::v1::admin_service_server::AdminServiceServer;
use downriver_api::log::v1::log_service_server::LogServiceServer;
use downriver_log::Log;
use tonic::service::Routes;

pub use admin::{
    ConsumerGroup, Engine, Finding, GroupCommit, Reached, StoredSpec, TableName, Verified, Whose,
};
pub use route::{Peer, Where};

/// Largest message in either direction: one event may hold several values of the largest size.
pub const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// The admin and log services.
#[must_use]
pub fn routes(engine: Arc<dyn Engine>, log: Arc<dyn Log>) -> Routes {
    let reads = log_service::LogReads::new(log, Arc::clone(&engine));
    let admin = AdminServiceServer::new(admin::Admin::new(engine))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let reads = LogServiceServer::new(reads)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    Routes::new(admin).add_service(reads)
}

/// The admin and log services, health and reflection.
pub async fn router(engine: Arc<dyn Engine>, log: Arc<dyn Log>) -> axum::Router {
    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_serving::<AdminServiceServer<admin::Admin>>()
        .await;
    health
        .set_serving::<LogServiceServer<log_service::LogReads>>()
        .await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(downriver_api::DESCRIPTORS)
        .build_v1()
        .expect("the descriptors were compiled with the types");
    routes(engine, log)
        .add_service(health_service)
        .add_service(reflection)
        .into_axum_router()
}
