//! The header of a segment: which log it belongs to, and the state when it was begun.
//!
//! ```text
//! 0       8          16        20       24      32        40     48       64         72      …
//! │ magic │ checksum │ version │ length │ place │ segment │ salt │ log id │ sequence │ state │ group │ disks …
//! ```
//!
//! `place` is the offset of this copy: 0, or where the second copy lies. Texts are a length byte and 64 bytes.

use xxhash_rust::xxh3::xxh3_64;

use super::{
    LogId, SegmentKey, VERSION,
    bytes::{Take, put_text, short_len},
    record::{can_be, put_state, take_state},
};
use crate::{
    DiskIdentity, LogState,
    limits::{COPY_DISTANCE, MAX_DISKS, MAX_NAME},
};

const MAGIC: [u8; 8] = *b"EPGSEGM1";
const SUMMED_FROM: usize = 16;
const SECTOR_BYTES: usize = 512;
/// Upper bound of one header copy; 256 disks take less than 24 KiB.
pub(crate) const MAX_HEADER_BYTES: usize = 32 << 10;

/// A segment's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub key: SegmentKey,
    pub group: String,
    pub disks: Vec<DiskIdentity>,
    /// Number of the last state record before this segment.
    pub sequence: u64,
    /// State when the segment was begun.
    pub state: LogState,
}

/// Why a header can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// Not a header, or a damaged one.
    Invalid,
    /// Valid, but of a version that is not known here.
    Version(u32),
}

impl SegmentHeader {
    /// Encodes both copies, up to where the first record begins.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.encode_copy(0);
        let second = Self::second_copy(out.len());
        let records = second.saturating_mul(2);
        out.resize(second, 0);
        out.extend_from_slice(&self.encode_copy(second as u64));
        out.resize(records, 0);
        out
    }

    /// Where the second copy of a header of `len` bytes lies. Records begin at twice that.
    fn second_copy(len: usize) -> usize {
        len.next_multiple_of(usize::try_from(COPY_DISTANCE).unwrap_or(usize::MAX))
    }

    fn encode_copy(&self, place: u64) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&place.to_le_bytes());
        out.extend_from_slice(&self.key.segment.to_le_bytes());
        out.extend_from_slice(&self.key.salt.to_le_bytes());
        out.extend_from_slice(&self.key.log_id);
        out.extend_from_slice(&self.sequence.to_le_bytes());
        put_state(&mut out, &self.state);
        out.push(short_len(&self.group));
        put_text(&mut out, &self.group, MAX_NAME);
        let disks = u32::try_from(self.disks.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&disks.to_le_bytes());
        for disk in &self.disks {
            out.extend_from_slice(&disk.size.to_le_bytes());
            out.extend_from_slice(&disk.file_id.to_le_bytes());
            out.push(short_len(&disk.name));
            put_text(&mut out, &disk.name, MAX_NAME);
        }
        out.resize(out.len().next_multiple_of(SECTOR_BYTES), 0);
        let len = u32::try_from(out.len()).unwrap_or(u32::MAX);
        set(&mut out, 20, &len.to_le_bytes());
        let sum = xxh3_64(out.get(SUMMED_FROM..).unwrap_or_default());
        set(&mut out, 8, &sum.to_le_bytes());
        out
    }

    /// Finds the header in the first bytes of a segment: the first copy, or the second if the first is damaged.
    /// Returns it with the offset of the first record. `segment` is the number that the file name says.
    pub fn decode(start: &[u8], segment: u64) -> Result<(Self, u64), HeaderError> {
        let mut error = HeaderError::Invalid;
        let step = usize::try_from(COPY_DISTANCE).unwrap_or(usize::MAX);
        for place in (0..=MAX_HEADER_BYTES).step_by(step) {
            match Self::decode_copy(start.get(place..).unwrap_or_default(), place as u64) {
                Ok((header, len)) if header.key.segment == segment => {
                    return Ok((header, Self::second_copy(len) as u64 * 2));
                }
                Ok(_) | Err(HeaderError::Invalid) => {}
                Err(version) => error = version,
            }
        }
        Err(error)
    }

    fn decode_copy(bytes: &[u8], place: u64) -> Result<(Self, usize), HeaderError> {
        let len = Self::check(bytes, place).ok_or(HeaderError::Invalid)?;
        let mut take = Take(bytes.get(SUMMED_FROM..len).unwrap_or_default());
        let version = take.u32().ok_or(HeaderError::Invalid)?;
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let header = Self::take(&mut take).ok_or(HeaderError::Invalid)?;
        Ok((header, len))
    }

    /// Checks magic, place and checksum, which all versions share; gives the length.
    fn check(bytes: &[u8], place: u64) -> Option<usize> {
        let mut take = Take(bytes);
        if take.array()? != MAGIC {
            return None;
        }
        let sum = take.u64()?;
        take.u32()?;
        let len = usize::try_from(take.u32()?).ok()?;
        let summed = bytes.get(SUMMED_FROM..len)?;
        (take.u64()? == place && len <= MAX_HEADER_BYTES && xxh3_64(summed) == sum).then_some(len)
    }

    /// Takes what follows the version.
    fn take(take: &mut Take<'_>) -> Option<Self> {
        take.bytes(12)?;
        let segment = take.u64()?;
        let salt = take.u64()?;
        let log_id: LogId = take.array()?;
        let sequence = take.u64()?;
        if !can_be(&[segment, sequence]) {
            return None;
        }
        let state = take_state(take)?;
        let len = take.u8()?;
        let group = take.text(len.into(), MAX_NAME)?;
        let count = usize::try_from(take.u32()?)
            .ok()
            .filter(|count| *count <= MAX_DISKS)?;
        let mut disks = Vec::with_capacity(count);
        for _ in 0..count {
            let (size, file_id, len) = (take.u64()?, take.u64()?, take.u8()?);
            disks.push(DiskIdentity {
                name: take.text(len.into(), MAX_NAME)?,
                size,
                file_id,
            });
        }
        Some(Self {
            key: SegmentKey {
                log_id,
                salt,
                segment,
            },
            group,
            disks,
            sequence,
            state,
        })
    }
}

fn set(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = out.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}
