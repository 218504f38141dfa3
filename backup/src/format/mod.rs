//! The bytes of a backup: names, digests, blocks, [lists](list), [packs](pack) and [manifests](manifest). Values in, values out: no I/O. What is read
//! may be damaged or made to do harm, so it is bounded and checked before it is believed. Numbers in lists and packs are little-endian.

pub mod list;
pub mod manifest;
pub mod name;
pub mod pack;

use std::fmt;

pub use list::{Entry, Located};
pub use manifest::{DiskOf, Manifest};
pub use name::Id;

/// Bytes of a disk that are stored as one. The last block of a disk may be shorter.
pub const BLOCK: u64 = 64 << 10;
/// Entries of a list.
pub const FAN: usize = 1024;
/// Bytes of a disk that one list of blocks is about.
pub const REGION: u64 = BLOCK * FAN as u64;
/// Bytes of a disk that one list of lists is about.
pub const SPAN: u64 = REGION * FAN as u64;
/// Largest disk.
pub const MOST_DISK: u64 = 1 << 50;
/// Most disks of a group.
pub const MOST_DISKS: usize = 1024;
/// Longest block or list, unpacked.
pub const MOST_RAW: usize = 192 << 10;
/// How hard blocks are compressed: beyond this it takes long and gains little.
const LEVEL: i32 = 3;

/// What is wrong with bytes that should be a block, a list, a pack or a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FormatError(pub(crate) String);

pub(crate) fn wrong<T>(what: impl Into<String>) -> Result<T, FormatError> {
    Err(FormatError(what.into()))
}

/// SHA-256 of something.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// That of `data`.
    pub fn of(data: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, data);
        let mut bytes = [0; 32];
        // It has just as many.
        for (to, from) in bytes.iter_mut().zip(digest.as_ref()) {
            *to = *from;
        }
        Self(bytes)
    }

    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        let (pairs, rest) = digits.as_chunks::<2>();
        if pairs.len() != 32 || !rest.is_empty() {
            return None;
        }
        let mut bytes = [0; 32];
        for (to, [high, low]) in bytes.iter_mut().zip(pairs) {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            *to = u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Makes small what will be stored.
///
/// # Errors
/// If it is longer than [`MOST_RAW`].
pub fn compress(raw: &[u8]) -> Result<Vec<u8>, FormatError> {
    if raw.len() > MOST_RAW {
        return wrong(format!("{} bytes are too many for a block", raw.len()));
    }
    zstd::bulk::compress(raw, LEVEL).map_err(|error| FormatError(error.to_string()))
}

/// What was stored as `stored`, which must have this digest.
///
/// # Errors
/// If it is something else.
pub fn unpack(stored: &[u8], digest: &Digest) -> Result<Vec<u8>, FormatError> {
    let Ok(raw) = zstd::bulk::decompress(stored, MOST_RAW) else {
        return wrong("its compressed bytes are damaged");
    };
    if Digest::of(&raw) != *digest {
        return wrong("its checksum does not fit");
    }
    Ok(raw)
}

/// How many pieces of `piece` bytes there are in `size` bytes, the last one may be shorter.
pub fn pieces(size: u64, piece: u64) -> usize {
    usize::try_from(size.div_ceil(piece)).unwrap_or(usize::MAX)
}

/// Reads numbers off the front of a slice; none when it is too short.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
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
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn digests_are_written_and_read() {
        let digest = Digest::of(b"abc");
        let text = digest.to_string();
        assert!(text.starts_with("ba7816bf"), "{text}");
        assert_eq!(Digest::parse(&text), Some(digest));
        for wrong in [
            "",
            "ba",
            &text[1..],
            &format!("{text}00"),
            &text.replace('b', "g"),
            &"ä".repeat(32),
        ] {
            assert_eq!(Digest::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_stored_comes_back_or_is_refused() {
        let raw = vec![7; 70_000];
        let stored = compress(&raw).unwrap();
        assert_eq!(unpack(&stored, &Digest::of(&raw)).unwrap(), raw);
        assert!(unpack(&stored, &Digest::of(b"")).is_err());
        assert!(unpack(b"xyz", &Digest::of(b"")).is_err());
        assert!(compress(&vec![0; MOST_RAW + 1]).is_err());
        let bomb = zstd::bulk::compress(&vec![0; 1 << 26], 3).unwrap();
        assert!(unpack(&bomb, &Digest::of(&vec![0; 1 << 26])).is_err());
    }
}
