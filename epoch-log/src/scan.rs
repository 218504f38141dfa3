//! Reads all segments of a log in order and feeds the fold. Changes nothing; notes which copies want to be written again.
//! Knows where records lie, not what they come to (`recovery.rs`).

use std::{collections::BTreeMap, io};

use crate::{
    Damage, DamageKind, Epoch, LogError,
    disk::{LogDir, LogFile},
    format::{
        FIRST_BYTES, Position, Record, SegmentHeader, SegmentKey, StateRecord, encode_state,
        peek_header_len,
    },
    limits::{COPY_DISTANCE, SECTOR},
    recovery::{Fold, Index, Outcome},
    replay::read_record,
    segment::{self, HEADER_AREA, Opened},
};

/// How much is read at once.
const WINDOW_BYTES: usize = 256 << 10;

/// A segment as it was read.
#[derive(Debug)]
pub(crate) struct ScannedSegment {
    pub header: SegmentHeader,
    pub file: LogFile,
    pub records_start: u64,
    /// Where the last valid record ends.
    pub used: u64,
    /// Length of the file: what follows the last record may be remains of an earlier segment.
    pub len: u64,
}

/// A sector of a state record or header that must be written again from its other copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repair {
    pub at: Position,
    pub bytes: Vec<u8>,
}

/// A log as it was read.
#[derive(Debug)]
pub(crate) struct Scanned {
    pub segments: BTreeMap<u64, ScannedSegment>,
    pub outcome: Outcome,
    pub repairs: Vec<Repair>,
    /// Data that belongs to no committed epoch, in the order found.
    pub dropped: Vec<Epoch>,
}

/// Told of every record, for those who list them.
pub(crate) type Listener<'a> = &'a mut dyn FnMut(Position, &Record);

/// Reads the segments `numbers` of a log and verifies all data that still counts.
pub(crate) fn scan(
    dir: &LogDir,
    numbers: &[u64],
    writable: bool,
    listener: Listener<'_>,
) -> Result<Scanned, LogError> {
    let mut scan = Scan {
        dir,
        fold: Fold::new(),
        repairs: Vec::new(),
        segments: BTreeMap::new(),
        listener,
        buffer: Vec::new(),
    };
    let mut before: Option<u64> = None;
    for &number in numbers {
        // However many are missing, the first of them is named.
        if let Some(missing) = before
            .map(|before| before + 1)
            .filter(|next| *next < number)
        {
            let at = Position {
                segment: missing,
                offset: 0,
            };
            scan.fold.damaged(at, DamageKind::SegmentMissing);
        }
        before = Some(number);
        scan.segment(number, writable)?;
    }
    let Scan {
        fold,
        repairs,
        segments,
        ..
    } = scan;
    let mut outcome = fold.finish();
    verify_payloads(dir, &segments, &outcome.index, &mut outcome.damages)?;
    let dropped = outcome.index.pending.keys().copied().collect();
    Ok(Scanned {
        segments,
        outcome,
        repairs,
        dropped,
    })
}

struct Scan<'a> {
    dir: &'a LogDir,
    fold: Fold,
    repairs: Vec<Repair>,
    segments: BTreeMap<u64, ScannedSegment>,
    listener: Listener<'a>,
    /// Of the window, kept from one segment to the next.
    buffer: Vec<u8>,
}

impl Scan<'_> {
    fn segment(&mut self, number: u64, writable: bool) -> Result<(), LogError> {
        let name = segment::file_name(number);
        let fail = |source| LogError::io("read", self.dir.path().join(&name), source);
        let open = if writable {
            LogDir::open_file
        } else {
            LogDir::open_file_read_only
        };
        let file = open(self.dir, &name).map_err(fail)?;
        let len = file.len().map_err(fail)?;
        let start = Position {
            segment: number,
            offset: 0,
        };
        let mut window = Window::new(&file, len, std::mem::take(&mut self.buffer));
        let area = window.get(0, HEADER_AREA).map_err(fail)?;
        let (header, records_start) = match segment::header_in(self.dir, &file, area, number)? {
            Opened::Valid(header, records_start) => (*header, records_start),
            Opened::Invalid => {
                self.fold.damaged(start, DamageKind::SegmentHeader);
                return Ok(());
            }
        };
        let first = self
            .segments
            .values()
            .next()
            .map(|first| first.header.key.log_id);
        if first.is_some_and(|log_id| log_id != header.key.log_id) {
            self.fold.damaged(start, DamageKind::SegmentForeign);
            return Ok(());
        }
        compare(&mut window, start, &header.encode(), &mut self.repairs).map_err(fail)?;
        self.fold.segment(&header, records_start);
        let used = self
            .records(&mut window, header.key, records_start)
            .map_err(fail)?;
        self.buffer = window.bytes;
        if let Some(end) = file.unreadable_end() {
            self.fold.unreadable(Position {
                segment: number,
                offset: end,
            });
        }
        self.segments.insert(
            number,
            ScannedSegment {
                header,
                file,
                records_start,
                used,
                len,
            },
        );
        Ok(())
    }

    /// Reads the records of a segment. Returns where the last of them ends.
    fn records(&mut self, window: &mut Window<'_>, key: SegmentKey, start: u64) -> io::Result<u64> {
        let mut offset = start;
        let mut used = start;
        let mut in_hole = false;
        while offset < window.len {
            let at = Position {
                segment: key.segment,
                offset,
            };
            let record = record_at(window, &key, at)?;
            if record.is_none() && !in_hole {
                self.fold.hole(at);
            }
            in_hole = record.is_none();
            offset = match &record {
                None => offset + SECTOR,
                Some(Record::Data(data)) => {
                    let end = offset.saturating_add(data.total_len());
                    if end > window.len {
                        self.fold.cut_data(at, data);
                        return Ok(used);
                    }
                    self.fold.data(at, data);
                    end
                }
                Some(Record::State(state)) => {
                    let whole = encode_state(&key, offset, state);
                    let end = offset + whole.len() as u64;
                    compare(window, at, &whole, &mut self.repairs)?;
                    self.fold.state(at, end, state);
                    end
                }
            };
            if let Some(record) = &record {
                used = offset;
                (self.listener)(at, record);
            }
        }
        Ok(used)
    }
}

/// The record at `at`: from its first copy, or its second if the first is damaged.
fn record_at(
    window: &mut Window<'_>,
    key: &SegmentKey,
    at: Position,
) -> io::Result<Option<Record>> {
    let first = window.get(at.offset, FIRST_BYTES)?;
    if let Some(len) = peek_header_len(first)
        && let Some(record) = Record::decode(window.get(at.offset, len)?, key, at, 0)
    {
        return Ok(Some(record));
    }
    let second = window.get(at.offset + COPY_DISTANCE, FIRST_BYTES)?;
    if peek_header_len(second) != Some(FIRST_BYTES) {
        return Ok(None);
    }
    let second = Record::decode(second, key, at, 1);
    Ok(second.filter(|record| matches!(record, Record::State(StateRecord { .. }))))
}

/// Notes each sector that differs from what it should be.
fn compare(
    window: &mut Window<'_>,
    at: Position,
    whole: &[u8],
    repairs: &mut Vec<Repair>,
) -> io::Result<()> {
    let mut offset = at.offset;
    for sector in whole.chunks(FIRST_BYTES) {
        if window.get(offset, sector.len())? != sector {
            let at = Position {
                segment: at.segment,
                offset,
            };
            repairs.push(Repair {
                at,
                bytes: sector.to_vec(),
            });
        }
        offset += sector.len() as u64;
    }
    Ok(())
}

/// Verifies the payload of every record that is committed and not applied.
fn verify_payloads(
    dir: &LogDir,
    segments: &BTreeMap<u64, ScannedSegment>,
    index: &Index,
    damages: &mut Vec<Damage>,
) -> Result<(), LogError> {
    let mut payload = Vec::new();
    for (epoch, data) in &index.committed {
        for place in &data.records {
            let Some(segment) = segments.get(&place.at.segment) else {
                continue;
            };
            match read_record(
                dir,
                &segment.file,
                &segment.header.key,
                *epoch,
                place,
                &mut payload,
            ) {
                Ok(_) => {}
                Err(LogError::Damaged(damage)) => damages.push(damage),
                Err(other) => return Err(other),
            }
        }
    }
    Ok(())
}

/// A part of a file, kept because records mostly follow closely on each other.
struct Window<'a> {
    file: &'a LogFile,
    len: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    /// Nothing is read yet. What is in `buffer` does not matter.
    fn new(file: &'a LogFile, len: u64, mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        Self {
            file,
            len,
            start: 0,
            bytes: buffer,
        }
    }

    /// `len` bytes at `offset`, or as many as the file has.
    fn get(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let wanted = offset.saturating_add(len as u64).min(self.len);
        if offset < self.start || wanted > self.start + self.bytes.len() as u64 {
            let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
            self.bytes.resize(len.max(WINDOW_BYTES).min(left), 0);
            let got = self.file.read_at(&mut self.bytes, offset)?;
            self.bytes.truncate(got);
            self.start = offset;
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        let rest = self.bytes.get(from..).unwrap_or_default();
        Ok(rest.get(..len).unwrap_or(rest))
    }
}
