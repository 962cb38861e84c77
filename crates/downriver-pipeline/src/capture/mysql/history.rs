//! The shapes of tables where the binlog does not name the columns of their rows (`binlog_row_metadata` is not `FULL`): the
//! log has them, each version from its place on, and rows are read by the newest.
//!
//! ```text
//!   ── rows ── ALTER ── rows ── ... ── P ──      the catalog tells at P what the table is like there
//!              └─ nothing changes the table ─┘   then it is so behind the statement too
//! ```
//! After a statement that may have changed a table the catalog is asked, and the binlog read ahead to where that was. Did
//! nothing change the table in between, its shape is known from the statement on, and stored with it. Does no row come
//! before the next change, it does not matter. Otherwise nobody knows it: rows are passed over up to such a place, and
//! the table is read again. It is stored that it lacks them, so that a crash does not lose that.
//!
//! Where the binlog names them, the next row tells a shape, and the catalog is asked only while none comes.
//!
//! So it is too, whatever the binlog names, with tables of MariaDB's that have columns whose types it leaves open (`uuid`,
//! `inet4`, `inet6`, and `binary(n)` of their lengths).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use downriver_decode::mysql::ddl::{Effect, Named};
use downriver_decode::mysql::is_same_name;
use downriver_decode::mysql::native::is_open;
use downriver_decode::mysql::recall::recall;
use downriver_decode::mysql::shape::{Described, Shape};
use downriver_decode::mysql::table_map::TableMap;
use downriver_event::{BlockBuilder, SourcePosition, TableId, TableSchema};
use downriver_log::StreamState;
use downriver_source::mysql::catalog::SourceTable;
use downriver_source::mysql::kept::Kept;
use downriver_source::mysql::server::Flavor;
use downriver_source::mysql::unfit;
use downriver_source::rules::keep_covered;

use super::super::CaptureError;
use super::super::progress::Standing;
use super::Run;
use super::ahead::{Binlog, Met};
use super::numbers::{named, numbered};
use super::tables::{comes, has_lapsed};

/// Why rows are passed over.
pub(super) const NO_SHAPE: &str = "the binlog does not tell the table's shape";

/// How long nothing is foretold after a table's shape was locked by whoever changes it: that was waited for.
const WHILE_CHANGING: Duration = Duration::from_secs(10);
/// The same where there is more of the binlog to come.
const WHILE_BEHIND: Duration = Duration::from_secs(1);
/// Bytes of the binlog that are looked through to foretell something.
const FORETELL_BYTES_MAX: u64 = 1 << 20;

/// A database's name, and the table's.
type Name = (String, String);

/// A table whose rows are passed over until the binlog has come to where the catalog was asked for it.
#[derive(Debug)]
pub(super) struct Unsettled {
    kept: Kept,
    /// A statement changed it since.
    is_stale: bool,
}

impl Unsettled {
    /// As the catalog had it just now.
    pub(super) fn since(kept: Kept) -> Self {
        Self {
            kept,
            is_stale: false,
        }
    }
}

impl Run<'_> {
    /// Finds the shapes that tables have at the start: of those that are new, and of those whose rows were passed over.
    /// The others have the shape that the log has. Of those that cannot be told yet rows are passed over.
    pub(super) async fn settle_at_start(
        &mut self,
        tables: Vec<SourceTable>,
        state: &StreamState,
        binlog: &mut Binlog,
    ) -> Result<Vec<SourceTable>, CaptureError> {
        let (mut settled, mut asked) = (Vec::new(), Vec::new());
        let logs_in_part = self.catalog.server().logs_in_part();
        for table in tables {
            let name = (table.schema.namespace.clone(), table.schema.name.clone());
            let known = named(&self.intake.registry, &name.0, &name.1, |id| {
                comes(state, id)
            });
            let is_told = |schema: &TableSchema| self.is_told(schema);
            let is_told = is_told(&table.schema) && known.as_deref().is_none_or(is_told);
            let has_lapsed = known.map(|known| has_lapsed(state, known.id));
            // Where rows are logged in part, one that was passed over would be again, up to where its defaults are known.
            if has_lapsed == Some(false) || is_told && !(logs_in_part && has_lapsed == Some(true)) {
                settled.push(table);
            } else {
                let kept = self.catalog.kept(&name.0, &name.1).await?;
                asked.push((name, kept));
            }
        }
        let Some((_, last)) = asked.last() else {
            return Ok(settled);
        };
        let place = last.at.clone();
        let mut changed = HashSet::new();
        let is_reached = self
            .look_ahead(binlog, true, &place, |met| {
                if let Met::Statement(statement) = met {
                    let effects = self.effects_of(statement);
                    let names = asked.iter().map(|(name, _)| name);
                    let names = names.filter(|name| is_changed(effects.as_deref(), name));
                    changed.extend(names.cloned());
                }
                false
            })
            .await?;
        for (name, kept) in asked {
            if is_reached && !changed.contains(&name) {
                settled.extend(kept.now);
            } else {
                self.unsettled.insert(name, Unsettled::since(kept));
            }
        }
        Ok(settled)
    }

    /// What a statement made of a table's shape: its next rows tell it, or else the catalog.
    pub(super) async fn shape_changed(
        &mut self,
        table: TableId,
        binlog: &mut Binlog,
    ) -> Result<(), CaptureError> {
        // What it may have changed is not known any more, whatever becomes of this run.
        self.forget_defaults(table);
        if self.will_be_told(table).await? {
            self.unsure.insert(table);
            return Ok(());
        }
        self.settle(table, binlog, true).await.map(|_| ())
    }

    /// Whether a table map says all of the shape that rows of this schema have.
    pub(super) fn is_told(&self, schema: &TableSchema) -> bool {
        self.names_columns && is_closed(self.flavor(), schema)
    }

    fn flavor(&self) -> Flavor {
        self.catalog.server().flavor
    }

    /// Whether a table's next rows tell its shape. Where they leave types open the log is to have those before it goes
    /// on: who starts again would take the former ones for them.
    async fn will_be_told(&mut self, table: TableId) -> Result<bool, CaptureError> {
        let Some(before) = self.intake.registry.newest(table).cloned() else {
            return Ok(self.names_columns);
        };
        if !self.is_told(&before) || self.flavor() == Flavor::Mysql {
            return Ok(self.is_told(&before));
        }
        let now = self.catalog.table(&before.namespace, &before.name).await?;
        Ok(now.is_none_or(|now| self.is_told(&now.schema)))
    }

    /// The columns of a table map, with the types that it leaves open; and the schema that tells these. `None`: nobody
    /// knows them, and the rows are passed over.
    pub(super) async fn closed(
        &mut self,
        before: Arc<TableSchema>,
        told: Vec<Described>,
        binlog: &mut Binlog,
    ) -> Result<Option<(Arc<TableSchema>, Vec<Described>)>, CaptureError> {
        let is_open = |column: &Described| is_open(&column.source_type);
        if self.flavor() == Flavor::Mysql || !told.iter().any(is_open) {
            return Ok(Some((before, told)));
        }
        if let Some(columns) = known_as(&told, &before) {
            return Ok(Some((before, columns)));
        }
        // The log has no column of the name, or one of another form.
        let table = before.id;
        if !self.settle(table, binlog, false).await? {
            return Ok(None);
        }
        let settled = self.intake.registry.newest(table).cloned();
        let settled = settled.and_then(|now| known_as(&told, &now).map(|columns| (now, columns)));
        if settled.is_none() {
            self.lose(table, NO_SHAPE);
        }
        Ok(settled)
    }

    /// Finds the shape that a table has from here on. Whether it is known; if not, its rows are passed over.
    async fn settle(
        &mut self,
        table: TableId,
        binlog: &mut Binlog,
        is_ended: bool,
    ) -> Result<bool, CaptureError> {
        let Some(before) = self.intake.registry.newest(table).cloned() else {
            return Ok(false);
        };
        let name = (before.namespace.clone(), before.name.clone());
        let kept = self.catalog.kept(&name.0, &name.1).await?;
        let (mut is_changed_again, mut has_rows) = (false, !is_ended);
        let is_reached = self
            .look_ahead(binlog, is_ended, &kept.at, |met| {
                match met {
                    Met::Held => has_rows = true,
                    Met::Rows(map) => has_rows |= map.database == name.0 && map.table == name.1,
                    Met::Statement(statement) => {
                        is_changed_again = is_changed(self.effects_of(statement).as_deref(), &name);
                    }
                }
                is_changed_again
            })
            .await?;
        match kept.now {
            _ if is_changed_again && !has_rows => Ok(false),
            Some(now) if is_reached && !is_changed_again => match now.problem {
                None => Ok(self.reshape(&before, now.schema).is_some()),
                Some(problem) => {
                    self.refuse(table, problem);
                    Ok(false)
                }
            },
            _ => {
                self.lose(table, NO_SHAPE);
                Ok(false)
            }
        }
    }

    /// Tells the shapes that statements made, of which no row has come, once there is nothing more in the binlog: until the
    /// next row nobody would see them. Where something came behind them already, that tells.
    pub(super) async fn foretell(&mut self, binlog: &mut Binlog) -> Result<(), CaptureError> {
        let rests = self
            .not_foretold_until
            .is_some_and(|at| Instant::now() < at);
        if self.decoder.in_transaction() || binlog.has_backlog() || rests {
            return Ok(());
        }
        self.not_foretold_until = None;
        for table in self.unsure.clone() {
            let before = self.intake.registry.newest(table).cloned();
            let is_captured = self.intake.captured.get(&table) == Some(&true);
            let Some(before) = before.filter(|before| is_captured && self.is_told(before)) else {
                continue;
            };
            let name = (before.namespace.clone(), before.name.clone());
            let kept = match self.catalog.kept_at_once(&name.0, &name.1).await {
                Ok(Some(kept)) => kept,
                Ok(None) => {
                    self.not_foretold_until = Some(Instant::now() + WHILE_CHANGING);
                    return Ok(());
                }
                Err(error) if error.is_transient() => return Err(error.into()),
                // It may not be read, for instance: the next row tells.
                Err(error) => {
                    tracing::debug!(table = before.qualified_name(), %error, "a shape is not foretold");
                    self.unsure.remove(&table);
                    continue;
                }
            };
            if !is_near(&self.decoder.position(), &kept.at) {
                self.not_foretold_until = Some(Instant::now() + WHILE_BEHIND);
                return Ok(());
            }
            let mut is_told = false;
            let is_reached = self
                .look_ahead(binlog, true, &kept.at, |met| {
                    is_told |= match met {
                        Met::Held => true,
                        Met::Rows(map) => map.database == name.0 && map.table == name.1,
                        Met::Statement(statement) => {
                            is_changed(self.effects_of(statement).as_deref(), &name)
                        }
                    };
                    is_told
                })
                .await?;
            if !is_reached || is_told {
                continue;
            }
            self.unsure.remove(&table);
            if let Some(now) = kept.now.filter(|now| now.problem.is_none()) {
                self.reshape(&before, now.schema);
            }
        }
        Ok(())
    }

    /// Whether what the catalog has of a table may not be what the statement made of it that was decoded last.
    pub(super) async fn is_changed_since(
        &mut self,
        table: &Named,
        binlog: &mut Binlog,
    ) -> Result<bool, CaptureError> {
        let name = (table.database.clone(), table.table.clone());
        let kept = self.catalog.kept(&name.0, &name.1).await?;
        let mut is_changed_again = false;
        let is_reached = self
            .look_ahead(binlog, true, &kept.at, |met| {
                if let Met::Statement(statement) = met {
                    is_changed_again = is_changed(self.effects_of(statement).as_deref(), &name);
                }
                is_changed_again
            })
            .await?;
        Ok(is_changed_again || !is_reached)
    }

    pub(super) async fn look_ahead(
        &self,
        binlog: &mut Binlog,
        is_ended: bool,
        place: &SourcePosition,
        look: impl FnMut(Met<'_>) -> bool,
    ) -> Result<bool, CaptureError> {
        let mut out = BlockBuilder::new();
        let is_ended = is_ended || self.is_in_payload;
        let scout = self.decoder.scout(is_ended, &mut out);
        Ok(binlog.look_ahead(scout, out, place, look).await?)
    }

    /// Nobody knows a table's rows from here on: they are passed over until somebody does.
    pub(super) fn lose(&mut self, table: TableId, why: &'static str) {
        let name = self.intake.registry.newest(table);
        tracing::warn!(
            source = self.intake.config.name,
            table = name.map(|known| known.qualified_name()),
            why,
            "a table's rows are passed over here, and it is read again"
        );
        self.intake.standings.insert(table, Standing::Lapsed);
        self.intake.leave(table);
        // That it is read again is stored with what ends next, though nothing of it has events.
        self.has_committed = true;
    }

    /// Takes note of a statement's effects on tables whose rows are passed over.
    pub(super) fn unsettle(&mut self, effects: &[Effect]) {
        for (name, unsettled) in &mut self.unsettled {
            unsettled.is_stale |= is_changed(Some(effects), name);
        }
    }

    /// Tables whose rows are passed over have other names; so have tables that take names of such ones. The other renames.
    pub(super) fn renamed_unsettled(&mut self, renames: &[(Named, Named)]) -> Vec<(Named, Named)> {
        let name = |named: &Named| (named.database.clone(), named.table.clone());
        let from = renames.iter().map(|(from, _)| from);
        let taken: Vec<_> = from
            .map(|from| self.unsettled.remove(&name(from)))
            .collect();
        for (_, to) in renames {
            self.unsettled.remove(&name(to));
        }
        let mut others = Vec::new();
        for (rename, unsettled) in renames.iter().zip(taken) {
            let (from, to) = rename;
            let Some(unsettled) = unsettled else {
                others.push(rename.clone());
                continue;
            };
            if let Some(known) = self.known(&from.database, &from.table) {
                self.called(known.id, to);
            }
            if self.connection.captures(&to.database, &to.table) {
                let is_stale = true;
                let stale = Unsettled {
                    is_stale,
                    ..unsettled
                };
                self.unsettled.insert(name(to), stale);
            }
        }
        others
    }

    /// Takes the tables in whose shapes are known from here on.
    pub(super) async fn settle_passed(&mut self) -> Result<(), CaptureError> {
        if self.unsettled.is_empty() || self.decoder.in_transaction() {
            return Ok(());
        }
        let here = self.decoder.position();
        let passed = self.unsettled.iter();
        let passed = passed.filter(|(_, unsettled)| here.covers(&unsettled.kept.at));
        let passed: Vec<Name> = passed.map(|(name, _)| name.clone()).collect();
        for name in passed {
            let Some(Unsettled { kept, is_stale }) = self.unsettled.remove(&name) else {
                continue;
            };
            if is_stale {
                let kept = self.catalog.kept(&name.0, &name.1).await?;
                self.unsettled.insert(name, Unsettled::since(kept));
            } else if let Some(now) = kept.now {
                self.settled(now)?;
            } else {
                // It is gone.
                let name = format!("{}.{}", name.0, name.1);
                self.intake.status.update(|s| {
                    s.tables.remove(&name);
                });
            }
        }
        Ok(())
    }

    /// A table's shape is known from here on, and its rows lack what was passed over.
    fn settled(&mut self, now: SourceTable) -> Result<(), CaptureError> {
        if now.problem.is_some() {
            // It is refused when the capture starts again.
            return Err(CaptureError::SchemaMoved(now.schema.qualified_name()));
        }
        self.flush()?;
        let known = self.known(&now.schema.namespace, &now.schema.name);
        let mut schema = numbered(&self.intake.registry, known.as_deref(), now.schema);
        let refusal = known.and_then(|known| keep_covered(&known, &mut schema));
        let registered = self.intake.registry.register(schema);
        self.intake.announce(&registered);
        let id = registered.schema().id;
        if let Some(problem) = refusal {
            self.intake.captured.insert(id, true);
            self.refuse(id, problem);
            return self.flush();
        }
        self.intake.captured.insert(id, true);
        self.intake.standings.insert(id, Standing::Unknown);
        // What was passed over nothing else brings, also where nothing is read unasked.
        self.intake.read_again(id);
        self.pass_over(id);
        // And who starts again begins here, where the shape is known.
        self.decoder.forget_tables();
        self.has_committed = true;
        self.flush()
    }

    /// How rows are read whose table map names no columns.
    pub(super) async fn recalled(
        &mut self,
        map: &TableMap,
        table: TableId,
        binlog: &mut Binlog,
    ) -> Result<Option<Shape>, CaptureError> {
        self.names_columns = false;
        if self.unsure.remove(&table) && !self.settle(table, binlog, false).await? {
            return Ok(None);
        }
        if self.passed_over.contains(&table) {
            return Ok(None);
        }
        let Some(known) = self.intake.registry.newest(table).cloned() else {
            return Ok(None);
        };
        let charset_of = |collation| self.charsets.get(&collation).cloned();
        let why = match recall(map, known.source_columns(), charset_of) {
            Ok(described) => {
                let plans = described.into_iter().map(|column| column.plan).collect();
                return Ok(Some(self.shape(known, plans)));
            }
            Err(why) => why,
        };
        // Whoever changes a table without the binlog (`sql_log_bin = 0`) is seen by what comes then.
        let now = self.catalog.table(&known.namespace, &known.name).await?;
        match now.is_some_and(|now| is_same(&now.schema, &known)) {
            // Until somebody asks for the table again.
            true => {
                let why = unfit(&known.qualified_name(), &why);
                Err(CaptureError::Spoiled(table, why))
            }
            false => {
                self.lose(table, NO_SHAPE);
                Ok(None)
            }
        }
    }
}

/// Whether a table map that names columns says of each what it is.
pub(super) fn is_closed(flavor: Flavor, schema: &TableSchema) -> bool {
    let mut columns = schema.source_columns();
    flavor == Flavor::Mysql || !columns.any(|(column, _)| is_open(&column.source_type))
}

/// Columns of a table map, those that it leaves open by a schema. `None`: it has others.
fn known_as(told: &[Described], schema: &TableSchema) -> Option<Vec<Described>> {
    let known_as = |column: &Described| {
        if !is_open(&column.source_type) {
            return Some(column.clone());
        }
        let mut known = schema.source_columns().map(|(column, _)| column);
        let known = known.find(|known| is_same_name(&known.name, &column.name))?;
        column.clone().known_as(&known.source_type)
    };
    told.iter().map(known_as).collect()
}

/// Whether there is little between two places of the binlog.
fn is_near(here: &SourcePosition, there: &SourcePosition) -> bool {
    let places = here.place().zip(there.place());
    places.is_some_and(|(here, there)| {
        here.file == there.file
            && there.position.saturating_sub(here.position) <= FORETELL_BYTES_MAX
    })
}

/// Whether effects may have made another of the table of a name. `None`: of a statement that is not understood.
pub(super) fn is_changed(effects: Option<&[Effect]>, (database, table): &Name) -> bool {
    let concerns = |effect: &Effect| {
        effect.concerns(|named| named.database == *database && named.table == *table)
    };
    effects.is_none_or(|effects| effects.iter().any(concerns))
}

/// Whether rows of both are read in the same way.
pub(super) fn is_same(one: &TableSchema, other: &TableSchema) -> bool {
    let columns = |schema: &TableSchema| {
        let columns = schema.source_columns();
        let columns = columns.map(|(column, ty)| {
            let source_type = column.source_type.clone();
            (
                column.name.clone(),
                ty.clone(),
                source_type,
                column.nullable,
            )
        });
        columns.collect::<Vec<_>>()
    };
    columns(one) == columns(other)
}
