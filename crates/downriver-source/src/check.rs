//! What a look at a database before anything is done finds.

use downriver_event::problem::Problem;

use crate::error::SourceError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Error,
    Warning,
    Ok,
}

#[derive(Clone, Debug)]
pub struct Finding {
    pub severity: Severity,
    pub subject: String,
    pub problem: Option<Problem>,
}

impl Finding {
    pub(crate) fn ok(subject: impl Into<String>) -> Self {
        Self {
            severity: Severity::Ok,
            subject: subject.into(),
            problem: None,
        }
    }

    pub(crate) fn error(subject: impl Into<String>, problem: Problem) -> Self {
        Self {
            severity: Severity::Error,
            subject: subject.into(),
            problem: Some(problem),
        }
    }

    pub(crate) fn warning(subject: impl Into<String>, problem: Problem) -> Self {
        Self {
            severity: Severity::Warning,
            subject: subject.into(),
            problem: Some(problem),
        }
    }

    pub(crate) fn of(subject: &str, checked: Result<(), SourceError>) -> Self {
        match checked {
            Ok(()) => Self::ok(subject),
            Err(error) => Self::error(subject, error.problem()),
        }
    }
}
