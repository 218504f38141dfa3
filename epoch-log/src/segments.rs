//! The open segments of a log as one growing sequence of bytes: append, begin the next segment, cut the end, free the
//! beginning. Knows nothing of what is committed; `log.rs` says where to cut and what to free.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
};

use crate::{
    DiskIdentity, LogState,
    disk::LogDir,
    format::{LogId, Position, SegmentHeader, SegmentKey},
    segment::{self, Segment},
    spares::Spares,
};

/// Records from here on go to the disk while the next one is being made.
const WRITEBACK_BYTES: u64 = 1 << 20;

/// What the page cache holds at least: to write part of it where it is not cached takes a read first.
const PAGE: u64 = 4096;
static ZEROS: [u8; 4096] = [0; 4096];

/// What is the same in all segments of a log.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub log_id: LogId,
    pub group: String,
    pub disks: Vec<DiskIdentity>,
}

impl Identity {
    /// Identity of a new log.
    pub fn new(log_id: LogId, group: &str, disks: &[DiskIdentity]) -> Self {
        Self {
            log_id,
            group: group.to_owned(),
            disks: disks.to_vec(),
        }
    }
}

/// The segments of an open log.
#[derive(Debug)]
pub(crate) struct Segments {
    pub dir: LogDir,
    pub identity: Identity,
    segment_bytes: u64,
    older: BTreeMap<u64, Segment>,
    current: Segment,
    spares: Spares,
}

impl Segments {
    /// Begins a new log.
    pub fn create(
        dir: LogDir,
        identity: Identity,
        segment_bytes: u64,
        state: &LogState,
    ) -> io::Result<Self> {
        let current = segment::create(&dir, &header(&dir, &identity, 1, 0, state), None)?;
        Ok(Self {
            dir,
            identity,
            segment_bytes,
            older: BTreeMap::new(),
            current,
            spares: Spares::default(),
        })
    }

    /// Goes on with the segments of a log; `None` if there are none.
    pub fn resume(
        dir: LogDir,
        identity: Identity,
        segment_bytes: u64,
        mut segments: BTreeMap<u64, Segment>,
    ) -> Option<Self> {
        let (_, current) = segments.pop_last()?;
        Some(Self {
            dir,
            identity,
            segment_bytes,
            older: segments,
            current,
            spares: Spares::default(),
        })
    }

    /// From now on segments are made from the spares `names` and from those that are freed, of which at most `most` are kept.
    /// Not while a log is being recovered: what recovery leaves is then the same however often it is interrupted.
    pub fn use_spares(&mut self, names: &[String], most: usize) -> io::Result<()> {
        self.spares = Spares::keep(&self.dir, names, most)?;
        Ok(())
    }

    /// Gives the space of all spares back. True if there was any.
    pub fn give_back_spares(&mut self) -> io::Result<bool> {
        self.spares.give_back(&self.dir)
    }

    /// Where the next record goes, if the segment has room for it.
    pub const fn end(&self) -> Position {
        Position {
            segment: self.current.key.segment,
            offset: self.current.end,
        }
    }

    /// The segment that is being written.
    pub const fn current(&self) -> &Segment {
        &self.current
    }

    /// An open segment.
    pub fn get(&self, number: u64) -> Option<&Segment> {
        if number == self.current.key.segment {
            Some(&self.current)
        } else {
            self.older.get(&number)
        }
    }

    /// Begins the next segment if a record of `len` bytes does not fit the current one. A segment takes at least one record, so
    /// one that is longer than any segment gets its own.
    pub fn make_room(&mut self, len: u64, sequence: u64, state: &LogState) -> io::Result<()> {
        let used = self.current.end > self.current.records_start;
        if used && self.current.end.saturating_add(len) > self.segment_bytes {
            self.begin_next(sequence, state)?;
        }
        Ok(())
    }

    /// Begins the next segment.
    pub fn begin_next(&mut self, sequence: u64, state: &LogState) -> io::Result<()> {
        let number = self.current.key.segment + 1;
        let header = header(&self.dir, &self.identity, number, sequence, state);
        let next = segment::create(&self.dir, &header, self.spares.take(&self.dir))?;
        let before = std::mem::replace(&mut self.current, next);
        self.older.insert(before.key.segment, before);
        Ok(())
    }

    /// Writes a record of `len` bytes at the end.
    pub fn write(&mut self, mut slices: Vec<IoSlice<'_>>, len: u64) -> io::Result<()> {
        self.current.dirty = true;
        let start = self.current.end;
        let end = start + len;
        if end < self.current.remains {
            // The rest of the last page is no record, but to leave its remains would take a read.
            let rest = usize::try_from(end.next_multiple_of(PAGE) - end).unwrap_or_default();
            slices.push(IoSlice::new(ZEROS.get(..rest).unwrap_or_default()));
        }
        self.current.file.write_at(&mut slices, start)?;
        self.current.end = end;
        if len >= WRITEBACK_BYTES {
            self.current.file.begin_writeback(start, len);
        }
        Ok(())
    }

    /// Makes the segment that is being written durable.
    pub fn sync_current(&mut self) -> io::Result<()> {
        self.current.sync()
    }

    /// Makes all segments durable.
    pub fn sync(&mut self) -> io::Result<()> {
        for segment in self.older.values_mut() {
            segment.sync()?;
        }
        self.current.sync()
    }

    /// Cuts everything from `to` on, durably. Returns how many bytes that were.
    pub fn cut(&mut self, to: Position) -> io::Result<u64> {
        let mut cut = 0;
        while self.current.key.segment > to.segment {
            let Some((_, before)) = self.older.pop_last() else {
                return Err(io::Error::other("the segment to cut is not open"));
            };
            let removed = std::mem::replace(&mut self.current, before);
            self.dir.remove(removed.file.name())?;
            // One by one: no crash may leave a later segment without an earlier one.
            self.dir.sync()?;
            cut += removed.end;
        }
        // A write that failed may have left bytes behind the end that is known, and they carry the salt of this segment.
        if self.current.file.len()? > to.offset {
            self.current.file.truncate(to.offset)?;
        }
        cut += self.current.end.saturating_sub(to.offset);
        self.current.end = to.offset;
        self.current.remains = to.offset;
        Ok(cut)
    }

    /// Frees all segments before `number`, oldest first; never the current one. Returns how many.
    pub fn free_before(&mut self, number: u64) -> io::Result<usize> {
        let mut freed = 0;
        while let Some(mut entry) = self
            .older
            .first_entry()
            .filter(|entry| *entry.key() < number)
        {
            self.spares.retire(&self.dir, &mut entry.get_mut().file)?;
            entry.remove();
            freed += 1;
        }
        Ok(freed)
    }
}

fn header(
    dir: &LogDir,
    identity: &Identity,
    number: u64,
    sequence: u64,
    state: &LogState,
) -> SegmentHeader {
    let [a, b, c, d, e, f, g, h, ..] = dir.random();
    let salt = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    SegmentHeader {
        key: SegmentKey {
            log_id: identity.log_id,
            salt,
            segment: number,
        },
        group: identity.group.clone(),
        disks: identity.disks.clone(),
        sequence,
        state: state.clone(),
    }
}
