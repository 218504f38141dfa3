//! A pack: an object of many blocks and lists, which says at its end what is in it. So what an interrupted backup has stored is found again, and
//! each of its bytes can be checked without anything else.
//!
//! ```text
//!   blocks and lists, each a Zstandard frame, back to back
//!   for each: kind u8 (0 block, 1 list)  0 u8  disk u16  number u64  offset u32  stored bytes u32  SHA-256 of the content (32 bytes)
//!   their count u32  0 u32  SHA-256 of these records (32 bytes)  "EGPACK01"
//! ```

use super::{Digest, FormatError, Reader, unpack, wrong};

/// A pack that has this many bytes is full.
pub const FULL: usize = 16 << 20;
/// Longest pack in bytes.
pub const MOST_PACK: u64 = 32 << 20;
/// Most things in a pack.
pub const MOST_RECORDS: usize = 64 << 10;
/// Bytes of the end.
pub const END: usize = 48;
/// Bytes of a record.
pub const RECORD: usize = 52;
const MAGIC: &[u8; 8] = b"EGPACK01";

/// What something in a pack is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A block of a disk; its number is that on the disk.
    Block,
    /// A list; its number says nothing.
    List,
}

/// Something in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What it is.
    pub kind: Kind,
    /// Number of the disk in the manifest.
    pub disk: u16,
    /// Its number.
    pub number: u64,
    /// Where it begins.
    pub offset: u32,
    /// Its length.
    pub stored: u32,
    /// Of its content.
    pub digest: Digest,
}

/// A pack that is being filled.
#[derive(Debug, Default)]
pub struct Builder {
    bytes: Vec<u8>,
    records: Vec<Record>,
}

impl Builder {
    /// Adds something that is compressed already; says where it is.
    pub fn push(
        &mut self,
        kind: Kind,
        disk: u16,
        number: u64,
        digest: Digest,
        stored: &[u8],
    ) -> Record {
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let record = Record {
            kind,
            disk,
            number,
            offset: length(self.bytes.len()),
            stored: length(stored.len()),
            digest,
        };
        self.bytes.extend_from_slice(stored);
        self.records.push(record);
        record
    }

    /// Whether nothing more should come.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= FULL || self.records.len() >= MOST_RECORDS
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The bytes of the pack.
    pub fn finish(self) -> Vec<u8> {
        let mut bytes = self.bytes;
        let start = bytes.len();
        for record in &self.records {
            bytes.push(u8::from(record.kind == Kind::List));
            bytes.push(0);
            bytes.extend(record.disk.to_le_bytes());
            bytes.extend(record.number.to_le_bytes());
            bytes.extend(record.offset.to_le_bytes());
            bytes.extend(record.stored.to_le_bytes());
            bytes.extend(record.digest.0);
        }
        let digest = Digest::of(bytes.get(start..).unwrap_or_default());
        bytes.extend(
            u32::try_from(self.records.len())
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
        );
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(digest.0);
        bytes.extend(MAGIC);
        bytes
    }
}

/// The end of a pack: how many records stand before it, and their digest.
///
/// # Errors
/// If it is none.
pub fn end(bytes: &[u8]) -> Result<(usize, Digest), FormatError> {
    let mut reader = Reader(bytes);
    let fields = (reader.u32(), reader.u32(), reader.array(), reader.array());
    let (Some(count), Some(0), Some(digest), Some(magic)) = fields else {
        return wrong("it does not end as a pack does");
    };
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if magic != *MAGIC || !reader.0.is_empty() || count > MOST_RECORDS {
        return wrong("it does not end as a pack does");
    }
    Ok((count, Digest(digest)))
}

/// The records of a pack whose blocks take `blocks` bytes.
///
/// # Errors
/// If they can't be.
pub fn records(bytes: &[u8], digest: &Digest, blocks: u64) -> Result<Vec<Record>, FormatError> {
    if Digest::of(bytes) != *digest || !bytes.len().is_multiple_of(RECORD) {
        return wrong("the checksum of its table does not fit");
    }
    let mut records = Vec::with_capacity(bytes.len() / RECORD);
    let mut reader = Reader(bytes);
    let mut next = 0;
    while !reader.0.is_empty() {
        let Some(record) = record(&mut reader) else {
            return wrong("its table has an entry that can't be");
        };
        if u64::from(record.offset) != next || record.stored == 0 {
            return wrong("its table has a gap");
        }
        next += u64::from(record.stored);
        records.push(record);
    }
    if next != blocks {
        return wrong("its table ends where its content does not");
    }
    Ok(records)
}

fn record(reader: &mut Reader<'_>) -> Option<Record> {
    let kind = match (reader.u8()?, reader.u8()?) {
        (0, 0) => Kind::Block,
        (1, 0) => Kind::List,
        _ => return None,
    };
    Some(Record {
        kind,
        disk: reader.u16()?,
        number: reader.u64()?,
        offset: reader.u32()?,
        stored: reader.u32()?,
        digest: Digest(reader.array()?),
    })
}

/// The records of a whole pack.
///
/// # Errors
/// If it is none.
pub fn parse(bytes: &[u8]) -> Result<Vec<Record>, FormatError> {
    let Some((rest, last)) = bytes.split_last_chunk::<END>() else {
        return wrong("it is too short for a pack");
    };
    let (count, digest) = end(last)?;
    let Some(blocks) = rest.len().checked_sub(count * RECORD) else {
        return wrong("it is too short for its table");
    };
    records(
        rest.get(blocks..).unwrap_or_default(),
        &digest,
        blocks as u64,
    )
}

/// Reads all of a pack: everything in it must be what its digest says.
///
/// # Errors
/// If something is not. A bit that changes nothing of what comes out, as Zstandard has some in the head of a frame, is no damage.
pub fn check(bytes: &[u8]) -> Result<Vec<Record>, FormatError> {
    let records = parse(bytes)?;
    for record in &records {
        let start = usize::try_from(record.offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(record.stored).unwrap_or(usize::MAX));
        let stored = bytes.get(start..end).unwrap_or_default();
        if let Err(error) = unpack(stored, &record.digest) {
            return wrong(format!("at byte {start}, {error}"));
        }
    }
    Ok(records)
}

/// Longest thing as it is stored: [`super::MOST_RAW`], and Zstandard adds a little to what can't be compressed.
pub const MOST_STORED: u32 = (192 << 10) + 1024;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::format::compress;

    fn pack(contents: &[Vec<u8>]) -> Vec<u8> {
        let mut builder = Builder::default();
        for (number, content) in contents.iter().enumerate() {
            let kind = if number % 3 == 0 {
                Kind::List
            } else {
                Kind::Block
            };
            let stored = compress(content).unwrap();
            builder.push(kind, 3, number as u64, Digest::of(content), &stored);
        }
        builder.finish()
    }

    proptest! {
        #[test]
        fn packs_come_back(contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..9)) {
            let bytes = pack(&contents);
            let records = check(&bytes).unwrap();
            prop_assert_eq!(records.len(), contents.len());
            for (record, content) in records.iter().zip(&contents) {
                let stored = &bytes[record.offset as usize..][..record.stored as usize];
                prop_assert_eq!(&unpack(stored, &record.digest).unwrap(), content);
            }
        }

        #[test]
        fn an_altered_bit_is_found_or_changes_nothing(contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..5), at: usize, bit in 0u8..8) {
            let mut bytes = pack(&contents);
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok(records) = check(&bytes) {
                prop_assert_eq!(records.len(), contents.len(), "byte {}", at);
                for ((number, record), content) in (0..).zip(&records).zip(&contents) {
                    prop_assert_eq!((record.disk, record.number), (3, number), "byte {}", at);
                    let stored = &bytes[record.offset as usize..][..record.stored as usize];
                    prop_assert_eq!(&unpack(stored, &record.digest).unwrap(), content);
                }
            }
        }

        #[test]
        fn anything_is_taken_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), count: u32) {
            let _ = check(&bytes);
            let mut told = bytes.clone();
            told.extend(count.to_le_bytes());
            told.extend([0; 4]);
            told.extend(Digest::of(&bytes).0);
            told.extend(MAGIC);
            let _ = check(&told);
        }
    }
}
