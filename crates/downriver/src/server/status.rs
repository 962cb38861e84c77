//! A capture's or a pipeline's status as the admin service shows it.

use std::time::Duration;

use downriver_api::admin::v1 as pb;
use downriver_event::problem::Problem;
use downriver_event::{Offset, SourcePosition};
use downriver_log::StreamState;
use downriver_pipeline::status::BinlogStatus;
use downriver_pipeline::{SnapshotProgress, SourceStatus, TableState};
use downriver_service::problem::to_pb;
use downriver_source::postgres::slot::SlotState;

use super::engine::PipelineView;

/// `running` is `None` while the source could not be started because of `problem`.
pub(super) fn source_status(
    running: Option<SourceStatus>,
    problem: Option<Problem>,
    stream: Option<&StreamState>,
) -> pb::Status {
    let status = running.unwrap_or_else(|| SourceStatus {
        state: if problem.is_some() {
            TableState::Stopped
        } else {
            TableState::Pending
        },
        problem,
        ..SourceStatus::default()
    });
    let tables = status.tables.iter().map(|(name, table)| pb::TableStatus {
        table: name.clone(),
        state: shown(status.state, table.state).name().to_owned(),
        problem: table.problem.as_ref().map(to_pb),
        snapshot: table.snapshot.as_ref().map(snapshot),
        ..pb::TableStatus::default()
    });
    pb::Status {
        state: status.state.name().to_owned(),
        problem: status.problem.as_ref().map(to_pb),
        tables: tables.collect(),
        position: shown_position(status.passed.as_ref()),
        acknowledged_position: shown_position(status.acknowledged.as_ref()),
        next_offset: stream.map_or(0, |stream| stream.next.0),
        events: status.events,
        slot: status.slot.as_ref().map(slot),
        binlog: status.binlog.as_ref().map(binlog),
        warning: status.warning.as_ref().map(to_pb),
        ..pb::Status::default()
    }
}

/// `next`: the end of the source's log.
pub(super) fn pipeline_status(view: &PipelineView, next: Offset) -> pb::Status {
    let status = &view.status;
    let tables = status.tables.iter().map(|(name, table)| pb::TableStatus {
        table: name.clone(),
        state: shown(status.state, table.state).name().to_owned(),
        problem: table.problem.as_ref().map(to_pb),
        delivered_offset: table.delivered.0,
        target: table.target.clone(),
        ..pb::TableStatus::default()
    });
    pb::Status {
        state: status.state.name().to_owned(),
        problem: status.problem.as_ref().map(to_pb),
        tables: tables.collect(),
        next_offset: next.0,
        delivered_offset: status.delivered.0,
        lag: view.lag.and_then(|lag| lag.try_into().ok()),
        events: status.events,
        ..pb::Status::default()
    }
}

fn shown_position(position: Option<&SourcePosition>) -> String {
    position.map_or_else(String::new, SourcePosition::to_string)
}

/// A table does not go on while what it belongs to does not.
fn shown(whole: TableState, table: TableState) -> TableState {
    match (whole, table) {
        (
            TableState::Stopped,
            TableState::Pending | TableState::Snapshotting | TableState::Streaming,
        ) => TableState::Stopped,
        (_, state) => state,
    }
}

fn slot(state: &SlotState) -> pb::Slot {
    pb::Slot {
        wal_status: state.wal_status.clone(),
        retained_bytes: state.retained_bytes,
        safe_bytes: state.safe_bytes,
        invalidation_reason: state.invalidation_reason.clone().unwrap_or_default(),
        catalog_xmin_age: state.catalog_xmin_age,
        active: state.active,
    }
}

fn binlog(status: &BinlogStatus) -> pb::Binlog {
    let duration = |duration: Option<Duration>| duration.and_then(|d| d.try_into().ok());
    pb::Binlog {
        behind: duration(status.behind),
        behind_bytes: status.behind_bytes,
        kept_bytes: status.kept_bytes,
        safe: duration(status.safe),
        safe_bytes: status.safe_bytes,
    }
}

fn snapshot(progress: &SnapshotProgress) -> pb::SnapshotProgress {
    pb::SnapshotProgress {
        rows_done: progress.rows_done,
        rows_estimated: progress.rows_estimated,
        rows_per_second: progress.rows_per_second(),
        time_left: progress.time_left().and_then(|left| left.try_into().ok()),
    }
}
