//! Backups of the cluster in the object store.

use downriver_api::admin::v1 as pb;
use downriver_cluster::Backup;
use downriver_event::problem::Problem;
use downriver_log::Log as _;

use super::NodeEngine;

impl NodeEngine {
    pub(super) async fn take_backup(&self) -> Result<pb::Backup, Problem> {
        let backup = self.node.back_up().await;
        backup.map(to_pb).map_err(|error| failed(&error))
    }

    pub(super) async fn list_backups(&self) -> Result<Vec<pb::Backup>, Problem> {
        let backups = downriver_cluster::backups(&*self.node.objects()).await;
        let backups = backups.map_err(|error| failed(&error))?;
        Ok(backups.into_iter().map(to_pb).collect())
    }
}

fn to_pb(backup: Backup) -> pb::Backup {
    pb::Backup {
        key: backup.key,
        taken: Some(backup.taken.into()),
        bytes: backup.bytes,
    }
}

fn failed(error: &dyn std::error::Error) -> Problem {
    let fix = "make the object store reachable and room on the disk, and try again";
    Problem::new("DR-1113", error.to_string(), fix)
}
