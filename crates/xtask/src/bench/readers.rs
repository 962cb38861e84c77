//! The readers of a backlog: the database's own clients, and Downriver with and without a lake behind it.
//!
//! All begin at the same place with the same work before them. Of PostgreSQL it is a copy of the backlog's slot, which a
//! ready node takes over when its clock starts. Of MySQL, whose server remembers no reader, it is a node that stopped
//! there: its folder is kept, and put back for each reading, whose clock starts with the node. The databases' clients
//! are started by the clock, which takes some milliseconds.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use downriver_testkit::{Postgres, host, resources};
use serde::Serialize;

use super::measure::{Meter, Reading, Used};
use super::node::{Goal, Node};
use super::server::{Database, Server};
use super::workloads::{self, Backlog, Shape, Tables, Workload};
use super::writer::Writer;
use super::{references, slots};

/// Less than the test kit gives a client command, so that `wait` itself says what is missing.
const WAIT_PATIENCE: Duration = Duration::from_secs(590);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reader {
    /// `pg_recvlogical` to /dev/null.
    Recvlogical,
    /// `COPY ... TO STDOUT (FORMAT binary)` through psql to /dev/null.
    Copy,
    /// `mysqlbinlog --read-from-remote-server --raw` to /dev/null.
    Mysqlbinlog,
    /// `SELECT *` through `mysql --quick` to /dev/null.
    Select,
    /// `downriver dev`, into its durable log.
    Log,
    /// The same, with a sink and a pipeline behind the log.
    Lake,
}

impl Reader {
    /// The first is what the others are compared with.
    pub(super) fn of(workload: Workload) -> Vec<Self> {
        let reference = match (workload.database, workload.shape) {
            (Database::Postgres, Shape::Snapshot) => Self::Copy,
            (Database::Postgres, _) => Self::Recvlogical,
            (Database::Mysql, Shape::Snapshot) => Self::Select,
            (Database::Mysql, _) => Self::Mysqlbinlog,
        };
        match workload.shape {
            Shape::Inserts => vec![reference, Self::Log],
            Shape::Mixed | Shape::OneTransaction | Shape::Snapshot => {
                vec![reference, Self::Log, Self::Lake]
            }
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Recvlogical => "pg_recvlogical",
            Self::Copy => "COPY binary",
            Self::Mysqlbinlog => "mysqlbinlog",
            Self::Select => "SELECT quick",
            Self::Log => "downriver log",
            Self::Lake => "downriver lake",
        }
    }

    pub(super) fn is_reference(self) -> bool {
        !matches!(self, Self::Log | Self::Lake)
    }
}

/// What all readings of a workload share.
pub(super) struct Bench<'a> {
    pub(super) server: &'a Server,
    pub(super) binary: &'a Path,
    pub(super) workload: Workload,
    pub(super) scale: f64,
    pub(super) freshness: &'a str,
    pub(super) tables: Tables,
}

/// A node that stopped before a backlog.
pub(super) struct Standing {
    reader: Reader,
    node: Node,
    next_offset: u64,
    idle_rss_bytes: u64,
}

impl Bench<'_> {
    /// Takes the place that the readers begin at, before the backlog is written.
    pub(super) async fn take_place(&self, readers: &[Reader]) -> Result<Vec<Standing>> {
        let mut standing = Vec::new();
        match self.server {
            // It is never read itself.
            Server::Postgres(postgres) => slots::create(postgres, self.slot(), "pgoutput").await?,
            // It is copied by a node that has nothing yet.
            Server::Mysql(_) if self.workload.shape == Shape::Snapshot => {}
            Server::Mysql(_) => {
                for reader in readers.iter().filter(|reader| !reader.is_reference()) {
                    let stood = self.stand_by(*reader, &self.tables).await?;
                    stood.node.keep()?;
                    standing.push(stood);
                }
            }
        }
        Ok(standing)
    }

    pub(super) async fn read(
        &self,
        reader: Reader,
        round: u32,
        backlog: &Backlog,
        standing: &mut [Standing],
    ) -> Result<Reading> {
        self.server.warm_up().await?;
        let shape = self.workload.shape;
        match (self.server, reader) {
            (Server::Postgres(postgres), Reader::Recvlogical) => {
                let slot = slots::copy(postgres, self.slot()).await?;
                let publication = &self.tables.publication;
                let command = references::recvlogical(postgres, &slot, publication, backlog);
                let reading = references::run_to_end(command, self.server.pid()?).await?;
                slots::drop(postgres, &slot).await?;
                Ok(reading)
            }
            (Server::Postgres(postgres), Reader::Copy) => {
                let command = references::copy(postgres, &self.tables.names[0]);
                references::run_to_end(command, self.server.pid()?).await
            }
            (Server::Mysql(mysql), Reader::Mysqlbinlog) => {
                let folder = tempfile::tempdir()?;
                let command = references::mysqlbinlog(mysql, folder.path(), backlog)?;
                references::run_to_end(command, self.server.pid()?).await
            }
            (Server::Mysql(mysql), Reader::Select) => {
                let command = references::select(mysql, &self.tables.names[0]);
                references::run_to_end(command, self.server.pid()?).await
            }
            (_, Reader::Log | Reader::Lake) if shape == Shape::Snapshot => {
                self.snapshot(reader, backlog).await
            }
            (Server::Postgres(postgres), Reader::Lake) if shape == Shape::Mixed => {
                self.mirror_of_grown_tables(postgres, round, backlog).await
            }
            (Server::Postgres(postgres), Reader::Log | Reader::Lake) => {
                let slot = slots::copy(postgres, self.slot()).await?;
                let reading = self
                    .measure_from_apply(reader, &slot, "none", backlog)
                    .await?;
                slots::drop(postgres, &slot).await?;
                Ok(reading)
            }
            (Server::Mysql(_), Reader::Log | Reader::Lake) => {
                let stood = standing.iter_mut().find(|stood| stood.reader == reader);
                let stood = stood.context("no node stands before the backlog")?;
                stood.node.restore()?;
                self.measure_from_start(stood, backlog.end, backlog.changes)
                    .await
            }
            (Server::Postgres(_), Reader::Mysqlbinlog | Reader::Select)
            | (Server::Mysql(_), Reader::Recvlogical | Reader::Copy) => {
                let database = self.workload.database.name();
                bail!("{} does not read {database}", reader.name())
            }
        }
    }

    /// A node that is ready copies the table.
    async fn snapshot(&self, reader: Reader, backlog: &Backlog) -> Result<Reading> {
        let slot = format!("{}_snapshot", self.slot());
        let reading = self
            .measure_from_apply(reader, &slot, "initial", backlog)
            .await?;
        if let Server::Postgres(postgres) = self.server {
            slots::drop(postgres, &slot).await?;
        }
        Ok(reading)
    }

    /// A node that is ready gets its source, and the clock runs from then.
    async fn measure_from_apply(
        &self,
        reader: Reader,
        slot: &str,
        snapshot: &str,
        backlog: &Backlog,
    ) -> Result<Reading> {
        let mut node = self.node()?;
        node.daemon.start().await?;
        let yaml = self.yaml(reader, &node, &self.tables, slot, snapshot);
        let goal = self.goal(backlog.end, backlog.changes);
        let pid = node.daemon.pid()?;
        let idle = host::memory_bytes(pid)?;
        let meter = Meter::start(self.server.pid()?, host::cpu_seconds(pid)?)?;
        node.daemon.apply(&yaml).await?;
        let reading = self.until_reached(reader, &node, goal, &meter).await?;
        node.daemon.stop()?;
        Ok(Reading {
            idle_rss_bytes: Some(idle),
            ..reading
        })
    }

    /// A node that knows its source is started, and the clock runs from then.
    async fn measure_from_start(
        &self,
        stood: &mut Standing,
        end: u64,
        changes: u64,
    ) -> Result<Reading> {
        let node = &mut stood.node;
        let goal = self.goal(end, stood.next_offset + changes);
        self.server.warm_up().await?;
        let meter = Meter::start(self.server.pid()?, 0.0)?;
        node.daemon.start().await?;
        let reading = self.until_reached(stood.reader, node, goal, &meter).await?;
        node.daemon.stop()?;
        Ok(Reading {
            idle_rss_bytes: Some(stood.idle_rss_bytes),
            ..reading
        })
    }

    async fn until_reached(
        &self,
        reader: Reader,
        node: &Node,
        goal: Goal,
        meter: &Meter,
    ) -> Result<Reading> {
        if reader == Reader::Lake {
            node.daemon.wait(WAIT_PATIENCE).await?;
        } else if self.workload.shape == Shape::Snapshot {
            node.until_streaming(goal).await?;
        } else {
            node.until_passed(goal, meter).await?;
        }
        let mut reading = meter.finish(Used::of_running(node.daemon.pid()?)?)?;
        if reader == Reader::Lake {
            node.check_delivered(goal).await?;
        }
        node.until_sealed(goal.end, &mut reading).await?;
        Ok(reading)
    }

    /// The lake has the tables already; they are changed while the node is down. A mirror without the rows that a backlog
    /// updates and deletes would have less to do.
    async fn mirror_of_grown_tables(
        &self,
        postgres: &Postgres,
        round: u32,
        backlog: &Backlog,
    ) -> Result<Reading> {
        let shape = self.workload.shape;
        let mut writer = Writer::connect(self.server).await?;
        let base = format!("{}_lake_{round}", self.tables.names[0]);
        let tables = workloads::create(&mut writer, shape, &base, self.scale).await?;
        let mut stood = self.stand_by(Reader::Lake, &tables).await?;
        let written = workloads::fill(&mut writer, shape, &tables, self.scale).await?;
        ensure!(
            written.changes == backlog.changes,
            "the same seed has written {} changes, not {}",
            written.changes,
            backlog.changes
        );
        let end = writer.mark().await?;
        let reading = self
            .measure_from_start(&mut stood, end, written.changes)
            .await?;
        let Tables { publication, names } = tables;
        slots::drop(postgres, &publication).await?;
        let names = names.join(", ");
        let drop = format!("drop publication {publication}; drop table {names}");
        writer.execute(&drop).await?;
        Ok(reading)
    }

    /// A node that has a source and follows it from here on, and was stopped then. A lake has the rows that there are.
    async fn stand_by(&self, reader: Reader, tables: &Tables) -> Result<Standing> {
        let is_grown = reader == Reader::Lake && self.workload.shape == Shape::Mixed;
        let snapshot = if is_grown { "initial" } else { "none" };
        let mut node = self.node()?;
        node.daemon.start().await?;
        let idle_rss_bytes = host::memory_bytes(node.daemon.pid()?)?;
        let yaml = self.yaml(reader, &node, tables, &tables.publication, snapshot);
        node.daemon.apply(&yaml).await?;
        node.until_streaming(self.goal(0, 0)).await?;
        if reader == Reader::Lake {
            node.daemon.wait(WAIT_PATIENCE).await?;
        }
        let next_offset = node.next_offset().await?;
        node.daemon.stop()?;
        Ok(Standing {
            reader,
            node,
            next_offset,
            idle_rss_bytes,
        })
    }

    fn node(&self) -> Result<Node> {
        Node::new(self.binary, self.workload.database)
    }

    fn goal(&self, end: u64, next_offset: u64) -> Goal {
        Goal {
            end,
            next_offset,
            tables: self.tables.names.len(),
        }
    }

    /// Called as the publication is.
    fn slot(&self) -> &str {
        &self.tables.publication
    }

    fn yaml(
        &self,
        reader: Reader,
        node: &Node,
        tables: &Tables,
        slot: &str,
        snapshot: &str,
    ) -> String {
        let snapshot = format!("snapshot: {snapshot}");
        let slot = format!("slot: {slot}");
        let publication = format!("publication: {}", tables.publication);
        let lines: &[&str] = match self.server {
            Server::Postgres(_) => &[&slot, &publication, &snapshot],
            Server::Mysql(_) => &[&snapshot],
        };
        let mut yaml = self.server.source(tables, lines);
        if reader == Reader::Lake {
            yaml += &resources::sink_in_folder(&node.warehouse());
            yaml += &resources::pipeline(self.freshness);
        }
        yaml
    }
}
