//! MariaDB's types whose values lie in the binlog as those of a `binary(n)`, under no name of their own. Which it is only
//! the catalog tells, and the schemas that the log has.
//!
//! Source: MariaDB's manual, "UUID Data Type", "INET4" and "INET6".

use std::fmt::Write as _;

use downriver_event::block::ColumnBuilder;

use super::value::ValueError;
use crate::hex;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Native {
    Uuid,
    Inet4,
    Inet6,
}

impl Native {
    const ALL: [Self; 3] = [Self::Uuid, Self::Inet4, Self::Inet6];

    /// The one that is called so.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|native| native.word() == word)
    }

    /// What the server calls it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Uuid => "uuid",
            Self::Inet4 => "inet4",
            Self::Inet6 => "inet6",
        }
    }

    /// How many bytes a value has.
    #[must_use]
    pub fn bytes(self) -> u16 {
        match self {
            Self::Uuid | Self::Inet6 => 16,
            Self::Inet4 => 4,
        }
    }

    /// A value's bytes, from whose end zeros are cut, as its cell.
    pub(super) fn push(self, bytes: &[u8], out: &mut ColumnBuilder) -> Result<(), ValueError> {
        let mut whole = [0; 16];
        let bytes_max = usize::from(self.bytes());
        let room = whole[..bytes_max].get_mut(..bytes.len());
        room.ok_or(ValueError::Invalid(self.word()))?
            .copy_from_slice(bytes);
        match self {
            Self::Uuid => out.push_fixed16(&whole),
            Self::Inet4 | Self::Inet6 => {
                let shown = self.shown(&whole[..bytes_max]);
                out.push_bytes(shown.expect("it has as many bytes").as_bytes());
            }
        }
        Ok(())
    }

    /// What the server shows of a value, as its cell.
    pub(super) fn push_shown(
        self,
        shown: &[u8],
        out: &mut ColumnBuilder,
    ) -> Result<(), ValueError> {
        match self {
            Self::Uuid => {
                let bytes = hex::uuid(shown).ok_or(ValueError::Invalid("uuid"))?;
                out.push_fixed16(&bytes);
            }
            Self::Inet4 | Self::Inet6 => out.push_bytes(shown),
        }
        Ok(())
    }

    /// What the server shows of a value's bytes; `None`: they are too few or too many.
    #[must_use]
    pub fn shown(self, bytes: &[u8]) -> Option<String> {
        let mut text = String::new();
        match self {
            Self::Uuid => {
                let bytes: [u8; 16] = bytes.try_into().ok()?;
                for (at, byte) in bytes.into_iter().enumerate() {
                    if [4, 6, 8, 10].contains(&at) {
                        text.push('-');
                    }
                    let _ = write!(text, "{byte:02x}");
                }
            }
            Self::Inet4 => inet4(bytes.try_into().ok()?, &mut text),
            Self::Inet6 => inet6(bytes.try_into().ok()?, &mut text),
        }
        Some(text)
    }
}

/// Whether a table map of MariaDB's leaves open what a column of this type is.
#[must_use]
pub fn is_open(source_type: &str) -> bool {
    open_bytes(source_type).is_some()
}

/// How many bytes values have that may be of more than one type.
pub(super) fn open_bytes(source_type: &str) -> Option<u16> {
    let of_native = || Native::named(source_type).map(Native::bytes);
    let mut all = Native::ALL.into_iter().map(Native::bytes);
    all.find(|bytes| source_type == format!("binary({bytes})"))
        .or_else(of_native)
}

fn inet4(bytes: [u8; 4], out: &mut String) {
    let [a, b, c, d] = bytes;
    let _ = write!(out, "{a}.{b}.{c}.{d}");
}

/// The longest run of groups of zeros, the first of several, is left out, also if it is one group. Behind nothing but
/// zeros, or zeros and one group of ones, the rest is that of an `inet4`.
fn inet6(bytes: [u8; 16], out: &mut String) {
    let (groups, _) = bytes.as_chunks::<2>();
    let groups: Vec<u16> = groups.iter().map(|two| u16::from_be_bytes(*two)).collect();
    let (mut from, mut len) = (groups.len(), 0);
    for at in 0..groups.len() {
        let zeros = groups[at..].iter().take_while(|group| **group == 0).count();
        if zeros > len {
            (from, len) = (at, zeros);
        }
    }
    let is_inet4 = from == 0 && (len == 6 || len == 5 && groups[5] == 0xffff);
    let mut at = 0;
    while at < groups.len() {
        if at == from {
            out.push_str(if at == 0 { "::" } else { ":" });
            at += len;
        } else if at == 6 && is_inet4 {
            let [.., a, b, c, d] = bytes;
            inet4([a, b, c, d], out);
            return;
        } else {
            let _ = write!(out, "{:x}", groups[at]);
            at += 1;
            if at < groups.len() {
                out.push(':');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What MariaDB 10.11 and 11.8 show; a test end to end asks them of many more.
    #[test]
    fn addresses_are_written_as_the_server_shows_them() {
        let six = |groups: [u16; 8]| {
            let bytes: Vec<u8> = groups
                .iter()
                .flat_map(|group| group.to_be_bytes())
                .collect();
            Native::Inet6.shown(&bytes).unwrap_or_default()
        };
        for (groups, shown) in [
            ([0; 8], "::"),
            ([0, 0, 0, 0, 0, 0xffff, 0x102, 0x304], "::ffff:1.2.3.4"),
            ([0, 0, 0, 0, 0, 0, 0x102, 0x304], "::1.2.3.4"),
            ([0, 0, 0, 0, 0, 0, 0, 1], "::1"),
            ([1, 0, 0, 2, 0, 0, 3, 4], "1::2:0:0:3:4"),
            ([1, 0, 2, 3, 0, 0, 0, 4], "1:0:2:3::4"),
            ([1, 2, 3, 4, 5, 6, 7, 0], "1:2:3:4:5:6:7::"),
            ([0xffff; 8], "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert_eq!(six(groups), shown);
        }
        assert_eq!(
            Native::Inet4.shown(&[255, 0, 10, 1]).as_deref(),
            Some("255.0.10.1")
        );
        assert_eq!(Native::Inet4.shown(&[0; 16]), None);
    }

    #[test]
    fn types_of_one_form_leave_open_what_they_are() {
        for (source_type, bytes) in [
            ("uuid", Some(16)),
            ("inet6", Some(16)),
            ("binary(16)", Some(16)),
            ("inet4", Some(4)),
            ("binary(4)", Some(4)),
            ("binary(5)", None),
            ("varbinary", None),
            ("char", None),
        ] {
            assert_eq!(open_bytes(source_type), bytes, "{source_type}");
        }
    }
}
