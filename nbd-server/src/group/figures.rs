//! What a group holds, in numbers that are scraped.

use std::path::Path;
use std::sync::Arc;

use super::Group;
use super::barriers::Phase;
use crate::metrics::{CommitMeter, Meter};

/// The state of a group at one moment, for graphs. Bytes are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// The current generation.
    pub generation: u64,
    /// Writes are held in epochs.
    pub holds: bool,
    /// Held in memory by open, sealed and committed epochs.
    pub held_bytes: u64,
    /// The memory budget.
    pub budget_bytes: u64,
    /// The newest sealed epoch.
    pub sealed: u64,
    /// The newest committed epoch.
    pub committed: u64,
    /// The newest epoch that is durable in the images.
    pub applied: u64,
    /// Guest data that is sealed and not committed.
    pub log_backlog_bytes: u64,
    /// Guest data that is committed and not applied.
    pub apply_backlog_bytes: u64,
    /// What the files of the log take on their disk.
    pub log_bytes: u64,
    /// What the files of the history take; 0 without one.
    pub history_bytes: u64,
    /// What the history takes in cold storage; 0 without one.
    pub history_cold_bytes: u64,
    /// The oldest epoch that can be gone back to; 0 without a history.
    pub history_oldest: u64,
    /// Nothing of the history goes for its age or size.
    pub history_frozen: bool,
}

impl Group {
    /// The state of the group. It looks at the files of the log, which may block.
    pub fn figures(&self) -> Figures {
        let log_bytes = allocated(&self.log);
        let history = self.history().map(|history| history.past.status());
        let core = self.shared.core();
        let barriers = &core.barriers;
        let committed = barriers.committed();
        let mut figures = Figures {
            generation: barriers.generation().0,
            holds: matches!(
                barriers.phase(),
                Phase::Switching | Phase::Held | Phase::Draining { .. } | Phase::Reserved
            ),
            held_bytes: self.shared.budget.held(),
            budget_bytes: self.shared.budget.limit(),
            sealed: barriers.sealed().0,
            committed: committed.0,
            applied: barriers.applied().0,
            log_bytes,
            history_bytes: history.as_ref().map_or(0, |history| history.bytes),
            history_cold_bytes: history.as_ref().map_or(0, |history| history.cold_bytes),
            history_oldest: history.as_ref().map_or(0, |history| history.oldest.0),
            history_frozen: history.is_some_and(|history| history.frozen.is_some()),
            ..Figures::default()
        };
        for cut in &core.cuts {
            let bytes = cut.data_bytes();
            if cut.epoch > committed {
                figures.log_backlog_bytes += bytes;
            } else {
                figures.apply_backlog_bytes += bytes;
            }
        }
        figures
    }

    /// Time and size of its commits.
    pub fn commits(&self) -> &Arc<CommitMeter> {
        &self.shared.commits
    }

    /// Name, size in bytes and counters of each disk.
    pub fn meters(&self) -> impl Iterator<Item = (&str, u64, &Arc<Meter>)> {
        let disks = self.shared.disks.iter();
        disks.map(|disk| (disk.name.as_str(), disk.image.size(), &disk.meter))
    }
}

/// Bytes that the files in `dir` take. A file that goes meanwhile takes none.
fn allocated(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let metadata = files.filter_map(|file| file.metadata().ok());
    metadata.map(|metadata| metadata.blocks() * 512).sum()
}
