//! Mistakes made on purpose, each by the simulator's own parts around the real code. A simulator that does not find them finds
//! nothing.

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Planted {
    /// The disk says that the log's data is durable before its commit record, and it is not.
    SkipDataSync,
    /// The disk says that names are durable, and they are not.
    SkipDirSync,
    /// The disk says that an image is durable, and it is not.
    SkipImageSync,
    /// The disk says that the history is durable, and it is not.
    SkipHistorySync,
    /// Epochs reach the images when they are sealed.
    ApplyBeforeRecord,
    /// An attachment that is fenced comes back in the name of the new owner.
    NoFenceOnWrites,
    /// Packets leave when the standby has acknowledged.
    ReleaseOnCommit1,
    /// The standby acknowledges before it verifies.
    AckBeforeVerify,
    /// The standby merges when it has verified.
    MergeBeforeRecord,
    /// The source asks for COMMIT 2 without waiting for COMMIT 1.
    CommitWithoutAck,
    /// The standby goes on from the merged epoch instead of E.
    ResumeFromMerged,
    /// The standby goes on without asking the gateway.
    TakeOverAlone,
    /// A failed capture is tried again, without a new first copy.
    CaptureAgain,
    /// The guest runs on before its epoch is sealed.
    ContBeforeSeal,
    /// The gateway does not look at what seals and drains belong to.
    Unnumbered,
}

impl Planted {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::SkipDataSync,
        Self::SkipDirSync,
        Self::SkipImageSync,
        Self::SkipHistorySync,
        Self::ApplyBeforeRecord,
        Self::NoFenceOnWrites,
        Self::ReleaseOnCommit1,
        Self::AckBeforeVerify,
        Self::MergeBeforeRecord,
        Self::CommitWithoutAck,
        Self::ResumeFromMerged,
        Self::TakeOverAlone,
        Self::CaptureAgain,
        Self::ContBeforeSeal,
        Self::Unnumbered,
    ];

    /// Whether it can only be made by a group that keeps history.
    #[must_use]
    pub fn needs_history(self) -> bool {
        self == Self::SkipHistorySync
    }
}
