//! Brings the data of sealed epochs into the log, in steps, so that a commit that comes meanwhile doesn't wait for a long
//! append of a later epoch. Knows the log and nothing of who may commit.

use std::collections::VecDeque;
use std::sync::Arc;

use epoch_log::{Epoch, EpochLog, Extent, LogError};

use super::applier::log_content;
use super::overlay::Cursor;
use super::shared::{Core, Cut};
use crate::failpoint;

/// Data appended at once in the background: a commit waits at most for this much.
const STEP_BYTES: u64 = 4 << 20;
/// Extents appended at once, for the same reason.
const STEP_EXTENTS: usize = 4096;

/// What a block is when blocks are counted, in bytes.
const BLOCK: u64 = 4096;

/// How far an epoch's data is in the log.
#[derive(Debug)]
struct Appending {
    cut: Arc<Cut>,
    disk: usize,
    cursor: Cursor,
    blocks: Blocks,
    done: bool,
}

/// Counts the blocks that parts of disks lie in, in their order.
#[derive(Debug, Clone, Copy, Default)]
struct Blocks {
    count: u64,
    /// The last one that was counted: its disk and its number.
    last: Option<(usize, u64)>,
}

impl Blocks {
    fn add(&mut self, disk: usize, offset: u64, len: u64) {
        let last = offset.saturating_add(len).saturating_sub(1) / BLOCK;
        let mut first = offset / BLOCK;
        if self.last == Some((disk, first)) {
            first += 1;
        }
        self.count += (last + 1).saturating_sub(first);
        self.last = Some((disk, last));
    }
}

/// The sealed epochs that are not committed, oldest first.
#[derive(Debug, Default)]
pub struct Appender {
    epochs: VecDeque<Appending>,
}

impl Appender {
    /// Appends exactly what is sealed now: forgets cuts that were dropped, takes in new ones.
    pub fn follow(&mut self, core: &Core) {
        let committed = core.barriers.committed();
        self.epochs
            .retain(|appending| core.cuts.iter().any(|cut| Arc::ptr_eq(cut, &appending.cut)));
        for cut in core.cuts.iter().filter(|cut| cut.epoch > committed) {
            if !self
                .epochs
                .iter()
                .any(|appending| Arc::ptr_eq(cut, &appending.cut))
            {
                self.epochs.push_back(Appending {
                    cut: Arc::clone(cut),
                    disk: 0,
                    cursor: Cursor::default(),
                    blocks: Blocks::default(),
                    done: false,
                });
            }
        }
    }

    /// What was appended is void, in the log as well.
    pub fn forget(&mut self) {
        self.epochs.clear();
    }

    /// The epoch is committed. Returns how many blocks of 4 KiB have data of it.
    pub fn committed(&mut self, epoch: Epoch) -> u64 {
        let mut blocks = 0;
        self.epochs.retain(|appending| {
            if appending.cut.epoch == epoch {
                blocks = appending.blocks.count;
            }
            appending.cut.epoch > epoch
        });
        blocks
    }

    /// Everything sealed is in the log.
    pub fn is_idle(&self) -> bool {
        self.epochs.iter().all(|appending| appending.done)
    }

    /// Appends the next step of the first epoch, up to `last`, that is not in the log; false if there is none.
    ///
    /// # Errors
    /// The log's; the same step is next again.
    pub fn step(&mut self, log: &mut EpochLog, last: Epoch) -> Result<bool, LogError> {
        let next = self
            .epochs
            .iter_mut()
            .find(|appending| !appending.done && appending.cut.epoch <= last);
        let Some(appending) = next else {
            return Ok(false);
        };
        let cut = Arc::clone(&appending.cut);
        let (mut disk, mut cursor) = (appending.disk, appending.cursor);
        let mut blocks = appending.blocks;
        let mut extents = Vec::new();
        let mut bytes = 0;
        while bytes < STEP_BYTES && extents.len() < STEP_EXTENTS {
            let Some(overlay) = cut.overlays.get(disk) else {
                break;
            };
            let Some((offset, len, content)) = overlay.next_part(&mut cursor) else {
                disk += 1;
                cursor = Cursor::default();
                continue;
            };
            let content = log_content(content);
            if let epoch_log::Content::Data(_) = content {
                bytes += len;
                blocks.add(disk, offset, len);
            }
            extents.push(Extent {
                disk: disk_number(disk),
                offset,
                len,
                content,
            });
        }
        if !extents.is_empty() {
            let generation = log.state().generation;
            log.append(generation, cut.epoch, &extents)?;
        }
        (appending.disk, appending.cursor, appending.blocks) = (disk, cursor, blocks);
        if disk == cut.overlays.len() {
            appending.done = true;
            failpoint::hit("gateway-after-append");
        }
        Ok(true)
    }
}

/// Number of a disk in the log; the number of disks was checked when the log was opened.
fn disk_number(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_two_neighbours_counts_once() {
        let mut blocks = Blocks::default();
        blocks.add(0, 100, 200);
        blocks.add(0, 4000, 200);
        assert_eq!(blocks.count, 2);
        blocks.add(0, 8192, 8192);
        assert_eq!(blocks.count, 4);
        blocks.add(1, 12_288, 1);
        assert_eq!(blocks.count, 5, "the same number on another disk");
    }
}
