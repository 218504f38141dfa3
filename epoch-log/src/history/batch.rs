//! What is saved at once: a batch of steps and entries with their payload. Encoding and decoding are pure; `format` draws it. Knows no files.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::format::{Entry, Fixed, PAGE, Step, put_numbers, take_many};
use crate::Epoch;
use crate::format::Take;

const MAGIC: [u8; 8] = *b"EGH1BAT\0";
/// Bytes of the fixed part of a batch.
pub const BATCH_HEADER_LEN: usize = 64;
/// Most steps, and most entries, in one batch.
pub const MAX_BATCH_RECORDS: usize = 1 << 16;
/// Payload at which a batch is written, in bytes. One more entry may go beyond it.
pub const MAX_BATCH_PAYLOAD: u64 = 8 << 20;

/// What was saved at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Steps that end in it.
    pub steps: Vec<Step>,
    /// Its entries, in the order of the steps; those behind the last step belong to one that ends later.
    pub entries: Vec<Entry>,
    /// The images may hold this epoch, or a part of it, once the batch is durable.
    pub through: Epoch,
    /// Which batch of its capture it is, from 0. Nothing of a capture need be durable before all of it is; all before a capture is.
    pub number: u32,
}

/// The header of a batch, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    sum: u64,
    previous: u64,
    offset: u64,
    through: Epoch,
    /// See [`Batch`]; with the steps in one number of the file.
    number: u32,
    steps: usize,
    entries: usize,
    payload_len: u64,
}

impl BatchHeader {
    /// Bytes that the batch needs in front of its payload.
    pub fn head_len(steps: usize, entries: usize) -> usize {
        BATCH_HEADER_LEN + steps * Step::BYTES + entries * Entry::BYTES
    }

    /// Takes the first [`BatchHeader::BYTES`] bytes of a batch.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Take(bytes);
        if from.array()? != MAGIC {
            return None;
        }
        let header = Self {
            sum: from.u64()?,
            previous: from.u64()?,
            offset: from.u64()?,
            through: Epoch(from.u64()?),
            steps: usize::try_from(from.u32()?).ok()?,
            number: from.u32()?,
            entries: usize::try_from(from.u64()?).ok()?,
            payload_len: from.u64()?,
        };
        // Before anything is allocated for them.
        let sane = header.steps <= MAX_BATCH_RECORDS && header.entries <= MAX_BATCH_RECORDS;
        (sane && header.payload_len <= MAX_BATCH_PAYLOAD * 2).then_some(header)
    }

    /// Length of the header, the steps and the entries, in bytes.
    pub fn head(&self) -> usize {
        Self::head_len(self.steps, self.entries)
    }

    /// Length of the batch in the file, in bytes.
    pub fn len(&self) -> u64 {
        (self.head() as u64 + self.payload_len).next_multiple_of(PAGE)
    }

    /// Its checksum, which the next batch names.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

impl Batch {
    /// Header, steps and entries as they lie at `offset`, and their checksum.
    pub fn encode(
        &self,
        salt: u64,
        offset: u64,
        previous: u64,
        payload_len: u64,
    ) -> (Vec<u8>, u64) {
        let mut out =
            Vec::with_capacity(BatchHeader::head_len(self.steps.len(), self.entries.len()));
        out.extend_from_slice(&MAGIC);
        put_numbers(
            &mut out,
            &[
                0,
                previous,
                offset,
                self.through.0,
                // Fewer than 2^32 in any batch.
                self.steps.len() as u64 | (u64::from(self.number) << 32),
                self.entries.len() as u64,
                payload_len,
            ],
        );
        self.steps.iter().for_each(|step| step.put(&mut out));
        self.entries.iter().for_each(|entry| entry.put(&mut out));
        let sum = xxh3_64_with_seed(out.get(16..).unwrap_or_default(), salt);
        if let Some(place) = out.get_mut(8..16) {
            place.copy_from_slice(&sum.to_le_bytes());
        }
        (out, sum)
    }

    /// Decodes the head of a batch that was read at `offset`. None: it is none, or not the one behind `previous`.
    pub fn decode(head: &[u8], salt: u64, offset: u64, previous: u64) -> Option<Self> {
        let header = BatchHeader::decode(head)?;
        let sum = xxh3_64_with_seed(head.get(16..header.head())?, salt);
        if (header.sum, header.offset, header.previous) != (sum, offset, previous) {
            return None;
        }
        let mut from = Take(head.get(BATCH_HEADER_LEN..)?);
        let steps = take_many(&mut from, header.steps)?;
        let entries = take_many(&mut from, header.entries)?;
        Some(Self {
            steps,
            entries,
            through: header.through,
            number: header.number,
        })
    }
}

/// Whether the first batch of a capture, valid and of the run with this salt, begins here, whatever lies before it.
pub fn begins_capture(head: &[u8], salt: u64, offset: u64) -> bool {
    BatchHeader::decode(head).is_some_and(|header| {
        header.offset == offset
            && header.number == 0
            && head
                .get(16..header.head())
                .is_some_and(|body| xxh3_64_with_seed(body, salt) == header.sum)
    })
}
