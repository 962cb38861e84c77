//! How another server is reached.

use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;

/// What [`tonic::transport::Endpoint`] would use by itself, for its `connect_with_connector` functions: only there does
/// `connect_timeout` count for TLS as well. Otherwise it ends with TCP, and whoever accepts and then says nothing is waited for
/// without end. A name's addresses share `within`.
#[must_use]
pub fn tcp(within: Duration) -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.set_connect_timeout(Some(within));
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp
}
