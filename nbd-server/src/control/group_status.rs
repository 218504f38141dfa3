//! What the control API says of one group: plain values.

use epoch_log::history::HistoryStatus;
use epoch_log::{Epoch, Generation};
use serde::{Deserialize, Serialize};

use super::api::ModeName;

/// What kind of attachment a client has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachmentKind {
    /// Opened by the plain name `group/disk`.
    Plain,
    /// Of the source that owns the group.
    Source,
    /// Of a standby: reads committed state, its writes are refused until the takeover.
    Parked,
    /// Reads an earlier point in time, or has a clone of one.
    Past,
    /// A kind of a newer gateway.
    #[serde(other)]
    Other,
}

/// One client's attachments to a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentStatus {
    /// The owner or standby id, or `-` for plain attachments.
    pub name: String,
    /// What it may do.
    pub kind: AttachmentKind,
    /// Open NBD connections.
    pub connections: u32,
}

/// One disk of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Its name; the export is `group/name`.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// READ requests answered.
    pub reads: u64,
    /// WRITE, TRIM and WRITE_ZEROES requests answered.
    pub writes: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written (payload of WRITE only).
    pub bytes_written: u64,
    /// FLUSH requests answered.
    #[serde(default)]
    pub flushes: u64,
    /// Requests of any kind answered with an error.
    #[serde(default)]
    pub errors: u64,
    /// Requests that wait for storage.
    #[serde(default)]
    pub in_flight: u64,
    /// Time from the receipt of READ requests to their answers, summed, in microseconds.
    #[serde(default)]
    pub read_us: u64,
    /// The same of WRITE, TRIM and WRITE_ZEROES.
    #[serde(default)]
    pub write_us: u64,
    /// The same of FLUSH.
    #[serde(default)]
    pub flush_us: u64,
}

/// What became durable since the group was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochTotals {
    /// Epochs.
    pub count: u64,
    /// Bytes of guest data in them: what was written twice in an epoch counts once.
    pub bytes: u64,
    /// Blocks of 4 KiB with guest data in them, counted in the same way.
    pub blocks: u64,
}

/// Everything there is to know about a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// The group's name.
    pub name: String,
    /// Sync or async mode.
    pub mode: ModeName,
    /// The current generation.
    pub generation: Generation,
    /// The source that owns the group.
    pub owner: Option<String>,
    /// The standby that holds memory for `committed`.
    pub holder: Option<String>,
    /// The epoch since which the holder has held memory without a gap.
    pub holder_since: Option<Epoch>,
    /// The newest committed epoch.
    pub committed: Epoch,
    /// The newest epoch that is durable in the images.
    pub applied: Epoch,
    /// The epoch that takes writes now; none in sync mode.
    pub open: Option<Epoch>,
    /// Bytes held in memory by open, sealed and committed epochs.
    pub bytes_held: u64,
    /// The memory budget, in bytes.
    pub budget: u64,
    /// Sealed epochs that are not committed.
    pub sealed: u64,
    /// Committed epochs that are not applied.
    pub backlog: u64,
    /// What became durable since the group was opened.
    #[serde(default)]
    pub epochs: EpochTotals,
    /// Who is attached.
    pub attachments: Vec<AttachmentStatus>,
    /// How much of its past is kept, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<HistoryStatus>,
    /// The last thing that went wrong and still stands (an image that can't be written, a log that is full).
    pub last_error: Option<String>,
    /// The disks.
    pub disks: Vec<DiskStatus>,
}
