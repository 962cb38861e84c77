//! Little-endian fields from the front of bytes. `None`: there are not enough.

#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.0
    }

    #[inline]
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    #[inline]
    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    #[inline]
    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline]
    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// An unsigned number of `len` bytes, at most eight. The usual lengths are read without a copy of unknown length.
    #[inline]
    pub(super) fn uint(&mut self, len: usize) -> Option<u64> {
        match len {
            1 => self.u8().map(u64::from),
            2 => self.u16().map(u64::from),
            4 => self.u32().map(u64::from),
            8 => self.u64(),
            _ => {
                let mut bytes = [0; 8];
                bytes.get_mut(..len)?.copy_from_slice(self.take(len)?);
                Some(u64::from_le_bytes(bytes))
            }
        }
    }

    /// An unsigned number of `len` bytes, at most eight, with the highest first.
    #[inline]
    pub(super) fn uint_be(&mut self, len: usize) -> Option<u64> {
        match len {
            1 => self.u8().map(u64::from),
            4 => self.array().map(u32::from_be_bytes).map(u64::from),
            8 => self.array().map(u64::from_be_bytes),
            _ => {
                let mut bytes = [0; 8];
                bytes
                    .get_mut(8_usize.checked_sub(len)?..)?
                    .copy_from_slice(self.take(len)?);
                Some(u64::from_be_bytes(bytes))
            }
        }
    }

    /// A length-encoded number. Source: MySQL internals manual, "Protocol::LengthEncodedInteger".
    pub(super) fn lenenc(&mut self) -> Option<u64> {
        match self.u8()? {
            small @ ..=250 => Some(u64::from(small)),
            252 => self.uint(2),
            253 => self.uint(3),
            254 => self.uint(8),
            251 | 255 => None,
        }
    }

    /// Bytes behind their length-encoded number.
    pub(super) fn lenenc_bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.lenenc()?).ok()?;
        self.take(len)
    }
}
