//! Values that are made into others before anything is stored of them.
//!
//! | mask | a value | NULL | the column's type |
//! |---|---|---|---|
//! | null | nothing: presence masked | presence masked | unchanged |
//! | constant | the constant | the constant | unchanged |
//! | hash | HMAC-SHA256 of its text, in lower-case hex | NULL | text |
//! | partial | the ends of its text, `***` between them | NULL | text |
//!
//! A value's text is what its database prints under the settings that our sessions pin, so hash and partial take a value
//! as its text wherever it comes from, and a constant is written so.

use std::sync::Arc;

use downriver_event::block::ColumnBuilder;
use downriver_event::schema::{Cover, MaskKind, Masked};
use downriver_event::{Column, LogicalType, Presence};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::{mysql, postgres};

/// What stands for the part of a value that is not shown. Always the same: its length would tell.
const HIDDEN: &str = "***";

#[derive(Clone)]
pub enum Mask {
    Null,
    Constant(Constant),
    Hash(HashKey),
    /// How many characters are kept of each end, at most: of a value that is no longer than both, none.
    Partial {
        first: usize,
        last: usize,
    },
}

/// One and the same value, as its database prints it.
#[derive(Clone)]
pub struct Constant {
    text: String,
    /// How the database's texts are read.
    read: ReadText,
}

/// Pushes the value of a type that a text is; an error says what it is not: `is not a valid integer`.
type ReadText = fn(&LogicalType, &[u8], &mut ColumnBuilder) -> Result<(), String>;

/// What becomes of a column's values.
#[derive(Debug, Clone)]
pub enum Treatment {
    Kept,
    Masked(Arc<Mask>),
    Withheld,
}

/// A mask makes nothing of a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unmaskable {
    #[error("{0}")]
    Constant(String),
    #[error("is not UTF-8")]
    NotUtf8,
}

/// The secret that hashes are made with.
#[derive(Clone)]
pub struct HashKey(Hmac<Sha256>);

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.kind())
    }
}

impl HashKey {
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self(Hmac::new_from_slice(secret).expect("a key may have any length"))
    }

    fn hash(&self, value: &[u8]) -> [u8; 32] {
        self.0
            .clone()
            .chain_update(value)
            .finalize()
            .into_bytes()
            .into()
    }
}

impl Mask {
    #[must_use]
    pub fn kind(&self) -> MaskKind {
        match self {
            Self::Null => MaskKind::Null,
            Self::Constant(_) => MaskKind::Constant,
            Self::Hash(_) => MaskKind::Hash,
            Self::Partial { .. } => MaskKind::Partial,
        }
    }

    /// The column as it is once it is masked.
    ///
    /// # Errors
    /// A constant that is no value of the column's type.
    pub fn cover(&self, column: &mut Column) -> Result<(), Unmaskable> {
        if let Self::Constant(constant) = self {
            constant.push(&column.ty, &mut ColumnBuilder::new(0, &column.ty))?;
        }
        let ty = match self {
            Self::Null | Self::Constant(_) => column.ty.clone(),
            Self::Hash(_) | Self::Partial { .. } => LogicalType::Text,
        };
        column.cover = Cover::Masked(Masked {
            kind: self.kind(),
            rule: self.rule(),
            of: std::mem::replace(&mut column.ty, ty),
        });
        Ok(())
    }

    /// Whether it needs no value: what it makes of each is the same.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        matches!(self, Self::Null | Self::Constant(_))
    }

    /// Pushes what stands for a value, which is given as its text, or for NULL.
    ///
    /// # Errors
    /// The text is none, or the constant no value of the column's type; nothing was pushed.
    pub fn push(
        &self,
        column: &Column,
        value: Option<&[u8]>,
        out: &mut ColumnBuilder,
    ) -> Result<(), Unmaskable> {
        match (self, value) {
            (Self::Null, _) => out.push_presence(Presence::Masked),
            (Self::Constant(constant), _) => constant.push(&column.ty, out)?,
            (_, None) => out.push_presence(Presence::Null),
            (Self::Hash(key), Some(value)) => out.push_bytes(hex(&key.hash(value)).as_bytes()),
            (Self::Partial { first, last }, Some(value)) => {
                let value = std::str::from_utf8(value).map_err(|_| Unmaskable::NotUtf8)?;
                out.push_bytes(partial(value, *first, *last).as_bytes());
            }
        }
        Ok(())
    }

    /// Tells two rules apart.
    fn rule(&self) -> u64 {
        let digest: [u8; 32] = match self {
            Self::Null => return 0,
            Self::Constant(constant) => Sha256::digest(&constant.text).into(),
            Self::Partial { first, last } => Sha256::digest(format!("{first} {last}")).into(),
            // Nobody masks this text.
            Self::Hash(key) => key.hash(b"\0which key is it?"),
        };
        u64::from_be_bytes(*digest.first_chunk().expect("a digest has 32 bytes"))
    }
}

impl Constant {
    #[must_use]
    pub fn of_postgres(text: String) -> Self {
        let read = postgres::text::constant;
        Self { text, read }
    }

    #[must_use]
    pub fn of_mysql(text: String) -> Self {
        let read = mysql::constant;
        Self { text, read }
    }

    fn push(&self, ty: &LogicalType, out: &mut ColumnBuilder) -> Result<(), Unmaskable> {
        (self.read)(ty, self.text.as_bytes(), out).map_err(Unmaskable::Constant)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        use std::fmt::Write as _;
        write!(hex, "{byte:02x}").expect("a string takes everything");
        hex
    })
}

fn partial(value: &str, first: usize, last: usize) -> String {
    let chars = value.chars().count();
    if chars <= first.saturating_add(last) {
        return HIDDEN.to_owned();
    }
    let start: String = value.chars().take(first).collect();
    let end: String = value.chars().skip(chars - last).collect();
    format!("{start}{HIDDEN}{end}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_ends_of_a_value_are_shown_and_never_all_of_it() {
        assert_eq!(partial("4111111111111234", 0, 4), "***1234");
        assert_eq!(partial("Grüße", 2, 1), "Gr***e");
        assert_eq!(partial("1234", 0, 4), "***");
        assert_eq!(partial("", 0, 0), "***");
        assert_eq!(partial("x", usize::MAX, usize::MAX), "***");
    }

    #[test]
    fn a_hash_is_the_hmac_that_everybody_can_compute() {
        // RFC 4231, test case 2.
        let key = HashKey::new(b"Jefe");
        assert_eq!(
            hex(&key.hash(b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn rules_differ_with_their_parameters_and_keys() {
        let partial = |first, last| Mask::Partial { first, last }.rule();
        let hash = |key| Mask::Hash(HashKey::new(key)).rule();
        assert_ne!(partial(1, 11), partial(11, 1));
        assert_ne!(hash(b"one"), hash(b"two"));
        assert_eq!(hash(b"one"), hash(b"one"));
    }
}
