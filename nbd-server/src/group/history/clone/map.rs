//! The map of one disk of a clone on disk: which blocks are its own. A file that only grows, as blocks never cease to be a clone's own: each
//! is noted once. It knows nothing of what is in the blocks, nor when that is durable.
//!
//! ```text
//!   page 0     head: what the map belongs to       at 512 and 1024: two marks, written in turn: "all up to byte N was durable"
//!   from 4096  records, one behind the other:      length, checksum of the record before, checksum, ranges of blocks
//! ```
//!
//! What a crash can leave is an unfinished record at the end: it is dropped. A record below the newest mark was durable, so if it can't be read,
//! that is damage, and nothing is guessed. A mark becomes durable with the record after it, or when the map is opened or closed: only
//! damage to the last record of a process that was killed looks like a crash.
//!
//! All numbers are little-endian, checksums are xxh3 (64 bits).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::blocks::Blocks;
use super::error::{CloneError, failed};

const MAGIC: [u8; 8] = *b"EGCLONE\x01";
/// Length of the part before the records, in bytes.
const FIRST: u64 = 4096;
/// Bytes of the head, its checksum included.
const HEAD_LEN: usize = 64;
/// Where the marks are.
const MARKS: [u64; 2] = [512, 1024];
const MARK_LEN: usize = 24;
/// Bytes of a record before its ranges.
const RECORD_LEN: usize = 24;
const RANGE_LEN: usize = 16;
/// Most ranges of a record: it is read as a whole.
const MOST_RANGES: usize = 1 << 16;

/// What a map belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The clone, or for a map of what is not durable yet, the clone and the start of the machine.
    pub id: [u8; 16],
    /// The disk's number in its group.
    pub disk: u16,
    /// The disk's size in blocks.
    pub blocks: u64,
}

impl Owner {
    fn head(&self) -> Vec<u8> {
        let mut head = MAGIC.to_vec();
        head.extend(self.id);
        head.extend(u64::from(self.disk).to_le_bytes());
        head.extend(self.blocks.to_le_bytes());
        head.resize(HEAD_LEN - 8, 0);
        head.extend(xxh3_64_with_seed(&head, 0).to_le_bytes());
        head
    }

    /// What tells its checksums from those of others.
    fn seed(&self) -> u64 {
        xxh3_64_with_seed(&self.head(), 1)
    }
}

/// An open map.
#[derive(Debug)]
pub struct Map {
    file: File,
    path: PathBuf,
    seed: u64,
    /// Where the next record goes.
    end: u64,
    /// Checksum of the last record.
    previous: u64,
    /// Marks written so far: says which is next.
    marks: u64,
}

impl Map {
    /// Makes an empty map, over whatever is there. It is durable after [`Map::settle`].
    ///
    /// # Errors
    /// [`CloneError::Io`].
    pub fn create(path: &Path, owner: Owner) -> Result<Self, CloneError> {
        let make = || {
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(path)?;
            file.write_all_at(&owner.head(), 0)?;
            file.set_len(FIRST)?;
            Ok(file)
        };
        let mut map = Self {
            file: make().map_err(failed("create", path))?,
            path: path.to_owned(),
            seed: owner.seed(),
            end: FIRST,
            previous: owner.seed(),
            marks: 0,
        };
        let marked = map.mark().and_then(|()| map.mark());
        marked.map_err(failed("write", path))?;
        Ok(map)
    }

    /// Opens a map and adds what it has to `blocks`. What a crash has left unfinished at its end is cut off.
    ///
    /// # Errors
    /// [`CloneError::Io`], [`CloneError::Damaged`], [`CloneError::Foreign`] if it belongs to something else.
    pub fn open(path: &Path, owner: Owner, blocks: &mut Blocks) -> Result<Self, CloneError> {
        let (mut map, durable) = Self::look(path, owner)?;
        map.read(owner, blocks)?;
        if map.end < durable {
            return Err(map.damaged(map.end, "a record that was durable can't be read"));
        }
        map.file
            .set_len(map.end)
            .map_err(failed("cut the end of", path))?;
        Ok(map)
    }

    /// Opens a map whose records nobody relies on, to be read up to the first that is not whole.
    ///
    /// # Errors
    /// As [`Map::open`], but for records that are not whole.
    pub fn open_loose(path: &Path, owner: Owner, blocks: &mut Blocks) -> Result<Self, CloneError> {
        let (mut map, _) = Self::look(path, owner)?;
        map.read(owner, blocks)?;
        Ok(map)
    }

    /// The map behind its head, and up to where it was durable.
    fn look(path: &Path, owner: Owner) -> Result<(Self, u64), CloneError> {
        let file = File::options().read(true).write(true).open(path);
        let mut map = Self {
            file: file.map_err(failed("open", path))?,
            path: path.to_owned(),
            seed: owner.seed(),
            end: FIRST,
            previous: owner.seed(),
            marks: 0,
        };
        let mut head = [0; HEAD_LEN];
        if !map.fill(&mut head, 0)? {
            return Err(map.damaged(0, "the head is cut off"));
        }
        if head != *owner.head() {
            let (summed, sum) = head.split_at(HEAD_LEN - 8);
            return Err(if sum == xxh3_64_with_seed(summed, 0).to_le_bytes() {
                CloneError::Foreign {
                    path: path.to_owned(),
                }
            } else {
                map.damaged(0, "the head is not whole")
            });
        }
        let mut newest = None;
        for at in MARKS {
            let mut mark = [0; MARK_LEN];
            if map.fill(&mut mark, at)? {
                newest = newest.max(map.read_mark(&mark));
            }
        }
        let Some((number, durable)) = newest else {
            return Err(map.damaged(MARKS[0], "neither mark is whole"));
        };
        map.marks = number;
        Ok((map, durable))
    }

    /// Number of the mark, and what it says.
    fn read_mark(&self, mark: &[u8; MARK_LEN]) -> Option<(u64, u64)> {
        let (summed, sum) = mark.split_at(MARK_LEN - 8);
        let whole = xxh3_64_with_seed(summed, self.seed).to_le_bytes() == sum;
        let number = |at| number(summed, at);
        whole.then_some((number(0)?, number(8)?))
    }

    fn read(&mut self, owner: Owner, blocks: &mut Blocks) -> Result<(), CloneError> {
        while let Some(Record { ranges, len, sum }) = self.record()? {
            for range in ranges {
                if range.is_empty() || range.end > owner.blocks {
                    return Err(self.damaged(self.end, "a range lies beyond the end of the disk"));
                }
                blocks.insert(range);
            }
            self.end += len;
            self.previous = sum;
        }
        Ok(())
    }

    /// The record at the end of what was read: its ranges, its length and its checksum. None: there is none that is whole.
    fn record(&self) -> Result<Option<Record>, CloneError> {
        let mut head = [0; RECORD_LEN];
        if !self.fill(&mut head, self.end)? {
            return Ok(None);
        }
        let numbers = (number(&head, 0), number(&head, 8), number(&head, 16));
        let (Some(count), Some(previous), Some(sum)) = numbers else {
            return Ok(None);
        };
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > MOST_RANGES || previous != self.previous {
            return Ok(None);
        }
        let mut body = vec![0; count * RANGE_LEN];
        if !self.fill(&mut body, self.end + RECORD_LEN as u64)? || self.sum(&body, previous) != sum
        {
            return Ok(None);
        }
        let ranges = body.chunks_exact(RANGE_LEN).filter_map(|range| {
            let (start, len) = (number(range, 0)?, number(range, 8)?);
            Some(start..start.saturating_add(len))
        });
        Ok(Some(Record {
            ranges: ranges.collect(),
            len: (RECORD_LEN + body.len()) as u64,
            sum,
        }))
    }

    /// Adds ranges of blocks, not durably. An error leaves the map as it was.
    ///
    /// # Errors
    /// What the system says.
    pub fn append(&mut self, ranges: &[Range<u64>]) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut previous = self.previous;
        for ranges in ranges.chunks(MOST_RANGES) {
            let mut body = Vec::with_capacity(ranges.len() * RANGE_LEN);
            for range in ranges {
                body.extend(range.start.to_le_bytes());
                body.extend((range.end - range.start).to_le_bytes());
            }
            let sum = self.sum(&body, previous);
            bytes.extend((ranges.len() as u64).to_le_bytes());
            bytes.extend(previous.to_le_bytes());
            bytes.extend(sum.to_le_bytes());
            bytes.extend(body);
            previous = sum;
        }
        if let Err(error) = self.file.write_all_at(&bytes, self.end) {
            // Half a record is no record: this only gives the space back.
            let _ = self.file.set_len(self.end);
            return Err(error);
        }
        self.end += bytes.len() as u64;
        self.previous = previous;
        Ok(())
    }

    /// Notes that everything so far is durable. The note is not, until the next [`Map::sync`].
    ///
    /// # Errors
    /// What the system says.
    pub fn mark(&mut self) -> io::Result<()> {
        let next = self.marks + 1;
        let mut mark = next.to_le_bytes().to_vec();
        mark.extend(self.end.to_le_bytes());
        mark.extend(xxh3_64_with_seed(&mark, self.seed).to_le_bytes());
        let [even, odd] = MARKS;
        let at = if next.is_multiple_of(2) { even } else { odd };
        self.file.write_all_at(&mark, at)?;
        self.marks = next;
        Ok(())
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// What the system says. What is durable is not known then.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Makes everything durable, and that it is.
    ///
    /// # Errors
    /// As [`Map::sync`].
    pub fn settle(&mut self) -> io::Result<()> {
        self.sync()?;
        self.mark()?;
        self.sync()
    }

    /// Takes all records out.
    ///
    /// # Errors
    /// What the system says; the map has what it had then.
    pub fn clear(&mut self) -> io::Result<()> {
        if self.end > FIRST {
            self.file.set_len(FIRST)?;
            self.end = FIRST;
            self.previous = self.seed;
        }
        Ok(())
    }

    /// Where the map is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// False: the file ends before.
    fn fill(&self, buffer: &mut [u8], at: u64) -> Result<bool, CloneError> {
        match self.file.read_exact_at(buffer, at) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(failed("read", &self.path)(error)),
        }
    }

    fn sum(&self, body: &[u8], previous: u64) -> u64 {
        xxh3_64_with_seed(
            body,
            self.seed ^ previous.rotate_left(1) ^ body.len() as u64,
        )
    }

    fn damaged(&self, offset: u64, what: &'static str) -> CloneError {
        CloneError::Damaged {
            path: self.path.clone(),
            offset,
            what,
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// A record as it was read.
struct Record {
    ranges: Vec<Range<u64>>,
    /// Length in the file, in bytes.
    len: u64,
    sum: u64,
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::single_range_in_vec_init,
        clippy::cast_possible_truncation
    )]
    use super::*;

    const OWNER: Owner = Owner {
        id: [7; 16],
        disk: 1,
        blocks: 1000,
    };

    /// A map with three records, closed in order if `settled`, and its bytes.
    fn three(settled: bool) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map");
        let mut map = Map::create(&path, OWNER).unwrap();
        for start in [0, 100, 200] {
            map.append(&[start..start + 3, start + 10..start + 11])
                .unwrap();
            map.sync().unwrap();
            if start < 200 || settled {
                map.mark().unwrap();
            }
        }
        let bytes = std::fs::read(&path).unwrap();
        (dir, path, bytes)
    }

    fn open(path: &Path) -> Result<u64, CloneError> {
        let mut blocks = Blocks::default();
        Map::open(path, OWNER, &mut blocks).map(|_| blocks.len())
    }

    #[test]
    fn damage_to_what_was_durable_is_told() {
        let (_dir, path, bytes) = three(true);
        assert_eq!(open(&path).unwrap(), 12);
        let heads = (0..HEAD_LEN).chain(FIRST as usize..bytes.len());
        for at in heads {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            std::fs::write(&path, damaged).unwrap();
            let error = open(&path).unwrap_err();
            assert!(
                matches!(error, CloneError::Damaged { .. }),
                "byte {at}: {error}"
            );
        }
        for len in 0..bytes.len() {
            std::fs::write(&path, &bytes[..len]).unwrap();
            let error = open(&path).unwrap_err();
            assert!(
                matches!(error, CloneError::Damaged { .. }),
                "{len} bytes: {error}"
            );
        }
    }

    #[test]
    fn what_a_crash_leaves_of_a_record_is_dropped() {
        let (_dir, path, bytes) = three(false);
        let last = bytes.len() - RECORD_LEN - 2 * RANGE_LEN;
        for len in last..bytes.len() {
            for fill in [None, Some(0)] {
                let mut torn = bytes[..len].to_vec();
                if let Some(fill) = fill {
                    torn.resize(bytes.len(), fill);
                }
                if torn == bytes {
                    // What was missing were zeros.
                    continue;
                }
                std::fs::write(&path, torn).unwrap();
                let mut blocks = Blocks::default();
                let mut map = Map::open(&path, OWNER, &mut blocks).unwrap();
                assert_eq!(blocks.len(), 8, "{len} bytes");
                map.append(&[500..501]).unwrap();
                drop(map);
                assert_eq!(open(&path).unwrap(), 9);
            }
        }
    }

    #[test]
    fn a_mark_that_was_being_written_leaves_the_other() {
        let (_dir, path, bytes) = three(true);
        for at in MARKS {
            let mut torn = bytes.clone();
            torn[at as usize + 9] ^= 1;
            std::fs::write(&path, torn).unwrap();
            assert_eq!(open(&path).unwrap(), 12);
        }
    }

    #[test]
    fn the_map_of_another_disk_or_clone_is_refused() {
        let (_dir, path, _) = three(true);
        for owner in [
            Owner { disk: 2, ..OWNER },
            Owner {
                id: [8; 16],
                ..OWNER
            },
            Owner {
                blocks: 999,
                ..OWNER
            },
        ] {
            let error = Map::open(&path, owner, &mut Blocks::default()).unwrap_err();
            assert!(matches!(error, CloneError::Foreign { .. }), "{error}");
        }
    }
}
