//! A document as it is after changes of parts of it, which an update logs with `binlog_row_value_options = PARTIAL_JSON`.
//!
//! ```text
//!   bytes of all, 4 | (operation, 1 | length | path | unless it removes: length | document)*
//! ```
//!
//! Only what lies on a change's path is taken apart: the rest is written as it is stored.
//!
//! Source: MySQL's `sql/json_diff.cc`, `sql-common/json_path.cc`, and for the order of keys `Json_key_comparator` in
//! `sql-common/json_dom.cc`.

use std::borrow::Cow;
use std::ops::Range;

use super::{DEPTH_MAX, INVALID, Members, Value, write_string};
use crate::mysql::cursor::Cursor;
use crate::mysql::value::{ValueError, check_size};

const CHANGE: ValueError = ValueError::Invalid("change of a JSON document");

mod operation {
    pub(super) const REPLACE: u8 = 0;
    pub(super) const INSERT: u8 = 1;
    pub(super) const REMOVE: u8 = 2;
}

/// Reads changes from the front of a row, and writes the text of the document with them behind what is there.
///
/// # Errors
/// The bytes are no document or no changes, or these do not fit it.
pub(in crate::mysql) fn write_changed(
    document: &[u8],
    row: &mut Cursor<'_>,
    out: &mut Vec<u8>,
) -> Result<(), ValueError> {
    let len = row.u32().ok_or(ValueError::Cut)?;
    let mut changes = Cursor::new(row.take(len as usize).ok_or(ValueError::Cut)?);
    let mut root = Node::Stored(Value::parse(document));
    while !changes.is_empty() {
        let operation = changes.u8().ok_or(CHANGE)?;
        let path = path(changes.lenenc_bytes().ok_or(CHANGE)?).ok_or(CHANGE)?;
        let (last, above) = path.split_last().ok_or(CHANGE)?;
        let mut parent = &mut root;
        for leg in above {
            parent = parent.taken_apart()?.member(leg)?;
        }
        let parent = parent.taken_apart()?;
        match operation {
            operation::REPLACE => *parent.member(last)? = value(&mut changes)?,
            operation::INSERT => parent.insert(last, value(&mut changes)?)?,
            operation::REMOVE => parent.remove(last)?,
            _ => return Err(CHANGE),
        }
    }
    root.write(0, out)
}

fn value<'a>(changes: &mut Cursor<'a>) -> Result<Node<'a>, ValueError> {
    let document = changes.lenenc_bytes().ok_or(CHANGE)?;
    match document.is_empty() {
        true => Err(CHANGE),
        false => Ok(Node::Stored(Value::parse(document))),
    }
}

#[derive(Debug)]
enum Node<'a> {
    Stored(Value<'a>),
    Changed(Box<Changed<'a>>),
}

/// An object or an array of which something is otherwise than it is stored.
#[derive(Debug)]
struct Changed<'a> {
    stored: Members<'a>,
    /// In their order.
    parts: Vec<Part<'a>>,
}

#[derive(Debug)]
enum Part<'a> {
    /// Members as they are stored, at least one.
    Stored(Range<usize>),
    /// One member. In an array its key is empty.
    Own(Cow<'a, [u8]>, Node<'a>),
}

impl<'a> Node<'a> {
    fn taken_apart(&mut self) -> Result<&mut Changed<'a>, ValueError> {
        if let Self::Stored(value) = *self {
            let stored = Members::of(value)?.ok_or(CHANGE)?;
            let all = (stored.count > 0).then_some(Part::Stored(0..stored.count));
            *self = Self::Changed(Box::new(Changed {
                stored,
                parts: all.into_iter().collect(),
            }));
        }
        match self {
            Self::Changed(changed) => Ok(changed),
            Self::Stored(_) => Err(CHANGE),
        }
    }

    fn write(&self, depth: usize, out: &mut Vec<u8>) -> Result<(), ValueError> {
        match self {
            Self::Stored(value) => value.write(depth, out),
            Self::Changed(changed) => changed.write(depth, out),
        }
    }
}

impl<'a> Changed<'a> {
    fn member(&mut self, leg: &Leg<'_>) -> Result<&mut Node<'a>, ValueError> {
        let (part, within) = self.find(leg)?.ok_or(CHANGE)?;
        let at = self.set_apart(part, within)?;
        match &mut self.parts[at] {
            Part::Own(_, node) => Ok(node),
            Part::Stored(_) => Err(CHANGE),
        }
    }

    fn insert(&mut self, leg: &Leg<'_>, node: Node<'a>) -> Result<(), ValueError> {
        let (part, within, key) = match leg {
            Leg::Member(key) if self.stored.is_object => {
                if self.find(leg)?.is_some() {
                    return Err(CHANGE);
                }
                let (part, within) = self.place_of(key)?;
                (part, within, key.clone().into_owned())
            }
            Leg::Cell(cell) if !self.stored.is_object => {
                let (part, within) = self.nth(cell.at(self.len()).0);
                (part, within, Vec::new())
            }
            _ => return Err(CHANGE),
        };
        let at = self.split(part, within);
        self.parts.insert(at, Part::Own(Cow::Owned(key), node));
        Ok(())
    }

    fn remove(&mut self, leg: &Leg<'_>) -> Result<(), ValueError> {
        let (part, within) = self.find(leg)?.ok_or(CHANGE)?;
        let at = self.set_apart(part, within)?;
        self.parts.remove(at);
        Ok(())
    }

    fn len(&self) -> usize {
        self.parts.iter().map(Part::len).sum()
    }

    /// The part that has a member, and where in it.
    fn find(&self, leg: &Leg<'_>) -> Result<Option<(usize, usize)>, ValueError> {
        match leg {
            Leg::Member(key) if self.stored.is_object => {
                let (part, within) = self.place_of(key)?;
                let found = match self.parts.get(part) {
                    Some(Part::Stored(range)) => self.stored.key(range.start + within)?,
                    Some(Part::Own(key, _)) => key,
                    None => return Ok(None),
                };
                Ok((found == &**key).then_some((part, within)))
            }
            Leg::Cell(cell) if !self.stored.is_object => match cell.at(self.len()) {
                (at, true) => Ok(Some(self.nth(at))),
                (_, false) => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// The first member whose key is not before a key: keys are in the order of their lengths, then of their bytes.
    fn place_of(&self, key: &[u8]) -> Result<(usize, usize), ValueError> {
        let is_before = |other: &[u8]| (other.len(), other) < (key.len(), key);
        for (part, members) in self.parts.iter().enumerate() {
            match members {
                Part::Own(own, _) if is_before(own) => {}
                Part::Own(..) => return Ok((part, 0)),
                Part::Stored(range) => {
                    let (mut low, mut high) = (range.start, range.end);
                    while low < high {
                        let middle = low + (high - low) / 2;
                        match is_before(self.stored.key(middle)?) {
                            true => low = middle + 1,
                            false => high = middle,
                        }
                    }
                    if low < range.end {
                        return Ok((part, low - range.start));
                    }
                }
            }
        }
        Ok((self.parts.len(), 0))
    }

    /// The place of the member with a number; behind all of them, if there are not so many.
    fn nth(&self, mut number: usize) -> (usize, usize) {
        for (part, members) in self.parts.iter().enumerate() {
            if number < members.len() {
                return (part, number);
            }
            number -= members.len();
        }
        (self.parts.len(), 0)
    }

    /// Makes a member a part of its own: which one.
    fn set_apart(&mut self, part: usize, within: usize) -> Result<usize, ValueError> {
        if let Some(Part::Own(..)) = self.parts.get(part) {
            return Ok(part);
        }
        let at = self.split(part, within);
        let Some(Part::Stored(range)) = self.parts.get_mut(at) else {
            return Err(CHANGE);
        };
        let member = range.start;
        let key = match self.stored.is_object {
            true => self.stored.key(member)?,
            false => &[],
        };
        let own = Part::Own(Cow::Borrowed(key), Node::Stored(self.stored.value(member)?));
        range.start += 1;
        match range.start == range.end {
            true => self.parts[at] = own,
            false => self.parts.insert(at, own),
        }
        Ok(at)
    }

    /// Makes a part begin at a member: which one.
    fn split(&mut self, part: usize, within: usize) -> usize {
        if within == 0 {
            return part;
        }
        if let Some(Part::Stored(range)) = self.parts.get_mut(part) {
            let behind = range.start + within..range.end;
            range.end = behind.start;
            self.parts.insert(part + 1, Part::Stored(behind));
        }
        part + 1
    }

    fn write(&self, depth: usize, out: &mut Vec<u8>) -> Result<(), ValueError> {
        if depth >= DEPTH_MAX {
            return Err(INVALID);
        }
        let is_object = self.stored.is_object;
        out.push(if is_object { b'{' } else { b'[' });
        let mut is_first = true;
        let mut separate = |out: &mut Vec<u8>| {
            if !std::mem::take(&mut is_first) {
                out.extend_from_slice(b", ");
            }
        };
        for part in &self.parts {
            match part {
                Part::Stored(range) => {
                    for member in range.clone() {
                        separate(out);
                        self.stored.write_member(member, depth, out)?;
                    }
                }
                Part::Own(key, node) => {
                    separate(out);
                    check_size(out.len())?;
                    if is_object {
                        write_string(key, out);
                        out.extend_from_slice(b": ");
                    }
                    node.write(depth + 1, out)?;
                }
            }
        }
        out.push(if is_object { b'}' } else { b']' });
        Ok(())
    }
}

impl Part<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Stored(range) => range.len(),
            Self::Own(..) => 1,
        }
    }
}

/// One step of a path.
#[derive(Debug, PartialEq, Eq)]
enum Leg<'a> {
    Member(Cow<'a, [u8]>),
    Cell(Cell),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    FromStart(usize),
    /// 0 is the last one.
    FromEnd(usize),
}

impl Cell {
    /// Which one it is of so many, and whether there is one. Source: `Json_array_index`.
    fn at(self, len: usize) -> (usize, bool) {
        match self {
            Self::FromStart(at) => (at.min(len), at < len),
            Self::FromEnd(at) if at < len => (len - 1 - at, true),
            Self::FromEnd(_) => (0, false),
        }
    }
}

/// As `Json_path::to_string` writes one: `$.name."a name"[3][last-1]`.
fn path(text: &[u8]) -> Option<Vec<Leg<'_>>> {
    let mut rest = text.strip_prefix(b"$")?;
    let mut legs = Vec::new();
    while let Some((first, behind)) = rest.split_first() {
        if legs.len() >= DEPTH_MAX {
            return None;
        }
        let (leg, behind) = match first {
            b'.' if behind.first() == Some(&b'"') => quoted(&behind[1..])?,
            b'.' => {
                let ends = |byte: &u8| matches!(byte, b'.' | b'[');
                let end = behind.iter().position(ends).unwrap_or(behind.len());
                let (name, behind) = behind.split_at(end);
                let is_name = |byte: &u8| !matches!(byte, b'*' | b'"' | b'\\') && *byte > b' ';
                if name.is_empty() || !name.iter().all(is_name) {
                    return None;
                }
                (Leg::Member(Cow::Borrowed(name)), behind)
            }
            b'[' => {
                let end = behind.iter().position(|byte| *byte == b']')?;
                (Leg::Cell(cell(&behind[..end])?), &behind[end + 1..])
            }
            _ => return None,
        };
        legs.push(leg);
        rest = behind;
    }
    Some(legs)
}

fn cell(text: &[u8]) -> Option<Cell> {
    let number = |digits: &[u8]| {
        let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        let digits = std::str::from_utf8(digits).ok().filter(|_| is_number)?;
        digits.parse().ok()
    };
    match text.strip_prefix(b"last") {
        None => Some(Cell::FromStart(number(text)?)),
        Some(b"") => Some(Cell::FromEnd(0)),
        Some(behind) => Some(Cell::FromEnd(number(behind.strip_prefix(b"-")?)?)),
    }
}

/// A name behind its first quotation mark, escaped as strings in JSON are; and what follows it.
fn quoted(text: &[u8]) -> Option<(Leg<'_>, &[u8])> {
    let mut name = Vec::new();
    let mut rest = text;
    loop {
        let (first, behind) = rest.split_first()?;
        rest = behind;
        match first {
            b'"' => return Some((Leg::Member(Cow::Owned(name)), rest)),
            b'\\' => {
                let (escaped, behind) = rest.split_first()?;
                rest = behind;
                name.push(match escaped {
                    b'"' | b'\\' | b'/' => *escaped,
                    b'b' => 0x08,
                    b'f' => 0x0c,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    // The server writes so what has no form of its own, up to 0x1f.
                    b'u' => {
                        let (digits, behind) = rest.split_at_checked(4)?;
                        rest = behind;
                        let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
                        let digits = std::str::from_utf8(digits).ok().filter(|_| is_hex)?;
                        u8::from_str_radix(digits, 16).ok().filter(u8::is_ascii)?
                    }
                    _ => return None,
                });
            }
            _ => name.push(*first),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_as_the_server_writes_it() {
        let legs = path(br#"$.name."a \"b\\\n\u0001"[3][last][last-2]."#);
        assert_eq!(legs, None, "a name is missing");
        let legs = path(br#"$.name."a \"b\\\n\u0001"[3][last][last-2]"#);
        let expected = vec![
            Leg::Member(Cow::Borrowed(b"name")),
            Leg::Member(Cow::Borrowed(b"a \"b\\\n\x01")),
            Leg::Cell(Cell::FromStart(3)),
            Leg::Cell(Cell::FromEnd(0)),
            Leg::Cell(Cell::FromEnd(2)),
        ];
        assert_eq!(legs, Some(expected));
        assert_eq!(path(b"$"), Some(Vec::new()));
        let wrong: [&[u8]; 9] = [
            b"",
            b"a",
            b"$a",
            b"$.*",
            b"$**.a",
            b"$[*]",
            b"$[1 to 2]",
            b"$.\"a",
            b"$[-1]",
        ];
        for wrong in wrong {
            assert_eq!(path(wrong), None, "{}", String::from_utf8_lossy(wrong));
        }
    }

    /// `{"a": 1, "b": [10, 20], "cc": null}`
    const DOCUMENT: &[u8] = b"\x00\x03\x00\x27\x00\
        \x19\x00\x01\x00\x1a\x00\x01\x00\x1b\x00\x02\x00\
        \x05\x01\x00\x02\x1d\x00\x04\x00\x00\
        abcc\
        \x02\x00\x0a\x00\x05\x0a\x00\x05\x14\x00";

    fn change(operation: u8, path: &str, value: &[u8]) -> Vec<u8> {
        let mut change = vec![operation, u8::try_from(path.len()).expect("short")];
        change.extend_from_slice(path.as_bytes());
        if operation != operation::REMOVE {
            change.push(u8::try_from(value.len()).expect("short"));
            change.extend_from_slice(value);
        }
        change
    }

    fn changed(changes: &[Vec<u8>]) -> Result<String, ValueError> {
        let changes = changes.concat();
        let len = u32::try_from(changes.len()).expect("short");
        let row = [&len.to_le_bytes()[..], &changes].concat();
        let (mut row, mut out) = (Cursor::new(&row), Vec::new());
        write_changed(DOCUMENT, &mut row, &mut out)?;
        assert!(row.is_empty());
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    #[test]
    fn a_document_is_as_its_changes_leave_it() {
        use operation::{INSERT, REMOVE, REPLACE};
        const TRUE: &[u8] = b"\x04\x01";
        const SEVEN: &[u8] = b"\x05\x07\x00";
        const EMPTY_ARRAY: &[u8] = b"\x02\x00\x00\x04\x00";
        let as_expected: [(&[Vec<u8>], &str); 10] = [
            (&[], r#"{"a": 1, "b": [10, 20], "cc": null}"#),
            (
                &[change(REPLACE, "$.a", TRUE)],
                r#"{"a": true, "b": [10, 20], "cc": null}"#,
            ),
            (
                &[
                    change(REPLACE, "$.b[last]", SEVEN),
                    change(REMOVE, "$.b[0]", b""),
                ],
                r#"{"a": 1, "b": [7], "cc": null}"#,
            ),
            (
                &[
                    change(INSERT, "$.b[1]", SEVEN),
                    change(INSERT, "$.b[9]", TRUE),
                ],
                r#"{"a": 1, "b": [10, 7, 20, true], "cc": null}"#,
            ),
            // Shorter keys come first.
            (
                &[change(INSERT, "$.aa", SEVEN), change(INSERT, "$.c", SEVEN)],
                r#"{"a": 1, "b": [10, 20], "c": 7, "aa": 7, "cc": null}"#,
            ),
            (
                &[
                    change(INSERT, "$.dd", SEVEN),
                    change(INSERT, "$.\"\"", SEVEN),
                ],
                r#"{"": 7, "a": 1, "b": [10, 20], "cc": null, "dd": 7}"#,
            ),
            (
                &[
                    change(REMOVE, "$.a", b""),
                    change(REMOVE, "$.cc", b""),
                    change(REMOVE, "$.b", b""),
                ],
                "{}",
            ),
            (
                &[change(REMOVE, "$.a", b""), change(INSERT, "$.a", TRUE)],
                r#"{"a": true, "b": [10, 20], "cc": null}"#,
            ),
            (
                &[
                    change(REPLACE, "$.a", EMPTY_ARRAY),
                    change(INSERT, "$.a[0]", TRUE),
                    change(REPLACE, "$.a[0]", EMPTY_ARRAY),
                    change(INSERT, "$.a[0][5]", SEVEN),
                ],
                r#"{"a": [[7]], "b": [10, 20], "cc": null}"#,
            ),
            (
                &[
                    change(REPLACE, "$.b[1]", TRUE),
                    change(REMOVE, "$.b[1]", b""),
                    change(INSERT, "$.b[0]", SEVEN),
                ],
                r#"{"a": 1, "b": [7, 10], "cc": null}"#,
            ),
        ];
        for (changes, expected) in as_expected {
            assert_eq!(changed(changes).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn a_change_that_does_not_fit_is_refused() {
        use operation::{INSERT, REMOVE, REPLACE};
        const TRUE: &[u8] = b"\x04\x01";
        for wrong in [
            change(REPLACE, "$", TRUE),
            change(REPLACE, "$.x", TRUE),
            change(REPLACE, "$.b[2]", TRUE),
            change(REPLACE, "$.a[0]", TRUE),
            change(REPLACE, "$[0]", TRUE),
            change(INSERT, "$.a", TRUE),
            change(INSERT, "$.b.x", TRUE),
            change(INSERT, "$.x.y", TRUE),
            change(INSERT, "$.x", b""),
            change(REMOVE, "$.b[last-2]", b""),
            change(REMOVE, "$.bb", b""),
            change(3, "$.a", TRUE),
            vec![REPLACE, 3, b'$'],
        ] {
            let error = changed(std::slice::from_ref(&wrong));
            assert_eq!(error, Err(CHANGE), "{wrong:x?}");
        }
        let mut cut = Cursor::new(b"\x05\x00\x00\x00\x02");
        let error = write_changed(DOCUMENT, &mut cut, &mut Vec::new());
        assert_eq!(error, Err(ValueError::Cut));
    }
}
