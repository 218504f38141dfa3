//! Seals and drains that come twice, or after they were given up: nothing happens that nobody waits for.

use proptest::prelude::*;

use super::*;

const fn number(protection: u64, epoch: u64) -> SealNumber {
    SealNumber {
        epoch: Epoch(epoch),
        protection: Some(Protection(protection)),
    }
}

fn seal_as(rig: &mut Rig, protection: u64, epoch: u64) -> Result<Vec<Effect>, Refusal> {
    let generation = rig.generation();
    rig.ask(Input::SealAs {
        generation,
        number: number(protection, epoch),
    })
}

fn drain(rig: &mut Rig, protection: u64) -> Result<Vec<Effect>, Refusal> {
    let generation = rig.generation();
    rig.ask(Input::DrainToSync {
        generation,
        protection: Some(Protection(protection)),
    })
}

/// Under standby `b`, by numbers.
fn protected_by_number() -> Rig {
    let mut rig = Rig::new(Holds::Protected);
    rig.attach("a");
    seal_as(&mut rig, 1, 1).unwrap();
    rig.commit(Epoch(1), "b").unwrap();
    rig
}

const fn overtaken(given: u64, over: u64) -> Refusal {
    Refusal::Overtaken {
        given: Protection(given),
        over: Protection(over),
    }
}

/// Found by the simulator (seed 83574).
#[test]
fn a_drain_that_comes_again_is_void_once_its_source_protects_anew() {
    let mut rig = protected_by_number();
    drain(&mut rig, 1).unwrap();
    rig.settle();
    assert_eq!(
        drain(&mut rig, 1),
        Ok(Vec::new()),
        "asked again, answered again"
    );
    seal_as(&mut rig, 2, 3).unwrap();
    assert_eq!(drain(&mut rig, 1), Err(overtaken(1, 1)));
    rig.commit(Epoch(3), "c").unwrap();
    assert_eq!(drain(&mut rig, 1), Err(overtaken(1, 1)));
    assert_eq!(rig.machine.gate(), Gate::Held(FlushRule::Free));
    drain(&mut rig, 2).unwrap();
    rig.settle();
    assert_eq!(rig.machine.gate(), Gate::Through);
}

#[test]
fn a_seal_that_was_given_up_does_not_lead_to_async_mode() {
    let mut rig = Rig::new(Holds::Protected);
    rig.attach("a");
    // The first seal is still on its way.
    drain(&mut rig, 1).unwrap();
    assert_eq!(seal_as(&mut rig, 1, 1), Err(overtaken(1, 1)));
    assert_eq!(rig.machine.gate(), Gate::Through);
    seal_as(&mut rig, 2, 1).unwrap();
    assert_eq!(seal_as(&mut rig, 1, 1), Err(overtaken(1, 1)));
    assert_eq!(rig.machine.sealed(), Epoch(1));
}

#[test]
fn a_later_seal_that_was_given_up_is_void_as_well() {
    let mut rig = protected_by_number();
    drain(&mut rig, 1).unwrap();
    assert_eq!(
        seal_as(&mut rig, 1, 2),
        Err(overtaken(1, 1)),
        "while it drains"
    );
    rig.settle();
    let next = rig.machine.committed().next();
    assert_eq!(seal_as(&mut rig, 1, next.0), Err(overtaken(1, 1)));
}

#[test]
fn the_first_seal_can_be_asked_again_before_it_is_recorded() {
    let mut rig = Rig::new(Holds::Protected);
    let generation = rig.attach("a");
    let input = Input::SealAs {
        generation,
        number: number(1, 1),
    };
    rig.machine.step(input.clone()).unwrap();
    assert_eq!(rig.machine.phase(), Phase::Switching);
    assert_eq!(rig.machine.step(input), Ok(Vec::new()));
    rig.perform_log();
    assert_eq!(rig.machine.sealed(), Epoch(1));
}

#[test]
fn a_drain_that_found_the_log_full_can_be_asked_again() {
    let mut rig = protected_by_number();
    let generation = rig.generation();
    let input = Input::DrainToSync {
        generation,
        protection: Some(Protection(1)),
    };
    rig.machine.step(input.clone()).unwrap();
    rig.machine
        .step(Input::LogDone {
            done: 0,
            outcome: LogOutcome::Retry,
        })
        .unwrap();
    assert_eq!(rig.machine.phase(), Phase::Held);
    rig.ask(input).unwrap();
    rig.settle();
    assert_eq!(rig.machine.gate(), Gate::Through);
}

#[test]
fn a_drain_that_a_restart_cut_short_can_be_asked_again() {
    let mut rig = protected_by_number();
    drain(&mut rig, 1).unwrap();
    // The process dies and leaves its memory.
    let left = Left {
        generation: rig.generation(),
        sealed: rig.machine.sealed(),
        held: true,
        parked: Vec::new(),
    };
    rig.machine = Barriers::resume(&rig.log, Holds::Protected, &left).unwrap();
    drain(&mut rig, 1).unwrap();
    rig.settle();
    assert_eq!(rig.machine.gate(), Gate::Through);
    assert_eq!(seal_as(&mut rig, 1, 2), Err(overtaken(1, 1)));
}

#[test]
fn each_owner_counts_for_itself() {
    let mut rig = protected_by_number();
    drain(&mut rig, 7).unwrap();
    rig.settle();
    rig.attach("c");
    let next = rig.machine.committed().next();
    seal_as(&mut rig, 1, next.0).unwrap();
}

/// A takeover that its standby gave up, as an answer to it was lost and a second one was refused, arrives at any time while the source
/// protects anew. Under another standby it changes nothing.
#[test]
fn a_late_takeover_of_a_standby_that_was_replaced_changes_nothing() {
    let mut rig = protected_by_number();
    drain(&mut rig, 1).unwrap();
    let stale = Err(Refusal::MemoryStale { since: Epoch(1) });
    assert_eq!(rig.takeover("b"), stale, "while it drains");
    rig.settle();
    assert_eq!(rig.takeover("b"), stale);
    let next = rig.machine.committed().next();
    seal_as(&mut rig, 2, next.0).unwrap();
    assert_eq!(rig.takeover("b"), stale, "before the first commit");
    rig.commit(next, "c").unwrap();
    let other = |epoch| Refusal::OtherHolder {
        standby: "b".into(),
        holder: "c".into(),
        epoch,
    };
    assert_eq!(rig.takeover("b"), Err(other(next)));
    // Also when the one who replaced it has the group.
    rig.takeover("c").unwrap();
    assert_eq!(rig.takeover("b"), Err(other(next)));
    rig.ask(Input::WriteWaits).unwrap();
    rig.settle();
    let stale = Err(Refusal::MemoryStale { since: next });
    assert_eq!(rig.takeover("b"), stale);
}

/// If that same standby protects anew, a late takeover is good: it has acknowledged the last committed epoch again. The failover is
/// needless, but there is one owner, the source that lives is fenced, and the standby, asking by itself, is told the same.
#[test]
fn a_late_takeover_of_the_standby_that_protects_anew_fences_the_source() {
    let mut rig = protected_by_number();
    drain(&mut rig, 1).unwrap();
    rig.settle();
    let first = rig.machine.committed().next();
    seal_as(&mut rig, 2, first.0).unwrap();
    assert_eq!(
        rig.takeover("b"),
        Err(Refusal::MemoryStale { since: Epoch(1) }),
        "what it held of before is void, and it has not acknowledged this one"
    );
    rig.commit(first, "b").unwrap();
    seal_as(&mut rig, 2, first.0 + 1).unwrap();
    let old = rig.generation();
    let effects = rig.takeover("b").unwrap();
    assert!(effects.contains(&Effect::DropUncommitted));
    assert_eq!(rig.machine.owner(), Some("b"));
    assert!(rig.generation() > old);
    for input in [
        Input::Commit {
            generation: old,
            epoch: first.next(),
            standby: Some("b".into()),
        },
        Input::SealAs {
            generation: old,
            number: number(2, first.0 + 2),
        },
        Input::DrainToSync {
            generation: old,
            protection: Some(Protection(2)),
        },
    ] {
        assert!(matches!(rig.ask(input), Err(Refusal::Fenced { .. })));
    }
    let answer = (rig.generation(), rig.machine.committed());
    assert_eq!(answer.1, first);
    assert_eq!(rig.takeover("b"), Ok(Vec::new()), "asked by itself");
    assert_eq!((rig.generation(), rig.machine.committed()), answer);
}

/// What a source does, whose requests are carried out once or more, each copy at any later time.
#[derive(Debug, Clone)]
enum Event {
    Seal { arrives: bool },
    Commit,
    GiveUp,
    SelfCommit,
    Late(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => any::<bool>().prop_map(|arrives| Event::Seal { arrives }),
        4 => Just(Event::Commit),
        2 => Just(Event::GiveUp),
        3 => Just(Event::SelfCommit),
        6 => (0..64_usize).prop_map(Event::Late),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn what_is_over_changes_nothing(
        always in any::<bool>(),
        events in proptest::collection::vec(event(), 1..60),
    ) {
        let mut rig = Rig::new(if always { Holds::Always } else { Holds::Protected });
        let generation = rig.attach("a");
        let (mut protection, mut newest) = (1, Epoch(0));
        let mut copies: Vec<(u64, Input)> = Vec::new();
        for event in events {
            match event {
                Event::Seal { arrives } => {
                    let input = Input::SealAs { generation, number: number(protection, newest.0 + 1) };
                    copies.push((protection, input.clone()));
                    if arrives {
                        // In sync mode the group may be ahead of what its source was told.
                        let sealed = rig.machine.sealed();
                        rig.ask(input).unwrap();
                        prop_assert_eq!(rig.machine.sealed(), sealed.next());
                        prop_assert!(always || sealed == newest);
                        newest = sealed.next();
                        continue;
                    }
                    // The source waits no longer: the protection is over as soon as its drain is answered.
                    copies.push((protection, give_up(&mut rig, protection)));
                    (protection, newest) = (protection + 1, rig.machine.committed());
                }
                Event::Commit => drop(rig.commit(rig.machine.committed().next(), "b")),
                Event::GiveUp => {
                    copies.push((protection, give_up(&mut rig, protection)));
                    (protection, newest) = (protection + 1, rig.machine.committed());
                }
                Event::SelfCommit if rig.machine.commits_by_itself() => drop(rig.self_commit()),
                Event::SelfCommit => {}
                Event::Late(which) => {
                    let Some((of, input)) = copies.get(which % copies.len().max(1)).cloned() else {
                        continue;
                    };
                    let before = rig.machine.clone();
                    // A copy of a seal that was answered is none of a second cut, either.
                    let outcome = rig.machine.step(input);
                    prop_assert_eq!(&before, &rig.machine, "{:?} of {}", outcome, of);
                }
            }
        }
    }
}

fn give_up(rig: &mut Rig, protection: u64) -> Input {
    drain(rig, protection).unwrap();
    rig.settle();
    Input::DrainToSync {
        generation: rig.generation(),
        protection: Some(Protection(protection)),
    }
}
