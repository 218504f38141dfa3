//! The facts that a log holds about its group beside the data: who owns it, in which mode, what is committed and applied.
//! Knows no files. What a commit or a new generation makes of the facts is here; what else must be true is in `log.rs`.

use serde::{Deserialize, Serialize};

use crate::{Epoch, Generation, LogError};

/// Which image a log belongs to. Applying a log to another image would destroy it, so opening compares all three.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DiskIdentity {
    /// Name of the disk in the group, 1 to 64 bytes.
    pub name: String,
    /// Size of the image in bytes.
    pub size: u64,
    /// What tells the image file from others: the inode number of a regular file, or any stable number.
    pub file_id: u64,
}

/// The standby whose memory image belongs to the committed epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// Id of the standby, 1 to 128 bytes.
    pub standby: String,
    /// First epoch that this standby has acknowledged without interruption.
    pub since: Epoch,
}

/// How the group's writes become durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "lowercase")]
pub enum Mode {
    /// Sync mode: writes go through to the images. No standby holds memory that could be resumed.
    Sync,
    /// Async mode: writes are held in epochs.
    Async {
        /// The standby that acknowledged the last committed epoch; none while the group commits by itself.
        holder: Option<Holder>,
    },
}

impl Mode {
    /// The standby that holds memory, if one does.
    #[must_use]
    pub const fn holder(&self) -> Option<&Holder> {
        match self {
            Self::Async {
                holder: Some(holder),
            } => Some(holder),
            Self::Async { holder: None } | Self::Sync => None,
        }
    }
}

/// The newest durable state of a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogState {
    /// Current generation; older ones are fenced.
    pub generation: Generation,
    /// Who raised the generation: the id of a source or standby, or none when the gateway did it by itself.
    pub owner: Option<String>,
    /// Current mode.
    pub mode: Mode,
    /// Last committed epoch.
    pub committed: Epoch,
    /// Last epoch that the images hold durably; never above `committed`.
    pub applied: Epoch,
}

impl LogState {
    /// State of a log that has just been created.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            generation: Generation(0),
            owner: None,
            mode: Mode::Sync,
            committed: Epoch(0),
            applied: Epoch(0),
        }
    }

    /// The state once the commit record of `epoch` is durable. `standby` is the one that has acknowledged COMMIT 1; it
    /// becomes the holder of the group's memory, and the mode async.
    ///
    /// # Errors
    /// [`LogError::OutOfOrder`], or [`LogError::HolderPresent`] if a standby holds memory and `standby` is none.
    pub fn committing(&self, epoch: Epoch, standby: Option<&str>) -> Result<Self, LogError> {
        let expected = self.committed.next();
        if epoch != expected {
            return Err(LogError::OutOfOrder {
                given: epoch,
                expected,
            });
        }
        let mut state = self.clone();
        state.committed = epoch;
        match (standby, self.mode.holder()) {
            (None, Some(holder)) => {
                return Err(LogError::HolderPresent {
                    standby: holder.standby.clone(),
                });
            }
            (None, None) => {}
            (Some(standby), Some(holder)) if holder.standby == standby => {}
            (Some(standby), _) => {
                let holder = Holder {
                    standby: standby.to_owned(),
                    since: epoch,
                };
                state.mode = Mode::Async {
                    holder: Some(holder),
                };
            }
        }
        Ok(state)
    }

    /// The state once the generation is raised for `owner`. The mode stays.
    #[must_use]
    pub fn raising(&self, owner: Option<&str>) -> Self {
        Self {
            generation: self.generation.next(),
            owner: owner.map(str::to_owned),
            ..self.clone()
        }
    }
}

impl Default for LogState {
    fn default() -> Self {
        Self::new()
    }
}
