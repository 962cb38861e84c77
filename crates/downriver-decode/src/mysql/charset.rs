//! Character sets of MySQL and MariaDB.
//!
//! Source: MySQL manual, "Supported Character Sets and Collations". `latin1` is really code page 1252 there.

use std::borrow::Cow;

use encoding_rs::Encoding;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charset {
    name: &'static str,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Utf8,
    Ascii,
    /// Highest byte first.
    Utf16,
    Utf16Le,
    Utf32,
    Encoding(&'static Encoding),
}

/// By the server's own names. Those that are missing have no table in any library at hand: `armscii8`, `cp850`, `cp852`,
/// `dec8`, `geostd8`, `hp8`, `keybcs2`, `macce`, `swe7`.
const CHARSETS: &[Charset] = {
    use encoding_rs::{
        BIG5, EUC_JP, EUC_KR, GB18030, GBK, IBM866, ISO_8859_2, ISO_8859_7, ISO_8859_8,
        ISO_8859_13, KOI8_R, KOI8_U, MACINTOSH, SHIFT_JIS, WINDOWS_874, WINDOWS_1250, WINDOWS_1251,
        WINDOWS_1252, WINDOWS_1254, WINDOWS_1256, WINDOWS_1257,
    };
    const fn of(name: &'static str, form: Form) -> Charset {
        Charset { name, form }
    }
    const fn encoded(name: &'static str, encoding: &'static Encoding) -> Charset {
        of(name, Form::Encoding(encoding))
    }
    &[
        of("utf8mb4", Form::Utf8),
        of("utf8mb3", Form::Utf8),
        of("utf8", Form::Utf8),
        of("ascii", Form::Ascii),
        of("ucs2", Form::Utf16),
        of("utf16", Form::Utf16),
        of("utf16le", Form::Utf16Le),
        of("utf32", Form::Utf32),
        encoded("latin1", WINDOWS_1252),
        encoded("latin2", ISO_8859_2),
        encoded("latin5", WINDOWS_1254),
        encoded("latin7", ISO_8859_13),
        encoded("greek", ISO_8859_7),
        encoded("hebrew", ISO_8859_8),
        encoded("cp1250", WINDOWS_1250),
        encoded("cp1251", WINDOWS_1251),
        encoded("cp1256", WINDOWS_1256),
        encoded("cp1257", WINDOWS_1257),
        encoded("cp866", IBM866),
        encoded("koi8r", KOI8_R),
        encoded("koi8u", KOI8_U),
        encoded("tis620", WINDOWS_874),
        encoded("macroman", MACINTOSH),
        encoded("gbk", GBK),
        encoded("gb2312", GBK),
        encoded("gb18030", GB18030),
        encoded("big5", BIG5),
        encoded("sjis", SHIFT_JIS),
        encoded("cp932", SHIFT_JIS),
        encoded("ujis", EUC_JP),
        encoded("eucjpms", EUC_JP),
        encoded("euckr", EUC_KR),
    ]
};

impl Charset {
    pub const UTF8: Self = CHARSETS[0];

    /// `None` for one that is not understood; `binary` is none.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let mut charsets = CHARSETS.iter();
        charsets.find(|charset| charset.name == name).copied()
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        self.name
    }

    /// `None` where bytes are no text of it.
    #[must_use]
    pub fn decode(self, bytes: &[u8]) -> Option<Cow<'_, str>> {
        match self.form {
            Form::Utf8 => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
            Form::Ascii if !bytes.is_ascii() => None,
            Form::Ascii => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
            Form::Utf16 => utf16(bytes, u16::from_be_bytes),
            Form::Utf16Le => utf16(bytes, u16::from_le_bytes),
            Form::Utf32 => {
                let (units, []) = bytes.as_chunks::<4>() else {
                    return None;
                };
                let chars = units
                    .iter()
                    .map(|unit| char::from_u32(u32::from_be_bytes(*unit)));
                chars.collect::<Option<String>>().map(Cow::Owned)
            }
            Form::Encoding(encoding) => {
                encoding.decode_without_bom_handling_and_without_replacement(bytes)
            }
        }
    }

    /// The bytes that [`Charset::decode`] makes this text of; `None` where there are none.
    #[must_use]
    pub fn encode(self, text: &str) -> Option<Cow<'_, [u8]>> {
        let bytes = match self.form {
            Form::Utf8 | Form::Ascii => Cow::Borrowed(text.as_bytes()),
            Form::Utf16 => Cow::Owned(text.encode_utf16().flat_map(u16::to_be_bytes).collect()),
            Form::Utf16Le => Cow::Owned(text.encode_utf16().flat_map(u16::to_le_bytes).collect()),
            Form::Utf32 => {
                let units = text.chars().map(|char| u32::from(char).to_be_bytes());
                Cow::Owned(units.flatten().collect())
            }
            Form::Encoding(encoding) => encoding.encode(text).0,
        };
        (self.decode(&bytes).as_deref() == Some(text)).then_some(bytes)
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Option<Cow<'_, str>> {
    let (units, []) = bytes.as_chunks::<2>() else {
        return None;
    };
    let units = units.iter().map(|bytes| unit(*bytes));
    let chars: Result<String, _> = char::decode_utf16(units).collect();
    chars.ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(charset: &str, bytes: &[u8]) -> Option<String> {
        let charset = Charset::named(charset).expect("a known one");
        charset.decode(bytes).map(Cow::into_owned)
    }

    #[test]
    fn bytes_become_the_text_that_the_server_shows() {
        // MySQL: select hex(convert('€…' using latin1)) and so on.
        for (charset, bytes, text) in [
            ("latin1", &b"\x80\x81\xe9"[..], "€\u{81}é"),
            ("gbk", b"\xc4\xe3\xba\xc3", "你好"),
            ("sjis", b"\x83\x5c", "ソ"),
            ("ucs2", b"\x00A\x20\xac", "A€"),
            ("utf16", b"\xd8\x3d\xde\x00", "😀"),
            ("utf16le", b"A\x00", "A"),
            ("utf32", b"\x00\x01\xf6\x00", "😀"),
            ("utf8mb4", "😀".as_bytes(), "😀"),
            ("koi8r", b"\xf0", "П"),
        ] {
            assert_eq!(decoded(charset, bytes).as_deref(), Some(text), "{charset}");
            let encoded = Charset::named(charset).and_then(|charset| charset.encode(text));
            assert_eq!(encoded.as_deref(), Some(bytes), "{charset}");
        }
    }

    #[test]
    fn what_is_no_text_is_none() {
        for (charset, bytes) in [
            ("utf8mb4", &b"\xff"[..]),
            ("ascii", b"\xe9"),
            ("ucs2", b"\x00"),
            ("utf32", b"\x00\x11\x00\x00"),
        ] {
            assert_eq!(decoded(charset, bytes), None, "{charset}");
        }
        assert_eq!(Charset::named("binary"), None);
        let latin1 = Charset::named("latin1").expect("a known one");
        assert_eq!(latin1.encode("你"), None);
        assert_eq!(Charset::named("swe7"), None);
    }
}
