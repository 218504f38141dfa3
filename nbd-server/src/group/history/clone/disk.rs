//! One disk of a clone: the blocks that were written, in a sparse file of the disk's size, over the disk as it was. It knows neither clients nor
//! names of clones.
//!
//! A block is the clone's own as a whole: one that is written in part is copied first. In what order things become durable:
//!
//! ```text
//!   WRITE   data ─▶ file          `recent` ◀─ the block         (neither durable: but both outlive this process)
//!   FLUSH   fdatasync(file)  ─▶  `map` ◀─ all blocks since the last flush  ─▶  fdatasync(map)
//! ```
//!
//! So the map never names a block whose data is not durable. After a crash of the machine what was not flushed is as it was before, or new, block by
//! block: `recent` is void then, as it belongs to one start of the machine.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use epoch_log::{Content, Extent, apply};

use super::blocks::Blocks;
use super::error::{CloneError, failed};
use super::map::{Map, Owner};
use crate::export::{BlockExtent, IoError};
use crate::group::history::past_disk::PastDisk;
use crate::image_file::{Access, Extents, ImageError, ImageFile, LockedFile};

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// Ranges that may wait for a flush: they are in memory. More flush by themselves.
const MOST_PENDING: usize = 1 << 16;

/// Which disk of which clone, and where its files are.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Directory of the clone.
    pub dir: &'a Path,
    /// Name of the disk.
    pub disk: &'a str,
    /// Its number.
    pub number: u16,
    /// Its size in bytes.
    pub size: u64,
    /// Id of the clone.
    pub id: [u8; 16],
    /// Tells this start of the machine from others.
    pub boot: [u8; 16],
}

impl Place<'_> {
    /// Its files: what was written, the map, and what the map does not have yet.
    pub fn files(&self) -> [PathBuf; 3] {
        files(self.dir, self.disk)
    }

    fn owner(&self) -> Owner {
        Owner {
            id: self.id,
            disk: self.number,
            blocks: self.size.div_ceil(BLOCK),
        }
    }

    fn owner_now(&self) -> Owner {
        let both = u128::from_ne_bytes(self.id) ^ u128::from_ne_bytes(self.boot);
        Owner {
            id: both.to_ne_bytes(),
            ..self.owner()
        }
    }

    /// Makes the files of a disk to which nothing was written. Their names are durable when the directory is.
    ///
    /// # Errors
    /// [`CloneError::Io`].
    pub fn create(&self) -> Result<(), CloneError> {
        let [data, map, _] = self.files();
        let make = || {
            let file = std::fs::File::create_new(&data)?;
            file.set_len(self.size)?;
            file.sync_all()
        };
        make().map_err(failed("create", &data))?;
        let settled = Map::create(&map, self.owner())?.settle();
        settled.map_err(failed("write", &map))
    }
}

/// The files of a disk of the clone in `dir`.
pub fn files(dir: &Path, disk: &str) -> [PathBuf; 3] {
    ["data", "map", "recent"].map(|kind| dir.join(format!("{disk}.{kind}")))
}

/// What is known of its blocks.
#[derive(Debug)]
struct Marks {
    /// Those that are the clone's own.
    blocks: Blocks,
    /// Those of them that the map has not, in no order.
    pending: Vec<Range<u64>>,
    /// The same, for the next process.
    recent: Map,
}

/// An open disk of a clone.
#[derive(Debug)]
pub struct CloneDisk {
    /// The disk as it was.
    base: PastDisk,
    size: u64,
    path: PathBuf,
    file: LockedFile,
    extents: Extents,
    /// Shared by changes of blocks; alone for the copy of a block, which must not undo one.
    copying: RwLock<()>,
    /// Taken before `marks`, held by the one that flushes.
    map: Mutex<Map>,
    marks: Mutex<Marks>,
    /// A sync has failed: the kernel may have dropped written pages, and a later success would be a lie.
    sync_failed: AtomicBool,
}

impl CloneDisk {
    /// Opens the disk over `base`, what it was.
    ///
    /// # Errors
    /// [`CloneError`].
    pub fn open(place: &Place<'_>, base: PastDisk) -> Result<Self, CloneError> {
        let [data, map, recent] = place.files();
        let access = Access {
            read_only: false,
            direct: false,
        };
        let image = ImageFile::open(&data, access).map_err(|error| match error {
            // No image that somebody has to make.
            ImageError::Missing { path } => {
                failed("open", &path)(io::Error::from(io::ErrorKind::NotFound))
            }
            other => other.into(),
        })?;
        if image.size != place.size {
            return Err(CloneError::Damaged {
                path: data,
                offset: image.size.min(place.size),
                what: "the end of the disk is not where it was",
            });
        }
        let mut blocks = Blocks::default();
        let mut map = Map::open(&map, place.owner(), &mut blocks)?;
        map.settle().map_err(failed("write", map.path()))?;
        let (recent, pending) = open_recent(&recent, place.owner_now(), &mut blocks)?;
        Ok(Self {
            base,
            size: place.size,
            path: data,
            file: image.file,
            extents: Extents::default(),
            copying: RwLock::default(),
            map: Mutex::new(map),
            marks: Mutex::new(Marks {
                blocks,
                pending,
                recent,
            }),
            sync_failed: AtomicBool::new(false),
        })
    }

    /// Bytes of the blocks that are its own, holes included.
    pub fn written(&self) -> u64 {
        (self.marks().blocks.len() * BLOCK).min(self.size)
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// As [`Export::read`](crate::export::Export::read).
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoError> {
        let mut rest = buf;
        let mut at = offset;
        while !rest.is_empty() {
            let (own, end) = self.stretch(at, at + rest.len() as u64);
            let len = usize::try_from(end - at).unwrap_or(usize::MAX);
            let (part, behind) = rest.split_at_mut_checked(len).ok_or(IoError::Inval)?;
            if own {
                let read = self.file.read_exact_at(part, at);
                read.map_err(|error| self.report("read", &error))?;
            } else {
                self.base.read(at, part)?;
            }
            rest = behind;
            at = end;
        }
        Ok(())
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// As [`Export::write`](crate::export::Export::write).
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), IoError> {
        self.change(offset, data.len() as u64, Content::Data(data))
    }

    /// Makes a range zeros, and gives its space back if `may_trim`.
    ///
    /// # Errors
    /// As [`Export::write_zeroes`](crate::export::Export::write_zeroes).
    pub fn clear(&self, offset: u64, len: u64, may_trim: bool) -> Result<(), IoError> {
        let content = if may_trim {
            Content::Hole
        } else {
            Content::Zero
        };
        self.extents.forget();
        self.change(offset, len, content)
    }

    fn change(&self, offset: u64, len: u64, content: Content<'_>) -> Result<(), IoError> {
        let end = offset + len;
        let blocks = offset / BLOCK..end.div_ceil(BLOCK);
        if !offset.is_multiple_of(BLOCK) {
            self.copy_up(blocks.start)?;
        }
        // The last block of a disk may be short, and is whole then.
        if !end.is_multiple_of(BLOCK) && end != self.size {
            self.copy_up(blocks.end - 1)?;
        }
        let changing = self.copying.read().unwrap_or_else(PoisonError::into_inner);
        let extent = Extent {
            disk: 0,
            offset,
            len,
            content,
        };
        // Blocks that this fails for halfway are what they were before, unless they were the clone's own already: only whole ones are
        // written here otherwise, and they are marked below.
        apply::apply_extent(&self.file, &extent).map_err(|error| self.report("write", &error))?;
        let pending = self.mark(blocks)?;
        drop(changing);
        if pending > MOST_PENDING {
            self.flush()?;
        }
        Ok(())
    }

    /// Makes a block the clone's own, with what it was, if it isn't yet.
    fn copy_up(&self, block: u64) -> Result<(), IoError> {
        if self.marks().blocks.contains(block) {
            return Ok(());
        }
        let _alone = self.copying.write().unwrap_or_else(PoisonError::into_inner);
        if self.marks().blocks.contains(block) {
            return Ok(());
        }
        let start = block * BLOCK;
        let len = usize::try_from(BLOCK.min(self.size - start)).unwrap_or(0);
        let mut content = vec![0; len];
        self.base.read(start, &mut content)?;
        let written = self.file.write_all_at(&content, start);
        written.map_err(|error| self.report("write", &error))?;
        self.mark(block..block + 1).map(drop)
    }

    /// Notes that these blocks are the clone's own. Returns how many ranges wait for a flush.
    fn mark(&self, blocks: Range<u64>) -> Result<usize, IoError> {
        let mut marks = self.marks();
        let fresh = marks.blocks.missing(blocks);
        if !fresh.is_empty() {
            let noted = marks.recent.append(&fresh);
            noted.map_err(|error| self.report("write", &error))?;
        }
        for range in fresh {
            marks.blocks.insert(range.clone());
            match marks.pending.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => marks.pending.push(range),
            }
        }
        Ok(marks.pending.len())
    }

    /// Makes everything written before this call durable.
    ///
    /// # Errors
    /// As [`Export::flush`](crate::export::Export::flush); what was not made durable is tried again by the next, if it was only for room.
    pub fn flush(&self) -> Result<(), IoError> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(IoError::Io);
        }
        let pending = std::mem::take(&mut self.marks().pending);
        let flushed = self.flush_marked(&mut map, &pending);
        let mut marks = self.marks();
        if flushed.is_err() {
            marks.pending.extend(pending);
        } else if marks.pending.is_empty()
            && let Err(error) = marks.recent.clear()
        {
            // What is named there is in the map, too.
            tracing::warn!(path = %marks.recent.path().display(), %error, "cannot be made shorter");
        }
        flushed
    }

    fn flush_marked(&self, map: &mut Map, pending: &[Range<u64>]) -> Result<(), IoError> {
        self.synced(self.file.sync_data())?;
        if pending.is_empty() {
            return Ok(());
        }
        let noted = map.mark().and_then(|()| map.append(pending));
        noted.map_err(|error| self.report("note blocks of", &error))?;
        self.synced(map.sync())
    }

    /// Makes everything durable, and leaves nothing to be found out at the next opening.
    ///
    /// # Errors
    /// As [`CloneDisk::flush`].
    pub fn settle(&self) -> Result<(), IoError> {
        self.flush()?;
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let settled = map.settle();
        self.synced(settled)
    }

    /// Its extents from `offset` on, with the rules of [`Export::block_status`](crate::export::Export::block_status).
    ///
    /// # Errors
    /// As there.
    pub fn block_status(
        &self,
        offset: u64,
        len: u64,
        max: usize,
    ) -> Result<Vec<BlockExtent>, IoError> {
        let end = offset.saturating_add(len).min(self.size);
        let mut found: Vec<BlockExtent> = Vec::new();
        let mut at = offset;
        while at < end {
            let (own, until) = self.stretch(at, end);
            let extents = if own {
                let extents = self.extents.find(&self.file, at..until, max);
                extents.map_err(|error| self.report("find the holes of", &error.into()))?
            } else {
                self.base.block_status(at, until - at, max)?
            };
            let before = at;
            for mut extent in extents {
                extent.len = extent.len.min(until - at);
                if extent.len == 0 {
                    break;
                }
                let full = found.len() == max;
                match found.last_mut() {
                    Some(last) if (last.hole, last.zero) == (extent.hole, extent.zero) => {
                        last.len += extent.len;
                    }
                    _ if full => return Ok(found),
                    _ => found.push(extent),
                }
                at += extent.len;
            }
            if at == before {
                break;
            }
        }
        Ok(found)
    }

    /// Whether the bytes from `at` on are the clone's own, and where that ends, at `end` at the latest.
    fn stretch(&self, at: u64, end: u64) -> (bool, u64) {
        let marks = self.marks();
        let (own, until) = marks.blocks.stretch(at / BLOCK, end.div_ceil(BLOCK));
        (own, (until * BLOCK).min(end))
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn synced(&self, outcome: io::Result<()>) -> Result<(), IoError> {
        outcome.map_err(|error| {
            self.sync_failed.store(true, Ordering::Release);
            self.report("sync", &error)
        })
    }

    fn report(&self, what: &str, error: &io::Error) -> IoError {
        tracing::error!(path = %self.path.display(), %error, "cannot {what} the clone");
        error.into()
    }
}

/// What the last process has left of the same start of the machine, and what of it is not in `blocks` yet.
fn open_recent(
    path: &Path,
    owner: Owner,
    blocks: &mut Blocks,
) -> Result<(Map, Vec<Range<u64>>), CloneError> {
    let mut left = Blocks::default();
    match Map::open_loose(path, owner, &mut left) {
        Ok(recent) => {
            let mut pending = Vec::new();
            let mut at = 0;
            while at < owner.blocks {
                let (own, end) = left.stretch(at, owner.blocks);
                if own {
                    pending.extend(blocks.missing(at..end));
                }
                at = end;
            }
            for range in &pending {
                blocks.insert(range.clone());
            }
            Ok((recent, pending))
        }
        // Of an earlier start of the machine, or not even begun.
        Err(_) => Ok((Map::create(path, owner)?, Vec::new())),
    }
}
