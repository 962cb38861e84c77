//! The columns of a table map that names none: what is known of the table, by their places.

use downriver_event::{Column, LogicalType};

use super::charset::Charset;
use super::declared::Declared;
use super::native::Native;
use super::shape::{BINARY, Described};
use super::table_map::{MapColumn, TableMap, Wire};

/// The rows that a table map announces are not of the shape that is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("they have {found} columns, not {known}")]
    Count { known: usize, found: usize },
    #[error("column {column:?} does not have the type {known} in them")]
    Type { column: String, known: String },
}

/// The columns of a table map by the known ones, which lie in the table's order: each with what the map leaves unsaid.
/// `charset_of` names a collation's character set.
///
/// # Errors
/// What the map does say is not what is known.
pub fn recall<'a>(
    map: &TableMap,
    known: impl Iterator<Item = (&'a Column, &'a LogicalType)>,
    charset_of: impl Fn(u64) -> Option<String>,
) -> Result<Vec<Described>, Unfit> {
    let known: Vec<_> = known.collect();
    if known.len() != map.columns.len() {
        return Err(Unfit::Count {
            known: known.len(),
            found: map.columns.len(),
        });
    }
    let recall = |(told, (column, ty)): (&MapColumn, (&Column, &LogicalType))| {
        let unfit = || Unfit::Type {
            column: column.name.clone(),
            known: column.source_type.clone(),
        };
        let declared = declared(&column.source_type, ty);
        let charset = told.collation.filter(|collation| *collation != BINARY);
        let charset = charset.map(&charset_of);
        let is_of = |declared: Option<Charset>, told: &Option<String>| {
            told.as_deref().and_then(Charset::named) == declared
        };
        let has_text = told.collation.is_some() && told.labels.is_none();
        // Servers say of a year that it is unsigned, and nobody declares it so.
        let has_sign = told.wire.is_some_and(has_sign);
        let is_declared = (!has_sign || told.unsigned.is_none_or(|is| is == declared.unsigned))
            && (!has_text || is_of(declared.charset, &charset.flatten()));
        let wire = told.wire.filter(|_| is_declared).ok_or_else(unfit)?;
        let name = column.name.clone();
        let recalled = Described::new(name, told.nullable, told.code, wire, declared);
        let fits = recalled.source_type == column.source_type
            && recalled.ty == *ty
            && recalled.nullable == column.nullable;
        fits.then_some(recalled).ok_or_else(unfit)
    };
    map.columns.iter().zip(known).map(recall).collect()
}

fn has_sign(wire: Wire) -> bool {
    matches!(
        wire,
        Wire::Integer(_) | Wire::Float | Wire::Double | Wire::Decimal { .. }
    )
}

/// A column as it is declared, from the words of its type: the reverse of [`Declared::source_type`].
fn declared(source_type: &str, ty: &LogicalType) -> Declared {
    const CHARSET: &str = " character set ";
    const TEXTS: [&str; 6] = [
        "char",
        "varchar",
        "tinytext",
        "text",
        "mediumtext",
        "longtext",
    ];
    let (unsigned, charset) = match source_type.split_once(CHARSET) {
        Some((_, charset)) => (false, Charset::named(charset)),
        None if TEXTS.contains(&source_type) => (false, Some(Charset::UTF8)),
        None => (source_type.ends_with(" unsigned"), None),
    };
    let labels = match ty {
        LogicalType::Enum { labels } => labels.clone(),
        _ => members(source_type).unwrap_or_default(),
    };
    Declared {
        unsigned,
        charset,
        labels,
        native: Native::named(source_type),
    }
}

/// Of `set('a','it''s')`.
fn members(source_type: &str) -> Option<Vec<String>> {
    let list = source_type.strip_prefix("set('")?.strip_suffix("')")?;
    // A quote in a label is written twice, so that none alone stands before a comma but at its end.
    let (mut members, mut member) = (Vec::new(), String::new());
    let mut chars = list.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\'' if chars.next_if_eq(&'\'').is_some() => member.push('\''),
            '\'' => {
                chars.next_if_eq(&',')?;
                chars.next_if_eq(&'\'')?;
                members.push(std::mem::take(&mut member));
            }
            other => member.push(other),
        }
    }
    members.push(member);
    Some(members)
}

#[cfg(test)]
mod tests {
    use super::super::table_map::code;
    use super::*;

    #[test]
    fn the_words_of_a_type_tell_all_that_its_values_depend_on() {
        let latin = Charset::named("latin1");
        assert!(latin.is_some());
        let labels = |labels: &[&str]| labels.iter().map(|l| (*l).to_owned()).collect();
        let of = |unsigned, charset, names: &[&str]| Declared {
            unsigned,
            charset,
            labels: labels(names),
            native: None,
        };
        let native = |native| Declared {
            native: Some(native),
            ..Declared::default()
        };
        for (code, wire, declared) in [
            (code::LONG, Wire::Integer(4), of(true, None, &[])),
            (code::LONG, Wire::Integer(4), of(false, None, &[])),
            (code::VARCHAR, Wire::Bytes(1), of(false, latin, &[])),
            (
                code::BLOB,
                Wire::Bytes(2),
                of(false, Some(Charset::UTF8), &[]),
            ),
            (code::BLOB, Wire::Bytes(2), of(false, None, &[])),
            (code::STRING, Wire::Char(40), of(false, latin, &[])),
            (code::STRING, Wire::Char(40), of(false, None, &[])),
            (code::STRING, Wire::Char(16), of(false, None, &[])),
            (code::STRING, Wire::Char(16), native(Native::Uuid)),
            (code::STRING, Wire::Char(16), native(Native::Inet6)),
            (code::STRING, Wire::Char(4), native(Native::Inet4)),
            (
                code::SET,
                Wire::Set(1),
                of(false, None, &["a", "it's", "','", "''", "", "unsigned"]),
            ),
            (code::SET, Wire::Set(1), of(false, None, &[""])),
            (code::ENUM, Wire::Enum(1), of(false, None, &["a", "b,"])),
        ] {
            let described = Described::new("c".into(), true, code, wire, declared.clone());
            let read = super::declared(&described.source_type, &described.ty);
            assert_eq!(read, declared, "{}", described.source_type);
        }
    }

    #[test]
    fn rows_of_another_shape_are_not_read_as_the_known_one() {
        let column = |source_type: &str, ty: &LogicalType| Column {
            id: 1,
            name: "c".into(),
            ty: ty.clone(),
            nullable: true,
            source_type: source_type.into(),
            cover: downriver_event::Cover::None,
            default: None,
        };
        let told = |code, wire, unsigned| MapColumn {
            code,
            wire: Some(wire),
            nullable: true,
            unsigned,
            name: None,
            collation: None,
            labels: None,
            visible: true,
        };
        let map = |columns| TableMap {
            number: 1,
            database: "d".into(),
            table: "t".into(),
            columns,
            key: None,
        };
        let (int, long) = (LogicalType::Int32, LogicalType::Int64);
        let signed = column("int", &int);
        let fits = |map: &TableMap, column: &Column, ty| {
            recall(map, std::iter::once((column, ty)), |_| None).map(|_| ())
        };
        let of_int = |unsigned| map(vec![told(code::LONG, Wire::Integer(4), unsigned)]);
        assert_eq!(fits(&of_int(None), &signed, &int), Ok(()));
        assert_eq!(fits(&of_int(Some(false)), &signed, &int), Ok(()));
        let unfit = |known: &str| {
            Err(Unfit::Type {
                column: "c".into(),
                known: known.into(),
            })
        };
        assert_eq!(fits(&of_int(Some(true)), &signed, &int), unfit("int"));
        let wide = map(vec![told(code::LONGLONG, Wire::Integer(8), None)]);
        assert_eq!(fits(&wide, &signed, &int), unfit("int"));
        let unsigned = column("int unsigned", &long);
        assert_eq!(fits(&of_int(None), &unsigned, &long), Ok(()));
        let of_year = map(vec![told(code::YEAR, Wire::Year, Some(true))]);
        let year = column("year", &LogicalType::Int16);
        assert_eq!(fits(&of_year, &year, &LogicalType::Int16), Ok(()));
        let required = Column {
            nullable: false,
            ..signed
        };
        assert_eq!(fits(&of_int(None), &required, &int), unfit("int"));
        let none = Err(Unfit::Count { known: 1, found: 0 });
        assert_eq!(fits(&map(Vec::new()), &required, &int), none);
    }
}
