//! What a cell holds, beside its value and never inside it.

use crate::pb;

/// One byte a cell in stored blocks; the discriminants are frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Presence {
    Value = 1,
    Null = 2,
    /// The source did not send it because it did not change; the previous value stands.
    Unchanged = 3,
    /// The source did not log it; nothing is known about it.
    Absent = 4,
    PositiveInfinity = 5,
    NegativeInfinity = 6,
    NaN = 7,
    ZeroDate = 8,
    Masked = 9,
}

impl Presence {
    /// `None` for a code that this build does not know: an error for whoever reads it.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Value,
            2 => Self::Null,
            3 => Self::Unchanged,
            4 => Self::Absent,
            5 => Self::PositiveInfinity,
            6 => Self::NegativeInfinity,
            7 => Self::NaN,
            8 => Self::ZeroDate,
            9 => Self::Masked,
            _ => return None,
        })
    }

    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    #[must_use]
    pub fn to_pb(self) -> pb::Presence {
        match self {
            Self::Value => pb::Presence::Value,
            Self::Null => pb::Presence::Null,
            Self::Unchanged => pb::Presence::Unchanged,
            Self::Absent => pb::Presence::Absent,
            Self::PositiveInfinity => pb::Presence::PositiveInfinity,
            Self::NegativeInfinity => pb::Presence::NegativeInfinity,
            Self::NaN => pb::Presence::Nan,
            Self::ZeroDate => pb::Presence::ZeroDate,
            Self::Masked => pb::Presence::Masked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_the_published_enum_value() {
        for code in 0..=u8::MAX {
            match Presence::from_code(code) {
                Some(presence) => {
                    assert_eq!(presence.code(), code);
                    assert_eq!(presence.to_pb() as i32, i32::from(code));
                }
                None => assert!(code == 0 || pb::Presence::try_from(i32::from(code)).is_err()),
            }
        }
    }
}
