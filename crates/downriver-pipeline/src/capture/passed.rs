//! Waiting for a capture to come to a position of its source.

use std::time::Duration;

use downriver_event::problem::Problem;
use downriver_event::{Offset, SourcePosition};

use super::CaptureControl;
use crate::status::{Board, SourceStatus, TableState};

/// How often the source is asked where it is.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// Waits until a capture has everything up to a position: the log's end then.
///
/// # Errors
/// The capture is stopped, or does not come to the position in time.
pub async fn passed(
    status: &Board<SourceStatus>,
    control: &CaptureControl,
    position: &SourcePosition,
    within: Duration,
) -> Result<Offset, Problem> {
    let mut status = status.watch();
    let waiting = async {
        loop {
            {
                let now = status.borrow_and_update();
                if now.has_passed(position) {
                    return Ok(now.passed_offset);
                }
                if now.state == TableState::Stopped
                    && let Some(problem) = &now.problem
                {
                    return Err(problem.clone());
                }
            }
            control.nudge.notify_one();
            let _ = tokio::time::timeout(ASK_EVERY, status.changed()).await;
        }
    };
    tokio::time::timeout(within, waiting)
        .await
        .unwrap_or_else(|_| {
            Err(Problem::new(
                "DR-2072",
                format!("the source did not come to {position} in time"),
                "see downriver describe for the source",
            ))
        })
}
