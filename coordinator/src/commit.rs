//! The three-phase commit as the source sees it: a pure state machine. Events in, actions out; no clock, no I/O, no
//! QEMU. `source_loop` carries the actions out, a model checker can do the same.
//!
//! Beside section 5 of the paper:
//!
//! | the paper | here |
//! |---|---|
//! | T0: both sides hold a consistent state | [`Phase::Protecting`] with `protected_since` set, nothing in flight |
//! | phase 1: updates are copied and buffered, the disk is in async mode | [`Action::Capture`], [`Action::SendCheckpoint`] |
//! | COMMIT 1 and its response | [`Event::Commit1Acked`] |
//! | phase 2: the disk's buffer is flushed | [`Action::Commit2`]: the gateway makes record N durable |
//! | COMMIT 3: the backup merges | [`Action::Commit3`] |
//!
//! Two differences. The flush of phase 2 is atomic (one commit record decides; the images follow in the background),
//! and the VM runs on from the moment the checkpoint is captured, so several epochs can be in flight: each goes
//! through the phases in order, and none overtakes another.
//!
//! Invariants held here: *held first* (4): [`Action::Commit2`] for N is made in one place, from
//! [`Event::Commit1Acked`] for N. *Output commit* (5): output is held from before the first cut ([`Action::HoldOutput`]);
//! [`Action::ReleaseOutput`] for N is made in one place, from [`Event::Committed`] for N, and [`Action::PassOutput`] in one
//! place, from [`Event::Drained`]. *Fencing* (6): after [`Event::Fenced`] nothing but [`Action::StopVm`] and
//! [`Action::Yield`] comes out, ever.

use std::collections::VecDeque;

use nbd_server::Epoch;

/// Something that happened, as told by `source_loop`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// A standby answered Welcome: it is ready for the first copy.
    StandbyJoined {
        /// Its id.
        standby: String,
    },
    /// The first copy of the guest's RAM is on its way in full.
    BaseSent,
    /// The interval has passed, or the gateway asks for a checkpoint.
    CheckpointDue,
    /// The pause is over: epoch `epoch` is sealed at the gateway and its memory and devices are captured.
    Captured {
        /// The epoch that the gateway sealed.
        epoch: Epoch,
    },
    /// The capture failed and the VM runs on; the gateway may or may not have sealed an epoch.
    CaptureFailed,
    /// The standby holds checkpoint `epoch`, complete and verified.
    Commit1Acked {
        /// Its epoch.
        epoch: Epoch,
    },
    /// Record `epoch` is durable.
    Committed {
        /// Its epoch.
        epoch: Epoch,
    },
    /// The record can't be written now (the log is full, say); nothing is lost, the VM runs on.
    CommitFailed {
        /// Its epoch.
        epoch: Epoch,
    },
    /// The operator moves the VM to its standby.
    SwitchoverAsked,
    /// That takes too long; it is to run on here.
    SwitchoverOff,
    /// The standby is gone or silent.
    StandbyLost,
    /// The gateway is in sync mode; all that the guest wrote is committed.
    Drained,
    /// The gateway can't be drained now; try again.
    DrainFailed,
    /// A newer generation owns the disks.
    Fenced,
    /// The VM can't go on here (QEMU died, was killed or crashed).
    VmLost,
    /// The guest powered off, or the operator stops it.
    VmEnded,
}

/// Something to do now.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send the guest's whole RAM to the standby while the guest runs.
    CopyBase,
    /// Pause the VM, seal the epoch at the gateway, capture memory and devices, let the VM run on.
    Capture,
    /// The last one of a switchover: the same, but the VM stays paused.
    CaptureLast,
    /// The switchover is off: let the VM run on.
    RunOn,
    /// Send the captured checkpoint, ending with COMMIT 1.
    SendCheckpoint {
        /// Its epoch.
        epoch: Epoch,
    },
    /// COMMIT 2: have the gateway write commit record `epoch`, which names the standby that holds the memory.
    Commit2 {
        /// Its epoch.
        epoch: Epoch,
        /// The standby that acknowledged COMMIT 1.
        standby: String,
    },
    /// From now on nothing that the guest sends leaves before it is released.
    HoldOutput,
    /// All that the guest sent may leave, and what it sends from now on: sync mode, nothing is rolled back.
    PassOutput,
    /// What the guest sent up to and in `epoch` may leave.
    ReleaseOutput {
        /// The epoch.
        epoch: Epoch,
    },
    /// COMMIT 3: the standby may merge.
    Commit3 {
        /// The epoch.
        epoch: Epoch,
    },
    /// Close the channel and forget the checkpoints in flight.
    DropStandby,
    /// Have the gateway record sync mode and commit all that it holds.
    DrainToSync,
    /// Look for a standby (again).
    SeekStandby,
    /// Stop the VM at once and for good: it is not ours any more.
    StopVm,
    /// Tell the standby to take over, if the channel is still open.
    Yield,
    /// The VM ended as planned: tell the standby, hand the disks back.
    End,
}

/// Where the source stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Sync mode, no standby: the VM runs and is not protected.
    Unprotected,
    /// The first copy is on its way; the group is still in sync mode.
    Filling {
        /// Where it goes.
        standby: String,
    },
    /// Checkpoints flow. Protected once the first of them is committed.
    Protecting {
        /// Who holds the memory.
        standby: String,
        /// The first committed epoch, if there is one.
        protected_since: Option<Epoch>,
    },
    /// The standby is lost; the gateway is being drained to sync mode.
    Draining,
    /// Over: fenced, lost or ended.
    Over,
}

/// An epoch between its capture and its commit record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct InFlight {
    epoch: Epoch,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    /// On its way to the standby.
    Sent,
    /// The standby holds it; its turn for COMMIT 2 has not come.
    Held,
    /// COMMIT 2 is under way.
    Committing,
}

/// A planned move of the VM to its standby: one more checkpoint, after which the VM stays paused, and when that is committed the standby
/// goes on from it. Nothing is rolled back, as nothing happens after the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
enum Switchover {
    /// Nobody has asked for one.
    #[default]
    No,
    /// The last capture waits for the one under way.
    Asked,
    /// The last capture is under way.
    Capturing,
    /// The last epoch is on its way to its commit record.
    Last(Epoch),
    /// Given up while the last capture was under way, which leaves the VM paused.
    Off,
}

/// The state machine of a source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    phase: Phase,
    in_flight: VecDeque<InFlight>,
    limit: usize,
    /// A capture is under way. While it is, the gateway is not drained: its seal would turn async mode on again.
    capturing: bool,
    /// The capture under way belongs to a standby that was lost meanwhile.
    capture_is_stale: bool,
    committed: Option<Epoch>,
    switchover: Switchover,
}

impl Source {
    /// A source that runs unprotected, with at most `limit` (at least 1) epochs in flight later on.
    pub fn new(limit: usize) -> Self {
        Self {
            phase: Phase::Unprotected,
            in_flight: VecDeque::new(),
            limit: limit.max(1),
            capturing: false,
            capture_is_stale: false,
            committed: None,
            switchover: Switchover::No,
        }
    }

    /// Where it stands.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Whether a failure now would be survived: the first checkpoint is committed and the standby is there.
    pub fn protected(&self) -> bool {
        matches!(
            self.phase,
            Phase::Protecting {
                protected_since: Some(_),
                ..
            }
        )
    }

    /// The last epoch whose record is known to be durable.
    pub fn committed(&self) -> Option<Epoch> {
        self.committed
    }

    /// Whether a capture is under way.
    pub fn capturing(&self) -> bool {
        self.capturing
    }

    /// Whether a switchover is under way.
    pub fn switching(&self) -> bool {
        !matches!(self.switchover, Switchover::No | Switchover::Off)
    }

    /// The last epoch of a switchover that has succeeded: the standby goes on from it.
    pub fn moved(&self) -> Option<Epoch> {
        match self.switchover {
            Switchover::Last(epoch) if self.is_over() && self.committed == Some(epoch) => {
                Some(epoch)
            }
            _ => None,
        }
    }

    /// Whether the VM does not run here any more, or must not.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Epochs captured and not yet committed.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Takes one event and says what is to be done, in this order.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        if self.phase == Phase::Over {
            return Vec::new();
        }
        match event {
            Event::StandbyJoined { standby } => self.standby_joined(standby),
            Event::BaseSent => self.base_sent(),
            Event::CheckpointDue => self.checkpoint_due(),
            Event::Captured { epoch } => self.captured(epoch),
            Event::CaptureFailed => self.capture_failed(),
            Event::Commit1Acked { epoch } => self.commit1_acked(epoch),
            Event::Committed { epoch } => self.commit_durable(epoch),
            Event::CommitFailed { epoch } => self.commit_failed(epoch),
            Event::SwitchoverAsked => self.switchover_asked(),
            Event::SwitchoverOff => self.switchover_off(),
            Event::StandbyLost => self.standby_lost(),
            Event::Drained => self.drained(),
            Event::DrainFailed => self.drain_failed(),
            Event::Fenced | Event::VmLost => self.over(vec![Action::StopVm, Action::Yield]),
            Event::VmEnded => self.over(vec![Action::End]),
        }
    }

    fn standby_joined(&mut self, standby: String) -> Vec<Action> {
        if self.phase != Phase::Unprotected {
            return Vec::new();
        }
        self.phase = Phase::Filling { standby };
        vec![Action::CopyBase]
    }

    fn base_sent(&mut self) -> Vec<Action> {
        let Phase::Filling { standby } = &self.phase else {
            return Vec::new();
        };
        self.phase = Phase::Protecting {
            standby: standby.clone(),
            protected_since: None,
        };
        let mut actions = vec![Action::HoldOutput];
        actions.extend(self.checkpoint_due());
        actions
    }

    /// Until the first commit a flush of the guest waits for it, and the next capture's `stop` would wait for that flush: if the
    /// standby were lost then, neither would ever end.
    fn checkpoint_due(&mut self) -> Vec<Action> {
        let limit = match self.phase {
            Phase::Protecting {
                protected_since: Some(_),
                ..
            } => self.limit,
            Phase::Protecting { .. } => 1,
            _ => 0,
        };
        if self.capturing || self.in_flight.len() >= limit || self.switching() {
            return Vec::new();
        }
        self.capturing = true;
        vec![Action::Capture]
    }

    /// Only what is protected can be moved.
    fn switchover_asked(&mut self) -> Vec<Action> {
        if !self.protected() || self.switchover != Switchover::No {
            return Vec::new();
        }
        self.switchover = Switchover::Asked;
        self.capture_last()
    }

    fn capture_last(&mut self) -> Vec<Action> {
        if self.switchover != Switchover::Asked || self.capturing {
            return Vec::new();
        }
        self.switchover = Switchover::Capturing;
        self.capturing = true;
        vec![Action::CaptureLast]
    }

    /// The VM runs on; what was to be the last epoch is one like any other.
    fn switchover_off(&mut self) -> Vec<Action> {
        let (next, actions) = match self.switchover {
            Switchover::No | Switchover::Asked => (Switchover::No, Vec::new()),
            Switchover::Capturing | Switchover::Off => (Switchover::Off, Vec::new()),
            Switchover::Last(_) => (Switchover::No, vec![Action::RunOn]),
        };
        self.switchover = next;
        actions
    }

    /// A capture has ended. If it was the last one of a switchover that is off by now, the VM runs on.
    fn capture_ended(&mut self) -> Vec<Action> {
        self.capturing = false;
        if self.switchover == Switchover::Off {
            self.switchover = Switchover::No;
            return vec![Action::RunOn];
        }
        Vec::new()
    }

    fn captured(&mut self, epoch: Epoch) -> Vec<Action> {
        let mut actions = self.capture_ended();
        if std::mem::take(&mut self.capture_is_stale) {
            actions.push(Action::DrainToSync);
            return actions;
        }
        self.in_flight.push_back(InFlight {
            epoch,
            stage: Stage::Sent,
        });
        actions.push(Action::SendCheckpoint { epoch });
        if self.switchover == Switchover::Capturing {
            self.switchover = Switchover::Last(epoch);
        }
        actions.extend(self.capture_last());
        actions
    }

    /// A seal may have happened whose memory was not captured. It can't be completed, and a later checkpoint can't
    /// leave it out: the way back to a consistent pair is through sync mode and a new first copy.
    fn capture_failed(&mut self) -> Vec<Action> {
        let stale = std::mem::take(&mut self.capture_is_stale);
        let mut actions = self.switchover_off();
        actions.extend(self.capture_ended());
        if stale {
            actions.push(Action::DrainToSync);
        } else {
            actions.extend(self.standby_lost());
        }
        actions
    }

    fn commit1_acked(&mut self, epoch: Epoch) -> Vec<Action> {
        let sent = self
            .in_flight
            .iter_mut()
            .find(|e| e.epoch == epoch && e.stage == Stage::Sent);
        let Some(entry) = sent else {
            return Vec::new();
        };
        entry.stage = Stage::Held;
        self.commit_next()
    }

    /// COMMIT 2 for the oldest epoch, if the standby holds it. Records are written strictly in order.
    fn commit_next(&mut self) -> Vec<Action> {
        let Phase::Protecting { standby, .. } = &self.phase else {
            return Vec::new();
        };
        match self.in_flight.front_mut() {
            Some(oldest) if oldest.stage == Stage::Held => {
                oldest.stage = Stage::Committing;
                vec![Action::Commit2 {
                    epoch: oldest.epoch,
                    standby: standby.clone(),
                }]
            }
            _ => Vec::new(),
        }
    }

    fn commit_durable(&mut self, epoch: Epoch) -> Vec<Action> {
        let awaited = self
            .in_flight
            .front()
            .is_some_and(|e| e.epoch == epoch && e.stage == Stage::Committing);
        if !awaited {
            return Vec::new();
        }
        self.in_flight.pop_front();
        self.committed = Some(epoch);
        if let Phase::Protecting {
            protected_since, ..
        } = &mut self.phase
        {
            protected_since.get_or_insert(epoch);
        }
        let mut actions = vec![Action::ReleaseOutput { epoch }, Action::Commit3 { epoch }];
        if self.switchover == Switchover::Last(epoch) {
            // The pair (disk, memory) of the last epoch is what the standby goes on from.
            actions.extend(self.over(vec![Action::StopVm, Action::Yield]));
            return actions;
        }
        actions.extend(self.commit_next());
        actions
    }

    /// Tried again at once: `source_loop` paces it by the moment at which it reports the failure. Until then the VM
    /// runs on and the gateway holds what it writes.
    fn commit_failed(&mut self, epoch: Epoch) -> Vec<Action> {
        if let Some(oldest) = self.in_flight.front_mut()
            && oldest.epoch == epoch
            && oldest.stage == Stage::Committing
        {
            oldest.stage = Stage::Held;
            return self.commit_next();
        }
        Vec::new()
    }

    fn standby_lost(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Filling { .. } => {
                // Nothing was sealed: the group never left sync mode.
                self.phase = Phase::Unprotected;
                vec![Action::DropStandby, Action::SeekStandby]
            }
            Phase::Protecting { .. } => {
                self.phase = Phase::Draining;
                self.in_flight.clear();
                let mut actions = self.switchover_off();
                actions.push(Action::DropStandby);
                if self.capturing {
                    self.capture_is_stale = true;
                } else {
                    actions.push(Action::DrainToSync);
                }
                actions
            }
            Phase::Unprotected | Phase::Draining | Phase::Over => Vec::new(),
        }
    }

    fn drained(&mut self) -> Vec<Action> {
        if self.phase != Phase::Draining {
            return Vec::new();
        }
        self.phase = Phase::Unprotected;
        vec![Action::PassOutput, Action::SeekStandby]
    }

    fn drain_failed(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Draining => vec![Action::DrainToSync],
            _ => Vec::new(),
        }
    }

    fn over(&mut self, last: Vec<Action>) -> Vec<Action> {
        self.phase = Phase::Over;
        self.in_flight.clear();
        last
    }
}

#[cfg(test)]
mod tests;
