//! What decides whether everything that became of a table's rows is in the stream.
//!
//! Two things are told by nothing in the stream: a change that the publication left out, and rows that a change of the
//! table wrote anew. So a log keeps of each table its outline when it was last known to be whole, and where that is
//! another now, the table has to be read again.
//!
//! A rewrite of rows gives the table another file. So do `VACUUM FULL`, `CLUSTER`, `TRUNCATE` and a move to another
//! tablespace, which change no value (or say so), and none of which writes the catalog's rows of the table's columns. A
//! change of a column's type, and a column with a default that every row has to be given, do both. (So does `VACUUM
//! FULL` where rows lack a column that was added with a constant default: the table is then read for nothing.) Where the
//! catalog's rows of the key's columns are others as well, rows may have other keys.
//!
//! A label of an enum that gets another name is in no file: rows hold its number. The stream prints it by the name that it
//! had when it was written, so nothing of the table counts before the stream has passed the change.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use downriver_event::TableId;

use super::catalog::Catalog;
use crate::error::SourceError;

/// A table's partitions, `oid:file`.
pub(super) const PARTS: &str = "parts";
/// What the table's rows lie in: their file (0: none of its own), and what wrote the catalog's rows of its columns,
/// `file:columns`.
pub(super) const STORAGE: &str = "storage";
/// The word of [`STORAGE`] for the row `c` of `pg_class`.
pub(super) const STORAGE_WORD: &str =
    "c.relfilenode || ':' || (select md5(coalesce(string_agg(attnum || ' ' || a.xmin, ',' order by attnum), ''))
      from pg_attribute a where attrelid = c.oid and attnum > 0 and not attisdropped)";
/// What wrote the catalog's rows of the columns of its key and its identity, `column:writer`.
pub(super) const KEY: &str = "key";
/// The word of [`KEY`] for the row `c` of `pg_class`.
pub(super) const KEY_WORD: &str =
    "(select string_agg(attnum || ':' || a.xmin, ',' order by attnum) from pg_attribute a
      where attrelid = c.oid and attnum in (select unnest(indkey::int2[]) from pg_index
                                             where indrelid = c.oid and (indisprimary or indisreplident)))";
/// The labels of the enums that the table's columns are made of, and what wrote the catalog's row of each, `oid:writer`.
pub(super) const LABELS: &str = "labels";
/// The word of [`LABELS`] of each table that has one, as `labels (attrelid, word)` of a recursive `with`: all at once from
/// the enums upwards, as a database may have very many tables.
pub(super) const LABELS_OF_TABLES: &str = "made_of (ty, enum) as (
          select distinct enumtypid, enumtypid from pg_enum
          union
          select whole, enum from made_of join (
              select oid, typbasetype from pg_type where typbasetype <> 0
              union all select oid, typelem from pg_type where typelem <> 0
              union all select rngtypid, rngsubtype from pg_range
              union all select (to_jsonb(r) ->> 'rngmultitypid')::oid, rngtypid from pg_range r
              union all select reltype, atttypid from pg_attribute join pg_class c on c.oid = attrelid
                         where reltype <> 0 and attnum > 0 and not attisdropped
          ) parts (whole, part) on part = ty),
     labels (attrelid, word) as (
          select attrelid, string_agg(label, ',' order by label)
            from (select distinct attrelid, l.oid || ':' || l.xmin
                    from pg_attribute join made_of on ty = atttypid join pg_enum l on enumtypid = enum
                   where attnum > 0 and not attisdropped) each (attrelid, label)
           group by attrelid)";

/// Words that differ when what they stand for does.
///
/// Stored as lines, `name word`. A build that looks at more adds a name; one that a stored outline does not have
/// tells nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline(BTreeMap<String, String>);

/// What became of a table's rows between two outlines of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// All of it is in the stream.
    Whole,
    /// They may have been written anew with other values, under the keys that they had.
    Rewritten,
    /// Changes may have been left out of the stream, or rows have other keys.
    Drifted,
}

impl Outline {
    pub(super) fn new(words: BTreeMap<String, String>) -> Self {
        Self(words)
    }

    #[must_use]
    pub fn encode(&self) -> Bytes {
        let lines = self.0.iter().map(|(name, word)| format!("{name} {word}\n"));
        Bytes::from(lines.collect::<String>())
    }

    /// `None` if it is not of this form.
    #[must_use]
    pub fn decode(stored: &[u8]) -> Option<Self> {
        let lines = std::str::from_utf8(stored).ok()?.lines();
        let lines = lines.map(|line| {
            let (name, word) = line.split_once(' ')?;
            Some((name.to_owned(), word.to_owned()))
        });
        lines.collect::<Option<_>>().map(Self)
    }

    /// Partitions that came since and are whole change nothing.
    #[must_use]
    pub fn turn(&self, now: &Self, new_parts: &BTreeSet<String>) -> Turn {
        let holds = self.0.iter().all(|(name, word)| match now.0.get(name) {
            Some(_) if name == STORAGE => true,
            _ if name == KEY => true,
            // Labels may come, and go with their column.
            _ if name == LABELS => !has_renamed(word, now.0.get(name)),
            Some(now) if name == PARTS => {
                let (known, now) = (parts_of(word), parts_of(now));
                let mut came = now.difference(&known);
                known.is_subset(&now) && came.all(|part| new_parts.contains(*part))
            }
            now => now == Some(word),
        });
        let is_rewritten = match (self.storage(), now.storage()) {
            (Some((file, columns)), Some(now)) => file != now.0 && columns != now.1,
            _ => false,
        };
        let key = |of: &Self| of.0.get(KEY).cloned();
        let has_other_keys = key(self).is_some_and(|key_then| key(now) != Some(key_then));
        match (holds, is_rewritten) {
            (false, _) => Turn::Drifted,
            (true, true) if has_other_keys => Turn::Drifted,
            (true, true) => Turn::Rewritten,
            (true, false) => Turn::Whole,
        }
    }

    fn storage(&self) -> Option<(&str, &str)> {
        self.0.get(STORAGE)?.split_once(':')
    }

    /// Partitions that there are now and were not.
    pub(super) fn parts_since(&self, before: &Self) -> BTreeSet<String> {
        let word = |of: &Self| of.0.get(PARTS).cloned().unwrap_or_default();
        let (before, now) = (word(before), word(self));
        let (before, now) = (parts_of(&before), parts_of(&now));
        let came = now.difference(&before);
        came.map(|part| (*part).to_owned()).collect()
    }
}

impl Catalog {
    /// Whether a table's rows lie in the file that they had by an outline: none was written anew since.
    ///
    /// # Errors
    /// The query failed.
    pub async fn has_file_of(
        &self,
        table: TableId,
        outline: &Outline,
    ) -> Result<bool, SourceError> {
        let query = "select relfilenode::text from pg_class where oid = $1 and relfilenode <> 0";
        let now = self.client().query_opt(query, &[&table.0]).await?;
        let now: Option<String> = now.map(|row| row.get(0));
        Ok(now.is_some() && outline.storage().map(|(file, _)| file) == now.as_deref())
    }
}

/// Whether some label was written since.
fn has_renamed(labels: &str, now: Option<&String>) -> bool {
    let written = |word| -> BTreeMap<_, _> {
        let labels = parts_of(word).into_iter();
        labels.filter_map(|label| label.split_once(':')).collect()
    };
    let now = now.map(|now| written(now)).unwrap_or_default();
    let mut labels = written(labels).into_iter();
    labels.any(|(label, writer)| now.get(label).is_some_and(|now| *now != writer))
}

fn parts_of(word: &str) -> BTreeSet<&str> {
    word.split(',').filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn outline(words: &[(&str, &str)]) -> Outline {
        let words = words.iter();
        Outline(
            words
                .map(|(name, word)| ((*name).into(), (*word).into()))
                .collect(),
        )
    }

    #[test]
    fn an_outline_holds_until_a_word_of_it_is_another_and_what_it_does_not_have_tells_nothing() {
        let stored = outline(&[("members", ""), ("publication", "16400:753")]);
        assert_eq!(&stored.encode()[..], b"members \npublication 16400:753\n");
        let stored = Outline::decode(&stored.encode()).unwrap();
        let more = [
            ("leaves", "1,2"),
            ("members", ""),
            ("publication", "16400:753"),
            ("storage", "7:a"),
        ];
        let none = BTreeSet::new();
        assert_eq!(stored.turn(&outline(&more), &none), Turn::Whole);
        assert_eq!(outline(&more).turn(&stored, &none), Turn::Drifted);
        let altered = outline(&[("members", ""), ("publication", "16400:754")]);
        assert_eq!(stored.turn(&altered, &none), Turn::Drifted);
        assert_eq!(Outline::decode(b"members\n"), None);
    }

    #[test]
    fn an_outline_holds_with_new_partitions_that_are_whole_and_not_without_old_ones() {
        let with = |parts| outline(&[("members", "table:1"), ("parts", parts)]);
        let stored = with("10:7,11:8");
        let now = with("10:7,11:8,12:9");
        assert_eq!(
            now.parts_since(&stored),
            BTreeSet::from(["12:9".to_owned()])
        );
        assert_eq!(stored.turn(&now, &BTreeSet::new()), Turn::Drifted);
        assert_eq!(stored.turn(&now, &now.parts_since(&stored)), Turn::Whole);
        for gone in ["10:7", "", "10:7,11:9"] {
            let now = with(gone);
            let came = now.parts_since(&stored);
            assert_eq!(stored.turn(&now, &came), Turn::Drifted, "{gone}");
        }
    }

    #[test]
    fn rows_are_written_anew_where_both_their_file_and_their_columns_are_others() {
        let none = BTreeSet::new();
        let with = |storage| outline(&[("members", ""), ("storage", storage)]);
        let turn = |now| with("7:a").turn(&with(now), &none);
        assert_eq!(turn("7:b"), Turn::Whole, "a column was renamed");
        assert_eq!(turn("8:a"), Turn::Whole, "VACUUM FULL");
        assert_eq!(turn("8:b"), Turn::Rewritten);
        let keyed = |key, storage| outline(&[("key", key), ("members", ""), ("storage", storage)]);
        let turn = |now: Outline| keyed("1:5", "7:a").turn(&now, &none);
        assert_eq!(turn(keyed("1:5", "8:b")), Turn::Rewritten);
        assert_eq!(turn(keyed("1:6", "8:b")), Turn::Drifted, "other keys");
        assert_eq!(turn(with("8:b")), Turn::Drifted, "no key any more");
        assert_eq!(turn(keyed("1:6", "7:b")), Turn::Whole);
        assert_eq!(
            with("7:a").turn(&keyed("1:6", "8:b"), &none),
            Turn::Rewritten
        );
        let left_out = outline(&[("members", "table:1"), ("storage", "8:b")]);
        assert_eq!(with("7:a").turn(&left_out, &none), Turn::Drifted);
    }

    #[test]
    fn a_label_that_was_written_anew_is_told_from_those_that_came_and_went() {
        let none = BTreeSet::new();
        let with = |labels| outline(&[("labels", labels), ("members", "")]);
        let turn = |now: &Outline| with("10:7,12:7").turn(now, &none);
        assert_eq!(turn(&with("10:7,11:9,12:7")), Turn::Whole);
        assert_eq!(turn(&with("12:7")), Turn::Whole);
        assert_eq!(turn(&outline(&[("members", "")])), Turn::Whole);
        assert_eq!(turn(&with("10:8,12:7")), Turn::Drifted);
    }
}
