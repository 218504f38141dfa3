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
