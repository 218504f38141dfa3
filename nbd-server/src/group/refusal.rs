//! Why a group says no: one type for all decisions of [`barriers`](super::barriers), with sentences for people.

use epoch_log::{Epoch, Generation};

use super::barriers::Protection;

/// Why a request is against the rules of the group in its present state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The caller's generation is over.
    #[error(
        "generation {given} is fenced: the group is at generation {current} ({reason}); stop this VM"
    )]
    Fenced {
        /// The caller's generation.
        given: Generation,
        /// The current one.
        current: Generation,
        /// Why the generation rose.
        reason: String,
    },
    /// The id belonged to an owner that has been fenced, or is not free for this.
    #[error(
        "the id '{id}' has been used before; start the process again, so that it takes a fresh one"
    )]
    UsedId {
        /// The id.
        id: String,
    },
    /// A point in time that can't be had.
    #[error("{0}")]
    Past(String),
    /// The id can't be part of an export name.
    #[error("'{id}' can't be an id: it needs 1 to 128 ASCII letters, digits, '-', '_', '.' or ':'")]
    BadId {
        /// The id.
        id: String,
    },
    /// An attachment of an instance that the group does not know.
    #[error(
        "'{id}' is neither the source nor a parked standby of this group; attach or park it first"
    )]
    UnknownInstance {
        /// The id.
        id: String,
    },
    /// Nobody owns the group.
    #[error("no source owns the group; attach one first")]
    NoOwner,
    /// The group changes hands or mode right now.
    #[error("the group is changing its owner or mode; try again")]
    Busy,
    /// The first seal while the group, which commits by itself, holds something.
    #[error(
        "the group commits by itself what it holds, before it is sealed for the first time; try again"
    )]
    Unsettled,
    /// A seal or commit while the group drains.
    #[error("the group is draining to sync mode; start protection again when it has")]
    Draining,
    /// A seal or drain of a protection that is over.
    #[error(
        "the source's protection {} is over, and so are all up to {}: this request came too late and changes nothing",
        given.0,
        over.0
    )]
    Overtaken {
        /// What the request belongs to.
        given: Protection,
        /// The newest that is over.
        over: Protection,
    },
    /// Nobody may write before a takeover or a cold start.
    #[error("the group waits for its standby to take over, or for a cold start")]
    Reserved,
    /// A commit without a standby while a source owns the group, or the other way round.
    #[error("a commit needs the standby that acknowledged COMMIT 1, and only a source has one")]
    WrongStandby,
    /// An epoch that is not sealed.
    #[error("epoch {epoch} is not sealed; the newest sealed epoch is {sealed}")]
    NotSealed {
        /// The epoch asked for.
        epoch: Epoch,
        /// The newest sealed epoch.
        sealed: Epoch,
    },
    /// An epoch whose predecessor is not committed.
    #[error("epoch {epoch} is out of order: epoch {next} must be committed first")]
    OutOfOrder {
        /// The epoch asked for.
        epoch: Epoch,
        /// The epoch that comes next.
        next: Epoch,
    },
    /// Too many epochs wait for their commit.
    #[error("{count} sealed epochs wait for their commit; commit some before sealing more")]
    TooManySealed {
        /// How many.
        count: u64,
    },
    /// Takeover by a standby that does not hold the memory.
    #[error(
        "standby '{holder}' holds the memory of epoch {epoch}, not '{standby}'; let that one take over"
    )]
    OtherHolder {
        /// Who asked.
        standby: String,
        /// Who holds it.
        holder: String,
        /// The last committed epoch.
        epoch: Epoch,
    },
    /// Takeover after the disks went on without any standby.
    #[error(
        "the group went to sync mode after epoch {since}, so memory that a standby holds is older than the disks; \
         start the VM cold"
    )]
    MemoryStale {
        /// The last epoch of which a standby may hold memory.
        since: Epoch,
    },
    /// Takeover before the first checkpoint.
    #[error(
        "no checkpoint has been committed yet, so there is no memory to go on from; start the VM cold"
    )]
    NoCheckpoint,
    /// The log failed.
    #[error(
        "the epoch log failed, so the group accepts no writes; check the disk of the log, then restart the gateway"
    )]
    Broken,
}
