//! Segment files: names, creation with a durable header, the list of them in a directory.
//! Knows no records and no rules about when a segment may be removed.

use std::io::{self, IoSlice};

use crate::{
    LogError,
    disk::{LogDir, LogFile},
    format::{HeaderError, MAX_HEADER_BYTES, SegmentHeader, SegmentKey, VERSION},
    limits::MAX_NUMBER,
};

const SUFFIX: &str = ".seg";
const NEW_SUFFIX: &str = ".seg.new";
const SPARE_SUFFIX: &str = ".seg.spare";

/// Both copies of a header are within so many bytes.
pub(crate) const HEADER_AREA: usize = MAX_HEADER_BYTES * 2;

/// An open segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub key: SegmentKey,
    pub file: LogFile,
    /// Where the first record begins.
    pub records_start: u64,
    /// Where the next record goes.
    pub end: u64,
    /// Up to here the file holds remains of an earlier segment: its length when the segment was begun.
    pub remains: u64,
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

/// Creates a segment, in the file `spare` if there is one. It appears under its name only when its header is durable; the name is
/// durable on return.
pub(crate) fn create(
    dir: &LogDir,
    header: &SegmentHeader,
    spare: Option<LogFile>,
) -> io::Result<Segment> {
    let number = header.key.segment;
    let unfinished = format!("{number:016}{NEW_SUFFIX}");
    let created = fill(dir, header, &unfinished, spare);
    if created.is_err() {
        // What it leaves behind is never read; opening the log tries again to remove it.
        // Durably, as far as that goes: the next attempt uses the name for another file, and of two renames that are not synced a
        // crash may keep the wrong ones.
        let _still_there = dir.remove(&unfinished).and_then(|()| dir.sync());
    }
    created
}

fn fill(
    dir: &LogDir,
    header: &SegmentHeader,
    unfinished: &str,
    spare: Option<LogFile>,
) -> io::Result<Segment> {
    let mut file = match spare {
        Some(mut spare) => {
            dir.rename(&mut spare, unfinished)?;
            spare
        }
        None => dir.create_file(unfinished)?,
    };
    let remains = file.len()?;
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
        remains,
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

/// Looks for the header of segment `number` in `start`: the first [`HEADER_AREA`] bytes of `file`, or all if it is shorter.
pub(crate) fn header_in(
    dir: &LogDir,
    file: &LogFile,
    start: &[u8],
    number: u64,
) -> Result<Opened, LogError> {
    match SegmentHeader::decode(start, number) {
        // Records begin after both copies; a shorter file is not a whole segment.
        Ok((_, records_start)) if (start.len() as u64) < records_start => Ok(Opened::Invalid),
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

/// Name of a file that was the segment `name`.
pub(crate) fn spare_name(name: &str) -> String {
    let stem = name.strip_suffix(SUFFIX).unwrap_or(name);
    format!("{stem}{SPARE_SUFFIX}")
}

/// Whether a file waits to become a segment again.
pub(crate) fn is_spare(name: &str) -> bool {
    name.ends_with(SPARE_SUFFIX)
}

/// What a directory holds of a log.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    /// Numbers of the segments, rising.
    pub segments: Vec<u64>,
    /// Names of segments whose creation was interrupted.
    pub unfinished: Vec<String>,
    /// Names of files that wait to become segments again.
    pub spares: Vec<String>,
}

/// Lists the segments of a log.
pub(crate) fn list(dir: &LogDir) -> io::Result<Listing> {
    let mut listing = Listing::default();
    for name in dir.names()? {
        if name.ends_with(NEW_SUFFIX) {
            listing.unfinished.push(name);
        } else if is_spare(&name) {
            listing.spares.push(name);
        } else if let Some(number) = name
            .strip_suffix(SUFFIX)
            .and_then(|stem| stem.parse::<u64>().ok())
            && number <= MAX_NUMBER
            && file_name(number) == name
        {
            listing.segments.push(number);
        }
    }
    listing.segments.sort_unstable();
    Ok(listing)
}
