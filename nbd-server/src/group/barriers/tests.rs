#![allow(clippy::unwrap_used, clippy::expect_used)]
//! The rules, one by one, and random histories with crashes against what must hold in all of them.

use epoch_log::{Epoch, Generation, Holder, LogState, Mode};
use proptest::prelude::*;

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

#[test]
fn a_new_group_is_in_the_mode_of_its_configuration() {
    assert_eq!(Rig::new(false).machine.gate(), Gate::Through);
    let rig = Rig::new(true);
    assert_eq!(rig.machine.gate(), Gate::Held(FlushRule::SelfCommits));
    assert_eq!(rig.log.mode, Mode::Async { holder: None });
}

#[test]
fn the_first_seal_leads_to_async_mode_only_when_the_log_says_so() {
    let mut rig = Rig::new(false);
    let generation = rig.attach("a");
    let effects = rig.machine.step(Input::Seal { generation }).unwrap();
    assert_eq!(
        effects,
        [Effect::Gate(Gate::Closed), Effect::Seal(Epoch(1))]
    );
    assert_eq!(
        rig.machine.outstanding().unwrap(),
        [LogOp::SetMode(Mode::Async { holder: None })]
    );
    rig.perform_log();
    // A flush waits: there is no memory yet that guest and disk could roll back to together.
    assert_eq!(rig.machine.gate(), Gate::Held(FlushRule::Waits));
    let generation = rig.generation();
    rig.machine
        .step(Input::Commit {
            generation,
            epoch: Epoch(1),
            standby: Some("b".into()),
        })
        .unwrap();
    let ops = rig.machine.outstanding().unwrap();
    assert_eq!(
        ops.first(),
        Some(&LogOp::SyncImages),
        "what went through before belongs to epoch 1"
    );
    rig.perform_log();
    assert_eq!(rig.machine.gate(), Gate::Held(FlushRule::Free));
}

#[test]
fn a_first_seal_that_does_not_fit_into_the_log_leaves_sync_mode() {
    let mut rig = Rig::new(false);
    let generation = rig.attach("a");
    rig.machine.step(Input::Seal { generation }).unwrap();
    let effects = rig
        .machine
        .step(Input::LogDone {
            done: 0,
            outcome: LogOutcome::Retry,
        })
        .unwrap();
    assert_eq!(
        effects,
        [Effect::DropUncommitted, Effect::Gate(Gate::Through)]
    );
    assert_eq!(
        rig.commit(Epoch(1), "b"),
        Err(Refusal::NotSealed {
            epoch: Epoch(1),
            sealed: Epoch(0)
        })
    );
}

#[test]
fn commits_go_in_order_and_are_idempotent() {
    let mut rig = Rig::protected();
    let (two, three) = (rig.seal(), rig.seal());
    assert_eq!(
        rig.commit(three, "b"),
        Err(Refusal::OutOfOrder {
            epoch: three,
            next: two
        })
    );
    assert_eq!(
        rig.commit(Epoch(9), "b"),
        Err(Refusal::NotSealed {
            epoch: Epoch(9),
            sealed: three
        })
    );
    rig.commit(two, "b").unwrap();
    assert_eq!(rig.commit(two, "b"), Ok(Vec::new()));
    rig.commit(three, "b").unwrap();
    assert_eq!(rig.machine.committed(), three);
}

#[test]
fn under_a_source_every_commit_names_a_standby_and_never_the_owner() {
    let mut rig = Rig::protected();
    let epoch = rig.seal();
    let generation = rig.generation();
    let none = rig.ask(Input::Commit {
        generation,
        epoch,
        standby: None,
    });
    assert_eq!(none, Err(Refusal::WrongStandby));
    assert_eq!(rig.commit(epoch, "a"), Err(Refusal::WrongStandby));
}

#[test]
fn a_takeover_fences_the_source_and_keeps_the_disk_untouched_until_the_first_write() {
    let mut rig = Rig::protected();
    let old = rig.generation();
    let lost = rig.seal();
    let effects = rig.takeover("b").unwrap();
    let generation = rig.generation();
    assert_eq!(
        effects,
        [
            Effect::Gate(Gate::Closed),
            Effect::DropUncommitted,
            Effect::Generation {
                generation,
                owner: Some("b".into())
            },
            Effect::Gate(Gate::Closed),
        ]
    );
    for input in [
        Input::Seal { generation: old },
        Input::Commit {
            generation: old,
            epoch: lost,
            standby: Some("b".into()),
        },
        Input::DrainToSync { generation: old },
        Input::Abort { generation: old },
        Input::Detach { generation: old },
    ] {
        assert!(matches!(rig.ask(input), Err(Refusal::Fenced { .. })));
    }
    assert!(matches!(
        rig.machine.admit(Some("a")),
        Err(Refusal::UsedId { .. })
    ));
    assert_eq!(rig.machine.admit(Some("b")), Ok(Admission::Source));
    // The answer was lost: asked again, also after a restart, it is the same.
    let before = (generation, rig.machine.committed());
    rig.takeover("b").unwrap();
    let mut restarted = rig.crash();
    restarted.takeover("b").unwrap();
    assert_eq!(
        (restarted.generation(), restarted.machine.committed()),
        before
    );
    // With the first write it is over.
    rig.ask(Input::WriteWaits).unwrap();
    rig.settle();
    assert_eq!(
        (rig.machine.gate(), &rig.log.mode),
        (Gate::Through, &Mode::Sync)
    );
    assert_eq!(
        rig.takeover("b"),
        Err(Refusal::MemoryStale { since: Epoch(1) })
    );
}

#[test]
fn takeovers_that_would_resume_wrong_memory_are_refused_with_the_reason() {
    let mut rig = Rig::new(false);
    rig.attach("a");
    assert_eq!(rig.takeover("b"), Err(Refusal::NoCheckpoint));
    rig.seal();
    assert_eq!(rig.takeover("b"), Err(Refusal::NoCheckpoint));
    rig.commit(Epoch(1), "b").unwrap();
    assert!(matches!(
        rig.takeover("c"),
        Err(Refusal::OtherHolder { .. })
    ));
    let generation = rig.generation();
    rig.ask(Input::DrainToSync { generation }).unwrap();
    assert_eq!(
        rig.takeover("b"),
        Err(Refusal::MemoryStale { since: Epoch(1) })
    );
    rig.settle();
    assert_eq!(
        (rig.machine.gate(), &rig.log.mode),
        (Gate::Through, &Mode::Sync)
    );
    assert_eq!(
        rig.takeover("b"),
        Err(Refusal::MemoryStale { since: Epoch(1) })
    );
    rig.attach("d");
    assert_eq!(rig.takeover("b"), Err(Refusal::NoCheckpoint));
}

#[test]
fn draining_voids_the_memory_before_it_commits_anything() {
    let mut rig = Rig::protected();
    rig.seal();
    let generation = rig.generation();
    rig.machine.step(Input::DrainToSync { generation }).unwrap();
    assert_eq!(
        rig.machine.outstanding().unwrap(),
        [LogOp::SetMode(Mode::Async { holder: None })]
    );
    rig.perform_log();
    assert_eq!(rig.machine.gate(), Gate::Closed);
    assert_eq!(rig.ask(Input::Seal { generation }), Err(Refusal::Draining));
    // A gateway that dies now has lost what was acknowledged, and knows it.
    assert!(rig.crash().generation() > generation);
    rig.settle();
    assert_eq!(
        rig.machine.committed(),
        Epoch(3),
        "the sealed and the open epoch are committed"
    );
    assert_eq!(rig.generation(), generation);
}

#[test]
fn detaching_commits_and_gives_the_group_back() {
    for self_commit in [false, true] {
        let mut rig = Rig::new(self_commit);
        let generation = rig.attach("a");
        rig.seal();
        rig.commit(Epoch(1), "b").unwrap();
        rig.ask(Input::Detach { generation }).unwrap();
        rig.settle();
        assert_eq!(rig.machine.committed(), Epoch(2));
        assert_eq!(rig.machine.owner(), None);
        assert!(rig.generation() > generation);
        let gate = if self_commit {
            Gate::Held(FlushRule::SelfCommits)
        } else {
            Gate::Through
        };
        assert_eq!(rig.machine.gate(), gate);
        assert_eq!(
            rig.machine.admit(None),
            Ok(Admission::Plain { writable: true })
        );
    }
}

#[test]
fn an_abort_leaves_the_group_to_its_standby() {
    let mut rig = Rig::protected();
    rig.seal();
    let generation = rig.generation();
    rig.ask(Input::Abort { generation }).unwrap();
    assert_eq!(rig.machine.phase(), Phase::Reserved);
    assert_eq!(
        rig.machine.admit(None),
        Ok(Admission::Plain { writable: false })
    );
    rig.takeover("b").unwrap();
    assert_eq!(rig.machine.committed(), Epoch(1));
}

#[test]
fn a_restart_fences_exactly_those_who_may_have_lost_writes() {
    let protected = Rig::protected();
    let mut restarted = protected.crash();
    assert!(restarted.generation() > protected.generation());
    assert_eq!(restarted.machine.owner(), None);
    restarted
        .takeover("b")
        .expect("the holder can take over epoch E");

    let mut sync = Rig::new(false);
    let generation = sync.attach("a");
    let restarted = sync.crash();
    assert_eq!(
        restarted.generation(),
        generation,
        "in sync mode nothing is lost"
    );
    assert_eq!(restarted.machine.admit(Some("a")), Ok(Admission::Source));

    sync.seal();
    assert!(
        sync.crash().generation() > generation,
        "after the first seal something may be"
    );
}

#[test]
fn ids_are_used_once() {
    let mut rig = Rig::protected();
    rig.attach("c");
    for id in ["a", "b"] {
        let refused = rig.ask(Input::AttachSource { owner: id.into() });
        assert_eq!(refused, Err(Refusal::UsedId { id: id.into() }));
    }
    assert_eq!(
        rig.ask(Input::Park {
            standby: "a".into()
        }),
        Err(Refusal::UsedId { id: "a".into() })
    );
    assert_eq!(
        rig.ask(Input::Park {
            standby: "c".into()
        }),
        Err(Refusal::UsedId { id: "c".into() })
    );
    let bad = rig.ask(Input::Park {
        standby: "x@y".into(),
    });
    assert_eq!(bad, Err(Refusal::BadId { id: "x@y".into() }));
    assert!(matches!(
        rig.machine.admit(Some("z")),
        Err(Refusal::UnknownInstance { .. })
    ));
}

#[test]
fn an_attach_whose_answer_was_lost_can_be_asked_again() {
    let mut rig = Rig::new(false);
    let generation = rig.attach("a");
    assert_eq!(
        rig.ask(Input::AttachSource { owner: "a".into() }),
        Ok(Vec::new())
    );
    assert_eq!(rig.generation(), generation);
    rig.seal();
    let late = rig.ask(Input::AttachSource { owner: "a".into() });
    assert_eq!(late, Err(Refusal::UsedId { id: "a".into() }));
}

#[test]
fn the_oldest_parked_standby_is_forgotten_but_never_the_holder() {
    let mut rig = Rig::protected();
    let mut forgotten = Vec::new();
    for i in 0..MAX_PARKED {
        forgotten.extend(
            rig.ask(Input::Park {
                standby: format!("s{i}"),
            })
            .unwrap(),
        );
    }
    assert_eq!(forgotten, [Effect::Forget("s0".into())]);
    assert_eq!(rig.machine.admit(Some("b")), Ok(Admission::Parked));
}

#[test]
fn a_broken_log_stops_everything() {
    let mut rig = Rig::protected();
    let (generation, epoch) = (rig.generation(), rig.seal());
    rig.machine
        .step(Input::Commit {
            generation,
            epoch,
            standby: Some("b".into()),
        })
        .unwrap();
    let effects = rig
        .machine
        .step(Input::LogDone {
            done: 0,
            outcome: LogOutcome::Broken,
        })
        .unwrap();
    assert_eq!(effects, [Effect::Gate(Gate::Broken)]);
    assert_eq!(
        rig.machine.step(Input::Seal { generation }),
        Err(Refusal::Broken)
    );
    assert_eq!(
        rig.machine.step(Input::Takeover {
            standby: "b".into()
        }),
        Err(Refusal::Broken)
    );
}

#[derive(Debug, Clone)]
enum Event {
    Attach(usize),
    Park(usize),
    Seal { stale: bool },
    Commit { standby: usize, stale: bool },
    Drain,
    Takeover(usize),
    Abort,
    Detach,
    Write,
    Flush,
    Settle,
    Crash,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (0..3_usize).prop_map(Event::Attach),
        1 => (0..3_usize).prop_map(Event::Park),
        6 => prop::bool::weighted(0.1).prop_map(|stale| Event::Seal { stale }),
        6 => (0..3_usize, prop::bool::weighted(0.1)).prop_map(|(standby, stale)| Event::Commit { standby, stale }),
        1 => Just(Event::Drain),
        2 => (0..3_usize).prop_map(Event::Takeover),
        1 => Just(Event::Abort),
        1 => Just(Event::Detach),
        6 => Just(Event::Write),
        2 => Just(Event::Flush),
        3 => Just(Event::Settle),
        2 => Just(Event::Crash),
    ]
}

/// What is true of the world, whatever the machine believes.
#[derive(Debug, Default)]
struct Truth {
    /// The standby whose memory belongs to the committed disks.
    memory: Option<String>,
    /// The owner has been told of writes that are in no committed epoch and in no image.
    volatile: bool,
    /// The owner has been told that such writes are durable, although no memory could roll back with them.
    promised: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_history_resumes_stale_memory_or_hides_a_loss(
        self_commit in any::<bool>(),
        events in proptest::collection::vec(event(), 1..80),
    ) {
        let mut rig = Rig::new(self_commit);
        let mut truth = Truth::default();
        for event in events {
            let (generation, committed) = (rig.generation(), rig.machine.committed());
            let given = |stale: bool| Generation(generation.0 - u64::from(stale && generation.0 > 0));
            match event {
                Event::Attach(i) => {
                    let id = format!("a{i}-{generation}");
                    if rig.ask(Input::AttachSource { owner: id }).is_ok() {
                        truth = Truth { memory: None, ..Truth::default() };
                    }
                }
                Event::Park(i) => drop(rig.ask(Input::Park { standby: format!("b{i}") })),
                Event::Seal { stale } => {
                    let given = given(stale);
                    let sealed = rig.ask(Input::Seal { generation: given });
                    prop_assert!(sealed.is_err() || given == generation);
                }
                Event::Commit { standby, stale } => {
                    let standby = format!("b{standby}");
                    let (given, epoch) = (given(stale), committed.next());
                    let input = Input::Commit { generation: given, epoch, standby: Some(standby.clone()) };
                    if rig.ask(input).is_ok() {
                        prop_assert_eq!(given, generation);
                        truth.memory = Some(standby);
                        truth.volatile = rig.machine.sealed() > epoch || truth.volatile;
                        truth.promised = false;
                    }
                }
                Event::Drain => drop(rig.ask(Input::DrainToSync { generation })),
                Event::Takeover(i) => {
                    let id = format!("b{i}");
                    if rig.ask(Input::Takeover { standby: id.clone() }).is_ok() {
                        prop_assert_eq!(truth.memory.as_ref(), Some(&id), "memory that does not fit the disks");
                        truth.volatile = false;
                    }
                }
                Event::Abort => {
                    if rig.ask(Input::Abort { generation }).is_ok() {
                        truth.volatile = false;
                    }
                }
                Event::Detach => drop(rig.ask(Input::Detach { generation })),
                Event::Write => {
                    rig.ask(Input::WriteWaits).unwrap();
                    match rig.machine.gate() {
                        Gate::Through => truth.memory = None,
                        Gate::Held(_) => truth.volatile = true,
                        Gate::Closed | Gate::Broken => {}
                    }
                }
                Event::Flush => {
                    let free = rig.machine.gate() == Gate::Held(FlushRule::Free);
                    truth.promised |= free && truth.memory.is_none();
                    prop_assert!(!truth.promised, "a FLUSH was answered that nothing backs");
                }
                Event::Settle => {
                    rig.settle();
                    if matches!(rig.machine.gate(), Gate::Through) {
                        truth.volatile = false;
                    }
                }
                Event::Crash => {
                    rig = rig.crash();
                    let same = rig.generation() == generation;
                    prop_assert!(!(truth.volatile && same), "the owner goes on without its writes");
                    truth.volatile = false;
                }
            }
            if rig.generation() > generation {
                truth.volatile = false;
            }
            let by_standby = matches!(event, Event::Commit { .. });
            if rig.machine.committed() > committed && !by_standby {
                truth.memory = None;
            }
            prop_assert!(rig.machine.committed() >= committed && rig.generation() >= generation);
            if rig.machine.outstanding().is_none() {
                let holder = rig.machine.holder().map(|holder| &holder.standby);
                prop_assert!(holder.is_none() || holder == truth.memory.as_ref(), "the log names a wrong holder");
            }
        }
    }
}
