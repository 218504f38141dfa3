//! Looks at a log without changing it: what it holds, and whether it is whole. Needs no lock.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Damage, DiskIdentity, Epoch, LogError, LogState};

/// What a log holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Name of the group.
    pub group: String,
    /// Disks of the group.
    pub disks: Vec<DiskIdentity>,
    /// Newest state.
    pub state: LogState,
    /// Committed epochs that wait to be applied, in order.
    pub unapplied: Vec<Epoch>,
    /// Whether the log was closed cleanly.
    pub clean: bool,
}

/// Whether a log is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Every damaged place. Empty when all that is committed and not yet applied is there.
    pub damages: Vec<Damage>,
    /// Bytes at the end that were never committed. Opening the log cuts them; they are not damage.
    pub uncommitted_bytes: u64,
}

impl Verdict {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damages.is_empty()
    }
}

/// Reads what the log in `dir` holds.
///
/// # Errors
/// [`LogError::NotALog`], [`LogError::Damaged`] or [`LogError::Io`].
pub fn inspect(dir: &Path) -> Result<Report, LogError> {
    Err(LogError::NotALog {
        dir: dir.to_owned(),
    })
}

/// Checks the log in `dir` and names every damage.
///
/// # Errors
/// [`LogError::NotALog`] or [`LogError::Io`]; damage is not an error but in the verdict.
pub fn verify(dir: &Path) -> Result<Verdict, LogError> {
    Err(LogError::NotALog {
        dir: dir.to_owned(),
    })
}
