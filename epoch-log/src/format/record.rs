//! Records: data of an epoch, and changes of the group's state.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    Position, SegmentKey,
    bytes::{Take, put_text, short_len},
    round_to_sector,
};
use crate::{
    Epoch, ExtentKind, Generation, Holder, LogState, Mode,
    limits::{COPY_DISTANCE, MAX_EXTENTS, MAX_ID, MAX_NUMBER, MAX_PAYLOAD, MAX_REASON, SECTOR},
};

const MAGIC: [u8; 8] = *b"EPGRECO1";
/// Bytes before the extent table or the state.
const FIXED_BYTES: usize = 104;
/// Bytes of one entry of the extent table.
const EXTENT_BYTES: usize = 24;
/// Bytes under the header checksum begin here.
const SUMMED_FROM: usize = 16;
/// What must be read to learn how long a record header is.
pub(crate) const FIRST_BYTES: usize = 512;
/// Length of a state record: both copies and the gap.
pub(crate) const STATE_RECORD_BYTES: u64 = COPY_DISTANCE + SECTOR;

/// One entry of a data record's extent table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExtentEntry {
    pub disk: u16,
    pub kind: ExtentKind,
    pub offset: u64,
    pub len: u64,
}

/// A decoded data record, without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DataRecord {
    pub generation: Generation,
    pub epoch: Epoch,
    pub sequence: u64,
    pub extents: Vec<ExtentEntry>,
    pub header_len: u64,
    pub header_sum: u64,
    pub payload_len: u64,
    pub payload_sum: u64,
}

impl DataRecord {
    /// Length in the segment, padding included.
    pub fn total_len(&self) -> u64 {
        self.header_len + round_to_sector(self.payload_len)
    }
}

/// What a state record changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StateKind {
    /// An epoch is committed.
    Commit,
    /// A new generation; drops uncommitted data.
    Generation,
    /// Another mode.
    Mode,
    /// The images hold more epochs.
    Applied,
    /// Uncommitted data before it counts no longer.
    Void,
    /// The log was opened again after a clean stop.
    Opened,
    /// Clean stop.
    CleanStop,
}

impl StateKind {
    const fn code(self) -> u8 {
        match self {
            Self::Commit => 2,
            Self::Generation => 3,
            Self::Mode => 4,
            Self::Applied => 5,
            Self::Void => 6,
            Self::Opened => 7,
            Self::CleanStop => 8,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            2 => Self::Commit,
            3 => Self::Generation,
            4 => Self::Mode,
            5 => Self::Applied,
            6 => Self::Void,
            7 => Self::Opened,
            8 => Self::CleanStop,
            _ => return None,
        })
    }

    /// Name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Generation => "generation",
            Self::Mode => "mode",
            Self::Applied => "applied",
            Self::Void => "void",
            Self::Opened => "opened",
            Self::CleanStop => "clean-stop",
        }
    }
}

const DATA_CODE: u8 = 1;

/// Sums up the data records of one epoch, so that its commit record vouches for each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub records: u64,
    pub bytes: u64,
    pub sum: u64,
}

impl Chain {
    /// Adds the next data record of the epoch.
    pub fn add(&mut self, header_sum: u64, payload_len: u64) {
        self.records += 1;
        self.bytes += payload_len;
        self.sum = xxh3_64_with_seed(&header_sum.to_le_bytes(), self.sum);
    }
}

/// A decoded state record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StateRecord {
    pub kind: StateKind,
    /// Number of this state record in the log.
    pub sequence: u64,
    /// The whole state after this record.
    pub state: LogState,
    /// For [`StateKind::Commit`]: the data of the epoch.
    pub chain: Chain,
    /// For [`StateKind::Generation`]: why.
    pub reason: String,
}

/// A decoded record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Data(DataRecord),
    State(StateRecord),
}

/// Fields that all records share.
struct Fixed {
    kind: u8,
    copy: u8,
    count: u32,
    header_len: u32,
    generation: Generation,
    epoch: Epoch,
    payload_len: u64,
    payload_sum: u64,
    sequence: u64,
}

fn put_fixed(out: &mut Vec<u8>, key: &SegmentKey, offset: u64, fixed: &Fixed) {
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[fixed.kind, fixed.copy, 0, 0]);
    out.extend_from_slice(&fixed.count.to_le_bytes());
    out.extend_from_slice(&fixed.header_len.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&key.segment.to_le_bytes());
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(&key.log_id);
    out.extend_from_slice(&fixed.generation.0.to_le_bytes());
    out.extend_from_slice(&fixed.epoch.0.to_le_bytes());
    out.extend_from_slice(&fixed.payload_len.to_le_bytes());
    out.extend_from_slice(&fixed.payload_sum.to_le_bytes());
    out.extend_from_slice(&fixed.sequence.to_le_bytes());
}

/// Pads to `len`, computes the checksum and puts it in its place.
fn finish(out: &mut Vec<u8>, len: usize, key: &SegmentKey) -> u64 {
    out.resize(len, 0);
    let sum = xxh3_64_with_seed(out.get(SUMMED_FROM..).unwrap_or_default(), key.salt);
    if let Some(place) = out.get_mut(8..SUMMED_FROM) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
    sum
}

/// What a data record says, beside its extents.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataFields {
    pub generation: Generation,
    pub epoch: Epoch,
    pub sequence: u64,
    pub payload_len: u64,
    pub payload_sum: u64,
}

/// Encodes the header and extent table of a data record at `offset`. Returns the bytes and the header checksum.
/// The caller keeps to [`MAX_EXTENTS`] and [`MAX_PAYLOAD`].
pub(crate) fn encode_data(
    key: &SegmentKey,
    offset: u64,
    fields: &DataFields,
    extents: &[ExtentEntry],
) -> (Vec<u8>, u64) {
    let len = data_header_len(extents.len());
    let mut out = Vec::with_capacity(len);
    let fixed = Fixed {
        kind: DATA_CODE,
        copy: 0,
        count: u32::try_from(extents.len()).unwrap_or(u32::MAX),
        header_len: u32::try_from(len).unwrap_or(u32::MAX),
        generation: fields.generation,
        epoch: fields.epoch,
        payload_len: fields.payload_len,
        payload_sum: fields.payload_sum,
        sequence: fields.sequence,
    };
    put_fixed(&mut out, key, offset, &fixed);
    for extent in extents {
        out.extend_from_slice(&extent.offset.to_le_bytes());
        out.extend_from_slice(&extent.len.to_le_bytes());
        out.extend_from_slice(&extent.disk.to_le_bytes());
        let kind = match extent.kind {
            ExtentKind::Data => 0,
            ExtentKind::Zero => 1,
            ExtentKind::Trim => 2,
            ExtentKind::Hole => 3,
        };
        out.extend_from_slice(&[kind, 0, 0, 0, 0, 0]);
    }
    let sum = finish(&mut out, len, key);
    (out, sum)
}

/// Length of the header of a data record with that many extents.
pub(crate) fn data_header_len(extents: usize) -> usize {
    (FIXED_BYTES + extents * EXTENT_BYTES).next_multiple_of(FIRST_BYTES)
}

/// Encodes a whole state record at `offset`: both copies with the gap between them.
pub(crate) fn encode_state(key: &SegmentKey, offset: u64, record: &StateRecord) -> Vec<u8> {
    let mut out = encode_copy(key, offset, record, 0);
    out.resize(usize::try_from(COPY_DISTANCE).unwrap_or(usize::MAX), 0);
    out.extend_from_slice(&encode_copy(key, offset, record, 1));
    out
}

fn encode_copy(key: &SegmentKey, offset: u64, record: &StateRecord, copy: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(FIRST_BYTES);
    let fixed = Fixed {
        kind: record.kind.code(),
        copy,
        count: 0,
        header_len: 512,
        generation: record.state.generation,
        epoch: record.state.committed,
        payload_len: 0,
        payload_sum: 0,
        sequence: record.sequence,
    };
    put_fixed(&mut out, key, offset, &fixed);
    put_state(&mut out, &record.state);
    out.extend_from_slice(&record.chain.records.to_le_bytes());
    out.extend_from_slice(&record.chain.bytes.to_le_bytes());
    out.extend_from_slice(&record.chain.sum.to_le_bytes());
    out.push(short_len(&record.reason));
    put_text(&mut out, &record.reason, MAX_REASON);
    finish(&mut out, FIRST_BYTES, key);
    out
}

/// Appends a state; always the same length.
pub(super) fn put_state(out: &mut Vec<u8>, state: &LogState) {
    let holder = state.mode.holder();
    let standby = holder.map_or("", |holder| holder.standby.as_str());
    let owner = state.owner.as_deref().unwrap_or_default();
    out.extend_from_slice(&state.generation.0.to_le_bytes());
    out.extend_from_slice(&state.committed.0.to_le_bytes());
    out.extend_from_slice(&state.applied.0.to_le_bytes());
    out.extend_from_slice(&holder.map_or(0, |holder| holder.since.0).to_le_bytes());
    let mode = match state.mode {
        Mode::Sync => 0,
        Mode::Async { .. } => 1,
    };
    out.extend_from_slice(&[mode, short_len(owner), short_len(standby), 0]);
    put_text(out, owner, MAX_ID);
    put_text(out, standby, MAX_ID);
}

/// Takes a state; `None` if it makes no sense.
pub(super) fn take_state(take: &mut Take<'_>) -> Option<LogState> {
    let generation = Generation(take.u64()?);
    let committed = Epoch(take.u64()?);
    let applied = Epoch(take.u64()?);
    let since = Epoch(take.u64()?);
    let [mode, owner_len, standby_len, _] = take.array()?;
    let owner = Some(take.text(owner_len.into(), MAX_ID)?).filter(|owner| !owner.is_empty());
    let standby = take.text(standby_len.into(), MAX_ID)?;
    let mode = match mode {
        0 if standby.is_empty() => Mode::Sync,
        1 if standby.is_empty() => Mode::Async { holder: None },
        1 => Mode::Async {
            holder: Some(Holder { standby, since }),
        },
        _ => return None,
    };
    let numbers = [generation.0, committed.0, since.0];
    (applied <= committed && can_be(&numbers)).then_some(LogState {
        generation,
        owner,
        mode,
        committed,
        applied,
    })
}

/// Whether numbers are such that others can follow.
pub(super) fn can_be(numbers: &[u64]) -> bool {
    numbers.iter().all(|number| *number <= MAX_NUMBER)
}

/// Length of the record header that begins with `first`, if it can be one at all.
pub(crate) fn peek_header_len(first: &[u8]) -> Option<usize> {
    let mut take = Take(first);
    if take.array()? != MAGIC {
        return None;
    }
    take.bytes(16)?;
    let len = usize::try_from(take.u32()?).ok()?;
    (len >= FIRST_BYTES && len <= data_header_len(MAX_EXTENTS) && len.is_multiple_of(FIRST_BYTES))
        .then_some(len)
}

impl Record {
    /// Decodes the record header `bytes`, as long as [`peek_header_len`] said, that was read at `at`. `copy` says which copy is
    /// expected there (data records have only the first); `None` if it is not a valid record of this very place.
    pub fn decode(bytes: &[u8], key: &SegmentKey, at: Position, copy: u8) -> Option<Self> {
        let mut take = Take(bytes);
        if take.array()? != MAGIC {
            return None;
        }
        let header_sum = take.u64()?;
        let fixed = take_fixed(&mut take, key, at)?;
        let sum = xxh3_64_with_seed(bytes.get(SUMMED_FROM..)?, key.salt);
        if sum != header_sum
            || fixed.copy != copy
            || u64::from(fixed.header_len) != bytes.len() as u64
        {
            return None;
        }
        if fixed.kind == DATA_CODE {
            return take_data(&mut take, &fixed, header_sum).map(Self::Data);
        }
        let kind = StateKind::from_code(fixed.kind)?;
        let state = take_state(&mut take)?;
        let chain = Chain {
            records: take.u64()?,
            bytes: take.u64()?,
            sum: take.u64()?,
        };
        let reason_len = take.u8()?;
        let reason = take.text(reason_len.into(), MAX_REASON)?;
        Some(Self::State(StateRecord {
            kind,
            sequence: fixed.sequence,
            state,
            chain,
            reason,
        }))
    }
}

fn take_fixed(take: &mut Take<'_>, key: &SegmentKey, at: Position) -> Option<Fixed> {
    let [kind, copy, _, _] = take.array()?;
    let count = take.u32()?;
    let header_len = take.u32()?;
    take.u32()?;
    let place = Position {
        segment: take.u64()?,
        offset: take.u64()?,
    };
    let log_id: [u8; 16] = take.array()?;
    if place != at || log_id != key.log_id {
        return None;
    }
    let fixed = Fixed {
        kind,
        copy,
        count,
        header_len,
        generation: Generation(take.u64()?),
        epoch: Epoch(take.u64()?),
        payload_len: take.u64()?,
        payload_sum: take.u64()?,
        sequence: take.u64()?,
    };
    let numbers = [fixed.generation.0, fixed.epoch.0, fixed.sequence];
    can_be(&numbers).then_some(fixed)
}

fn take_data(take: &mut Take<'_>, fixed: &Fixed, header_sum: u64) -> Option<DataRecord> {
    let count = usize::try_from(fixed.count).ok()?;
    if count > MAX_EXTENTS || fixed.payload_len > MAX_PAYLOAD {
        return None;
    }
    let mut extents = Vec::with_capacity(count);
    let mut payload = 0_u64;
    for _ in 0..count {
        let (offset, len, disk) = (take.u64()?, take.u64()?, take.u16()?);
        let kind = match take.u8()? {
            0 => ExtentKind::Data,
            1 => ExtentKind::Zero,
            2 => ExtentKind::Trim,
            3 => ExtentKind::Hole,
            _ => return None,
        };
        take.bytes(5)?;
        if kind == ExtentKind::Data {
            payload = payload.checked_add(len)?;
        }
        extents.push(ExtentEntry {
            disk,
            kind,
            offset,
            len,
        });
    }
    (payload == fixed.payload_len).then_some(DataRecord {
        generation: fixed.generation,
        epoch: fixed.epoch,
        sequence: fixed.sequence,
        extents,
        header_len: fixed.header_len.into(),
        header_sum,
        payload_len: fixed.payload_len,
        payload_sum: fixed.payload_sum,
    })
}
