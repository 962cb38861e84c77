//! What went wrong, in the protocol's error model.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::super::{CatalogError, TableName};

/// What was asked for: the protocol names one outcome differently for each.
#[derive(Clone, Copy, Debug)]
pub(super) enum Doing {
    Read,
    Create,
    Commit,
    DropNamespace,
}

#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    kind: &'static str,
    message: String,
}

impl Failure {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            message: message.into(),
        }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequestException", message)
    }

    pub(super) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "UnsupportedOperationException",
            message,
        )
    }

    pub(super) fn no_warehouse(name: &str) -> Self {
        let message = if name.is_empty() {
            "there is no warehouse yet".to_owned()
        } else {
            format!("there is no warehouse {name:?}: it has the name of an Iceberg sink")
        };
        Self::new(StatusCode::NOT_FOUND, "NoSuchWarehouseException", message)
    }

    pub(super) fn no_namespace(name: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NoSuchNamespaceException",
            format!("there is no namespace {name}"),
        )
    }

    pub(super) fn no_table(name: &TableName) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NoSuchTableException",
            format!("there is no table {name}"),
        )
    }

    /// An unknown outcome is 500 and not 503, as the specification has it: PyIceberg, for one, takes 503 for
    /// "nothing was done" and would delete the files of a commit that was.
    pub(super) fn of(error: CatalogError, doing: Doing) -> Self {
        use StatusCode as S;
        let (status, kind, reason) = match (error, doing) {
            (CatalogError::Conflict(reason), doing) => {
                let kind = match doing {
                    Doing::Create => "AlreadyExistsException",
                    Doing::DropNamespace => "NamespaceNotEmptyException",
                    Doing::Commit | Doing::Read => "CommitFailedException",
                };
                (S::CONFLICT, kind, reason)
            }
            (CatalogError::Unknown(reason), _) => (
                S::INTERNAL_SERVER_ERROR,
                "CommitStateUnknownException",
                reason,
            ),
            (CatalogError::Unavailable(reason), _) => (
                S::SERVICE_UNAVAILABLE,
                "ServiceUnavailableException",
                reason,
            ),
            // What is stored cannot be read: the reader asked for nothing wrong.
            (CatalogError::Refused(reason), Doing::Read) => {
                (S::INTERNAL_SERVER_ERROR, "InternalServerError", reason)
            }
            (CatalogError::Refused(reason), _) => (S::BAD_REQUEST, "BadRequestException", reason),
        };
        Self::new(status, kind, reason)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let error = json!({
            "message": self.message,
            "type": self.kind,
            "code": self.status.as_u16(),
        });
        (self.status, Json(json!({ "error": error }))).into_response()
    }
}
