//! Ways to get the protocol wrong. Each is a change to what is around the shipping state machines, made by the part of the
//! model that carries their decisions out; the checker must find every one.

/// One deliberate mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Mutation {
    /// The gateway applies an epoch to the image when it is sealed.
    ApplyBeforeRecord,
    /// Output leaves at COMMIT 1.
    ReleaseOnCommit1,
    /// Output leaves when the standby is lost, before the gateway has drained.
    ReleaseOnStandbyLoss,
    /// The standby merges when it has verified, before the record.
    MergeBeforeRecord,
    /// The gateway takes a commit for one of the current generation, whoever sent it.
    NoGenerationInCommit,
    /// The gateway takes a seal for one of the current generation, whoever sent it.
    NoGenerationInSeal,
    /// The gateway takes a seal for one of the protection at hand, whatever it belongs to.
    NoProtectionInSeal,
    /// The same of a drain.
    NoProtectionInDrain,
    /// The gateway lets writes of fenced attachments in.
    NoFenceOnWrites,
    /// The standby acknowledges before it verifies.
    AckBeforeVerify,
    /// The source commits without waiting for COMMIT 1.
    CommitWithoutAck,
    /// The gateway says committed before the record is durable.
    CommittedBeforeRecord,
    /// The standby goes on from the merged epoch M, where the gateway has E = M + 1.
    ResumeFromMerged,
    /// The standby asks for E when it suspects, and takes over afterwards.
    AskBeforeTakeover,
    /// The standby goes on without asking the gateway.
    TakeOverAlone,
    /// The gateway does not record that nobody holds memory when it drains.
    SyncModeNotRecorded,
    /// The new generation is not made durable.
    GenerationNotDurable,
    /// A gateway that lost an open epoch lets its source go on.
    NoFenceAtRestart,
    /// A gateway that starts goes on as if it had what was held.
    ResumeWithoutMemory,
    /// The first seal is answered before async mode is recorded.
    AnswerSealEarly,
    /// A failed capture is tried again, without a new first copy.
    CaptureAgain,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::ApplyBeforeRecord,
        Self::ReleaseOnCommit1,
        Self::ReleaseOnStandbyLoss,
        Self::MergeBeforeRecord,
        Self::NoGenerationInCommit,
        Self::NoGenerationInSeal,
        Self::NoProtectionInSeal,
        Self::NoProtectionInDrain,
        Self::NoFenceOnWrites,
        Self::AckBeforeVerify,
        Self::CommitWithoutAck,
        Self::CommittedBeforeRecord,
        Self::ResumeFromMerged,
        Self::AskBeforeTakeover,
        Self::TakeOverAlone,
        Self::SyncModeNotRecorded,
        Self::GenerationNotDurable,
        Self::NoFenceAtRestart,
        Self::ResumeWithoutMemory,
        Self::AnswerSealEarly,
        Self::CaptureAgain,
    ];
}
