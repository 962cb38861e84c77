//! Problems over gRPC: the operator's words travel in the status' details, as an encoded `Problem`.

use downriver_api::admin::v1 as pb;
use downriver_event::problem::Problem;
use prost::Message as _;
use tonic::{Code, Status};

#[must_use]
pub fn to_pb(problem: &Problem) -> pb::Problem {
    pb::Problem {
        code: problem.code.to_owned(),
        reason: problem.reason.clone(),
        fix: problem.fix.clone(),
        field: problem.field.clone().unwrap_or_default(),
    }
}

#[must_use]
pub fn status(code: Code, problem: &Problem) -> Status {
    let details = to_pb(problem).encode_to_vec();
    Status::with_details(code, problem.reason.clone(), details.into())
}

/// The problem in a status, if it carries one.
#[must_use]
pub fn of_status(status: &Status) -> Option<pb::Problem> {
    let problem = pb::Problem::decode(status.details()).ok()?;
    (!problem.code.is_empty()).then_some(problem)
}
