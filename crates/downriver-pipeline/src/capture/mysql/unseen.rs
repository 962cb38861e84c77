//! Rows that changed and that no event has: the storage engine changed them by foreign keys, a statement was logged in
//! their place, or what was held of a prepared transaction is gone. Their tables are read again.
//!
//! ```text
//!   a change unseen ──> no generation under way, and the last one is long enough ago ──> wanted, with the transaction
//!                  └──> else the table is owed one, which is stored with the transaction too ──> wanted when it may be
//! ```
//!
//! So a table that changes unseen all the time is read at most half of the time, and in between its changes come; where rows
//! are logged in part they are passed over instead, as one may be of a row that nobody has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use downriver_decode::mysql::ddl::{Effect, Named};
use downriver_decode::mysql::decoder::{Committed, Prepared, Statement};
use downriver_decode::mysql::table_map::TableMap;
use downriver_event::problem::Problem;
use downriver_event::{SourcePosition, TableId};
use downriver_source::mysql::catalog::Catalog;
use downriver_source::mysql::reach::{ForeignKeys, Programs, Reach, mentions};

use super::super::CaptureError;
use super::super::intake::in_state;
use super::Run;
use super::debts::Debts;
use super::held::Held;
use crate::status::{TableState, TableStatus};

/// How long a table that was read is left alone at least, whatever happens to its rows unseen.
const REREAD_PAUSE: Duration = Duration::from_secs(60);
/// How long tables are gathered at least until those that changed unseen are read: it starts the capture again.
const GATHER: Duration = Duration::from_secs(10);
/// Text of the statements of one transaction that is looked at: beyond it they may have changed anything.
const STATEMENT_BYTES_MAX: usize = 4 << 20;

/// What a capture keeps from one of its runs to the next.
#[derive(Debug, Default)]
pub(in super::super) struct Lasting {
    pub(super) held: Held,
    readings: HashMap<TableId, Reading>,
    /// When any table was wanted last.
    asked: Option<Instant>,
}

/// When a table was read again last for what changed unseen.
#[derive(Clone, Copy, Debug)]
struct Reading {
    asked: Instant,
    /// `None`: it is under way, as far as was seen.
    ended: Option<Instant>,
}

impl Reading {
    /// Whether the next one may begin.
    fn has_rested(&self, now: Instant) -> bool {
        let Some(ended) = self.ended else {
            return false;
        };
        let pause = REREAD_PAUSE.max(ended.duration_since(self.asked));
        now.duration_since(ended) >= pause
    }
}

/// What the open transaction did by statements.
#[derive(Debug, Default)]
pub(super) struct Statements {
    texts: Vec<String>,
    bytes: usize,
    /// There was more than is looked at, or what cannot be read.
    are_cut: bool,
}

/// What the server's catalog says of how far changes reach.
#[derive(Debug, Default)]
pub(super) struct Beyond {
    keys: Option<Asked<ForeignKeys>>,
    /// Tables whose keys a statement may have changed since.
    changed: BTreeSet<Named>,
    programs: Option<Asked<Programs>>,
}

#[derive(Debug)]
struct Asked<T> {
    found: T,
    /// The server was not ahead of this when it answered.
    at: SourcePosition,
    /// A statement may have changed it since.
    is_stale: bool,
}

impl<T> Asked<T> {
    fn is_of_now(asked: Option<&Self>) -> bool {
        asked.is_some_and(|asked| !asked.is_stale)
    }
}

impl Lasting {
    pub(super) fn begin_run(&mut self, spill: &Path, debts: &Debts) -> Result<(), CaptureError> {
        self.held.begin_run(spill, &debts.prepared())
    }
}

impl Beyond {
    async fn keys(&mut self, catalog: &mut Catalog) -> Result<&ForeignKeys, CaptureError> {
        let changed = std::mem::take(&mut self.changed);
        match &mut self.keys {
            Some(asked) if !asked.is_stale => {
                if !changed.is_empty() {
                    let changed = asked.found.with_children(changed);
                    catalog.renew_keys(&mut asked.found, &changed).await?;
                    asked.at = catalog.position().await?;
                }
            }
            keys => {
                *keys = Some(Asked {
                    found: catalog.foreign_keys().await?,
                    at: catalog.position().await?,
                    is_stale: false,
                });
            }
        }
        let asked = self.keys.as_ref().expect("it was just set");
        Ok(&asked.found)
    }

    async fn programs(&mut self, catalog: &mut Catalog) -> Result<&Programs, CaptureError> {
        if !Asked::is_of_now(self.programs.as_ref()) {
            self.programs = Some(Asked {
                found: catalog.programs().await?,
                at: catalog.position().await?,
                is_stale: false,
            });
        }
        let asked = self.programs.as_ref().expect("it was just set");
        Ok(&asked.found)
    }
}

impl Run<'_> {
    /// A statement inside the transaction that is open: it counts when that is committed.
    pub(super) fn note_statement(&mut self, statement: &Statement) {
        let read = statement.wording.read(|of| self.charsets.get(&of).cloned());
        let text = read.as_deref().unwrap_or(&statement.text);
        let statements = &mut self.statements;
        statements.bytes += text.len();
        match statements.bytes > STATEMENT_BYTES_MAX || text.contains(char::REPLACEMENT_CHARACTER) {
            true => statements.are_cut = true,
            false => statements.texts.push(text.to_owned()),
        }
    }

    /// Lets the decoder look at the columns of a table that rows of others refer to.
    /// `is_read`: it is captured here, in the shape that the log has.
    pub(super) async fn watch(
        &mut self,
        map: &TableMap,
        is_read: bool,
    ) -> Result<(), CaptureError> {
        let keys = self.beyond.keys(&mut self.catalog).await?;
        let columns = keys.referenced(&Named {
            database: map.database.clone(),
            table: map.table.clone(),
        });
        if columns.is_empty() {
            return Ok(());
        }
        let known = self.known(&map.database, &map.table);
        let known = known.filter(|_| map.columns.iter().all(|column| column.name.is_none()));
        match known.filter(|known| known.source_columns().count() == map.columns.len()) {
            // Of a captured table the log says what the columns are called that the map does not name.
            Some(known) if is_read => {
                let mut named = map.clone();
                for (column, (known, _)) in named.columns.iter_mut().zip(known.source_columns()) {
                    column.name = Some(known.name.clone());
                }
                self.decoder.watch(&named, &columns);
            }
            _ => self.decoder.watch(map, &columns),
        }
        Ok(())
    }

    /// What a transaction that has ended did beside the rows that it logged.
    pub(super) async fn beside(&mut self, committed: &Committed) -> Result<(), CaptureError> {
        let statements = std::mem::take(&mut self.statements);
        for table in &committed.spoiled {
            self.changed_unseen(*table);
        }
        if committed.is_rolled_back {
            return Ok(());
        }
        if !committed.parents.is_empty() {
            let keys = self.beyond.keys(&mut self.catalog).await?;
            let parents = committed.parents.iter();
            let children: BTreeSet<Named> = parents
                .flat_map(|parent| keys.children(&parent.table, parent.deletes, parent.updates))
                .collect();
            self.all_changed_unseen(&children);
        }
        if statements.are_cut || !statements.texts.is_empty() {
            self.stated(&statements).await?;
        }
        Ok(())
    }

    /// The tables that statements may have changed are read again.
    async fn stated(&mut self, statements: &Statements) -> Result<(), CaptureError> {
        let unsure = self.captured_tables();
        let unsure = unsure.filter(|(id, _)| !self.is_owed(*id));
        if unsure.count() == 0 {
            return Ok(());
        }
        self.beyond.keys(&mut self.catalog).await?;
        self.beyond.programs(&mut self.catalog).await?;
        if let (Some(keys), Some(programs)) = (&self.beyond.keys, &self.beyond.programs) {
            let is_behind = !self.decoder.position().covers(&programs.at);
            let reach = match statements.are_cut {
                true => None,
                false => Reach::of(&statements.texts, &programs.found, &keys.found),
            };
            if is_behind {
                self.debts.set_uncertain(true);
            }
            let Some(reach) = reach else {
                self.anything_changed("a statement changed rows, and what it runs cannot be seen");
                return Ok(());
            };
            let reached: Vec<TableId> = self
                .captured_tables()
                .filter(|(_, table)| reach.contains(table))
                .map(|(id, _)| id)
                .collect();
            for id in reached {
                self.changed_unseen(id);
            }
        }
        Ok(())
    }

    /// A statement that comes by itself may change how far changes reach. The catalog was asked when the server was ahead
    /// of it, perhaps: what it did not show any more may have changed rows before.
    pub(super) fn reach_changed(&mut self, statement: &Statement) {
        let text = statement.text.to_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| mentions(&text, word));
        let takes_away = !text.trim_start().starts_with("create") || has(&["replace"]);
        let position = self.decoder.position();
        if has(&["foreign", "references", "constraint", "rename"]) {
            self.decoder.forget_tables();
            let effects = self.effects_of(statement).unwrap_or_default();
            let tables: BTreeSet<Named> =
                effects.iter().flat_map(Effect::tables).cloned().collect();
            match &mut self.beyond.keys {
                Some(asked) if tables.is_empty() => asked.is_stale = true,
                _ => self.beyond.changed.extend(tables),
            }
            let is_of_keys = has(&["foreign", "references", "constraint"]);
            let is_of = |table: &Named| mentions(&text, &table.table.to_lowercase());
            if let Some(asked) = &self.beyond.keys
                && takes_away
                && !position.covers(&asked.at)
                // By another name a table has the keys that it had.
                && (is_of_keys || asked.found.tables().any(is_of))
            {
                let tables = self.captured_and_parents(&asked.found).into_iter();
                let named = tables.filter(is_of);
                let reached = asked.found.beyond(named.collect());
                self.all_changed_unseen(&reached);
            }
        }
        if has(&["trigger", "view", "function", "procedure", "package"]) {
            let asked = self.beyond.programs.as_mut();
            let is_behind = asked.is_none_or(|asked| {
                asked.is_stale = true;
                !position.covers(&asked.at)
            });
            if self.debts.is_uncertain() && takes_away && is_behind {
                self.anything_changed("a program that a statement may have run was changed since");
                self.debts.set_uncertain(false);
            }
        }
    }

    /// Nothing that was asked of the catalog is ahead of the binlog any more.
    fn catch_up(&mut self) {
        if !self.debts.is_uncertain() {
            return;
        }
        // Without an answer of this run nobody knows where the server was.
        if let Some(asked) = &self.beyond.programs
            && self.decoder.position().covers(&asked.at)
        {
            self.debts.set_uncertain(false);
        }
    }

    /// The rows of a prepared transaction are committed, and are not held any more.
    pub(super) async fn lost(&mut self, prepared: Option<Prepared>) -> Result<(), CaptureError> {
        let keys = self.beyond.keys(&mut self.catalog).await?;
        match prepared.map(|prepared| (prepared.xid, prepared.tables)) {
            Some((xid, Some(tables))) => {
                let tables = keys.beyond(tables.into_iter().collect());
                tracing::info!(
                    source = self.intake.config.name,
                    %xid,
                    "a prepared transaction is committed whose rows are not held any more: its tables are read again"
                );
                self.all_changed_unseen(&tables);
            }
            Some((_, None)) => {
                self.anything_changed(
                    "a prepared transaction with statements is not held any more",
                );
            }
            None => self.anything_changed("a transaction was prepared before the capture began"),
        }
        Ok(())
    }

    fn anything_changed(&mut self, why: &'static str) {
        tracing::warn!(
            source = self.intake.config.name,
            code = "DR-1094",
            why,
            fix = "nothing: they are read by themselves; see which sessions set binlog_format, and let the source's user see what statements run (grant trigger, show view)",
            "rows of any table may have changed unseen: all are read again"
        );
        let all: Vec<TableId> = self.captured_tables().map(|(id, _)| id).collect();
        for id in all {
            self.changed_unseen(id);
        }
    }

    fn captured_tables(&self) -> impl Iterator<Item = (TableId, Named)> {
        let intake = &self.intake;
        let captured = intake.captured.iter();
        let captured = captured.filter(|(_, is_captured)| **is_captured);
        captured.filter_map(|(id, _)| {
            let schema = intake.registry.newest(*id)?;
            let named = Named {
                database: schema.namespace.clone(),
                table: schema.name.clone(),
            };
            Some((*id, named))
        })
    }

    fn captured_and_parents(&self, keys: &ForeignKeys) -> BTreeSet<Named> {
        let parents = keys.parents().cloned();
        let captured = self.captured_tables().map(|(_, table)| table);
        captured.chain(parents).collect()
    }

    fn all_changed_unseen(&mut self, tables: &BTreeSet<Named>) {
        for table in tables {
            let known = self.known(&table.database, &table.table);
            if let Some(known) = known {
                self.changed_unseen(known.id);
            }
        }
    }

    /// Whether a table is to be read again from a later position than this anyway.
    fn is_owed(&self, table: TableId) -> bool {
        self.debts.is_due(table) || self.intake.reread.waits_for_whole(table)
    }

    /// Rows of a table changed, with the transaction that is decoded, and no event has them.
    fn changed_unseen(&mut self, table: TableId) {
        if self.intake.captured.get(&table) != Some(&true) || self.is_owed(table) {
            return;
        }
        let is_read = self.intake.snapshots.contains_key(&table);
        let is_unasked = !is_read && !self.intake.config.snapshot.initial;
        if is_unasked || !is_read && self.may_be_read(table) {
            self.want(table);
            return;
        }
        self.debts.owe(table);
        self.tell_owed(table);
    }

    /// Whether a table was left alone for long enough, and who else is read can bear that the capture starts again.
    fn may_be_read(&self, table: TableId) -> bool {
        let now = Instant::now();
        let reading = self.lasting.readings.get(&table);
        if reading.is_some_and(|reading| !reading.has_rested(now)) {
            return false;
        }
        if self.intake.reread.waits() {
            return true;
        }
        // A table without a key is then read from its beginning.
        let intake = &self.intake;
        let mut read = intake.snapshots.keys();
        let is_bag_read = read.any(|table| {
            intake
                .registry
                .newest(*table)
                .is_some_and(|known| known.is_bag())
        });
        let asked = self.lasting.asked;
        !is_bag_read && asked.is_none_or(|asked| now.duration_since(asked) >= GATHER)
    }

    fn want(&mut self, table: TableId) {
        self.debts.pay(table);
        self.intake.owing.remove(&table);
        // What was passed over nothing else brings, also where nothing is read unasked.
        let is_read = self.rows_are_others(table)
            || self.passed_over.contains(&table) && self.intake.read_again(table).is_some();
        if is_read {
            let asked = Instant::now();
            let ended = None;
            self.lasting
                .readings
                .insert(table, Reading { asked, ended });
            self.lasting.asked = Some(asked);
        }
    }

    fn tell_owed(&mut self, table: TableId) {
        if let Some(problem) = self.note_owed(table) {
            self.intake.table_status(table, |status| {
                status.state = TableState::Pending;
                status.problem = Some(problem);
            });
        }
    }

    /// Why a table is pending that is owed its rows; `None`: it is being read.
    fn note_owed(&mut self, table: TableId) -> Option<Problem> {
        let newest = self.intake.registry.newest(table)?;
        let problem = Problem::new(
            "DR-1093",
            format!(
                "rows of {} changed, and the binlog does not have them: the table is read again, when the last reading of it is long enough ago",
                newest.qualified_name()
            ),
            "nothing: it is read by itself; see docs/errors/DR-1093.md for what to do where that is too often",
        );
        self.intake.owing.insert(table, problem.clone());
        self.pass_over(table);
        let is_read = self.intake.snapshots.contains_key(&table);
        (!is_read).then_some(problem)
    }

    /// Looks at how far changes reach, before any statement that may change it.
    pub(super) async fn look_beyond(&mut self) -> Result<(), CaptureError> {
        self.beyond.keys(&mut self.catalog).await?;
        if self.debts.is_uncertain() {
            // Until the binlog has come to where the server is now.
            self.beyond.programs(&mut self.catalog).await?;
        }
        Ok(())
    }

    /// Takes up what an earlier run owed, before anything is said of the tables: whoever waits is not to miss it.
    pub(super) fn take_debts(&mut self, statuses: &mut BTreeMap<String, TableStatus>) {
        for table in self.debts.due().collect::<Vec<_>>() {
            // One that is not captured is read whole when it comes back.
            if self.intake.captured.get(&table) != Some(&true) {
                self.debts.pay(table);
            } else if let Some(problem) = self.note_owed(table)
                && let Some(newest) = self.intake.registry.newest(table)
            {
                let pending = in_state(TableState::Pending, Some(problem));
                statuses.insert(newest.qualified_name(), pending);
            }
        }
    }

    /// Wants what is owed and may be read now.
    pub(super) fn pay_debts(&mut self) -> Result<(), CaptureError> {
        self.catch_up();
        let intake = &self.intake;
        for (table, reading) in &mut self.lasting.readings {
            let is_under_way =
                intake.snapshots.contains_key(table) || intake.reread.waits_for(*table);
            if !is_under_way && reading.ended.is_none() {
                reading.ended = Some(Instant::now());
            }
        }
        let due: Vec<TableId> = self.debts.due().collect();
        let mut is_any_wanted = false;
        for table in due {
            if self.intake.reread.waits_for_whole(table) {
                self.debts.pay(table);
                self.intake.owing.remove(&table);
                continue;
            }
            if self.intake.snapshots.contains_key(&table) {
                continue;
            }
            if self.may_be_read(table) {
                self.want(table);
                is_any_wanted = true;
            }
        }
        match is_any_wanted {
            true => self.flush(),
            false => Ok(()),
        }
    }
}
