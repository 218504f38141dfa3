//! Copies one region of a disk after the other: finds out which of its blocks can have changed, reads those, stores what is new. A worker has an
//! attachment of its own and does one region at a time.

use nbd_server::protocol::STATE_CHANGED;
use nbd_server::protocol::state;

use super::Copy;
use crate::BackupError;
use crate::format::{BLOCK, Digest, Entry, FAN, REGION, pieces};
use crate::nbd::{Attachment, Extent};
use crate::read::{Regions, list_at};

/// Blocks that are read by one request.
const AT_ONCE: usize = 8;
const ALLOCATION: &str = "base:allocation";

pub(super) struct Worker<'a> {
    copy: &'a Copy<'a>,
    /// The disk that it is attached to.
    disk: Option<(usize, Attachment, Option<Regions<'a>>)>,
    /// Bytes that it has read.
    pub read: u64,
}

impl<'a> Worker<'a> {
    pub fn new(copy: &'a Copy<'a>) -> Self {
        Self {
            copy,
            disk: None,
            read: 0,
        }
    }

    /// Copies a region; returns where its list is.
    pub fn copy(&mut self, disk: usize, region: usize) -> Result<Entry, BackupError> {
        let copy = self.copy;
        let Some(source) = copy.sources.get(disk) else {
            return Ok(Entry::Zeros);
        };
        let export = format!("{}@pin={}", source.export, copy.pin);
        let failed = |error: std::io::Error| BackupError::Disk {
            export: export.clone(),
            why: error.to_string(),
        };
        let since = copy.since.as_ref().filter(|_| source.before.is_some());
        let since = since.map(|pin| format!("x-epochgate:changed-since:pin={pin}"));
        if self
            .disk
            .as_ref()
            .is_none_or(|(number, _, _)| *number != disk)
        {
            let mut contexts = vec![ALLOCATION.to_owned()];
            contexts.extend(since.clone());
            let attachment = Attachment::open(copy.nbd, &export, &contexts).map_err(failed)?;
            if attachment.size != source.size {
                let why = format!(
                    "it has {} bytes now, where it had {}",
                    attachment.size, source.size
                );
                return Err(failed(std::io::Error::other(why)));
            }
            self.disk = Some((disk, attachment, copy.before(disk)));
        }
        let Some((_, attachment, before)) = &mut self.disk else {
            return Ok(Entry::Zeros);
        };
        let start = region as u64 * REGION;
        let len = (source.size - start).min(REGION);
        let blocks = pieces(len, BLOCK);
        let size_before = source.before.as_ref().map_or(0, |disk| disk.size);
        let before = match before {
            Some(before) => before.entry(region)?,
            None => None,
        };
        // Without an answer all may have changed.
        let since = since.filter(|since| attachment.has(since));
        let contexts = [since.as_deref().unwrap_or_default(), ALLOCATION];
        let mut extents = attachment
            .status(start, len, &contexts)
            .map_err(failed)?
            .into_iter();
        let (changed, allocated) = (
            extents.next().unwrap_or_default(),
            extents.next().unwrap_or_default(),
        );
        let mut dirty = match &since {
            Some(_) => touched(&changed, start, blocks, |flags| flags & STATE_CHANGED != 0),
            None => vec![true; blocks],
        };
        // Beyond what the disk had then, and where its last block was shorter or longer.
        for (number, dirty) in dirty.iter_mut().enumerate() {
            let at = start + number as u64 * BLOCK;
            *dirty |= (at + BLOCK).min(source.size) != (at + BLOCK).min(size_before);
        }
        if let Some(before) = &before
            && !dirty.contains(&true)
        {
            return Ok(before.clone());
        }
        let full = touched(&allocated, start, blocks, |flags| flags & state::ZERO == 0);
        let known = !allocated.is_empty();
        let mut entries = match &before {
            Some(before) => {
                let count = pieces((size_before - start).min(REGION), BLOCK);
                let mut list = list_at(&copy.repository.objects, copy.group, before, count)?;
                list.resize(blocks, Entry::Zeros);
                list
            }
            None => vec![Entry::Zeros; blocks],
        };
        let stored = copy.packs.earlier(disk, region as u64)?;
        let first = (region * FAN) as u64;
        let mut wanted = Vec::new();
        for (number, entry) in entries.iter_mut().enumerate() {
            if !dirty.get(number).is_some_and(|dirty| *dirty) {
                continue;
            }
            if known && !full.get(number).is_some_and(|full| *full) {
                *entry = Entry::Zeros;
            } else if let Some(located) = stored.get(&(first + number as u64)) {
                *entry = Entry::At(located.clone());
            } else {
                wanted.push(number);
            }
        }
        let ranges = ranges(&wanted, start, source.size);
        self.read += ranges.iter().map(|(_, len)| u64::from(*len)).sum::<u64>();
        let asked: Vec<(u64, u32)> = ranges.clone();
        attachment
            .read(&asked, |number, data| {
                if copy.watch.stop() {
                    return Err(Failure::Other(BackupError::Stopped));
                }
                let at = ranges.get(number).map_or(start, |(at, _)| *at);
                for (number, raw) in data.chunks(usize::try_from(BLOCK).unwrap_or(1)).enumerate() {
                    let block = at / BLOCK + number as u64;
                    let slot = usize::try_from(block - first).unwrap_or(usize::MAX);
                    if let Some(entry) = entries.get_mut(slot) {
                        store(copy, disk, block, raw, entry).map_err(Failure::Other)?;
                    }
                }
                Ok(())
            })
            .map_err(|failure| match failure {
                Failure::Read(error) => failed(error),
                Failure::Other(error) => error,
            })?;
        copy.packs.list(disk, &entries, before.as_ref())
    }
}

/// Why a read ended early: it failed, or what was to be done with the data.
enum Failure {
    Read(std::io::Error),
    Other(BackupError),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Read(error)
    }
}

/// Puts a block where it is not yet; `entry` is what was there before.
fn store(
    copy: &Copy<'_>,
    disk: usize,
    number: u64,
    raw: &[u8],
    entry: &mut Entry,
) -> Result<(), BackupError> {
    if raw.iter().all(|byte| *byte == 0) {
        *entry = Entry::Zeros;
        return Ok(());
    }
    let digest = Digest::of(raw);
    let same = entry
        .located()
        .is_some_and(|before| before.digest == digest);
    if !same {
        *entry = copy.packs.block(disk, number, raw, digest)?;
    }
    Ok(())
}

/// Which blocks have a byte in an extent that counts.
fn touched(
    extents: &[Extent],
    start: u64,
    blocks: usize,
    counts: impl Fn(u32) -> bool,
) -> Vec<bool> {
    let mut touched = vec![false; blocks];
    for extent in extents
        .iter()
        .filter(|extent| extent.len > 0 && counts(extent.flags))
    {
        let from = usize::try_from((extent.offset - start) / BLOCK).unwrap_or(usize::MAX);
        let to = usize::try_from((extent.offset + extent.len - 1 - start) / BLOCK).unwrap_or(0);
        if let Some(blocks) = touched.get_mut(from..(to + 1).min(blocks)) {
            blocks.fill(true);
        }
    }
    touched
}

/// Requests for these blocks of a region, which are in order.
fn ranges(wanted: &[usize], start: u64, size: u64) -> Vec<(u64, u32)> {
    let mut ranges: Vec<(u64, u32)> = Vec::new();
    for number in wanted {
        let at = start + *number as u64 * BLOCK;
        let len = u32::try_from((size - at).min(BLOCK)).unwrap_or(0);
        match ranges.last_mut() {
            Some((from, so_far))
                if *from + u64::from(*so_far) == at
                    && u64::from(*so_far) < BLOCK * AT_ONCE as u64 =>
            {
                *so_far += len;
            }
            _ => ranges.push((at, len)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_touched_by_any_byte() {
        let extent = |offset, len, flags| Extent { offset, len, flags };
        let extents = [
            extent(REGION, 1, 1),
            extent(REGION + 1, BLOCK - 1, 0),
            extent(REGION + BLOCK, BLOCK, 0),
            extent(REGION + 3 * BLOCK - 1, 2, 1),
        ];
        let touched = touched(&extents, REGION, 5, |flags| flags == 1);
        assert_eq!(touched, [true, false, true, true, false]);
    }

    #[test]
    fn requests_end_with_the_disk() {
        let size = 4 * BLOCK + 10;
        let one = u32::try_from(BLOCK).unwrap_or(0);
        assert_eq!(
            ranges(&[0, 1, 3, 4], 0, size),
            [(0, 2 * one), (3 * BLOCK, one + 10)]
        );
        let many: Vec<usize> = (0..20).collect();
        let ranges = ranges(&many, 0, 1 << 30);
        assert_eq!(ranges.len(), 3);
        assert_eq!(ranges.iter().map(|(_, len)| len).sum::<u32>(), 20 * one);
    }
}
