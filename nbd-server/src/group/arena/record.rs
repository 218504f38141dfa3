//! What a slab says of its own content, so that it can be read without the process that wrote it.
//!
//! ```text
//!   slab: │ data ▶                     ◀ record 2 │ record 1 │ record 0 │
//!   record, 32 bytes, little-endian: │ tag: use << 8 | kind │ offset │ length │ sequence << 32 | place │
//! ```
//!
//! Data grows from the front, records from the back. The tag is stored last: a record counts when its tag names the present use of the
//! slab, so what an earlier use has left is none, and a write whose record is not complete was never answered. Records of one epoch of one
//! disk lie in many slabs; the sequence puts them in order.

use super::super::overlay::Clear;
use super::words::{WORD, publish};

/// Bytes of a record.
pub const RECORD: usize = 4 * WORD;

const DATA: u64 = 1;
const ZERO: u64 = 2;
const HOLE: u64 = 3;
const TRIM: u64 = 4;

/// What a range of the disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The bytes of the slab from here on.
    Data {
        /// Where they begin in the slab.
        at: u32,
    },
    /// No data.
    Cleared(Clear),
}

/// One write or clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Orders it among the records of its epoch and disk.
    pub sequence: u32,
    /// First byte of the disk.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// What they hold.
    pub kind: Kind,
}

/// Where record `index` of a slab of `len` bytes begins.
fn position(len: usize, index: usize) -> Option<usize> {
    len.checked_sub(RECORD.checked_mul(index + 1)?)
}

/// Writes record `index` of a slab in its use `used`. The data that it tells of is there already.
pub fn write(memory: &mut [u8], used: u64, index: usize, record: &Record) {
    let (kind, at) = match record.kind {
        Kind::Data { at } => (DATA, at),
        Kind::Cleared(Clear::Zero) => (ZERO, 0),
        Kind::Cleared(Clear::Hole) => (HOLE, 0),
        Kind::Cleared(Clear::Trim) => (TRIM, 0),
    };
    let Some(start) = position(memory.len(), index) else {
        return;
    };
    let order = u64::from(record.sequence) << 32 | u64::from(at);
    for (number, value) in [record.offset, record.len, order].into_iter().enumerate() {
        let from = start + (number + 1) * WORD;
        if let Some(target) = memory.get_mut(from..from + WORD) {
            target.copy_from_slice(&value.to_le_bytes());
        }
    }
    publish(memory, start, (used << 8 | kind).to_le());
}

/// The records of a slab in its use `used`, as far as they are complete.
pub fn read(memory: &[u8], used: u64) -> impl Iterator<Item = Record> {
    (0..).map_while(move |index| {
        let start = position(memory.len(), index)?;
        let word = |number: usize| {
            let from = start + number * WORD;
            let bytes = memory.get(from..from + WORD)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let (tag, offset, len, order) = (word(0)?, word(1)?, word(2)?, word(3)?);
        if tag >> 8 != used {
            return None;
        }
        // The halves of a word fit.
        #[allow(clippy::cast_possible_truncation)]
        let (sequence, at) = ((order >> 32) as u32, order as u32);
        let kind = match tag & 0xff {
            DATA => Kind::Data { at },
            ZERO => Kind::Cleared(Clear::Zero),
            HOLE => Kind::Cleared(Clear::Hole),
            TRIM => Kind::Cleared(Clear::Trim),
            _ => return None,
        };
        Some(Record {
            sequence,
            offset,
            len,
            kind,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(8))]
    struct Aligned([u8; 256]);

    #[test]
    fn records_count_up_to_the_first_that_is_not_complete() {
        let mut slab = Aligned([0; 256]);
        let records = [
            Record {
                sequence: 7,
                offset: 1 << 40,
                len: 4096,
                kind: Kind::Data { at: 12 },
            },
            Record {
                sequence: 8,
                offset: 0,
                len: u64::MAX >> 1,
                kind: Kind::Cleared(Clear::Hole),
            },
        ];
        for (index, record) in records.iter().enumerate() {
            write(&mut slab.0, 5, index, record);
        }
        assert!(read(&slab.0, 5).eq(records));
        assert_eq!(
            read(&slab.0, 6).count(),
            0,
            "records of another use are none"
        );
        // The writer died before the tag of the second.
        slab.0[256 - 2 * RECORD..][..WORD].fill(0);
        assert!(read(&slab.0, 5).eq(records[..1].iter().copied()));
        // A slab that is full of records ends with the last of them.
        for index in 0..8 {
            write(&mut slab.0, 5, index, &records[1]);
        }
        assert_eq!(read(&slab.0, 5).count(), 8);
    }
}
