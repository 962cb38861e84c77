//! A source of MySQL or MariaDB.

use downriver_event::problem::Problem;
use downriver_source::mysql::config::MysqlConfig;
use serde::{Deserialize, Serialize};

use super::super::{Secret, at};
use super::{OnHole, Place, Snapshot, Tls};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mysql {
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    pub tables: Vec<String>,
    /// What the server knows the source by among its replicas; one of its own by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_id: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// What is done about changes that are not to be had any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_hole: Option<OnHole>,
}

impl Mysql {
    pub(super) fn check(&self) -> Result<(), Problem> {
        if let Err(error) = MysqlConfig::from_url(&self.url) {
            let problem = Problem::new("DR-2005", error.0, "correct mysql.url");
            return Err(at("mysql.url", problem));
        }
        let place = Place {
            kind: "mysql",
            namespace: ("database", "shop"),
            url: &self.url,
            tables: &self.tables,
        };
        place.check()?;
        if self.server_id == Some(0) {
            let problem = Problem::new(
                "DR-2037",
                "server_id 0 is no replica's",
                "give a number of its own from 1 on, or leave it out",
            );
            return Err(at("mysql.server_id", problem));
        }
        Ok(())
    }
}
