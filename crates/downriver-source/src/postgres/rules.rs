//! Which columns are excluded or masked before anything of them reaches the log.
//!
//! Patterns are over "schema.table.column" and do not tell upper from lower case: a column is not to slip through by
//! its spelling. In each list the last pattern that matches decides; one that begins with `!` lets the column through.
//! Exclusion goes before masks, and of those the first whose list selects the column.
//!
//! A rule speaks of names, and columns are renamed. One that was covered and under its new name is not, by any rule, is
//! [`uncovered`]: nobody said that its values may be seen.

use std::sync::Arc;

use downriver_decode::postgres::ValueError;
use downriver_decode::postgres::shape::Treatment;
use downriver_event::problem::Problem;
use downriver_event::{Column, Cover, TableSchema, pattern};

pub use downriver_decode::postgres::mask::{HashKey, Mask};

#[derive(Clone, Debug, Default)]
pub struct ColumnRules {
    excluded: Vec<String>,
    masks: Vec<(Vec<String>, Arc<Mask>)>,
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
    pub fn new(excluded: &[String], masks: Vec<(Vec<String>, Mask)>) -> Self {
        let lower = |patterns: &[String]| patterns.iter().map(|p| p.to_lowercase()).collect();
        let masks = masks.into_iter();
        Self {
            excluded: lower(excluded),
            masks: masks
                .map(|(patterns, mask)| (lower(&patterns), Arc::new(mask)))
                .collect(),
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

    /// Applies the rules to a table whose columns are the source's own.
    ///
    /// # Errors
    /// A column of the key is covered, or a constant is none of its column's type.
    pub(super) fn cover(&self, schema: &mut TableSchema) -> Result<(), Problem> {
        let columns = std::mem::take(&mut schema.columns);
        for mut column in columns {
            let word = self.word(schema, &column.name);
            let covers = matches!(word, Word::Excluded | Word::Masked(_));
            if covers && schema.key.contains(&column.id) {
                return Err(covers_key(schema, &column));
            }
            match word {
                Word::None => {}
                Word::Shown => column.cover = Cover::Shown,
                Word::Excluded => {
                    schema.withheld.push(column);
                    continue;
                }
                Word::Masked(mask) => mask
                    .cover(&mut column)
                    .map_err(|error| not_of_type(schema, &column, &error))?,
            }
            schema.columns.push(column);
        }
        Ok(())
    }

    /// The table as the rules of today have it.
    ///
    /// # Errors
    /// As [`Self::cover`].
    pub fn cover_again(&self, schema: &TableSchema) -> Result<TableSchema, Problem> {
        let columns = schema.source_columns().map(|(column, ty)| Column {
            ty: ty.clone(),
            cover: Cover::None,
            default: None,
            ..column.clone()
        });
        let mut columns: Vec<_> = columns.collect();
        columns.sort_by_key(|column| column.id);
        let mut again = TableSchema {
            columns,
            withheld: Vec::new(),
            ..schema.clone()
        };
        self.cover(&mut again)?;
        Ok(again)
    }

    /// Whether the table is as the rules of today have it.
    #[must_use]
    pub fn fit(&self, schema: &TableSchema) -> bool {
        let again = self.cover_again(schema);
        again.is_ok_and(|again| again.same_shape(schema))
    }

    /// The masks of a table's columns, in order; empty: none has one.
    pub(super) fn masks(&self, schema: &TableSchema) -> Vec<Option<Arc<Mask>>> {
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

    /// What becomes of each of a table's columns, withheld ones included, in the order of the source.
    #[must_use]
    pub fn treatments(&self, schema: &TableSchema) -> Vec<Treatment> {
        if self.are_none() {
            return Vec::new();
        }
        let mut columns: Vec<_> = schema.source_columns().map(|(column, _)| column).collect();
        columns.sort_by_key(|column| column.id);
        let treatment = |column: &Column| match self.word(schema, &column.name) {
            Word::Excluded => Treatment::Withheld,
            Word::Masked(mask) => Treatment::Masked(Arc::clone(mask)),
            Word::None | Word::Shown => Treatment::Kept,
        };
        columns.into_iter().map(treatment).collect()
    }
}

/// A column that was covered and is not any more, though no rule lets it through: it, or its table, was renamed.
#[must_use]
pub fn uncovered(before: &TableSchema, now: &TableSchema) -> Option<Problem> {
    let same_table = before.namespace == now.namespace && before.name == now.name;
    let masked = before.columns.iter();
    let masked = masked.filter(|column| matches!(column.cover, Cover::Masked(_)));
    let covered: Vec<_> = masked.chain(&before.withheld).collect();
    now.columns.iter().find_map(|column| {
        let was = covered.iter().find(|was| was.id == column.id)?;
        let renamed = !same_table || was.name != column.name;
        (renamed && column.cover == Cover::None).then(|| {
            let now = format!("{}.{}", now.qualified_name(), column.name);
            Problem::new(
                "DR-1050",
                format!(
                    "{}.{} is excluded or masked, was renamed to {now}, and no rule speaks of that name",
                    before.qualified_name(),
                    was.name
                ),
                format!("add {now:?} to a list of exclude_columns or mask, or \"!{now}\" to let it through"),
            )
        })
    })
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

fn not_of_type(schema: &TableSchema, column: &Column, error: &ValueError) -> Problem {
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
