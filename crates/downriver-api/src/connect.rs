//! How another server is reached.

use hyper_util::client::legacy::connect::HttpConnector;

/// What [`tonic::transport::Endpoint`] would use by itself, for its `connect_with_connector` functions: only there does
/// `connect_timeout` count for all that comes before the first call. Otherwise it ends with TCP, and whoever accepts and then
/// says nothing of TLS is waited for without end.
#[must_use]
pub fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp
}
