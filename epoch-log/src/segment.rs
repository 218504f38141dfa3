//! Segment files: names, creation with a durable header, the list of them in a directory.
//! Knows no records and no rules about when a segment may be removed.

use std::io::{self, IoSlice};

use crate::{
    LogError,
    disk::{LogDir, LogFile},
    format::{HeaderError, MAX_HEADER_BYTES, SegmentHeader, SegmentKey, VERSION},
};

const SUFFIX: &str = ".seg";
const NEW_SUFFIX: &str = ".seg.new";

/// An open segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub key: SegmentKey,
    pub file: LogFile,
    /// Where the first record begins.
    pub records_start: u64,
    /// Where the next record goes: the length of the file.
    pub end: u64,
    /// Whether something was written since the last sync.
    pub dirty: bool,
}

impl Segment {
    /// Makes what was written durable.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.dirty {
            self.file.sync()?;
            self.dirty = false;
        }
        Ok(())
    }
}

/// Creates a segment. It appears under its name only when its header is durable; the name is durable on return.
pub(crate) fn create(dir: &LogDir, header: &SegmentHeader) -> io::Result<Segment> {
    let number = header.key.segment;
    let unfinished = format!("{number:016}{NEW_SUFFIX}");
    let created = fill(dir, header, &unfinished);
    if created.is_err() {
        // What it leaves behind is never read; opening the log tries again to remove it.
        let _still_there = dir.remove(&unfinished);
    }
    created
}

fn fill(dir: &LogDir, header: &SegmentHeader, unfinished: &str) -> io::Result<Segment> {
    let mut file = dir.create_file(unfinished)?;
    let bytes = header.encode();
    file.write_at(&mut [IoSlice::new(&bytes)], 0)?;
    file.sync()?;
    dir.rename(&mut file, &file_name(header.key.segment))?;
    dir.sync()?;
    let end = bytes.len() as u64;
    Ok(Segment {
        key: header.key,
        file,
        records_start: end,
        end,
        dirty: false,
    })
}

/// A segment's header as found in its file.
pub(crate) enum Opened {
    /// Readable, with the offset of the first record.
    Valid(Box<SegmentHeader>, u64),
    /// Both copies are unreadable.
    Invalid,
}

/// Reads the header of segment `number`.
pub(crate) fn read_header(dir: &LogDir, file: &LogFile, number: u64) -> Result<Opened, LogError> {
    let mut start = vec![0; MAX_HEADER_BYTES * 2];
    let got = file
        .read_at(&mut start, 0)
        .map_err(|e| LogError::io("read", dir.path().join(file.name()), e))?;
    start.truncate(got);
    match SegmentHeader::decode(&start, number) {
        // Records begin after both copies; a shorter file is not a whole segment.
        Ok((_, records_start)) if (got as u64) < records_start => Ok(Opened::Invalid),
        Ok((header, records_start)) => Ok(Opened::Valid(Box::new(header), records_start)),
        Err(HeaderError::Invalid) => Ok(Opened::Invalid),
        Err(HeaderError::Version(found)) => Err(LogError::Version {
            path: dir.path().join(file.name()),
            found,
            supported: VERSION,
        }),
    }
}

/// Name of the file of a segment.
pub(crate) fn file_name(number: u64) -> String {
    format!("{number:016}{SUFFIX}")
}

/// What a directory holds of a log.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    /// Numbers of the segments, rising.
    pub segments: Vec<u64>,
    /// Names of segments whose creation was interrupted.
    pub unfinished: Vec<String>,
}

/// Lists the segments of a log.
pub(crate) fn list(dir: &LogDir) -> io::Result<Listing> {
    let mut listing = Listing::default();
    for name in dir.names()? {
        if name.ends_with(NEW_SUFFIX) {
            listing.unfinished.push(name);
        } else if let Some(number) = name
            .strip_suffix(SUFFIX)
            .and_then(|stem| stem.parse::<u64>().ok())
            && file_name(number) == name
        {
            listing.segments.push(number);
        }
    }
    listing.segments.sort_unstable();
    Ok(listing)
}
