//! How far a change reaches beyond the rows that the binlog has: by foreign keys that cascade in the storage engine, and,
//! where a statement was logged and not its rows, by triggers, views and routines as well.
//!
//! Too much is told rather than too little: a name counts where it occurs as a word, in whatever database.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use downriver_decode::mysql::ddl::{Named, Written, written};
use mysql_async::Row;
use mysql_async::prelude::Queryable as _;

use super::catalog::Catalog;
use super::sql::{literal, text};
use crate::error::SourceError;

/// Rules by which rows change with those that they refer to.
const CHANGES: &str = "('CASCADE', 'SET NULL', 'SET DEFAULT')";

/// Above so many tables whose keys may be others, all keys are looked at anew.
const RENEWED_MAX: usize = 100;

/// A foreign key by which rows change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignKey {
    pub name: String,
    pub child: Named,
    pub parent: Named,
    /// Of the parent.
    pub columns: Vec<String>,
    pub on_delete: bool,
    pub on_update: bool,
}

/// A server's foreign keys by which rows change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignKeys {
    keys: Vec<ForeignKey>,
    /// The keys that refer to a table, by its name as names are compared.
    of_parents: HashMap<Named, Vec<usize>>,
    /// Names that differ in case are one table's.
    folds_names: bool,
}

impl ForeignKeys {
    fn new(keys: Vec<ForeignKey>, folds_names: bool) -> Self {
        let mut found = Self {
            keys,
            of_parents: HashMap::new(),
            folds_names,
        };
        found.index();
        found
    }

    fn index(&mut self) {
        self.of_parents.clear();
        for (at, key) in self.keys.iter().enumerate() {
            let parent = compared(&key.parent, self.folds_names);
            self.of_parents.entry(parent).or_default().push(at);
        }
    }

    fn of_parent(&self, table: &Named) -> impl Iterator<Item = &ForeignKey> {
        let keys = self.of_parents.get(&compared(table, self.folds_names));
        keys.into_iter().flatten().map(|at| &self.keys[*at])
    }

    /// The columns of a table whose change in a row changes rows of other tables. None twice.
    #[must_use]
    pub fn referenced(&self, table: &Named) -> Vec<String> {
        let keys = self.of_parent(table).filter(|key| key.on_update);
        let columns: BTreeSet<&String> = keys.flat_map(|key| &key.columns).collect();
        columns.into_iter().cloned().collect()
    }

    /// The tables that rows of others refer to.
    pub fn parents(&self) -> impl Iterator<Item = &Named> {
        let keys = self.of_parents.values().filter_map(|keys| keys.first());
        keys.map(|at| &self.keys[*at].parent)
    }

    /// The tables whose rows may change when rows of this one are deleted, or get others values of the columns that are
    /// referred to.
    #[must_use]
    pub fn children(&self, parent: &Named, deletes: bool, updates: bool) -> BTreeSet<Named> {
        let keys = self.of_parent(parent);
        let keys = keys.filter(|key| deletes && key.on_delete || updates && key.on_update);
        self.beyond(keys.map(|key| key.child.clone()).collect())
    }

    /// Tables and all whose rows may change with theirs, one after another.
    #[must_use]
    pub fn beyond(&self, mut tables: BTreeSet<Named>) -> BTreeSet<Named> {
        let mut next: Vec<Named> = tables.iter().cloned().collect();
        while let Some(parent) = next.pop() {
            for key in self.of_parent(&parent) {
                if tables.insert(key.child.clone()) {
                    next.push(key.child.clone());
                }
            }
        }
        tables
    }

    /// The tables whose own keys a change of these may change: they themselves, and those that refer to them.
    #[must_use]
    pub fn with_children(&self, tables: BTreeSet<Named>) -> BTreeSet<Named> {
        let children = tables.iter().flat_map(|table| self.of_parent(table));
        let children: Vec<Named> = children.map(|key| key.child.clone()).collect();
        tables.into_iter().chain(children).collect()
    }

    /// Takes the keys that tables have now in the place of those that they had.
    fn renew(&mut self, tables: &BTreeSet<Named>, now: Vec<ForeignKey>) {
        let folds_names = self.folds_names;
        let tables: HashSet<Named> = tables.iter().map(|t| compared(t, folds_names)).collect();
        self.keys
            .retain(|key| !tables.contains(&compared(&key.child, folds_names)));
        self.keys.extend(now);
        self.index();
    }
}

/// A table's name so that two of one table are equal.
fn compared(table: &Named, folds_names: bool) -> Named {
    match folds_names {
        true => table.in_lower_case(),
        false => table.clone(),
    }
}

/// What statements change rows by, besides the tables that they name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Programs {
    /// The table that fires it, and what it does.
    pub triggers: Vec<(Named, String)>,
    /// By their names, and what they read; `None`: the user may not see it.
    pub views: Vec<(String, Option<String>)>,
    /// By their names, and what they do.
    pub routines: Vec<(String, Option<String>)>,
    /// The user may see every trigger.
    pub sees_triggers: bool,
}

/// The tables whose rows statements may have changed.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// Texts that write whatever they name, in lower case.
    written: Vec<String>,
    /// Texts that run whatever functions they name.
    run: Vec<String>,
    /// In lower case.
    children: BTreeSet<Named>,
}

impl Reach {
    /// `None`: the server does not show all that may change rows.
    #[must_use]
    pub fn of(statements: &[String], programs: &Programs, keys: &ForeignKeys) -> Option<Self> {
        if !programs.sees_triggers {
            return None;
        }
        let mut reach = Self::default();
        for statement in statements {
            match written(statement) {
                Written::Nothing => {}
                Written::Rows(table) => reach.written.push(table.to_lowercase()),
                Written::Any => reach.written.push(statement.to_lowercase()),
            }
            reach.run.push(statement.to_lowercase());
        }
        let mut triggers: Vec<_> = programs.triggers.iter().collect();
        let mut routines: Vec<_> = programs.routines.iter().collect();
        let mut written: Vec<_> = programs.views.iter().collect();
        let mut read = written.clone();
        loop {
            let mut bodies: Vec<&str> = Vec::new();
            let fired = triggers.extract_if(.., |(table, _)| reach.contains(table));
            bodies.extend(fired.map(|(_, body)| body.as_str()));
            for (_, body) in routines.extract_if(.., |(name, _)| is_in(&reach.run, name)) {
                bodies.push(body.as_deref()?);
            }
            for (_, body) in written.extract_if(.., |(name, _)| is_in(&reach.written, name)) {
                bodies.push(body.as_deref()?);
            }
            let mut of_read: Vec<&str> = Vec::new();
            for (_, body) in read.extract_if(.., |(name, _)| is_in(&reach.run, name)) {
                match body {
                    Some(body) => of_read.push(body),
                    // Who only reads it runs functions by it at most.
                    None if programs.routines.is_empty() => {}
                    None => return None,
                }
            }
            let reached = keys.parents().filter(|parent| reach.contains(parent));
            let reached = reached.flat_map(|parent| keys.of_parent(parent));
            let children: BTreeSet<Named> = reached.map(|key| key.child.in_lower_case()).collect();
            let children: BTreeSet<Named> = &children - &reach.children;
            if bodies.is_empty() && of_read.is_empty() && children.is_empty() {
                return Some(reach);
            }
            let bodies = bodies.into_iter().map(str::to_lowercase);
            reach.run.extend(of_read.into_iter().map(str::to_lowercase));
            for body in bodies {
                reach.written.push(body.clone());
                reach.run.push(body);
            }
            reach.children.extend(children);
        }
    }

    /// Whether rows of the table may have been changed.
    #[must_use]
    pub fn contains(&self, table: &Named) -> bool {
        is_in(&self.written, &table.table) || self.children.contains(&table.in_lower_case())
    }
}

fn is_in(texts: &[String], name: &str) -> bool {
    let name = name.to_lowercase();
    texts.iter().any(|text| mentions(text, &name))
}

/// Whether a name occurs in a text as a word, both in lower case: also within what a server takes for a comment or a text.
#[must_use]
pub fn mentions(text: &str, name: &str) -> bool {
    if name.is_empty() || name.contains('`') {
        return true;
    }
    let is_of_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii();
    text.match_indices(name).any(|(at, found)| {
        let before = text[..at].chars().next_back();
        let after = text[at + found.len()..].chars().next();
        ![before, after].into_iter().flatten().any(is_of_word)
    })
}

impl Catalog {
    /// The foreign keys by which rows change.
    ///
    /// # Errors
    /// A query failed.
    pub async fn foreign_keys(&mut self) -> Result<ForeignKeys, SourceError> {
        let folds_names = self.server().lower_case_table_names != 0;
        Ok(ForeignKeys::new(self.keys_of(None).await?, folds_names))
    }

    /// Looks anew at the keys that these tables have.
    ///
    /// # Errors
    /// A query failed.
    pub async fn renew_keys(
        &mut self,
        keys: &mut ForeignKeys,
        tables: &BTreeSet<Named>,
    ) -> Result<(), SourceError> {
        if tables.len() > RENEWED_MAX {
            *keys = self.foreign_keys().await?;
            return Ok(());
        }
        let mut now = Vec::new();
        for table in tables {
            now.extend(self.keys_of(Some(table)).await?);
        }
        keys.renew(tables, now);
        Ok(())
    }

    /// Those of one table, if it is given.
    async fn keys_of(&mut self, child: Option<&Named>) -> Result<Vec<ForeignKey>, SourceError> {
        // Names stand as literals: only then MariaDB opens no more tables than are asked for.
        let of_child = |schema: &str| match child {
            None => String::new(),
            Some(Named { database, table }) => {
                let (database, table) = (literal(database), literal(table));
                format!("and {schema} = {database} and table_name = {table}")
            }
        };
        // Two queries: the server joins its catalog row by row.
        let query = format!(
            "select constraint_schema, table_name, constraint_name,
                    delete_rule in {CHANGES}, update_rule in {CHANGES}
               from information_schema.referential_constraints
              where (delete_rule in {CHANGES} or update_rule in {CHANGES}) {}",
            of_child("constraint_schema")
        );
        let rules: Vec<Row> = self.session.query(query).await?;
        if rules.is_empty() {
            return Ok(Vec::new());
        }
        let query = format!(
            "select table_schema, table_name, constraint_name,
                    referenced_table_schema, referenced_table_name, referenced_column_name
               from information_schema.key_column_usage
              where referenced_table_name is not null {}",
            of_child("table_schema")
        );
        let columns: Vec<Row> = self.session.query(query).await?;
        let named = |row: &Row, at| {
            let (database, table) = (text(row, at)?, text(row, at + 1)?);
            Some(Named { database, table })
        };
        let mut parents: HashMap<(Named, String), (Named, Vec<String>)> = HashMap::new();
        for row in &columns {
            let (Some(child), Some(name), Some(parent)) =
                (named(row, 0), text(row, 2), named(row, 3))
            else {
                continue;
            };
            let (_, columns) = parents
                .entry((child, name))
                .or_insert_with(|| (parent, Vec::new()));
            columns.extend(text(row, 5));
        }
        let keys = rules.iter().filter_map(|rule| {
            let (child, name) = (named(rule, 0)?, text(rule, 2)?);
            let (parent, columns) = parents.get(&(child.clone(), name.clone()))?.clone();
            let is_set = |at| text(rule, at).as_deref() == Some("1");
            Some(ForeignKey {
                name,
                child,
                parent,
                columns,
                on_delete: is_set(3),
                on_update: is_set(4),
            })
        });
        Ok(keys.collect())
    }

    /// By the tables that they change rows of.
    pub(super) async fn keys_by_child(
        &mut self,
    ) -> Result<BTreeMap<Named, Vec<ForeignKey>>, SourceError> {
        let mut by_child: BTreeMap<Named, Vec<ForeignKey>> = BTreeMap::new();
        for key in self.keys_of(None).await? {
            by_child.entry(key.child.clone()).or_default().push(key);
        }
        Ok(by_child)
    }

    /// What statements run besides themselves.
    ///
    /// # Errors
    /// A query failed.
    pub async fn programs(&mut self) -> Result<Programs, SourceError> {
        // A user sees the triggers of tables for which it has that privilege.
        let query = "select count(*) from information_schema.user_privileges
              where privilege_type = 'TRIGGER'
                and grantee = concat(quote(substring_index(current_user(), '@', 1)), '@', quote(substring_index(current_user(), '@', -1)))";
        let granted: Option<u64> = self.session.query_first(query).await?;
        let query = "select event_object_schema, event_object_table, action_statement from information_schema.triggers";
        let triggers: Vec<Row> = self.session.query(query).await?;
        let trigger = |row: &Row| {
            let (database, table) = (text(row, 0)?, text(row, 1)?);
            Some((Named { database, table }, text(row, 2)?))
        };
        let query = "select table_name, view_definition from information_schema.views
                      where table_schema not in ('sys', 'mysql', 'information_schema', 'performance_schema')";
        let views: Vec<Row> = self.session.query(query).await?;
        let query = "select routine_name, routine_definition from information_schema.routines
                      where routine_schema not in ('sys', 'mysql')";
        let routines: Vec<Row> = self.session.query(query).await?;
        let named = |row: &Row| {
            let body = text(row, 1).filter(|body| !body.is_empty());
            Some((text(row, 0)?, body))
        };
        Ok(Programs {
            triggers: triggers.iter().filter_map(trigger).collect(),
            views: views.iter().filter_map(named).collect(),
            routines: routines.iter().filter_map(named).collect(),
            sees_triggers: granted.unwrap_or_default() > 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Named {
        Named {
            database: "d".into(),
            table: name.into(),
        }
    }

    fn keys(edges: &[(&str, &str, bool, bool)]) -> ForeignKeys {
        let key = |(parent, child, on_delete, on_update): &(&str, &str, bool, bool)| ForeignKey {
            name: format!("{parent}_{child}"),
            child: named(child),
            parent: named(parent),
            columns: vec!["id".into()],
            on_delete: *on_delete,
            on_update: *on_update,
        };
        ForeignKeys::new(edges.iter().map(key).collect(), false)
    }

    #[test]
    fn a_name_counts_where_it_is_a_word() {
        for text in ["update t set", "`t`", "d.t", "/*t*/", "'t'", "t"] {
            assert!(mentions(text, "t"), "{text}");
        }
        for text in ["update tt set", "t_", "at", "\u{e4}t", ""] {
            assert!(!mentions(text, "t"), "{text}");
        }
        assert!(mentions("insert into `my-table` values", "my-table"));
        assert!(mentions("anything", "a`b"));
    }

    #[test]
    fn children_follow_the_rules_of_their_keys_and_theirs_follow_them() {
        let keys = keys(&[
            ("a", "b", true, false),
            ("a", "c", false, true),
            ("b", "d", false, true),
            ("d", "a", true, true),
        ]);
        let reach = |deletes, updates| {
            let children = keys.children(&named("a"), deletes, updates);
            let names: Vec<String> = children.into_iter().map(|child| child.table).collect();
            names.join(" ")
        };
        assert_eq!(reach(true, false), "a b c d");
        assert_eq!(reach(false, true), "c");
        assert_eq!(reach(false, false), "");
        assert_eq!(keys.referenced(&named("a")), ["id"]);
        assert!(keys.referenced(&named("c")).is_empty());
    }

    #[test]
    fn keys_of_tables_that_were_changed_are_taken_in_the_place_of_theirs() {
        let mut found = keys(&[
            ("a", "b", true, true),
            ("a", "c", true, true),
            ("b", "d", true, true),
        ]);
        let set = |names: &[&str]| {
            names
                .iter()
                .map(|name| named(name))
                .collect::<BTreeSet<_>>()
        };
        // `a` is called `e`: who refers to it is to be looked at too.
        let changed = found.with_children(set(&["a", "e"]));
        assert_eq!(changed, set(&["a", "b", "c", "e"]));
        let now = keys(&[("e", "b", true, true), ("d", "e", true, true)]).keys;
        found.renew(&changed, now);
        assert_eq!(found.beyond(set(&["a"])), set(&["a"]));
        assert_eq!(found.beyond(set(&["e"])), set(&["b", "d", "e"]));
        let mut parents: Vec<_> = found
            .parents()
            .map(|parent| parent.table.as_str())
            .collect();
        parents.sort_unstable();
        assert_eq!(parents, ["b", "d", "e"]);
        let folded = ForeignKeys::new(found.keys, true);
        assert_eq!(folded.referenced(&named("B")), ["id"]);
    }

    #[test]
    fn a_statement_reaches_what_it_writes_and_what_that_runs() {
        let programs = Programs {
            triggers: vec![(named("a"), "insert into LOG values (f(new.id))".into())],
            views: vec![
                ("v".into(), Some("select * from `d`.`a`".into())),
                ("hidden_view".into(), None),
            ],
            routines: vec![
                (
                    "f".into(),
                    Some("begin delete from p; return 1; end".into()),
                ),
                ("hidden".into(), None),
            ],
            sees_triggers: true,
        };
        let keys = keys(&[("p", "child", true, false)]);
        let reach = |programs: &Programs, text: &str| {
            let reach = Reach::of(&[text.to_owned()], programs, &keys)?;
            let all = ["a", "log", "p", "child", "other"];
            let reached = all.into_iter().filter(|name| reach.contains(&named(name)));
            Some(reached.collect::<Vec<_>>().join(" "))
        };
        let told = |text: &str| reach(&programs, text);
        assert_eq!(told("update V set x = 1").as_deref(), Some("a log p child"));
        assert_eq!(told("delete from other").as_deref(), Some("other"));
        // What is only read does not change.
        let copied = told("insert into other select * from a join v");
        assert_eq!(copied.as_deref(), Some("other"));
        let called = told("insert into other select f(x) from a");
        assert_eq!(called.as_deref(), Some("p child other"));
        assert_eq!(told("select f(1)").as_deref(), Some("p child"));
        assert_eq!(told("select hidden()"), None);
        assert_eq!(told("insert into other select * from hidden_view"), None);
        let without = Programs {
            routines: Vec::new(),
            ..programs.clone()
        };
        let copied = reach(&without, "insert into other select * from hidden_view");
        assert_eq!(copied.as_deref(), Some("other"));
        assert_eq!(reach(&without, "update hidden_view set x = 1"), None);
        assert_eq!(reach(&Programs::default(), "insert into other"), None);
    }
}
