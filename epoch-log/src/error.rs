//! All errors of the log. Each message says what is wrong and, where the user can act, what to do.

use std::{fmt, io, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Epoch, Generation};

/// Why the log refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Another process has the log open.
    #[error("the epoch log {} is in use{}; stop that gateway first", dir.display(), by_pid(*pid))]
    InUse {
        /// Directory of the log.
        dir: PathBuf,
        /// Process that holds the lock, if it has left its id.
        pid: Option<u32>,
    },
    /// The directory holds the log of another group.
    #[error("the epoch log {} belongs to group '{found}', not to '{wanted}'; give each group a directory of its own", dir.display())]
    OtherGroup {
        /// Directory of the log.
        dir: PathBuf,
        /// Group that was asked for.
        wanted: String,
        /// Group that the log belongs to.
        found: String,
    },
    /// The log belongs to other images than those given.
    #[error("the epoch log {} does not fit the images", dir.display())]
    OtherDisks {
        /// Directory of the log.
        dir: PathBuf,
        /// What differs.
        #[source]
        difference: DiskMismatch,
    },
    /// A committed part of the log is damaged. Nothing was changed.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The caller's generation is no longer the current one.
    #[error("generation {given} is fenced: the group is now at generation {current}")]
    Fenced {
        /// Generation of the caller.
        given: Generation,
        /// Generation of the log.
        current: Generation,
    },
    /// The epoch is not the next one, or is already committed.
    #[error("epoch {given} is out of order: epoch {expected} comes next")]
    OutOfOrder {
        /// Epoch of the caller.
        given: Epoch,
        /// Epoch that may be committed next.
        expected: Epoch,
    },
    /// An epoch that was not committed was called applied.
    #[error("epoch {given} can't be applied: only epochs up to {committed} are committed")]
    NotCommitted {
        /// Epoch of the caller.
        given: Epoch,
        /// Last committed epoch.
        committed: Epoch,
    },
    /// A commit without acknowledgement while a standby holds memory.
    #[error(
        "standby '{standby}' holds memory: record sync mode before committing an epoch that it has not acknowledged"
    )]
    HolderPresent {
        /// The standby that holds memory.
        standby: String,
    },
    /// An extent does not lie inside its disk.
    #[error("an extent of {len} bytes at {offset} does not fit disk number {disk}")]
    BadExtent {
        /// Index of the disk.
        disk: u16,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A name or id is empty or too long.
    #[error("{what} '{text}' must have between 1 and {max} bytes")]
    BadName {
        /// Which name.
        what: &'static str,
        /// The name as given.
        text: String,
        /// Longest allowed, in bytes.
        max: usize,
    },
    /// The table of disks is unusable.
    #[error("a group needs between 1 and {max} disks with different names")]
    BadDisks {
        /// Most disks allowed.
        max: usize,
    },
    /// The disk that holds the log is full. The log is as it was before the call and can be used on.
    #[error("no space left for the epoch log {}; free some space there, then it continues", dir.display())]
    Full {
        /// Directory of the log.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An earlier write or sync failed, so what is on disk is not known.
    #[error("the epoch log {} stopped after an I/O error; check the disk, then restart the gateway", dir.display())]
    Poisoned {
        /// Directory of the log.
        dir: PathBuf,
    },
    /// A clean stop while data of an epoch is neither committed nor aborted.
    #[error("epoch {epoch} is not committed, so this is no clean stop; commit or abort it first")]
    Uncommitted {
        /// The first such epoch.
        epoch: Epoch,
    },
    /// The log can't be rebound while epochs wait to be applied.
    #[error(
        "{count} committed epochs are not yet applied to the old images; start the gateway with them once, then rebind"
    )]
    Unapplied {
        /// How many epochs wait.
        count: u64,
    },
    /// The directory holds no log.
    #[error("{} holds no epoch log", dir.display())]
    NotALog {
        /// The directory.
        dir: PathBuf,
    },
    /// A newer version of the format.
    #[error("the epoch log {} has format version {found}, this program reads version {supported}; use the program that wrote it", path.display())]
    Version {
        /// The segment.
        path: PathBuf,
        /// Version found.
        found: u32,
        /// Version that can be read.
        supported: u32,
    },
    /// The system refused something.
    #[error("can't {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl LogError {
    /// Makes an [`LogError::Io`].
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }
}

impl From<LogError> for io::Error {
    fn from(error: LogError) -> Self {
        Self::other(error)
    }
}

fn by_pid(pid: Option<u32>) -> String {
    pid.map_or_else(
        || " by another process".to_owned(),
        |pid| format!(" by process {pid}"),
    )
}

/// How the images differ from those that the log belongs to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskMismatch {
    /// A disk of the log is not among those given.
    #[error(
        "disk '{name}' is in the log but not in the configuration; put it back, or run `epochgate log rebind`"
    )]
    Missing {
        /// Name of the disk.
        name: String,
    },
    /// A disk given is not in the log.
    #[error(
        "disk '{name}' is in the configuration but not in the log; take it out, or run `epochgate log rebind`"
    )]
    Unknown {
        /// Name of the disk.
        name: String,
    },
    /// The same disks in another order.
    #[error(
        "the disks are configured in another order than in the log, which has '{name}' at place {place}; restore the order, or run `epochgate log rebind`"
    )]
    Order {
        /// Name of the disk in the log.
        name: String,
        /// Place in the log, from 1.
        place: usize,
    },
    /// Another size.
    #[error("disk '{name}': the log belongs to an image of {}, this one has {}; restore the image, or run `epochgate log rebind`", Size(*log), Size(*image))]
    Size {
        /// Name of the disk.
        name: String,
        /// Size in the log, bytes.
        log: u64,
        /// Size of the image, bytes.
        image: u64,
    },
    /// Another file.
    #[error(
        "disk '{name}': the log belongs to another image file (file id {log}, this one has {image}); if it was copied or restored on purpose, run `epochgate log rebind`"
    )]
    FileId {
        /// Name of the disk.
        name: String,
        /// File id in the log.
        log: u64,
        /// File id of the image.
        image: u64,
    },
}

/// A size in the largest unit that divides it.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] = [
            (1 << 40, "TiB"),
            (1 << 30, "GiB"),
            (1 << 20, "MiB"),
            (1 << 10, "KiB"),
        ];
        for (bytes, unit) in UNITS {
            if self.0 >= bytes && self.0.is_multiple_of(bytes) {
                return write!(f, "{} {unit}", self.0 / bytes);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

/// A place in the committed part of the log that can't be trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("the epoch log is damaged in segment {segment} at byte {offset}{}: {what}; nothing was changed: `epochgate log verify` says what is left and what can be done", in_epoch(*epoch))]
pub struct Damage {
    /// Number of the segment.
    pub segment: u64,
    /// Byte in the segment file.
    pub offset: u64,
    /// Epoch that is affected, where known.
    pub epoch: Option<Epoch>,
    /// What is wrong.
    pub what: DamageKind,
}

fn in_epoch(epoch: Option<Epoch>) -> String {
    epoch.map_or_else(String::new, |epoch| format!(" (epoch {epoch})"))
}

impl DamageKind {
    /// What it means for whoever has the log, in one sentence.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::SegmentHeader => {
                "none of what this segment file holds can be read, whatever is left of it"
            }
            Self::SegmentMissing => "whatever this segment file held is gone",
            Self::SegmentForeign => {
                "somebody has put a file of another log in the place of this one's"
            }
            Self::DataMissing | Self::DataChecksum => {
                "the guest was told that this data is on disk, and the image does not have it yet"
            }
            Self::Unreadable => {
                "the disk reports an I/O error there, so whether an epoch was committed there is not known"
            }
            Self::StateMissing => {
                "a commit, a takeover or a change of the mode was recorded there, and both copies are gone"
            }
        }
    }
}

/// What is wrong at a damaged place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum DamageKind {
    /// Both copies of a segment header are unreadable.
    #[error("the segment header is unreadable")]
    SegmentHeader,
    /// A segment file between two others is missing.
    #[error("the segment file is missing")]
    SegmentMissing,
    /// A segment belongs to another log.
    #[error("the segment belongs to another log")]
    SegmentForeign,
    /// Data records of a committed epoch are missing or unreadable.
    #[error("data of a committed epoch is missing")]
    DataMissing,
    /// The disk can't read the end of the log, which may hold a commit record.
    #[error("the disk can't read it, and it may hold a committed epoch")]
    Unreadable,
    /// The payload of a committed data record does not match its checksum.
    #[error("the data does not match its checksum")]
    DataChecksum,
    /// Both copies of a commit, generation, mode or applied record are missing.
    #[error("a record of the group's state is missing")]
    StateMissing,
}
