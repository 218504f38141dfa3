//! What memory believes about the disks: for every block, what it must hold, and what it may hold besides.
//! It does no I/O; it rolls back with the guest's memory, which is the point of it.
//!
//! Each block belongs to exactly one worker, and workers are synchronous. So a worker that reads a block has no
//! write to it in flight, and the set of legal contents is one, unless a discard or a failed operation left it open.

use crate::block::BLOCK_SIZE;

/// Blocks in an extent, the unit that a worker owns and that a sweep reads at once.
pub const EXTENT_BLOCKS: usize = 64;

/// One legal content of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Zeros: as the disk was when fresh (version 0), or zeroed as the version says.
    Zeros {
        /// Version of the zeroing.
        version: u64,
    },
    /// The write with this version and stamp.
    Written {
        /// Version of the write.
        version: u64,
        /// Stamp of the write.
        stamp: u64,
    },
}

impl Content {
    /// The version of the operation that makes the block look so.
    pub fn version(self) -> u64 {
        match self {
            Self::Zeros { version } | Self::Written { version, .. } => version,
        }
    }
}

/// What memory believes about one block.
#[derive(Debug, Clone)]
pub struct Belief {
    settled: Content,
    // Empty but for blocks in flight, discarded, or left open by an I/O error, so it costs no allocation as a rule.
    possible: Vec<Content>,
    issued: u64,
}

impl Belief {
    /// A block of a fresh disk.
    pub fn fresh() -> Self {
        Self {
            settled: Content::Zeros { version: 0 },
            possible: Vec::new(),
            issued: 0,
        }
    }

    /// The version for the next operation on this block.
    pub fn next_version(&self) -> u64 {
        self.issued + 1
    }

    /// The version of the last operation on this block, whether it has returned or not.
    pub fn last_version(&self) -> u64 {
        self.issued
    }

    /// The last content that is known to have been there.
    pub fn settled(&self) -> Content {
        self.settled
    }

    /// Everything that the block may hold now.
    pub fn legal(&self) -> impl Iterator<Item = Content> {
        std::iter::once(self.settled).chain(self.possible.iter().copied())
    }

    /// An operation that may change the block to `content` starts: from now on old and new are legal.
    pub fn begin(&mut self, content: Content) {
        self.issued = self.issued.max(content.version());
        // One zeroed state is like another, so that repeated discards don't pile up.
        let known = |other: &Content| {
            matches!(
                (other, content),
                (Content::Zeros { .. }, Content::Zeros { .. })
            )
        };
        if !self.possible.iter().any(known) {
            self.possible.push(content);
        }
    }

    /// The block is known to hold `content`: the operation returned, or a read has shown it.
    pub fn settle(&mut self, content: Content) {
        self.settled = content;
        self.possible.clear();
    }

    /// The operation that would have made `content` was refused as a whole.
    pub fn cancel(&mut self, content: Content) {
        self.possible.retain(|&other| other != content);
    }
}

/// A run of blocks that one worker owns.
#[derive(Debug)]
pub struct Extent {
    /// Index of the disk.
    pub disk: usize,
    /// First block.
    pub first: usize,
    /// One belief per block.
    pub beliefs: Vec<Belief>,
}

impl Extent {
    /// Byte offset on the disk of the block with index `at` in this extent.
    pub fn offset(&self, at: usize) -> u64 {
        ((self.first + at) as u64) * (BLOCK_SIZE as u64)
    }
}

/// The extents of worker `index` of `workers`, on disks that have `blocks` blocks each. Extents go round the
/// workers, so that all of them write everywhere on every disk.
pub fn share(index: usize, workers: usize, blocks: &[usize]) -> Vec<Extent> {
    let mut extents = Vec::new();
    let mut turn = 0;
    for (disk, &count) in blocks.iter().enumerate() {
        for first in (0..count).step_by(EXTENT_BLOCKS) {
            if turn % workers == index {
                let len = EXTENT_BLOCKS.min(count - first);
                extents.push(Extent {
                    disk,
                    first,
                    beliefs: vec![Belief::fresh(); len],
                });
            }
            turn += 1;
        }
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_has_one_owner() {
        let blocks = [200, 64, 1];
        let mut owners = blocks.map(|count| vec![0; count]);
        for index in 0..3 {
            for extent in share(index, 3, &blocks) {
                for at in 0..extent.beliefs.len() {
                    owners[extent.disk][extent.first + at] += 1;
                }
            }
        }
        assert!(owners.iter().flatten().all(|&count| count == 1));
    }

    #[test]
    fn two_versions_are_legal_only_until_the_write_returns() {
        let mut belief = Belief::fresh();
        let written = Content::Written {
            version: belief.next_version(),
            stamp: 3,
        };
        belief.begin(written);
        assert_eq!(
            belief.legal().collect::<Vec<_>>(),
            [Content::Zeros { version: 0 }, written]
        );
        belief.settle(written);
        assert_eq!(belief.legal().collect::<Vec<_>>(), [written]);
        assert_eq!(belief.next_version(), 2);
    }

    #[test]
    fn repeated_discards_add_one_possibility() {
        let mut belief = Belief::fresh();
        belief.settle(Content::Written {
            version: 1,
            stamp: 1,
        });
        for _ in 0..9 {
            belief.begin(Content::Zeros {
                version: belief.next_version(),
            });
        }
        assert_eq!(belief.legal().count(), 2);
    }
}
