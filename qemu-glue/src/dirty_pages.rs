//! Which pages did the guest write since the last look? The interface of the trackers and the choice between them.
//! Knows no QMP; gets the process id, the userfaultfd and the RAM from the outside.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::page_set::PageRange;

/// The ways to find dirty pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrackerKind {
    /// Asynchronous userfaultfd write protection and `PAGEMAP_SCAN` (Linux 6.7). About 1 ms per GiB.
    Pagemap,
    /// Compares a hash of each page with that of the last scan. Works everywhere, reads all memory each time.
    Hash,
}

impl fmt::Display for TrackerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrackerKind::Pagemap => "pagemap",
            TrackerKind::Hash => "hash",
        })
    }
}

/// What the description asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrackerChoice {
    /// Pagemap where it works, else hash, with a warning that says why.
    #[default]
    Auto,
    /// Pagemap or fail.
    Pagemap,
    /// Hash.
    Hash,
}

/// Finds the pages that were written since the last scan.
pub trait DirtyTracker: Send + fmt::Debug {
    /// Which one this is.
    fn kind(&self) -> TrackerKind;

    /// From now on everything counts as clean. Called before the base copy, while the guest runs.
    fn start(&mut self) -> Result<()>;

    /// Appends the ranges that were written since the last `start` or `scan`, sorted, and counts them as clean again.
    fn scan(&mut self, out: &mut Vec<PageRange>) -> Result<()>;

    /// The base copy took `content` of `range`. A tracker that compares contents must compare with this one.
    fn copied(&mut self, _range: PageRange, _content: &[u8]) {}

    /// A number that is another one whenever something was written that a scan had counted as clean. It may be another one without.
    /// None: such a number is not to be had.
    fn writes(&self) -> Option<u64> {
        None
    }

    /// Whether a second scan right after the first one costs next to nothing.
    fn rescan_is_cheap(&self) -> bool;
}
