//! Bytes that are written in hexadecimal digits.

pub(crate) fn pair([high, low]: [u8; 2]) -> Option<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    Some(u8::try_from(digit(high)? * 16 + digit(low)?).expect("two hex digits are a byte"))
}

/// In the one form that the databases print, in groups of 8, 4, 4, 4 and 12 digits.
pub(crate) fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    if text.len() != 36 || [8, 13, 18, 23].iter().any(|at| text[*at] != b'-') {
        return None;
    }
    let mut bytes = [0; 16];
    let mut digits = text.iter().filter(|byte| **byte != b'-');
    for byte in &mut bytes {
        *byte = pair([*digits.next()?, *digits.next()?])?;
    }
    Some(bytes)
}
