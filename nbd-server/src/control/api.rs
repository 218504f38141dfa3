//! The words of the control API, shared by [`client`](super::client) and the gateway's server. Knows JSON and nothing
//! of sockets, disks or logs.
//!
//! | request                                        | body                           | reply                              |
//! |------------------------------------------------|--------------------------------|------------------------------------|
//! | `POST /v1/groups/{g}/attach`                   | [`AttachRequest`]              | [`AttachReply`]                    |
//! | `POST /v1/groups/{g}/park`                     | [`ParkRequest`]                | [`ParkReply`]                      |
//! | `POST /v1/groups/{g}/seal`                     | [`SealRequest`]                | [`SealReply`]                      |
//! | `POST /v1/groups/{g}/commit`                   | [`CommitRequest`]              | [`EpochReply`]                     |
//! | `POST /v1/groups/{g}/sync`                     | [`SyncRequest`]                | [`EpochReply`]                     |
//! | `POST /v1/groups/{g}/takeover`                 | [`TakeoverRequest`]            | [`TakeoverReply`]                  |
//! | `POST /v1/groups/{g}/abort` `relieve` `detach` | [`GenerationRequest`]          | [`EpochReply`]                     |
//! | `GET /v1/groups/{g}/history?since=P&limit=N`   |                                | [`HistoryReply`]                   |
//! | `POST /v1/groups/{g}/pins`                     | [`PinRequest`]                 | [`Pin`]                            |
//! | `DELETE /v1/groups/{g}/pins/{p}`               |                                | [`Pin`]                            |
//! | `POST /v1/groups/{g}/freeze`                   | [`FreezeRequest`]              | [`Frozen`]                         |
//! | `DELETE /v1/groups/{g}/freeze`                 |                                | [`ThawReply`]                      |
//! | `POST /v1/groups/{g}/rewind`                   | [`RewindRequest`]              | [`Rewound`]                        |
//! | `GET /v1/groups/{g}`                           |                                | [`GroupStatus`]                    |
//! | `GET /v1/status`                               |                                | [`GatewayStatus`]                  |
//! | `GET /v1/exports`                              |                                | a list of [`ExportStatus`]         |
//! | `POST /v1/exports`                             | [`ExportConfig`]               | [`ExportStatus`]                   |
//! | `PATCH /v1/exports/{e}`                        | [`ResizeRequest`]              | [`ExportStatus`]                   |
//! | `DELETE /v1/exports/{e}?force=true`            |                                | [`RemovedReply`]                   |
//! | `GET /v1/groups/{g}/clones`                    |                                | a list of [`CloneStatus`]          |
//! | `POST /v1/groups/{g}/clones`                   | [`CloneRequest`]               | [`CloneStatus`]                    |
//! | `DELETE /v1/groups/{g}/clones/{c}?force=true`  |                                | [`RemovedReply`]                   |
//! | `GET /v1/groups/{g}/events?generation=G`       |                                | one [`Event`] per line, no end     |
//!
//! A request that fails is answered with an HTTP status other than 200 and an [`ErrorBody`].
//!
//! The `v1` of the paths changes when a field changes its meaning or goes. A new field, event or error kind may be
//! added within `v1`: readers ignore fields that they don't know and take an unknown kind as [`ErrorKind::Other`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use epoch_log::history::{HistoryStatus, Kept};
use epoch_log::{Epoch, Generation};
use serde::{Deserialize, Serialize};

pub use super::clones::{CloneRequest, CloneStatus};
pub use super::group_status::{
    AttachmentKind, AttachmentStatus, DiskStatus, EpochTotals, GroupStatus,
};
pub use crate::gateway::ExportConfig;
pub use crate::group::barriers::{MAX_ID_BYTES, Protection, SealNumber, valid_id};
pub use crate::group::history::{Point, Rewound};
pub use epoch_log::history::{Frozen, Pin};

/// A source asks to own the group: the cold start of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Id of this one process start of the source, with a fresh uuid in it; never used again. See [`valid_id`].
    pub owner: String,
}

/// The group is the source's own now, in sync mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachReply {
    /// The generation that the source names in all further requests.
    pub generation: Generation,
    /// The newest committed epoch.
    pub committed: Epoch,
    /// Name of each disk of the group, and the NBD export name that the source's QEMU opens for it.
    pub exports: BTreeMap<String, String>,
}

/// A standby asks for attachments that read committed state until it takes over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkRequest {
    /// Id of this one process start of the standby, with a fresh uuid in it; never used again. See [`valid_id`].
    pub standby: String,
}

/// The owner's guest is paused: cut here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealRequest {
    /// The owner's generation.
    pub generation: Generation,
    /// The number that the epoch has to get: one more than the last. A request that has one can be asked again while the guest is paused,
    /// and is no second cut. Without: whatever comes next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// What it belongs to, 1 or higher, and only together with `epoch`. A request of a protection that is over is refused, however late
    /// it comes. Without: it belongs to whatever is at hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protection: Option<Protection>,
}

/// The standby may open its attachments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkReply {
    /// Name of each disk of the group, and the NBD export name that the standby's QEMU opens for it.
    pub exports: BTreeMap<String, String>,
}

/// Any request of an owner that needs nothing but its generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationRequest {
    /// The generation that the owner got from `attach` or `takeover`; a lower one is refused as fenced.
    pub generation: Generation,
}

/// The owner goes on without a standby: to sync mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRequest {
    /// The owner's generation.
    pub generation: Generation,
    /// What it gives up, 1 or higher. All seals of it that are still under way are void from then on, and the request is itself once the
    /// owner has begun the next one. Without: it gives up whatever is at hand, also if it comes late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protection: Option<Protection>,
}

/// An epoch is sealed over all disks of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealReply {
    /// The epoch that was sealed; what is written from now on belongs to the next one.
    pub epoch: Epoch,
    /// Bytes of guest data in the sealed epoch.
    pub bytes: u64,
    /// This was the seal that led from sync mode to async mode: the epoch is empty, and everything before it is in the
    /// images.
    pub empty_first: bool,
}

/// COMMIT 2: make a sealed epoch durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitRequest {
    /// The owner's generation.
    pub generation: Generation,
    /// The epoch; commits go strictly in order.
    pub epoch: Epoch,
    /// The standby that has acknowledged COMMIT 1 for this epoch: it holds the memory that belongs to it.
    pub standby: String,
}

/// The newest committed epoch after the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochReply {
    /// The newest committed epoch.
    pub epoch: Epoch,
}

/// The standby that holds memory asks to own the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeoverRequest {
    /// The id that the standby parked with.
    pub standby: String,
}

/// The standby owns the group, everyone else is fenced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeoverReply {
    /// The new generation.
    pub generation: Generation,
    /// The last committed epoch E: the VM goes on from (disk E, memory E) and from nothing else.
    pub epoch: Epoch,
}

/// One line of a group's event stream. The end of the stream means that the gateway is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The first line of every stream: the caller's generation was current when the stream began.
    Subscribed {
        /// The current generation.
        generation: Generation,
    },
    /// The epochs hold more than half of the group's memory budget: take a checkpoint now.
    Pressure {
        /// Bytes held in memory.
        bytes_held: u64,
        /// The group's budget, in bytes; at 100 % writes wait.
        budget: u64,
    },
    /// Another owner has the group; the caller's VM must stop.
    Fenced {
        /// The generation that is current now.
        generation: Generation,
        /// Who owns it, if anyone.
        owner: Option<String>,
    },
    /// An event of a newer gateway.
    #[serde(other)]
    Other,
}

/// Whether the group holds writes in epochs or writes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModeName {
    /// Writes go through to the images; FLUSH makes them durable.
    Sync,
    /// Writes are held in epochs and committed together.
    Async,
}

/// An export outside of any group, always in sync mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportStatus {
    /// Its NBD export name.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The image file or block device.
    #[serde(default)]
    pub image: PathBuf,
    /// Open NBD connections.
    #[serde(default)]
    pub connections: u64,
    /// READ requests answered.
    #[serde(default)]
    pub reads: u64,
    /// WRITE, TRIM and WRITE_ZEROES requests answered.
    #[serde(default)]
    pub writes: u64,
    /// Bytes read.
    #[serde(default)]
    pub bytes_read: u64,
    /// Bytes written (payload of WRITE only).
    #[serde(default)]
    pub bytes_written: u64,
}

/// An export outside of groups shall have another size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeRequest {
    /// The new size in bytes, more than 0.
    pub size: u64,
    /// It may be less than the present one: what lies beyond is lost.
    #[serde(default)]
    pub shrink: bool,
}

/// A page of the points that a group keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryReply {
    /// How much there is in all.
    pub status: HistoryStatus,
    /// The points, oldest first.
    pub points: Vec<Kept>,
    /// There are more: ask again with `since=epoch=` this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<Epoch>,
}

/// A point in time shall have a name, and never be trimmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinRequest {
    /// The name.
    pub name: String,
    /// The point; without, the newest committed epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Point>,
}

/// Nothing of the history shall go for its age or size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeRequest {
    /// For so many milliseconds; without, until it is thawed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_ms: Option<u64>,
}

/// It may again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThawReply {
    /// What has ended; null: it was not frozen.
    pub was: Option<Frozen>,
}

/// The disks shall be as they were.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewindRequest {
    /// When.
    pub to: Point,
    /// Also while somebody uses the group: all are sent away, a source is fenced.
    #[serde(default)]
    pub force: bool,
}

/// An export or a clone is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedReply {
    /// Its name.
    pub name: String,
}

/// How the last reload of the configuration file went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// It took effect; otherwise nothing has changed.
    pub ok: bool,
    /// What has changed, or why nothing has.
    pub message: String,
    /// When, in seconds since 1970.
    pub at: u64,
}

/// The whole gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayStatus {
    /// Version of the gateway.
    pub version: String,
    /// Process id of the gateway.
    pub pid: u32,
    /// Where it listens for NBD, as in the configuration.
    pub listen: Vec<String>,
    /// The groups, by name.
    pub groups: Vec<GroupStatus>,
    /// The exports outside of groups, by name.
    pub exports: Vec<ExportStatus>,
    /// The last reload of the configuration file; none since the start.
    #[serde(default)]
    pub reload: Option<ReloadStatus>,
    /// What is worth a word about the storage below logs and images, each with what to do.
    #[serde(default)]
    pub storage: Vec<String>,
}

/// Why a request failed, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The caller's generation is no longer the current one: its VM must stop.
    Fenced,
    /// The request is against the rules of the group in its present state.
    Refused,
    /// Takeover: another standby holds the memory that belongs to the committed epoch.
    OtherHolder,
    /// Takeover: the group went to sync mode, so any memory a standby holds is older than the disks.
    MemoryStale,
    /// Takeover: no checkpoint has been committed yet, so there is no memory to go on from.
    NoCheckpoint,
    /// The gateway has no such group, or it is away while it is set back.
    UnknownGroup,
    /// The gateway has no such export outside of groups.
    UnknownExport,
    /// The group has no such clone.
    UnknownClone,
    /// The image is missing, in use, or none.
    BadImage,
    /// The file system of the log is full; the epoch stays sealed and the commit can be retried.
    LogFull,
    /// The storage under the log or the images failed.
    Io,
    /// The gateway is stopping.
    Stopping,
    /// The request itself is malformed.
    BadRequest,
    /// A kind of a newer gateway.
    #[serde(other)]
    Other,
}

impl ErrorKind {
    /// The HTTP status that goes with the kind.
    pub fn http_status(self) -> u16 {
        match self {
            Self::Fenced
            | Self::Refused
            | Self::OtherHolder
            | Self::MemoryStale
            | Self::NoCheckpoint => 409,
            Self::UnknownGroup | Self::UnknownExport | Self::UnknownClone => 404,
            Self::BadImage => 422,
            Self::LogFull => 507,
            Self::Stopping => 503,
            Self::BadRequest => 400,
            Self::Io | Self::Other => 500,
        }
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// For programs.
    pub kind: ErrorKind,
    /// For people: one sentence, with what to do.
    pub message: String,
}

/// The body of every reply that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn events_and_errors_look_as_documented() {
        let line = serde_json::to_string(&Event::Pressure {
            bytes_held: 3,
            budget: 4,
        })
        .unwrap();
        assert_eq!(line, r#"{"event":"pressure","bytes_held":3,"budget":4}"#);
        let body: ErrorBody =
            serde_json::from_str(r#"{"error":{"kind":"log_full","message":"m"}}"#).unwrap();
        assert_eq!(body.error.kind, ErrorKind::LogFull);
    }

    #[test]
    fn words_of_a_newer_gateway_are_not_an_error() {
        let event: Event = serde_json::from_str(r#"{"event":"eclipse","depth":7}"#).unwrap();
        assert_eq!(event, Event::Other);
        let kind: ErrorKind = serde_json::from_str(r#""eclipse""#).unwrap();
        assert_eq!(kind, ErrorKind::Other);
    }

    #[test]
    fn ids_that_would_confuse_an_export_name_are_refused() {
        assert!(valid_id("host-a:6f1c.1"));
        for bad in ["", "a/b", "a@b", "a b", "é", &"x".repeat(MAX_ID_BYTES + 1)] {
            assert!(!valid_id(bad), "{bad:?}");
        }
    }
}
