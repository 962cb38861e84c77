//! What an answer, or none, means.
//!
//! | what came back                                | a read          | a write        |
//! |-----------------------------------------------|-----------------|----------------|
//! | no connection                                 | unavailable     | unavailable    |
//! | time over, or cut after sending; 408          | unavailable     | unknown        |
//! | 500, 502, 503, 504 and other 5xx              | unavailable     | unknown        |
//! | 429                                           | unavailable     | unavailable    |
//! | 409                                           | conflict        | conflict       |
//! | 400 for a snapshot made for an older table    | refused         | conflict       |
//! | another 3xx or 4xx                            | refused         | refused        |
//! | success that cannot be read                   | refused         | unknown        |
//!
//! 503 is unknown although the specification means it for "not ready": proxies send it too when a catalog
//! goes away in the middle of a commit.

use bytes::Bytes;
use reqwest::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::CatalogError;

/// Whether doing it twice is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Read,
    Write,
}

#[derive(Debug)]
pub(super) struct Answer {
    pub request: Request,
    pub status: StatusCode,
    body: Bytes,
}

impl Answer {
    pub(super) async fn of(
        request: Request,
        sent: reqwest::Result<reqwest::Response>,
    ) -> Result<Self, CatalogError> {
        let response = sent.map_err(|error| failed(request, &error))?;
        let status = response.status();
        let body = match response.bytes().await {
            Ok(body) => body,
            // The status says all that matters of a refusal.
            Err(_) if status.is_client_error() => Bytes::new(),
            Err(error) => return Err(failed(request, &error)),
        };
        Ok(Self {
            request,
            status,
            body,
        })
    }

    pub(super) fn expect_success(self) -> Result<Self, CatalogError> {
        if self.status.is_success() {
            return Ok(self);
        }
        let reason = self.reason();
        let status = self.status;
        Err(match self.request {
            _ if status == StatusCode::TOO_MANY_REQUESTS => CatalogError::Unavailable(reason),
            _ if status == StatusCode::CONFLICT => CatalogError::Conflict(reason),
            Request::Write if status == StatusCode::BAD_REQUEST && is_stale(&reason) => {
                CatalogError::Conflict(reason)
            }
            request if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                lost(request, reason)
            }
            _ => CatalogError::Refused(reason),
        })
    }

    pub(super) fn parse<T: DeserializeOwned>(&self, what: &str) -> Result<T, CatalogError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            let reason = format!("the answer is not {what}: {error}");
            match self.request {
                Request::Read => CatalogError::Refused(reason),
                Request::Write => CatalogError::Unknown(reason),
            }
        })
    }

    /// Why it was not done, in the server's words if it has any.
    pub(super) fn reason(&self) -> String {
        let status = self.status.as_u16();
        let said = match serde_json::from_slice(&self.body) {
            Ok(Refusal::Iceberg { error }) => format!("{}: {}", error.r#type, error.message),
            Ok(Refusal::OAuth {
                error,
                error_description,
            }) => format!("{error}: {error_description}"),
            Err(_) => String::from_utf8_lossy(&self.body)
                .trim()
                .chars()
                .take(200)
                .collect(),
        };
        format!("{status} {said}")
    }
}

/// The protocol's error model, and that of RFC 6749, section 5.2.
#[derive(Deserialize)]
#[serde(untagged)]
enum Refusal {
    Iceberg {
        error: ErrorBody,
    },
    OAuth {
        error: String,
        #[serde(default)]
        error_description: String,
    },
}

#[derive(Deserialize)]
struct ErrorBody {
    message: String,
    #[serde(default)]
    r#type: String,
}

fn lost(request: Request, reason: String) -> CatalogError {
    match request {
        Request::Read => CatalogError::Unavailable(reason),
        Request::Write => CatalogError::Unknown(reason),
    }
}

fn failed(request: Request, error: &reqwest::Error) -> CatalogError {
    let reason = with_causes(error);
    if error.is_builder() {
        CatalogError::Refused(reason)
    } else if error.is_connect() {
        CatalogError::Unavailable(reason)
    } else {
        lost(request, reason)
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let texts: Vec<_> = causes.map(ToString::to_string).collect();
    texts.join(": ")
}

/// The words with which the Java, Go and Rust servers refuse a snapshot made for an older state of the table.
fn is_stale(reason: &str) -> bool {
    let reason = reason.to_ascii_lowercase();
    reason.contains("already exists")
        || reason.contains("last sequence number")
        || (reason.contains("first-row-id") && reason.contains("behind"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(request: Request, status: u16, body: &str) -> CatalogError {
        let answer = Answer {
            request,
            status: StatusCode::from_u16(status).unwrap(),
            body: Bytes::copy_from_slice(body.as_bytes()),
        };
        answer.expect_success().unwrap_err()
    }

    #[test]
    fn a_write_that_a_server_may_have_done_is_unknown() {
        for status in [408, 500, 502, 503, 504] {
            let write = outcome(Request::Write, status, "");
            assert!(
                matches!(write, CatalogError::Unknown(_)),
                "{status}: {write}"
            );
            let read = outcome(Request::Read, status, "");
            assert!(
                matches!(read, CatalogError::Unavailable(_)),
                "{status}: {read}"
            );
        }
    }

    #[test]
    fn a_snapshot_for_an_older_table_is_a_conflict_and_other_bad_requests_are_refused() {
        for message in [
            "Snapshot already exists for: '7'",
            "Cannot add snapshot with sequence number 1 older than last sequence number 2",
            "can't add snapshot with sequence number 1, must be > than last sequence number 2",
            "Cannot add a snapshot, first-row-id is behind table next-row-id: 1 < 2",
        ] {
            let body = format!(r#"{{"error":{{"message":"{message}","type":"X","code":400}}}}"#);
            let error = outcome(Request::Write, 400, &body);
            assert!(matches!(error, CatalogError::Conflict(_)), "{error}");
        }
        let error = outcome(
            Request::Write,
            400,
            r#"{"error":{"message":"no","type":"Bad"}}"#,
        );
        assert_eq!(error.to_string(), "the catalog refused: 400 Bad: no");
    }

    #[test]
    fn too_many_requests_means_that_nothing_was_done() {
        let error = outcome(Request::Write, 429, "slow down");
        assert!(matches!(error, CatalogError::Unavailable(_)), "{error}");
    }
}
