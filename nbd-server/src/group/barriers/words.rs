//! The words of the state machine: what goes in, what comes out.

use epoch_log::{Epoch, Generation, Mode};
use serde::{Deserialize, Serialize};

/// One try of a source at being protected: from the first copy for one standby to the drain that gives it up. The source counts them
/// within its generation, from 1. What belongs to one that is over is void, however late it comes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Protection(pub u64);

/// When a group holds writes in epochs. Otherwise they go through to the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Holds {
    /// While a standby protects the VM, or is about to.
    #[default]
    Protected,
    /// While no source owns the group, too: then it commits by itself.
    Alone,
    /// Always: in sync mode as well it commits by itself, so that nothing but its committed epochs ever reaches the images.
    Always,
}

/// How the process before this one ended, where nothing that it held is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// In order: it held nothing.
    Closed,
    /// Its machine failed, and took with it what the process held and what was not flushed.
    MachineFailed,
    /// It died, and what it held with it. What had gone through to the images is there.
    Died,
}

/// What a seal is called, so that it can be asked again and does nothing when it comes late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SealNumber {
    /// The number that the epoch has to get: one more than the last. In a group that [commits by itself](super::Barriers::commits_by_itself)
    /// under its owner, the first one of a protection is the lowest that it may get, as the owner doesn't hear of each commit.
    pub epoch: Epoch,
    /// What it belongs to; none: whatever is at hand.
    pub protection: Option<Protection>,
}

/// What happens to a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// A cold start of the VM.
    AttachSource {
        /// Id of the source's process start.
        owner: String,
    },
    /// A standby wants to read committed state.
    Park {
        /// Id of the standby's process start.
        standby: String,
    },
    /// The owner's guest is paused: cut here.
    Seal {
        /// The owner's generation.
        generation: Generation,
    },
    /// The same, by number: to ask again while the guest is still paused is no second cut.
    SealAs {
        /// The owner's generation.
        generation: Generation,
        /// The number.
        number: SealNumber,
    },
    /// A group that commits by itself cuts.
    SelfSeal,
    /// COMMIT 2, or the self-commit of a group without a source or protection.
    Commit {
        /// The owner's generation.
        generation: Generation,
        /// The epoch.
        epoch: Epoch,
        /// Who acknowledged COMMIT 1; none for a self-commit.
        standby: Option<String>,
    },
    /// The owner goes on without a standby.
    DrainToSync {
        /// The owner's generation.
        generation: Generation,
        /// What it gives up; none: whatever is at hand.
        protection: Option<Protection>,
    },
    /// A standby wants to own the group.
    Takeover {
        /// Its id.
        standby: String,
    },
    /// The owner drops what is not committed, and itself.
    Abort {
        /// The owner's generation.
        generation: Generation,
    },
    /// The owner ends as planned.
    Detach {
        /// The owner's generation.
        generation: Generation,
    },
    /// A client wants to write while writes wait.
    WriteWaits,
    /// The images durably hold everything up to this epoch.
    Applied {
        /// The epoch.
        epoch: Epoch,
    },
    /// The outstanding log operations were carried out, as far as they went.
    LogDone {
        /// How many of them are durable.
        done: usize,
        /// How it ended.
        outcome: LogOutcome,
    },
    /// Take the next step that needs no one's request.
    Advance,
}

/// How a batch of log operations ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogOutcome {
    /// All are durable.
    Done,
    /// The log has no space: it can be tried again.
    Retry,
    /// The log can't be used any more.
    Broken,
}

/// A log operation, to be durable before the next one begins.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LogOp {
    /// Flush the images: they hold, durably, everything up to the epoch that is about to be committed.
    SyncImages,
    /// The data of the epoch, then its commit record.
    Commit {
        /// The epoch.
        epoch: Epoch,
        /// Who acknowledged COMMIT 1.
        standby: Option<String>,
    },
    /// Raise the generation.
    RaiseGeneration {
        /// The new owner.
        owner: Option<String>,
        /// Why, for people.
        reason: &'static str,
    },
    /// Record the mode.
    SetMode(Mode),
}

/// What writes to the disks do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gate {
    /// They wait.
    Closed,
    /// They go through to the images.
    Through,
    /// They are held in the open epoch; `FLUSH` does as the rule says.
    Held(FlushRule),
    /// They fail.
    Broken,
}

/// What a FLUSH does where writes are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlushRule {
    /// It is answered at once: guest and disk roll back together.
    Free,
    /// It waits for the first commit, unless no epoch holds anything: until then there is no memory to roll back to.
    Waits,
    /// It seals and commits: the group commits by itself.
    SelfCommits,
}

/// What the driver does to disks and connections. In order, none skipped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// From now on writes do this; those that wait look again.
    Gate(Gate),
    /// Cut all disks at once: what is in the open epoch is this sealed epoch.
    Seal(Epoch),
    /// The open epoch and all sealed ones that are not committed are gone.
    DropUncommitted,
    /// The epoch is committed: parked attachments see it, the applier applies it.
    Committed(Epoch),
    /// The images hold everything up to this epoch: its memory can go.
    Applied(Epoch),
    /// Only this generation can write. Attachments of earlier ones are cut; those that `owner` had parked are its own now.
    Generation {
        /// The new generation.
        generation: Generation,
        /// Its owner.
        owner: Option<String>,
    },
    /// Cut the attachments of a standby that is no longer parked.
    Forget(String),
}

/// What an attachment may do when it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Admission {
    /// Opened by the plain name; bound to this generation.
    Plain {
        /// It may write.
        writable: bool,
    },
    /// Of the source.
    Source,
    /// Of a standby.
    Parked,
}
