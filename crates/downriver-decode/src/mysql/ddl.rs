//! What a statement in the binlog does to tables: which it makes, drops or renames, and whether the rows that a table has
//! are others after it. Nothing fails here: of a statement that is not understood, and changes a table, it is said that
//! the table's rows may be others.
//!
//! Source: MySQL's and MariaDB's manuals, "SQL Statements" and "Comment Syntax".

mod words;

use super::wording::Quoting;
use words::{Word, Words};

/// A table as statements name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Named {
    pub database: String,
    pub table: String,
}

impl Named {
    /// As it is called where case makes no difference.
    #[must_use]
    pub fn in_lower_case(&self) -> Self {
        Self {
            database: self.database.to_lowercase(),
            table: self.table.to_lowercase(),
        }
    }
}

/// What a statement did, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Or it was there already, where the statement allows that.
    Created(Named),
    /// Another table has the name now.
    Replaced(Named),
    Dropped(Named),
    DatabaseDropped(String),
    Renamed {
        from: Named,
        to: Named,
    },
    Truncated(Named),
    Altered {
        table: Named,
        changes: Vec<Change>,
    },
}

impl Effect {
    /// Whether one of the tables that it makes, drops, renames or changes is the one.
    #[must_use]
    pub fn concerns(&self, is: impl Fn(&Named) -> bool) -> bool {
        self.tables().any(is)
    }

    /// The tables that it makes, drops, renames or changes. What goes with its database is not named.
    pub fn tables(&self) -> impl Iterator<Item = &Named> {
        let (first, second) = match self {
            Self::Created(table)
            | Self::Replaced(table)
            | Self::Dropped(table)
            | Self::Altered { table, .. } => (Some(table), None),
            Self::Renamed { from, to } => (Some(from), Some(to)),
            Self::DatabaseDropped(_) | Self::Truncated(_) => (None, None),
        };
        first.into_iter().chain(second)
    }

    /// The same with other names for its tables.
    #[must_use]
    pub fn called(self, name: impl Fn(Named) -> Named) -> Self {
        match self {
            Self::Created(table) => Self::Created(name(table)),
            Self::Replaced(table) => Self::Replaced(name(table)),
            Self::Dropped(table) => Self::Dropped(name(table)),
            Self::DatabaseDropped(database) => {
                let table = String::new();
                Self::DatabaseDropped(name(Named { database, table }).database)
            }
            Self::Renamed { from, to } => Self::Renamed {
                from: name(from),
                to: name(to),
            },
            Self::Truncated(table) => Self::Truncated(name(table)),
            Self::Altered { table, changes } => Self::Altered {
                table: name(table),
                changes,
            },
        }
    }
}

/// What became of a table's columns and rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A column has another name; its values are as they were.
    ColumnRenamed {
        from: String,
        to: String,
    },
    ColumnDropped(String),
    /// A column may have another type, and its values with it.
    Retyped(String),
    /// Rows may be others than they were: some are gone, or have values that no event tells.
    Rows,
}

/// The effects of a statement; `database` is the one that was current.
#[must_use]
pub fn effects(database: &str, text: &str) -> Vec<Effect> {
    effects_of(database, Words::of(text))
}

/// The same of one that was written under other settings.
#[must_use]
pub fn effects_as(database: &str, text: &str, quoting: Quoting) -> Vec<Effect> {
    effects_of(database, Words::quoted_as(text, quoting))
}

fn effects_of(database: &str, mut words: Words) -> Vec<Effect> {
    let mut effects = Vec::new();
    // MariaDB's settings of the one statement that follows.
    if words.take_all(&["SET", "STATEMENT"]) {
        while words.next().is_some_and(|word| !word.is("FOR")) {}
    }
    if words.take("CREATE") {
        let replaces = words.take_all(&["OR", "REPLACE"]);
        words.take("ONLINE");
        words.take("OFFLINE");
        // No other index can be a table's key.
        let is_unique = words.is_any(&["UNIQUE"]);
        if is_of_index(&mut words) {
            effects.extend(of_index(&mut words, database).filter(|_| is_unique || replaces));
        } else if words.take("TABLE") {
            words.take_all(&["IF", "NOT", "EXISTS"]);
            effects.extend(named(&mut words, database).map(|table| match replaces {
                true => Effect::Replaced(table),
                false => Effect::Created(table),
            }));
        }
    } else if words.take("DROP") {
        if words.take("TABLE") || words.take("TABLES") {
            words.take_all(&["IF", "EXISTS"]);
            while let Some(table) = named(&mut words, database) {
                effects.push(Effect::Dropped(table));
                if !words.take(",") {
                    break;
                }
            }
        } else if words.take("DATABASE") || words.take("SCHEMA") {
            words.take_all(&["IF", "EXISTS"]);
            effects.extend(words.name().map(Effect::DatabaseDropped));
        } else if is_of_index(&mut words) {
            effects.extend(of_index(&mut words, database));
        }
    } else if words.take("RENAME") {
        if words.take("TABLE") || words.take("TABLES") {
            words.take_all(&["IF", "EXISTS"]);
            while let Some(from) = named(&mut words, database) {
                waits(&mut words);
                if !words.take("TO") {
                    break;
                }
                let Some(to) = named(&mut words, database) else {
                    break;
                };
                effects.push(Effect::Renamed { from, to });
                if !words.take(",") {
                    break;
                }
            }
        }
    } else if words.take("TRUNCATE") {
        words.take("TABLE");
        effects.extend(named(&mut words, database).map(Effect::Truncated));
    } else if words.take("ALTER") {
        words.take("ONLINE");
        words.take("OFFLINE");
        // Rows that a new unique key does not admit are deleted.
        let ignores = words.take("IGNORE");
        if words.take("TABLE") {
            words.take_all(&["IF", "EXISTS"]);
            altered(&mut words, database, ignores, &mut effects);
        }
    }
    effects
}

/// The temporary tables that a statement makes (`true`) or drops.
#[must_use]
pub fn temporary(database: &str, text: &str, quoting: Quoting) -> Vec<(Named, bool)> {
    let mut words = Words::quoted_as(text, quoting);
    let is_made = words.take("CREATE");
    if is_made {
        words.take_all(&["OR", "REPLACE"]);
    } else if !words.take("DROP") {
        return Vec::new();
    }
    if !words.take("TEMPORARY") || !(words.take("TABLE") || words.take("TABLES")) {
        return Vec::new();
    }
    words.take_all(&["IF", "NOT", "EXISTS"]);
    words.take_all(&["IF", "EXISTS"]);
    let mut tables = Vec::new();
    while let Some(table) = named(&mut words, database) {
        tables.push((table, is_made));
        if is_made || !words.take(",") {
            break;
        }
    }
    tables
}

/// The first words of a statement that are no names, in upper case.
pub(super) fn verb(text: &str, count: usize) -> Vec<String> {
    let mut words = Words::of(text);
    while words.take("(") {}
    std::iter::from_fn(|| words.keyword()).take(count).collect()
}

/// What a statement that changes rows writes by itself, whatever it reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// Only what the functions that it calls write.
    Nothing,
    /// A table's or a view's.
    Rows(String),
    /// Any that it names.
    Any,
}

/// Which rows a statement writes.
#[must_use]
pub fn written(text: &str) -> Written {
    const MODIFIERS: [&str; 5] = ["LOW_PRIORITY", "DELAYED", "HIGH_PRIORITY", "IGNORE", "INTO"];
    let mut words = Words::of(text);
    if words.is_any(&["SELECT", "DO"]) {
        return Written::Nothing;
    }
    if !words.take("INSERT") && !words.take("REPLACE") {
        return Written::Any;
    }
    while MODIFIERS.iter().any(|modifier| words.take(modifier)) {}
    match named(&mut words, "") {
        Some(table) => Written::Rows(table.table),
        None => Written::Any,
    }
}

/// MariaDB's limits of waiting for a table.
fn waits(words: &mut Words) {
    if words.take("WAIT") {
        words.next();
    } else {
        words.take("NOWAIT");
    }
}

fn named(words: &mut Words, database: &str) -> Option<Named> {
    let first = words.name()?;
    if !words.take(".") {
        return Some(Named {
            database: database.to_owned(),
            table: first,
        });
    }
    Some(Named {
        database: first,
        table: words.name()?,
    })
}

fn is_of_index(words: &mut Words) -> bool {
    for word in [
        "ONLINE", "OFFLINE", "UNIQUE", "FULLTEXT", "SPATIAL", "VECTOR",
    ] {
        words.take(word);
    }
    words.take("INDEX")
}

/// `i [USING t] ON t`: its table may have another key.
fn of_index(words: &mut Words, database: &str) -> Option<Effect> {
    while words.next().is_some_and(|word| !word.is("ON")) {}
    Some(Effect::Altered {
        table: named(words, database)?,
        changes: Vec::new(),
    })
}

fn altered(words: &mut Words, database: &str, ignores: bool, effects: &mut Vec<Effect>) {
    let Some(table) = named(words, database) else {
        return;
    };
    waits(words);
    let mut changes = Vec::new();
    if ignores {
        changes.push(Change::Rows);
    }
    let (mut renamed, mut other) = (None, None);
    for mut words in words.parts() {
        let mut change = |change| {
            if !changes.contains(&change) {
                changes.push(change);
            }
        };
        match operation(&mut words) {
            Operation::Nothing => {}
            Operation::Rows => change(Change::Rows),
            Operation::Retyped { from, to } => {
                change(Change::Retyped(to.clone()));
                if from != to {
                    change(Change::ColumnRenamed { from, to });
                }
            }
            Operation::ColumnRenamed { from, to } => change(Change::ColumnRenamed { from, to }),
            Operation::ColumnDropped(column) => change(Change::ColumnDropped(column)),
            Operation::Renamed => renamed = named(&mut words, &table.database),
            Operation::Exchanged => {
                change(Change::Rows);
                let changes = vec![Change::Rows];
                other = named(&mut words, database).map(|table| Effect::Altered { table, changes });
            }
            Operation::Converted => {
                change(Change::Rows);
                other = converted(&mut words, database);
            }
        }
    }
    effects.push(Effect::Altered {
        table: table.clone(),
        changes,
    });
    effects.extend(other);
    effects.extend(renamed.map(|to| Effect::Renamed { from: table, to }));
}

enum Operation {
    /// To values and rows.
    Nothing,
    Rows,
    Retyped {
        from: String,
        to: String,
    },
    ColumnRenamed {
        from: String,
        to: String,
    },
    ColumnDropped(String),
    /// To the name that follows.
    Renamed,
    /// A partition's rows for those of the table whose name follows.
    Exchanged,
    /// Of MariaDB: a partition becomes a table, or a table a partition.
    Converted,
}

/// `PARTITION p TO TABLE t`, or `TABLE t TO PARTITION p`.
fn converted(words: &mut Words, database: &str) -> Option<Effect> {
    if words.take("TABLE") {
        return named(words, database).map(Effect::Dropped);
    }
    words.take("PARTITION");
    words.name();
    words.take_all(&["TO", "TABLE"]);
    named(words, database).map(Effect::Created)
}

/// One of the operations of an `ALTER TABLE`.
fn operation(words: &mut Words) -> Operation {
    let Some(first) = words.keyword() else {
        return Operation::Rows;
    };
    match first.as_str() {
        "ADD" => added(words),
        "DROP" => dropped(words),
        "CHANGE" | "MODIFY" => {
            words.take("COLUMN");
            words.take_all(&["IF", "EXISTS"]);
            let Some(from) = words.name() else {
                return Operation::Rows;
            };
            let to = match first == "CHANGE" {
                true => words.name(),
                false => Some(from.clone()),
            };
            match to {
                // Values that are computed anew, or the key's.
                Some(_) if words.has_any(&["AS", "GENERATED", "PRIMARY", "AUTO_INCREMENT"]) => {
                    Operation::Rows
                }
                Some(to) => Operation::Retyped { from, to },
                None => Operation::Rows,
            }
        }
        "RENAME" => renamed(words),
        "CONVERT" if words.is_any(&["PARTITION", "TABLE"]) => Operation::Converted,
        "EXCHANGE" if words.take("PARTITION") => {
            words.name();
            match words.take("WITH") && words.take("TABLE") {
                true => Operation::Exchanged,
                false => Operation::Rows,
            }
        }
        // Defaults and visibility.
        "ALTER" => Operation::Nothing,
        "ALGORITHM"
        | "AUTO_INCREMENT"
        | "AVG_ROW_LENGTH"
        | "CHARACTER"
        | "CHARSET"
        | "CHECKSUM"
        | "COLLATE"
        | "COMMENT"
        | "COMPRESSION"
        | "CONNECTION"
        | "DATA"
        | "DEFAULT"
        | "DELAY_KEY_WRITE"
        | "DISABLE"
        | "ENABLE"
        | "ENCRYPTED"
        | "ENCRYPTION"
        | "ENCRYPTION_KEY_ID"
        | "FORCE"
        | "INDEX"
        | "INSERT_METHOD"
        | "KEY_BLOCK_SIZE"
        | "LOCK"
        | "MAX_ROWS"
        | "MIN_ROWS"
        | "NOWAIT"
        | "ORDER"
        | "PACK_KEYS"
        | "PAGE_CHECKSUM"
        | "PAGE_COMPRESSED"
        | "PAGE_COMPRESSION_LEVEL"
        | "PASSWORD"
        | "ROW_FORMAT"
        | "SECONDARY_LOAD"
        | "SECONDARY_UNLOAD"
        | "SECONDARY_ENGINE"
        | "STATS_AUTO_RECALC"
        | "STATS_PERSISTENT"
        | "STATS_SAMPLE_PAGES"
        | "TRANSACTIONAL"
        | "WAIT"
        | "WITH"
        | "WITHOUT" => Operation::Nothing,
        // Rows go to other places of the same table.
        "PARTITION" | "REMOVE" | "REORGANIZE" | "COALESCE" | "REBUILD" | "ANALYZE" | "CHECK"
        | "OPTIMIZE" => Operation::Nothing,
        // Engines have other types' precisions, and some keep no rows.
        _ => Operation::Rows,
    }
}

const OF_INDEXES: [&str; 8] = [
    "INDEX", "KEY", "UNIQUE", "FULLTEXT", "SPATIAL", "FOREIGN", "CHECK", "VECTOR",
];

fn added(words: &mut Words) -> Operation {
    if words.take("PARTITION") {
        return Operation::Nothing;
    }
    if words.take("CONSTRAINT") {
        if !words.is_any(&["PRIMARY", "UNIQUE", "FOREIGN", "CHECK"]) {
            words.name();
        }
        return match words.is_any(&["PRIMARY"]) {
            true => Operation::Rows,
            false => Operation::Nothing,
        };
    }
    if words.is_any(&OF_INDEXES) {
        return Operation::Nothing;
    }
    if words.is_any(&["PRIMARY", "SYSTEM", "PERIOD"]) {
        return Operation::Rows;
    }
    words.take("COLUMN");
    // What a column is filled with, of several in parentheses also.
    let nothing = words.fills_with_null();
    match nothing {
        true => Operation::Nothing,
        false => Operation::Rows,
    }
}

fn dropped(words: &mut Words) -> Operation {
    if words.is_any(&["PRIMARY", "PARTITION", "SYSTEM", "PERIOD"]) {
        return Operation::Rows;
    }
    if words.is_any(&OF_INDEXES) || words.is_any(&["CONSTRAINT"]) {
        return Operation::Nothing;
    }
    words.take("COLUMN");
    words.take_all(&["IF", "EXISTS"]);
    words
        .name()
        .map_or(Operation::Nothing, Operation::ColumnDropped)
}

fn renamed(words: &mut Words) -> Operation {
    if words.is_any(&["INDEX", "KEY"]) {
        return Operation::Nothing;
    }
    if words.take("COLUMN") {
        words.take_all(&["IF", "EXISTS"]);
        let from = words.name();
        words.take("TO");
        return match (from, words.name()) {
            (Some(from), Some(to)) => Operation::ColumnRenamed { from, to },
            _ => Operation::Rows,
        };
    }
    for word in ["TO", "AS", "="] {
        if words.take(word) {
            break;
        }
    }
    Operation::Renamed
}

impl Words {
    /// Whether a column that is added with the definition that follows is NULL in the rows that are there.
    fn fills_with_null(&self) -> bool {
        let rest = self.rest();
        let is = |at: usize, keyword: &str| rest.get(at).is_some_and(|word| word.is(keyword));
        for at in 0..rest.len() {
            let not_null = is(at, "NOT") && is(at + 1, "NULL");
            let default = is(at, "DEFAULT") && !is(at + 1, "NULL");
            let computed = ["AS", "GENERATED", "AUTO_INCREMENT", "PRIMARY", "SERIAL"];
            // A NULL of a TIMESTAMP column has to be asked for on older servers.
            let of_now = is(at, "TIMESTAMP") && !rest.iter().any(|word| word.is("NULL"));
            if not_null || default || of_now || computed.iter().any(|keyword| is(at, keyword)) {
                return false;
            }
        }
        rest.iter().any(|word| matches!(word, Word::Plain(_)))
    }
}

#[cfg(test)]
mod tests;
