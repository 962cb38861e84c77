//! What went wrong, in an operator's words.

/// A stable code with a page in `docs/errors`, the reason, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub code: &'static str,
    pub reason: String,
    pub fix: String,
    /// Path of the offending field in a specification: `postgres.tables[0]`.
    pub field: Option<String>,
}

impl Problem {
    #[must_use]
    pub fn new(code: &'static str, reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            fix: fix.into(),
            field: None,
        }
    }
}
