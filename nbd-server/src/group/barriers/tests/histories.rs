//! Random histories with crashes, against what must hold in all of them.

use proptest::prelude::*;

use super::*;

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
    SelfCommit,
    Settle,
    Crash,
    MachineFails,
    Resume,
}

fn holds() -> impl Strategy<Value = Holds> {
    prop_oneof![
        1 => Just(Holds::Protected),
        1 => Just(Holds::Alone),
        2 => Just(Holds::Always),
    ]
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
        3 => Just(Event::SelfCommit),
        3 => Just(Event::Settle),
        2 => Just(Event::Crash),
        1 => Just(Event::MachineFails),
        1 => Just(Event::Resume),
    ]
}

/// What is true of the world, whatever the machine believes.
#[derive(Debug, Default)]
struct Truth {
    /// The standby whose memory belongs to the committed disks.
    memory: Option<String>,
    /// The owner has been told of writes that are in no committed epoch and in no image.
    volatile: bool,
    /// Some of them are in the open epoch.
    open: bool,
    /// The owner has been told that such writes are durable, although no memory could roll back with them.
    promised: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_history_resumes_stale_memory_or_hides_a_loss(
        holds in holds(),
        events in proptest::collection::vec(event(), 1..80),
    ) {
        let mut rig = Rig::new(holds);
        let mut truth = Truth::default();
        for event in events {
            let (generation, committed) = (rig.generation(), rig.machine.committed());
            let (sealed, by_itself) = (rig.machine.sealed(), rig.machine.commits_by_itself());
            let given = |stale: bool| Generation(generation.0 - u64::from(stale && generation.0 > 0));
            match event {
                Event::Attach(i) => {
                    let id = format!("a{i}-{generation}");
                    if rig.ask(Input::AttachSource { owner: id }).is_ok() {
                        truth = Truth { memory: None, ..Truth::default() };
                    }
                }
                Event::Park(i) => drop(rig.ask(Input::Park { standby: format!("b{i}") })),
                // The driver commits before, see `Group::try_seal`.
                Event::Seal { .. } if by_itself && truth.open => {}
                Event::Seal { stale } => {
                    let given = given(stale);
                    let sealed = rig.ask(Input::Seal { generation: given });
                    prop_assert!(sealed.is_err() || given == generation);
                    prop_assert!(sealed.is_err() || !by_itself || rig.machine.sealed() == committed.next(), "no empty first epoch");
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
                Event::Drain => drop(rig.ask(Input::DrainToSync { generation, protection: None })),
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
                        Gate::Held(_) => (truth.volatile, truth.open) = (true, true),
                        Gate::Closed | Gate::Broken => {}
                    }
                }
                Event::Flush => {
                    let free = rig.machine.gate() == Gate::Held(FlushRule::Free);
                    truth.promised |= free && truth.memory.is_none();
                    prop_assert!(!truth.promised, "a FLUSH was answered that nothing backs");
                }
                Event::SelfCommit => {
                    prop_assert_eq!(by_itself, rig.machine.gate() == Gate::Held(FlushRule::SelfCommits));
                    if by_itself {
                        if truth.open {
                            rig.ask(Input::SelfSeal).unwrap();
                        }
                        rig.commit_sealed();
                        truth.volatile = false;
                        truth.memory = None;
                    } else {
                        let refused = rig.ask(Input::SelfSeal);
                        prop_assert_eq!(refused, Err(Refusal::Busy));
                    }
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
                Event::MachineFails => {
                    let flushes = rig.log.mode == Mode::Sync;
                    rig = Rig::of(rig.log_applied(), Ending::MachineFailed, holds);
                    let same = rig.generation() == generation;
                    prop_assert!(!(truth.volatile && same) || flushes, "the owner goes on without its writes");
                    (truth.volatile, truth.open) = (false, false);
                }
                Event::Resume => match rig.resume(holds, truth.open) {
                    Some(resumed) => {
                        prop_assert_eq!(resumed.machine.sealed(), sealed);
                        prop_assert_eq!(resumed.machine.owner(), rig.machine.owner());
                        prop_assert!(matches!(resumed.machine.gate(), Gate::Held(_)));
                        rig = resumed;
                    }
                    None => {
                        prop_assert!(!truth.volatile, "what was held is not used");
                        rig = Rig::of(rig.log_applied(), Ending::MachineFailed, holds);
                    }
                }
            }
            if rig.machine.sealed() > sealed || rig.generation() > generation {
                truth.open = false;
            }
            prop_assert!(holds != Holds::Always || rig.machine.gate() != Gate::Through, "the images are written to");
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
