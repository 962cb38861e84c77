//! What can go wrong in a lake, classed by what can be done about it.

use downriver_event::Epoch;
use downriver_event::problem::Problem;
use downriver_log::StoreError;

use crate::catalog::CatalogError;

#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The library's own, or a stored file that is not what it should be.
    #[error("iceberg: {0}")]
    Iceberg(#[from] iceberg::Error),
    #[error("a Parquet file cannot be written or read: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    #[error("cannot use the local folder of the lake: {0}")]
    Local(#[from] std::io::Error),
    /// Somebody else owns the table.
    #[error("another owner of the table has epoch {0}")]
    Fenced(Epoch),
    /// Another table of the source has the lake's table.
    #[error("{}", .0.reason)]
    OfAnother(Problem),
    /// Only a person can help; the table stops and the others go on.
    #[error("{}", .0.reason)]
    Stopped(Problem),
}

impl LakeError {
    pub(crate) fn stopped(
        code: &'static str,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::Stopped(Problem::new(code, reason, fix))
    }

    /// Whether trying again may help. What was written locally or uncommitted is then thrown away.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => matches!(error, StoreError::Unavailable(_)),
            Self::Catalog(error) => matches!(
                error,
                CatalogError::Unavailable(_) | CatalogError::Unknown(_) | CatalogError::Conflict(_)
            ),
            Self::Iceberg(error) => has_transient_cause(error),
            Self::Parquet(error) => has_transient_cause(error),
            Self::Local(_) => true,
            Self::Fenced(_) | Self::OfAnother(_) | Self::Stopped(_) => false,
        }
    }

    /// For the operator.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Stopped(problem) | Self::OfAnother(problem) => problem.clone(),
            Self::Store(StoreError::Unavailable(_)) => Problem::new(
                "DR-3001",
                self.to_string(),
                "make the warehouse's object store reachable; delivery goes on by itself",
            ),
            Self::Iceberg(_) | Self::Parquet(_) if self.is_transient() => Problem::new(
                "DR-3001",
                self.to_string(),
                "make the warehouse's object store reachable; delivery goes on by itself",
            ),
            Self::Store(_) => Problem::new(
                "DR-3002",
                self.to_string(),
                "correct the sink's warehouse and s3 settings, then resume the pipeline",
            ),
            Self::Catalog(
                CatalogError::Unavailable(_) | CatalogError::Unknown(_) | CatalogError::Conflict(_),
            ) => Problem::new(
                "DR-3003",
                self.to_string(),
                "make the catalog reachable; delivery goes on by itself",
            ),
            Self::Catalog(_) => Problem::new(
                "DR-3004",
                self.to_string(),
                "correct the sink's catalog settings, then resume the pipeline",
            ),
            Self::Local(_) => Problem::new(
                "DR-3005",
                self.to_string(),
                "make room in the data folder; delivery goes on by itself",
            ),
            Self::Iceberg(_) | Self::Parquet(_) => Problem::new(
                "DR-3006",
                self.to_string(),
                "report it; deleting the lake's table and the pipeline, and applying the pipeline again, rebuilds it",
            ),
            Self::Fenced(_) => Problem::new(
                "DR-3007",
                self.to_string(),
                "nothing: the other owner goes on",
            ),
        }
    }
}

/// Whether the store, whose error the libraries wrap in their own, may do it when it is asked again.
fn has_transient_cause(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let of_library = error.downcast_ref::<iceberg::Error>();
        if of_library.is_some_and(iceberg::Error::retryable) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unavailable_store_is_found_inside_what_the_libraries_made_of_it() {
        let library = |retryable| {
            iceberg::Error::new(iceberg::ErrorKind::Unexpected, "store").with_retryable(retryable)
        };
        let parquet =
            |retryable| parquet::errors::ParquetError::External(Box::new(library(retryable)));
        let wrapped = |retryable| {
            let outer = iceberg::Error::new(iceberg::ErrorKind::Unexpected, "writer");
            LakeError::Iceberg(outer.with_source(parquet(retryable)))
        };
        assert!(wrapped(true).is_transient());
        assert!(!wrapped(false).is_transient());
        assert_eq!(wrapped(true).problem().code, "DR-3001");
        assert_eq!(wrapped(false).problem().code, "DR-3006");
        assert!(LakeError::Parquet(parquet(true)).is_transient());
    }
}
