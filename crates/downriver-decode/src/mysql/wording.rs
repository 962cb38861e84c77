//! How a statement in the binlog was written: what its session's settings make of quotes, backslashes and bytes.
//!
//! Source: MySQL's `libs/mysql/binlog/event/statement_events.h`, `Query_event`, and MariaDB's `sql/log_event.h`: behind the
//! head stand settings, each with its number in front, in the order in which they are listed.

use std::borrow::Cow;

use super::charset::Charset;
use super::cursor::Cursor;

const FLAGS: u8 = 0;
const SQL_MODE: u8 = 1;
const CATALOG: u8 = 2;
const AUTO_INCREMENT: u8 = 3;
const CHARSET: u8 = 4;
const CATALOG_WITHOUT_END: u8 = 6;

const ANSI_QUOTES: u64 = 1 << 2;
const NO_BACKSLASH_ESCAPES: u64 = 1 << 20;

/// What quotes and backslashes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quoting {
    /// Double quotes are around names, never around texts.
    pub ansi_quotes: bool,
    /// A backslash is a character as any other.
    pub no_backslash_escapes: bool,
}

/// A statement's text as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wording {
    pub quoting: Quoting,
    /// The number of a collation whose character set the text has.
    collation: Option<u64>,
    /// The text, unless it is the same in every character set.
    bytes: Vec<u8>,
}

impl Wording {
    /// Of the settings of an event, and its text.
    pub(super) fn of(settings: &[u8], text: &[u8]) -> Self {
        let mut wording = Self::default();
        if !text.is_ascii() {
            wording.bytes = text.to_vec();
        }
        // What is behind the first one that is not known is not needed.
        let mut cursor = Cursor::new(settings);
        while wording.take(&mut cursor).is_some() {}
        wording
    }

    fn take(&mut self, settings: &mut Cursor<'_>) -> Option<()> {
        match settings.u8()? {
            FLAGS | AUTO_INCREMENT => settings.take(4).map(drop),
            SQL_MODE => {
                let mode = settings.u64()?;
                self.quoting = Quoting {
                    ansi_quotes: mode & ANSI_QUOTES != 0,
                    no_backslash_escapes: mode & NO_BACKSLASH_ESCAPES != 0,
                };
                Some(())
            }
            CATALOG => {
                let len = usize::from(settings.u8()?);
                settings.take(len + 1).map(drop)
            }
            CATALOG_WITHOUT_END => {
                let len = usize::from(settings.u8()?);
                settings.take(len).map(drop)
            }
            CHARSET => {
                self.collation = Some(u64::from(settings.u16()?));
                settings.take(4).map(drop)
            }
            _ => None,
        }
    }

    /// The text, where it is not the same in every character set. `charset` has the names of character sets by the numbers
    /// of their collations. `None` where the text is read already, or nobody can read it.
    #[must_use]
    pub fn read(&self, charset: impl Fn(u64) -> Option<String>) -> Option<Cow<'_, str>> {
        let name = self.collation.and_then(charset)?;
        if self.bytes.is_empty() {
            return None;
        }
        Charset::named(&name)?.decode(&self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of MySQL 9: flags, mode, catalog, character sets, and what is not looked at.
    const SETTINGS: &[u8] =
        b"\0\0\0\0\0\x01\x04\0\x10\0\0\0\0\0\x06\x03std\x04\x08\0\x08\0\xff\0\x0c\x01shop\0";

    #[test]
    fn settings_are_read_up_to_the_character_set() {
        let wording = Wording::of(SETTINGS, b"alter table stra\xdfe");
        assert_eq!(
            wording.quoting,
            Quoting {
                ansi_quotes: true,
                no_backslash_escapes: true
            }
        );
        let latin1 = |collation| (collation == 8).then(|| "latin1".to_owned());
        assert_eq!(wording.read(latin1).as_deref(), Some("alter table straße"));
        assert_eq!(wording.read(|_| None), None);
        assert_eq!(wording.read(|_| Some("utf8mb4".into())), None);
        assert_eq!(Wording::of(SETTINGS, b"plain").read(latin1), None);
    }

    #[test]
    fn settings_that_are_cut_or_not_known_are_none() {
        for len in 0..SETTINGS.len() {
            Wording::of(&SETTINGS[..len], b"");
        }
        assert_eq!(Wording::of(b"\x80\x01", b""), Wording::default());
    }
}
