//! The checkpoint channel as source and standby see it: two ordered streams that break together, each side noticing in its
//! own time. Knows what the frames mean, not how they look.

use std::collections::VecDeque;

use nbd_server::Epoch;

use crate::history::History;

/// What a RAM image holds, or what a difference is based on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ram {
    /// Nothing yet.
    Empty,
    /// The first copy over this channel: complete only with the first checkpoint.
    Base(u8),
    /// The memory of one paused instant.
    At(History),
    /// Pages that do not belong together.
    Garbage,
}

/// A checkpoint: the pages that changed since `base`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Checkpoint {
    /// Its epoch.
    pub epoch: Epoch,
    /// What the pages are a difference to.
    pub base: Ram,
    /// The memory that they lead to.
    pub memory: History,
    /// It was altered on its way.
    pub damaged: bool,
}

impl Checkpoint {
    /// What `ram` holds once this is merged into it.
    pub fn merged_into(&self, ram: Ram) -> Ram {
        if ram == self.base && !self.damaged {
            Ram::At(self.memory)
        } else {
            Ram::Garbage
        }
    }
}

/// From the source to the standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Frame {
    /// The whole first copy.
    Base,
    /// A checkpoint with its COMMIT 1.
    Checkpoint(Checkpoint),
    /// COMMIT 3.
    Commit3(Epoch),
    /// Take over now.
    Yield,
}

/// One connection between a source and a standby.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Channel {
    /// Tells it from earlier ones.
    pub number: u8,
    /// Under way to the standby.
    pub to_standby: VecDeque<Frame>,
    /// Acknowledgements of COMMIT 1 under way to the source.
    pub to_source: VecDeque<Epoch>,
    /// The source has not closed it.
    pub source_open: bool,
    /// The standby has not closed it.
    pub standby_open: bool,
    /// Either side may find it dead at any time.
    pub broken: bool,
}

impl Channel {
    /// A fresh one.
    pub fn new(number: u8) -> Self {
        Self {
            number,
            to_standby: VecDeque::new(),
            to_source: VecDeque::new(),
            source_open: true,
            standby_open: true,
            broken: false,
        }
    }
}
