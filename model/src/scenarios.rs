//! The runs of the checker that are made each time, and for each mistake the smallest run that finds it.

use crate::bounds::{Bounds, Fault};
use crate::mutation::Mutation;
use crate::rules::Rule;
use crate::world::Protocol;

/// A run of the checker with a name.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// For tables.
    pub name: &'static str,
    /// What it covers.
    pub bounds: Bounds,
    /// What it must come to, of [`REACHED`](crate::rules::REACHED), or it says nothing.
    pub reaches: &'static [&'static str],
}

/// The runs that must find nothing.
pub fn scenarios() -> Vec<Scenario> {
    let takeovers = vec![Fault::HostCrash, Fault::VmDies, Fault::LinkBreak];
    let pipeline = vec![
        Fault::HostCrash,
        Fault::GatewayCrash,
        Fault::GatewayRestart,
        Fault::LinkBreak,
    ];
    vec![
        Scenario {
            name: "no fault",
            bounds: Bounds {
                epochs: 4,
                steps: 4,
                in_flight: 3,
                faults: 0,
                kinds: Vec::new(),
                protect_again: false,
            },
            reaches: &["protected"],
        },
        Scenario {
            name: "one fault of any kind",
            bounds: Bounds {
                epochs: 3,
                steps: 2,
                in_flight: 2,
                faults: 1,
                kinds: Fault::ALL.to_vec(),
                protect_again: false,
            },
            reaches: &[
                "protected",
                "taken over",
                "back in sync mode",
                "protected again after a loss",
            ],
        },
        Scenario {
            name: "a long pipeline, one fault",
            bounds: Bounds {
                epochs: 4,
                steps: 2,
                in_flight: 3,
                faults: 1,
                kinds: pipeline,
                protect_again: false,
            },
            reaches: &["protected", "taken over", "back in sync mode"],
        },
        Scenario {
            name: "two faults of any kind",
            bounds: Bounds {
                epochs: 2,
                steps: 2,
                in_flight: 2,
                faults: 2,
                kinds: Fault::ALL.to_vec(),
                protect_again: false,
            },
            reaches: &[
                "protected",
                "taken over",
                "back in sync mode",
                "protected again after a loss",
            ],
        },
        Scenario {
            name: "two takeovers in a row",
            bounds: Bounds {
                epochs: 2,
                steps: 2,
                in_flight: 2,
                faults: 2,
                kinds: takeovers,
                protect_again: true,
            },
            reaches: &["protected again after a loss", "taken over twice"],
        },
    ]
}

/// For a mistake: a run that finds it, and the rule that it breaks.
pub fn finding(mutation: Mutation) -> (Protocol, Rule) {
    use Fault::{
        ColdStart, Damage, GatewayCrash, HostCrash, LateRequest, LateSeal, LinkBreak, LogFull,
    };
    let (kinds, rule): (&[Fault], Rule) = match mutation {
        Mutation::ApplyBeforeRecord => (&[], Rule::NothingEarly),
        Mutation::ReleaseOnCommit1 => (&[], Rule::OutputCommit),
        Mutation::ReleaseOnStandbyLoss => (&[LinkBreak], Rule::OutputCommit),
        Mutation::MergeBeforeRecord => (&[], Rule::NothingEarly),
        Mutation::NoGenerationInCommit => (&[HostCrash, ColdStart, LateRequest], Rule::Fencing),
        Mutation::NoGenerationInSeal => (&[LinkBreak], Rule::Fencing),
        Mutation::NoProtectionInSeal => (&[LateSeal], Rule::GivenUp),
        Mutation::NoProtectionInDrain => (&[LinkBreak, LateRequest], Rule::GivenUp),
        Mutation::NoFenceOnWrites => (&[LinkBreak], Rule::Fencing),
        Mutation::AckBeforeVerify => (&[Damage], Rule::HeldFirst),
        Mutation::CommitWithoutAck => (&[], Rule::HeldFirst),
        Mutation::CommittedBeforeRecord => (&[], Rule::OneCommitPoint),
        Mutation::ResumeFromMerged => (&[LinkBreak], Rule::Recovery),
        Mutation::AskBeforeTakeover => (&[LinkBreak], Rule::Recovery),
        Mutation::TakeOverAlone => (&[LinkBreak], Rule::Fencing),
        Mutation::SyncModeNotRecorded => (&[LinkBreak], Rule::HeldFirst),
        Mutation::GenerationNotDurable => (&[LinkBreak], Rule::Fencing),
        Mutation::NoFenceAtRestart => (&[GatewayCrash], Rule::Recovery),
        Mutation::ResumeWithoutMemory => (&[GatewayCrash], Rule::Recovery),
        Mutation::AnswerSealEarly => (&[GatewayCrash], Rule::GoesOn),
        Mutation::CaptureAgain => (&[LogFull], Rule::NothingEarly),
    };
    let faults = match (kinds, mutation) {
        ([], _) => 0,
        (_, Mutation::NoGenerationInCommit | Mutation::NoProtectionInDrain) => 2,
        _ => 1,
    };
    let protocol = Protocol {
        bounds: Bounds {
            epochs: 3,
            steps: 2,
            in_flight: 2,
            faults,
            kinds: kinds.to_vec(),
            protect_again: false,
        },
        mutation: Some(mutation),
    };
    (protocol, rule)
}
