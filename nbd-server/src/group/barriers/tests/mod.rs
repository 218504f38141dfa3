#![allow(clippy::unwrap_used, clippy::expect_used)]
//! The rules, one by one, and random histories: here is the machine with a log that does what it is told.

mod always;
mod epochs;
mod handover;
mod histories;
mod late;

use epoch_log::{Epoch, Generation, Holder, LogState, Mode};

use super::*;

/// The machine with a log beside it that does what it is told.
#[derive(Debug, Clone)]
struct Rig {
    machine: Barriers,
    log: LogState,
    holds: Holds,
    effects: Vec<Effect>,
}

impl Rig {
    fn new(holds: Holds) -> Self {
        Self::of(LogState::new(), Ending::Closed, holds)
    }

    fn of(log: LogState, ending: Ending, holds: Holds) -> Self {
        let machine = Barriers::recover(&log, ending, holds);
        let mut rig = Self {
            machine,
            log,
            holds,
            effects: Vec::new(),
        };
        rig.settle();
        rig
    }

    /// The process dies and starts again, and nothing that it held is found; recovery applies what is committed.
    fn crash(&self) -> Self {
        Self::of(self.log_applied(), Ending::Died, self.holds)
    }

    fn log_applied(&self) -> LogState {
        LogState {
            applied: self.log.committed,
            ..self.log.clone()
        }
    }

    /// The process dies and starts again with what it held, in a group that holds now as `holds` says. None: it holds nothing.
    fn resume(&self, holds: Holds, held: bool) -> Option<Self> {
        let left = Left {
            generation: self.generation(),
            sealed: self.machine.sealed(),
            held,
            parked: self.machine.parked().map(str::to_owned).collect(),
        };
        let log = self.log_applied();
        let machine = Barriers::resume(&log, holds, &left)?;
        let effects = Vec::new();
        let mut rig = Self {
            machine,
            log,
            holds,
            effects,
        };
        rig.perform_log();
        Some(rig)
    }

    fn ask(&mut self, input: Input) -> Result<Vec<Effect>, Refusal> {
        let before = self.machine.clone();
        self.effects.clear();
        match self.machine.step(input) {
            Ok(effects) => self.effects = effects,
            Err(refusal) => {
                assert_eq!(before, self.machine, "a refusal must change nothing");
                return Err(refusal);
            }
        }
        self.perform_log();
        Ok(self.effects.clone())
    }

    fn perform_log(&mut self) {
        if let Some(ops) = self.machine.outstanding() {
            let ops = ops.to_vec();
            for op in &ops {
                self.write(op);
            }
            let done = ops.len();
            let more = self
                .machine
                .step(Input::LogDone {
                    done,
                    outcome: LogOutcome::Done,
                })
                .unwrap();
            self.effects.extend(more);
        }
        assert_eq!(self.machine.generation(), self.log.generation);
        assert_eq!(self.machine.owner(), self.log.owner.as_deref());
        assert_eq!(self.machine.holder(), self.log.mode.holder());
        assert_eq!(self.machine.committed(), self.log.committed);
    }

    /// What the real log would do, with its own checks.
    fn write(&mut self, op: &LogOp) {
        match op {
            LogOp::SyncImages => {}
            LogOp::SetMode(mode) => self.log.mode = mode.clone(),
            LogOp::RaiseGeneration { owner, .. } => {
                self.log.generation = self.log.generation.next();
                self.log.owner = owner.clone();
            }
            LogOp::Commit { epoch, standby } => {
                assert_eq!(*epoch, self.log.committed.next());
                self.log.committed = *epoch;
                match (standby, self.log.mode.holder()) {
                    (None, holder) => {
                        assert_eq!(holder, None, "an unacknowledged epoch while memory is held")
                    }
                    (Some(standby), Some(holder)) if holder.standby == *standby => {}
                    (Some(standby), _) => {
                        let holder = Holder {
                            standby: standby.clone(),
                            since: *epoch,
                        };
                        self.log.mode = Mode::Async {
                            holder: Some(holder),
                        };
                    }
                }
            }
        }
    }

    /// Lets the machine do all it wants to do by itself, with an applier that keeps up.
    fn settle(&mut self) {
        self.perform_log();
        for _ in 0..50 {
            let applied = Input::Applied {
                epoch: self.machine.committed(),
            };
            self.machine.step(applied).unwrap();
            self.machine.step(Input::Advance).unwrap();
            self.perform_log();
        }
    }

    /// What the committer does for a group that commits by itself, with something in the open epoch.
    fn self_commit(&mut self) -> Epoch {
        self.ask(Input::SelfSeal).unwrap();
        self.commit_sealed();
        self.machine.committed()
    }

    fn commit_sealed(&mut self) {
        while self.machine.committed() < self.machine.sealed() {
            self.ask(Input::Commit {
                generation: self.generation(),
                epoch: self.machine.committed().next(),
                standby: None,
            })
            .unwrap();
        }
    }

    fn generation(&self) -> Generation {
        self.machine.generation()
    }

    fn attach(&mut self, owner: &str) -> Generation {
        self.ask(Input::AttachSource {
            owner: owner.into(),
        })
        .unwrap();
        self.settle();
        self.generation()
    }

    fn seal(&mut self) -> Epoch {
        let generation = self.generation();
        self.ask(Input::Seal { generation }).unwrap();
        self.machine.sealed()
    }

    fn commit(&mut self, epoch: Epoch, standby: &str) -> Result<Vec<Effect>, Refusal> {
        let generation = self.generation();
        self.ask(Input::Commit {
            generation,
            epoch,
            standby: Some(standby.into()),
        })
    }

    fn takeover(&mut self, standby: &str) -> Result<Vec<Effect>, Refusal> {
        self.ask(Input::Takeover {
            standby: standby.into(),
        })
    }

    /// A source under the protection of standby `b`, with one committed epoch.
    fn protected() -> Self {
        let mut rig = Self::new(Holds::Protected);
        rig.ask(Input::Park {
            standby: "b".into(),
        })
        .unwrap();
        rig.attach("a");
        let epoch = rig.seal();
        rig.commit(epoch, "b").unwrap();
        rig.settle();
        rig
    }
}
