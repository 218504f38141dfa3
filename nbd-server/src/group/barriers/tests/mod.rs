#![allow(clippy::unwrap_used, clippy::expect_used)]
//! The rules, one by one, and random histories: here is the machine with a log that does what it is told.

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
    self_commit: bool,
    effects: Vec<Effect>,
}

impl Rig {
    fn new(self_commit: bool) -> Self {
        Self::of(LogState::new(), true, self_commit)
    }

    fn of(log: LogState, clean: bool, self_commit: bool) -> Self {
        let machine = Barriers::recover(&log, clean, self_commit);
        let mut rig = Self {
            machine,
            log,
            self_commit,
            effects: Vec::new(),
        };
        rig.settle();
        rig
    }

    /// The process dies and starts again; recovery applies what is committed.
    fn crash(&self) -> Self {
        let log = LogState {
            applied: self.log.committed,
            ..self.log.clone()
        };
        Self::of(log, false, self.self_commit)
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
        let mut rig = Self::new(false);
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
