//! The three-phase commit as the standby sees it: a pure state machine. Events in, actions out; no clock, no I/O.
//! `standby_loop` carries the actions out.
//!
//! The standby holds two things: the RAM image *merged* up to an epoch, and *verified* checkpoints beyond it. It
//! merges N only after COMMIT 3 for N, which the source sends only once record N is durable; so the merged epoch is
//! never ahead of the committed one. After a takeover the gateway says which epoch E is the last committed one, and
//! the standby continues from exactly E, or refuses and says why (invariant 7). It never asks before the takeover:
//! until the generation is raised, E could still move.

use std::collections::BTreeSet;

use nbd_server::Epoch;

/// Something that happened, as told by `standby_loop`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// A source said Hello and everything is ready to receive.
    SourceJoined,
    /// Checkpoint `epoch` is complete and verified.
    Verified {
        /// Its epoch.
        epoch: Epoch,
    },
    /// COMMIT 3: record `epoch` is durable.
    Commit3 {
        /// The epoch.
        epoch: Epoch,
    },
    /// The source is silent, its connection broke, or it yielded.
    SourceLost,
    /// The VM ended as planned.
    SourceEnded,
    /// The gateway raised the generation for us; `epoch` is the last committed epoch.
    TakenOver {
        /// E, the last committed epoch.
        epoch: Epoch,
    },
    /// The gateway refused the takeover.
    TakeoverRefused {
        /// Its reason.
        reason: String,
    },
    /// The guest runs here.
    Resumed,
}

/// Something to do now.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Tell the source that checkpoint `epoch` is held: COMMIT 1.
    AckCommit1 {
        /// The epoch.
        epoch: Epoch,
    },
    /// Merge the verified checkpoints up to and including `epoch` into the RAM image, in order.
    MergeUpTo {
        /// The epoch.
        epoch: Epoch,
    },
    /// Ask the gateway for the takeover.
    TakeOver,
    /// Load the device state of `epoch` and let the guest run.
    Resume {
        /// E.
        epoch: Epoch,
    },
    /// Drop memory and checkpoints and wait for a source.
    Discard {
        /// Why, for the operator.
        reason: String,
    },
}

/// Where the standby stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// No source.
    Idle,
    /// A source sends; whether there is something to recover from, [`Standby::holds_anything`] says.
    Receiving,
    /// The gateway has been asked.
    TakingOver,
    /// The guest is being continued from this epoch.
    Resuming(Epoch),
    /// The guest runs here; this host is the source now.
    Running,
}

/// The state machine of a standby.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Standby {
    phase: Phase,
    merged: Option<Epoch>,
    verified: BTreeSet<Epoch>,
}

impl Default for Standby {
    fn default() -> Self {
        Self::new()
    }
}

impl Standby {
    /// A standby without a source.
    pub fn new() -> Self {
        Self {
            phase: Phase::Idle,
            merged: None,
            verified: BTreeSet::new(),
        }
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The epoch up to which the RAM image is merged.
    pub fn merged(&self) -> Option<Epoch> {
        self.merged
    }

    /// Whether there is a complete memory image of any epoch, merged or verified.
    pub fn holds_anything(&self) -> bool {
        self.merged.is_some() || !self.verified.is_empty()
    }

    /// Takes one event and says what is to be done, in this order.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::SourceJoined => self.source_joined(),
            Event::Verified { epoch } => self.verified(epoch),
            Event::Commit3 { epoch } => self.commit3(epoch),
            Event::SourceLost => self.source_lost(),
            Event::SourceEnded => self.discard_if(Phase::Receiving, "the VM ended as planned"),
            Event::TakenOver { epoch } => self.taken_over(epoch),
            Event::TakeoverRefused { reason } => self.discard_if(Phase::TakingOver, &reason),
            Event::Resumed => self.resumed(),
        }
    }

    fn source_joined(&mut self) -> Vec<Action> {
        if self.phase == Phase::Idle {
            self.phase = Phase::Receiving;
        }
        Vec::new()
    }

    fn verified(&mut self, epoch: Epoch) -> Vec<Action> {
        // A checkpoint is a difference: it counts only on top of the one before it.
        let follows = match self.newest() {
            Some(newest) => epoch == newest.next(),
            None => true,
        };
        if self.phase != Phase::Receiving || !follows {
            return Vec::new();
        }
        self.verified.insert(epoch);
        vec![Action::AckCommit1 { epoch }]
    }

    fn commit3(&mut self, epoch: Epoch) -> Vec<Action> {
        if self.phase != Phase::Receiving || !self.verified.contains(&epoch) {
            return Vec::new();
        }
        self.merge_up_to(epoch)
    }

    fn source_lost(&mut self) -> Vec<Action> {
        if self.phase != Phase::Receiving {
            return Vec::new();
        }
        if !self.holds_anything() {
            return self.discard("the source was lost before its first checkpoint was complete");
        }
        self.phase = Phase::TakingOver;
        vec![Action::TakeOver]
    }

    fn taken_over(&mut self, epoch: Epoch) -> Vec<Action> {
        if self.phase != Phase::TakingOver {
            return Vec::new();
        }
        if self.merged != Some(epoch) && !self.verified.contains(&epoch) {
            let held = match (self.merged, self.newest()) {
                (Some(merged), Some(newest)) => format!("epochs {merged} to {newest}"),
                (None, Some(newest)) => format!("epochs up to {newest}, none merged"),
                _ => "none".to_owned(),
            };
            return self.discard(&format!(
                "the last committed epoch is {epoch}, and this standby holds {held}: \
                 the VM can't be continued from memory here; start it again with `epochgate protect`"
            ));
        }
        self.phase = Phase::Resuming(epoch);
        let mut actions = self.merge_up_to(epoch);
        self.verified.clear();
        actions.push(Action::Resume { epoch });
        actions
    }

    fn resumed(&mut self) -> Vec<Action> {
        if matches!(self.phase, Phase::Resuming(_)) {
            self.phase = Phase::Running;
        }
        Vec::new()
    }

    fn newest(&self) -> Option<Epoch> {
        self.verified.last().copied().or(self.merged)
    }

    fn merge_up_to(&mut self, epoch: Epoch) -> Vec<Action> {
        if self.merged.is_some_and(|merged| merged >= epoch) {
            return Vec::new();
        }
        self.verified = self.verified.split_off(&epoch.next());
        self.merged = Some(epoch);
        vec![Action::MergeUpTo { epoch }]
    }

    fn discard_if(&mut self, phase: Phase, reason: &str) -> Vec<Action> {
        if self.phase == phase {
            self.discard(reason)
        } else {
            Vec::new()
        }
    }

    fn discard(&mut self, reason: &str) -> Vec<Action> {
        *self = Self::new();
        vec![Action::Discard {
            reason: reason.to_owned(),
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(epoch: u64) -> Vec<Action> {
        vec![Action::AckCommit1 {
            epoch: Epoch(epoch),
        }]
    }

    fn verify(standby: &mut Standby, epoch: u64) -> Vec<Action> {
        standby.step(Event::Verified {
            epoch: Epoch(epoch),
        })
    }

    /// Merged up to 5, with 6 and 7 verified.
    fn holding() -> Standby {
        let mut standby = Standby::new();
        standby.step(Event::SourceJoined);
        for epoch in 5..8 {
            assert_eq!(verify(&mut standby, epoch), ack(epoch));
        }
        assert_eq!(
            standby.step(Event::Commit3 { epoch: Epoch(5) }),
            [Action::MergeUpTo { epoch: Epoch(5) }]
        );
        standby
    }

    #[test]
    fn it_merges_only_what_is_committed() {
        let standby = holding();
        assert_eq!(standby.merged(), Some(Epoch(5)));
    }

    #[test]
    fn it_resumes_from_exactly_the_committed_epoch() {
        for committed in 5..8 {
            let mut standby = holding();
            assert_eq!(standby.step(Event::SourceLost), [Action::TakeOver]);
            let actions = standby.step(Event::TakenOver {
                epoch: Epoch(committed),
            });
            let resume = Action::Resume {
                epoch: Epoch(committed),
            };
            let merge = Action::MergeUpTo {
                epoch: Epoch(committed),
            };
            let expected = if committed == 5 {
                vec![resume]
            } else {
                vec![merge, resume]
            };
            assert_eq!(actions, expected);
        }
    }

    #[test]
    fn it_refuses_an_epoch_that_it_does_not_hold() {
        for committed in [4, 8] {
            let mut standby = holding();
            standby.step(Event::SourceLost);
            let actions = standby.step(Event::TakenOver {
                epoch: Epoch(committed),
            });
            assert!(matches!(&actions[..], [Action::Discard { .. }]));
        }
    }

    #[test]
    fn a_gap_in_the_checkpoints_is_not_acknowledged() {
        let mut standby = holding();
        assert_eq!(verify(&mut standby, 9), []);
        assert_eq!(verify(&mut standby, 7), []);
        assert_eq!(verify(&mut standby, 8), ack(8));
    }

    #[test]
    fn without_a_checkpoint_there_is_no_takeover() {
        let mut standby = Standby::new();
        standby.step(Event::SourceJoined);
        assert!(matches!(
            &standby.step(Event::SourceLost)[..],
            [Action::Discard { .. }]
        ));
    }

    #[test]
    fn after_suspicion_nothing_of_the_old_source_counts() {
        let mut standby = holding();
        standby.step(Event::SourceLost);
        assert_eq!(standby.step(Event::Commit3 { epoch: Epoch(6) }), []);
        assert_eq!(verify(&mut standby, 8), []);
        assert_eq!(standby.merged(), Some(Epoch(5)));
    }

    /// A takeover that was refused may have been sent twice. The other copy can arrive when the same source protects its VM here
    /// anew: the gateway gives this standby the disks, the source is fenced and yields, and this standby asks by itself.
    #[test]
    fn a_takeover_that_succeeds_late_is_continued_from_the_new_protection() {
        let mut standby = holding();
        standby.step(Event::SourceLost);
        let reason = "the group went to sync mode".to_owned();
        standby.step(Event::TakeoverRefused { reason });
        standby.step(Event::SourceJoined);
        assert_eq!(verify(&mut standby, 20), ack(20));
        standby.step(Event::Commit3 { epoch: Epoch(20) });
        assert_eq!(verify(&mut standby, 21), ack(21));
        assert_eq!(standby.step(Event::SourceLost), [Action::TakeOver]);
        for epoch in [20, 21].map(Epoch) {
            // Where the late copy came: before or behind record 21.
            let mut standby = standby.clone();
            let actions = standby.step(Event::TakenOver { epoch });
            assert_eq!(actions.last(), Some(&Action::Resume { epoch }));
        }
        let before = Event::TakenOver { epoch: Epoch(7) };
        let actions = standby.step(before);
        assert!(
            matches!(&actions[..], [Action::Discard { .. }]),
            "memory of the protection before is gone"
        );
    }

    #[test]
    fn a_refused_takeover_discards_the_memory() {
        let mut standby = holding();
        standby.step(Event::SourceLost);
        let reason = "the group is in sync mode".to_owned();
        standby.step(Event::TakeoverRefused { reason });
        assert_eq!(standby.phase(), Phase::Idle);
        assert!(!standby.holds_anything());
    }
}
