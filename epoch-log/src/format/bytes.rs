//! Putting numbers and texts into byte arrays and taking them out again without ever panicking.

/// Takes fixed-size fields from the front of a slice; `None` as soon as it is too short.
#[derive(Debug)]
pub(crate) struct Take<'a>(pub &'a [u8]);

impl<'a> Take<'a> {
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A text of `len` bytes in a field of `field` bytes.
    pub fn text(&mut self, len: usize, field: usize) -> Option<String> {
        let text = self.bytes(field)?.get(..len)?;
        String::from_utf8(text.to_vec()).ok()
    }
}

/// Appends `text` in a field of `field` bytes, filled up with zeros. The caller has checked that it fits.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str, field: usize) {
    let end = out.len() + field;
    out.extend_from_slice(text.as_bytes());
    out.resize(end, 0);
}

/// Length of a text that is known to fit one byte (limits: names, ids and reasons).
pub(super) fn short_len(text: &str) -> u8 {
    u8::try_from(text.len()).unwrap_or(u8::MAX)
}
