//! The admin and log services: requests in, state or streams out. What a specification may say is decided here;
//! what runs is decided by the `Engine` that the binary provides.

mod admin;
mod condition;
mod log_service;
mod plan;
pub mod problem;
pub mod spec;

use std::future::Future;
use std::sync::Arc;

use downriver_api::admin::v1::admin_service_server::AdminServiceServer;
use downriver_api::log::v1::log_service_server::LogServiceServer;
use downriver_log::Log;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

pub use admin::{Engine, Finding, Reached, StoredSpec, TableName, Verified};

/// Largest message in either direction: one event may hold several values of the largest size.
pub const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// Serves the admin and log services, health and reflection until `stop` resolves.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    engine: Arc<dyn Engine>,
    log: Arc<dyn Log>,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
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
    let admin = AdminServiceServer::new(admin::Admin::new(engine))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let reads = LogServiceServer::new(log_service::LogReads::new(log))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .add_service(health_service)
        .add_service(reflection)
        .add_service(admin)
        .add_service(reads)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop)
        .await
}
