//! Which columns are excluded or masked before anything of them reaches the log.
//!
//! Patterns are over "schema.table.column" and do not tell upper from lower case: a column is not to slip through by
//! its spelling. In each list the last pattern that matches decides; one that begins with `!` lets the column through.
//! Exclusion goes before masks, and of those the first whose list selects the column.
//!
//! A rule speaks of names, and columns are renamed. One that was covered and under its new name is not, by any rule, is
//! [`uncovered`]: nobody said that its values may be seen. Where a column has no number of the source's that outlasts its
//! name, it is noted of it in the schema ([`keep_covered`]).

use std::sync::Arc;

use downriver_decode::mask::{Treatment, Unmaskable};
use downriver_event::problem::Problem;
use downriver_event::schema::{WhyWithheld, Withheld};
use downriver_event::{Column, Cover, TableSchema, pattern};

use crate::error::SourceError;

pub use downriver_decode::mask::{Constant, HashKey, Mask};

#[derive(Clone, Debug, Default)]
pub struct ColumnRules {
    excluded: Vec<String>,
    masks: Vec<(Vec<String>, Arc<Mask>)>,
    order: ColumnOrder,
}

/// What tells where a table's columns lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ColumnOrder {
    /// Their numbers.
    #[default]
    Numbers,
    /// Their order in the schema, and the places of those that are withheld.
    Places,
}

/// What the rules say of a column.
enum Word<'a> {
    None,
    Shown,
    Excluded,
    Masked(&'a Arc<Mask>),
}

impl ColumnRules {
    #[must_use]
    pub fn new(excluded: &[String], masks: Vec<(Vec<String>, Mask)>, order: ColumnOrder) -> Self {
        let lower = |patterns: &[String]| patterns.iter().map(|p| p.to_lowercase()).collect();
        let masks = masks.into_iter();
        Self {
            excluded: lower(excluded),
            masks: masks
                .map(|(patterns, mask)| (lower(&patterns), Arc::new(mask)))
                .collect(),
            order,
        }
    }

    fn are_none(&self) -> bool {
        self.excluded.is_empty() && self.masks.is_empty()
    }

    fn word(&self, schema: &TableSchema, column: &str) -> Word<'_> {
        if self.are_none() {
            return Word::None;
        }
        let name = format!("{}.{}.{column}", schema.namespace, schema.name).to_lowercase();
        let excluded = pattern::last_word(&self.excluded, &name);
        if excluded == Some(true) {
            return Word::Excluded;
        }
        let mut shown = excluded.is_some();
        for (patterns, mask) in &self.masks {
            match pattern::last_word(patterns, &name) {
                Some(true) => return Word::Masked(mask),
                Some(false) => shown = true,
                None => {}
            }
        }
        if shown { Word::Shown } else { Word::None }
    }

    /// Applies the rules to a table whose columns are the source's own, in its order. Of those that are withheld for
    /// another reason than a rule the cover says so.
    ///
    /// # Errors
    /// A column of the key is covered, or a constant is none of its column's type.
    pub fn cover(&self, schema: &mut TableSchema) -> Result<(), Problem> {
        let columns = std::mem::take(&mut schema.columns);
        for (place, mut column) in (0..).zip(columns) {
            let word = self.word(schema, &column.name);
            let why = match (&word, column.why_withheld().map(|withheld| withheld.why)) {
                (_, Some(WhyWithheld::Generated)) => Some(WhyWithheld::Generated),
                (Word::Excluded, _) => Some(WhyWithheld::Excluded),
                (Word::None, Some(WhyWithheld::Renamed)) => Some(WhyWithheld::Renamed),
                _ => None,
            };
            if schema.key.contains(&column.id) {
                if why == Some(WhyWithheld::Generated) {
                    return Err(generated_key(schema, &column));
                }
                if matches!(word, Word::Excluded | Word::Masked(_)) {
                    return Err(covers_key(schema, &column));
                }
            }
            if let Some(why) = why {
                column.cover = match self.order {
                    ColumnOrder::Numbers => Cover::None,
                    ColumnOrder::Places => Cover::Withheld(Withheld { place, why }),
                };
                column.default = None;
                schema.withheld.push(column);
                continue;
            }
            column.cover = Cover::None;
            match word {
                Word::None | Word::Excluded => {}
                Word::Shown => column.cover = Cover::Shown,
                Word::Masked(mask) => mask
                    .cover(&mut column)
                    .map_err(|error| not_of_type(schema, &column, &error))?,
            }
            schema.columns.push(column);
        }
        Ok(())
    }

    /// The source's columns, in its order.
    fn in_order(&self, schema: &TableSchema) -> Vec<Column> {
        let columns = schema.source_columns().map(|(column, ty)| Column {
            ty: ty.clone(),
            cover: match column.cover {
                Cover::Withheld(withheld) => Cover::Withheld(withheld),
                Cover::None | Cover::Shown | Cover::Masked(_) => Cover::None,
            },
            ..column.clone()
        });
        let mut columns: Vec<_> = columns.collect();
        if self.order == ColumnOrder::Numbers {
            columns.sort_by_key(|column| column.id);
        }
        columns
    }

    /// The table as the rules of today have it.
    ///
    /// # Errors
    /// As [`Self::cover`].
    pub fn cover_again(&self, schema: &TableSchema) -> Result<TableSchema, Problem> {
        let mut again = TableSchema {
            columns: self.in_order(schema),
            withheld: Vec::new(),
            ..schema.clone()
        };
        self.cover(&mut again)?;
        for column in &mut again.columns {
            let mut known = schema.columns.iter();
            let is_same = |known: &Column| known.id == column.id && known.cover == column.cover;
            if !known.any(is_same) {
                // What it is of other values nobody is to be told.
                column.default = None;
            }
        }
        Ok(again)
    }

    /// Whether the table is as the rules of today have it.
    #[must_use]
    pub fn fit(&self, schema: &TableSchema) -> bool {
        let again = self.cover_again(schema);
        again.is_ok_and(|again| again.same_shape(schema))
    }

    /// The masks of a table's columns, in order; empty: none has one.
    pub(crate) fn masks(&self, schema: &TableSchema) -> Vec<Option<Arc<Mask>>> {
        let mask = |column: &Column| match self.word(schema, &column.name) {
            Word::Masked(mask) => Some(Arc::clone(mask)),
            Word::None | Word::Shown | Word::Excluded => None,
        };
        let mut masks: Vec<_> = schema.columns.iter().map(mask).collect();
        if masks.iter().all(Option::is_none) {
            masks.clear();
        }
        masks
    }

    /// What becomes of each of a table's columns, withheld ones included, in the order of the source. `schema` is as the
    /// rules have it.
    #[must_use]
    pub fn treatments(&self, schema: &TableSchema) -> Vec<Treatment> {
        if self.are_none() && schema.withheld.is_empty() {
            return Vec::new();
        }
        let is_withheld = |column: &Column| schema.withheld.iter().any(|it| it.id == column.id);
        let treatment = |column: &Column| match self.word(schema, &column.name) {
            _ if is_withheld(column) => Treatment::Withheld,
            Word::Masked(mask) => Treatment::Masked(Arc::clone(mask)),
            Word::None | Word::Shown | Word::Excluded => Treatment::Kept,
        };
        self.in_order(schema).iter().map(treatment).collect()
    }
}

/// Columns of a table whose values were not to be seen as they are.
fn covered(schema: &TableSchema) -> impl Iterator<Item = &Column> {
    let masked = schema.columns.iter();
    let masked = masked.filter(|column| matches!(column.cover, Cover::Masked(_)));
    let withheld = schema.withheld.iter();
    masked.chain(withheld.filter(|column| !is_generated(column)))
}

/// Whether it is withheld because the server leaves it out of updates.
#[must_use]
pub fn is_generated(column: &Column) -> bool {
    let why = column.why_withheld().map(|withheld| withheld.why);
    why == Some(WhyWithheld::Generated)
}

/// The column that one was before, if that was covered, it is called otherwise now, and no rule speaks of its name.
fn got_out<'a>(before: &'a TableSchema, now: &TableSchema, column: &Column) -> Option<&'a Column> {
    let same_table = before.namespace == now.namespace && before.name == now.name;
    let was = covered(before).find(|was| was.id == column.id)?;
    let why = was.why_withheld().map(|withheld| withheld.why);
    let renamed = !same_table || was.name != column.name || why == Some(WhyWithheld::Renamed);
    (renamed && column.cover == Cover::None).then_some(was)
}

/// A column that was covered and is not any more, though no rule lets it through: it, or its table, was renamed.
#[must_use]
pub fn uncovered(before: &TableSchema, now: &TableSchema) -> Option<Problem> {
    now.columns.iter().find_map(|column| {
        let was = got_out(before, now, column)?;
        Some(renamed(before, &was.name, now, column))
    })
}

/// Withholds what was covered under another name and would not be any more, and says so. So is a column of which nobody
/// knows whether it is that one: it came when a covered one went, and no statement says of which it is. It may have got
/// another type as well.
pub fn keep_covered(before: &TableSchema, now: &mut TableSchema) -> Option<Problem> {
    let has = |schema: &TableSchema, id| schema.source_columns().any(|(it, _)| it.id == id);
    let gone: Vec<_> = covered(before).filter(|it| !has(now, it.id)).collect();
    let mut problem = None;
    let mut kept = Vec::new();
    for column in &now.columns {
        let is_new = column.cover == Cover::None && !has(before, column.id);
        let was = got_out(before, now, column);
        let was = was.or_else(|| gone.first().copied().filter(|_| is_new));
        if let Some(was) = was {
            problem.get_or_insert_with(|| renamed(before, &was.name, now, column));
            kept.push(column.id);
        }
    }
    kept.extend(now.withheld.iter().filter_map(|column| {
        let why = column.why_withheld()?.why;
        let is_kept = why == WhyWithheld::Renamed;
        if is_kept {
            problem.get_or_insert_with(|| renamed(before, &column.name, now, column));
        }
        is_kept.then_some(column.id)
    }));
    if !kept.is_empty() {
        withhold(now, &kept);
    }
    problem
}

/// Withholds whatever was covered, where the rules cannot hold: until they do nobody is to see it.
pub fn withhold_covered(before: &TableSchema, now: &mut TableSchema) {
    let ids: Vec<u32> = covered(before).map(|column| column.id).collect();
    withhold(now, &ids);
}

/// What was covered under another name, of which no rule speaks yet.
#[must_use]
pub fn kept_covered(schema: &TableSchema) -> Option<Problem> {
    keep_covered(schema, &mut schema.clone())
}

fn withhold(schema: &mut TableSchema, ids: &[u32]) {
    let columns: Vec<Column> = schema
        .source_columns()
        .map(|(column, _)| column.clone())
        .collect();
    schema.columns.clear();
    schema.withheld.clear();
    for (place, mut column) in (0..).zip(columns) {
        if ids.contains(&column.id) {
            let why = WhyWithheld::Renamed;
            column.cover = Cover::Withheld(Withheld { place, why });
            column.default = None;
        }
        match &mut column.cover {
            Cover::Withheld(withheld) => {
                withheld.place = place;
                schema.withheld.push(column);
            }
            Cover::None | Cover::Shown | Cover::Masked(_) => schema.columns.push(column),
        }
    }
}

fn renamed(before: &TableSchema, was: &str, now: &TableSchema, column: &Column) -> Problem {
    let before = format!("{}.{was}", before.qualified_name());
    let now = format!("{}.{}", now.qualified_name(), column.name);
    let reason = match before == now {
        true => format!(
            "{now} was excluded or masked under another name, and no rule speaks of this one"
        ),
        false => format!(
            "{before} is excluded or masked, was renamed to {now}, and no rule speaks of that name"
        ),
    };
    Problem::new(
        "DR-1050",
        reason,
        format!(
            "add {now:?} to a list of exclude_columns or mask, or \"!{now}\" to let it through"
        ),
    )
}

/// Nobody could tell the rows apart whose key the server leaves out.
fn generated_key(schema: &TableSchema, column: &Column) -> Problem {
    Problem::new(
        "DR-1079",
        format!(
            "column {:?} of {} is part of the key and generated, and the server's binlog leaves it out of updates",
            column.name,
            schema.qualified_name()
        ),
        "give the table another key, or exclude it",
    )
}

/// Rows would be read that are others than those of the same table in the log.
pub(crate) fn rules_moved(schema: &TableSchema) -> SourceError {
    SourceError::transient(
        "DR-1053",
        format!(
            "the rules for the columns of {} are other ones than those that its newest rows in the log are of",
            schema.qualified_name()
        ),
        "nothing: it goes on when the source has taken up the new rules",
    )
}

fn covers_key(schema: &TableSchema, column: &Column) -> Problem {
    Problem::new(
        "DR-1051",
        format!(
            "column {:?} of {} is part of the key, and a rule excludes or masks it",
            column.name,
            schema.qualified_name()
        ),
        format!(
            "let it through with \"!{}.{}\" at the end of the rule, or exclude the table",
            schema.qualified_name(),
            column.name
        ),
    )
}

fn not_of_type(schema: &TableSchema, column: &Column, error: &Unmaskable) -> Problem {
    Problem::new(
        "DR-1052",
        format!(
            "the constant that masks column {:?} of {} {error}: its type is {}",
            column.name,
            schema.qualified_name(),
            column.source_type
        ),
        "give a constant of the column's type, or mask it with null",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use downriver_event::{LogicalType, ReplicaIdentity, TableId};

    use super::*;

    fn rules(excluded: &[&str]) -> ColumnRules {
        let excluded: Vec<String> = excluded.iter().map(|it| (*it).to_owned()).collect();
        let hash = Mask::Hash(HashKey::new(b"0123456789abcdef"));
        let masks = vec![(vec!["*.*.card".to_owned()], hash)];
        ColumnRules::new(&excluded, masks, ColumnOrder::Places)
    }

    /// Columns with their numbers: of text, and those called after a number of integers.
    fn table(name: &str, columns: &[(u32, &str)]) -> TableSchema {
        let columns = columns.iter().map(|(id, name)| Column {
            id: *id,
            name: (*name).to_owned(),
            ty: match name.starts_with('n') {
                true => LogicalType::Int32,
                false => LogicalType::Text,
            },
            nullable: true,
            source_type: "text".into(),
            cover: Cover::None,
            default: None,
        });
        TableSchema {
            id: TableId(1),
            version: 1,
            namespace: "shop".into(),
            name: name.into(),
            columns: columns.collect(),
            key: vec![1],
            identity: ReplicaIdentity::Default,
            withheld: Vec::new(),
        }
    }

    fn covered_by(rules: &ColumnRules, schema: TableSchema) -> TableSchema {
        rules.cover_again(&schema).unwrap()
    }

    fn names(schema: &TableSchema) -> Vec<&str> {
        let columns = schema.source_columns();
        columns.map(|(column, _)| column.name.as_str()).collect()
    }

    #[test]
    fn what_was_covered_stays_so_where_the_rules_cannot_hold() {
        let columns = [(1, "id"), (2, "photo"), (3, "n")];
        let before = covered_by(&rules(&["*.*.photo"]), table("people", &columns));
        let mut now = table("people", &columns);
        assert!(kept_covered(&now).is_none());
        withhold_covered(&before, &mut now);
        assert_eq!((now.columns.len(), now.withheld[0].id), (2, 2));
        assert!(kept_covered(&now).is_some());
    }

    #[test]
    fn columns_keep_their_places_whatever_covers_them() {
        let rules = rules(&["*.*.photo", "*.*.first"]);
        let columns = [(7, "first"), (1, "id"), (9, "photo"), (3, "card"), (2, "n")];
        let covered = covered_by(&rules, table("people", &columns));
        assert_eq!(names(&covered), ["first", "id", "photo", "card", "n"]);
        assert_eq!(covered.columns.len(), 3);
        let told = TableSchema::from_pb(&covered.to_pb()).unwrap();
        assert_eq!(told, covered);
        assert!(rules.fit(&told));
        let treatments = rules.treatments(&covered);
        let withheld = treatments
            .iter()
            .map(|it| matches!(it, Treatment::Withheld));
        let withheld: Vec<bool> = withheld.collect();
        assert_eq!(withheld, [true, false, true, false, false]);
        assert!(matches!(treatments[3], Treatment::Masked(_)));
    }

    #[test]
    fn what_was_covered_stays_so_until_a_rule_speaks_of_its_name() {
        let first = rules(&["*.*.photo"]);
        let before = covered_by(
            &first,
            table("people", &[(1, "id"), (2, "card"), (3, "photo")]),
        );
        let columns = [(1, "id"), (2, "plastic"), (3, "photo")];
        let mut now = covered_by(&first, table("people", &columns));
        let problem = keep_covered(&before, &mut now).unwrap();
        assert_eq!(problem.code, "DR-1050");
        assert_eq!(names(&now), ["id", "plastic", "photo"]);
        assert_eq!(now.columns.len(), 1);
        // It is stored, and the same is said at every start.
        let told = TableSchema::from_pb(&now.to_pb()).unwrap();
        let mut again = covered_by(&first, told.clone());
        assert_eq!(again, told);
        assert!(kept_covered(&again).is_some());
        assert!(keep_covered(&told, &mut again).is_some());
        let mut today = covered_by(&first, table("people", &columns));
        assert!(keep_covered(&told, &mut today).is_some());
        for spoken in ["*.*.plastic", "!*.*.plastic"] {
            let rules = rules(&["*.*.photo", spoken]);
            let mut now = covered_by(&rules, told.clone());
            assert_eq!(keep_covered(&told, &mut now), None, "{spoken}");
        }
        // So does that of a table of another name.
        let only = ["shop.people.photo"];
        let before = covered_by(&rules(&only), table("people", &[(1, "id"), (3, "photo")]));
        let mut now = covered_by(&rules(&only), table("persons", &[(1, "id"), (3, "photo")]));
        assert!(keep_covered(&before, &mut now).is_some());
    }

    #[test]
    fn a_column_that_may_be_a_covered_one_is_not_shown() {
        let rules = rules(&["*.*.photo"]);
        let before = covered_by(&rules, table("people", &[(1, "id"), (3, "photo")]));
        let is_kept = |columns: &[(u32, &str)]| {
            let mut now = covered_by(&rules, table("people", columns));
            keep_covered(&before, &mut now).is_some()
        };
        assert!(is_kept(&[(1, "id"), (4, "picture")]));
        assert!(is_kept(&[(1, "id"), (4, "number")]), "of another type");
        assert!(!is_kept(&[(1, "id"), (4, "picture"), (3, "photo")]));
        assert!(!is_kept(&[(1, "id"), (4, "card")]), "it is masked");
        assert!(!is_kept(&[(1, "id")]));
    }

    #[test]
    fn a_generated_column_is_covered_by_nobody() {
        let rules = rules(&[]);
        let mut schema = table("people", &[(1, "id"), (2, "v"), (3, "b")]);
        let place = 0;
        let why = WhyWithheld::Generated;
        schema.columns[1].cover = Cover::Withheld(Withheld { place, why });
        let before = covered_by(&rules, schema);
        assert_eq!(names(&before), ["id", "v", "b"]);
        let mut now = covered_by(&rules, table("people", &[(1, "id"), (2, "v2"), (3, "b")]));
        assert_eq!(keep_covered(&before, &mut now), None);
    }
}
