//! Which numbers the columns of a relation message have: it has names and types only, in the order of the numbers.
//!
//! Numbers never come again, and a new column gets the next one. If today's catalog has the relation's columns, they
//! are those: it alone tells two columns apart that swapped their names. Otherwise the relation is from before a
//! change that the catalog has already; then the numbers are those, ascending, that are most like the version before
//! and today's together.

use downriver_event::LogicalType;

/// Ids for columns whose numbers nobody knows any more.
const FORGOTTEN_COLUMN_IDS: u32 = 1 << 16;

/// Less than any likeness makes up for: a column has a number that the table has had.
const UNLIKELY: i32 = -1_000;

/// A column of a known number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    pub(super) number: u32,
    pub(super) name: &'a str,
    pub(super) ty: &'a LogicalType,
}

impl Known<'_> {
    fn likeness(&self, name: &str, ty: &LogicalType) -> i32 {
        match (self.name == name, self.ty == ty) {
            (true, true) => 3,
            (true, false) => 2,
            (false, true) => 1,
            (false, false) => 0,
        }
    }
}

/// The numbers of a relation's columns. `last` is the greatest number that the table has had.
pub(super) fn numbers(
    relation: &[(&str, &LogicalType)],
    previous: &[Known<'_>],
    today: &[Known<'_>],
    last: u32,
) -> Vec<u32> {
    if let Some(numbers) = as_today(relation, today) {
        return numbers;
    }
    let last = previous
        .iter()
        .map(|column| column.number)
        .fold(last, u32::max);
    let forgotten = (FORGOTTEN_COLUMN_IDS.max(last + 1)..).take(relation.len());
    let ids: Vec<u32> = (1..=last).chain(forgotten).collect();
    let likeness = |columns: &[Known<'_>], id: u32, (name, ty): (&str, &LogicalType)| {
        let known = columns.iter().find(|column| column.number == id);
        known.map_or(0, |column| column.likeness(name, ty))
    };
    assign(relation.len(), &ids, |place, id| {
        let column = relation[place];
        if id > last {
            return UNLIKELY;
        }
        // The version before is nearer than today's.
        4 * likeness(previous, id, column) + 3 * likeness(today, id, column)
    })
}

/// The numbers in today's catalog, if it has all columns in this order.
fn as_today(relation: &[(&str, &LogicalType)], today: &[Known<'_>]) -> Option<Vec<u32>> {
    let mut today = today.iter();
    let number = |(name, ty): &(&str, &LogicalType)| {
        let found = today.find(|now| now.name == *name && now.ty == *ty)?;
        Some(found.number)
    };
    relation.iter().map(number).collect()
}

/// Gives each column one of the ids, ascending as the columns are, so that the scores' sum is the greatest; of equal
/// ones the lower ids. There are at least as many ids as columns, ascending.
fn assign(columns: usize, ids: &[u32], score: impl Fn(usize, u32) -> i32) -> Vec<u32> {
    // best[i][j]: of the columns from i on, with the ids from j on; `None` if those are too few.
    let mut best: Vec<Vec<Option<i32>>> = vec![vec![None; ids.len() + 1]; columns + 1];
    best[columns].fill(Some(0));
    for i in (0..columns).rev() {
        for j in (0..ids.len()).rev() {
            let taken = best[i + 1][j + 1].map(|rest| rest + score(i, ids[j]));
            best[i][j] = taken.max(best[i][j + 1]);
        }
    }
    let mut assigned = Vec::with_capacity(columns);
    let mut j = 0;
    for i in 0..columns {
        while best[i][j] != best[i + 1][j + 1].map(|rest| rest + score(i, ids[j])) {
            j += 1;
        }
        assigned.push(ids[j]);
        j += 1;
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;

    const INT: LogicalType = LogicalType::Int32;
    const TEXT: LogicalType = LogicalType::Text;

    fn numbered<'a>(columns: &[(u32, &'a str, &'a LogicalType)]) -> Vec<Known<'a>> {
        let known = |(number, name, ty): &(u32, &'a str, &'a LogicalType)| Known {
            number: *number,
            name,
            ty,
        };
        columns.iter().map(known).collect()
    }

    #[test]
    fn what_the_catalog_has_is_known_by_its_numbers() {
        let before = numbered(&[(1, "id", &INT), (2, "a", &TEXT), (3, "b", &TEXT)]);
        let relation = [("id", &INT), ("b", &TEXT), ("a", &TEXT)];
        let swapped = numbered(&[(1, "id", &INT), (2, "b", &TEXT), (3, "a", &TEXT)]);
        assert_eq!(numbers(&relation, &before, &swapped, 3), [1, 2, 3]);
        // Dropped and added under the same name.
        let relation = [("id", &INT), ("a", &TEXT), ("b", &TEXT)];
        let again = numbered(&[(1, "id", &INT), (2, "a", &TEXT), (4, "b", &TEXT)]);
        assert_eq!(numbers(&relation, &before, &again, 4), [1, 2, 4]);
    }

    #[test]
    fn what_the_catalog_has_changed_since_is_known_by_the_version_before() {
        let before = numbered(&[(1, "id", &INT), (2, "a", &TEXT), (3, "b", &TEXT)]);
        let today = numbered(&[(1, "id", &INT), (3, "c", &TEXT), (5, "d", &INT)]);
        // As before; one dropped; one renamed; one added.
        let relation = [("id", &INT), ("a", &TEXT), ("b", &TEXT)];
        assert_eq!(numbers(&relation, &before, &today, 5), [1, 2, 3]);
        let relation = [("id", &INT), ("b", &TEXT)];
        assert_eq!(numbers(&relation, &before, &today, 5), [1, 3]);
        let relation = [("id", &INT), ("x", &TEXT), ("b", &TEXT)];
        assert_eq!(numbers(&relation, &before, &today, 5), [1, 2, 3]);
        let relation = [("id", &INT), ("a", &TEXT), ("b", &TEXT), ("new", &INT)];
        assert_eq!(numbers(&relation, &before, &today, 5), [1, 2, 3, 5]);
    }

    #[test]
    fn names_that_swapped_before_another_change_keep_their_order() {
        let before = numbered(&[(1, "id", &INT), (2, "a", &TEXT), (3, "b", &TEXT)]);
        let today = numbered(&[(1, "id", &INT), (2, "b", &TEXT), (3, "c", &TEXT)]);
        let relation = [("id", &INT), ("b", &TEXT), ("a", &TEXT)];
        assert_eq!(numbers(&relation, &before, &today, 3), [1, 2, 3]);
        // Added, and swapped later.
        let before = numbered(&[(1, "id", &INT)]);
        let today = numbered(&[(1, "id", &INT), (2, "b", &TEXT), (3, "a", &TEXT)]);
        let relation = [("id", &INT), ("a", &TEXT), ("b", &TEXT)];
        assert_eq!(numbers(&relation, &before, &today, 3), [1, 2, 3]);
    }

    #[test]
    fn columns_of_a_table_that_is_gone_get_ids_of_their_own() {
        let relation = [("id", &INT), ("a", &TEXT)];
        let ids = numbers(&relation, &[], &[], 0);
        assert_eq!(ids, [FORGOTTEN_COLUMN_IDS, FORGOTTEN_COLUMN_IDS + 1]);
        let before = numbered(&[(1, "id", &INT)]);
        assert_eq!(
            numbers(&relation, &before, &[], 0),
            [1, FORGOTTEN_COLUMN_IDS]
        );
    }
}
