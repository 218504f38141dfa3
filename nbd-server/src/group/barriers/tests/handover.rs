//! Who may have the disks: takeovers, aborts, restarts, and ids that are used once.

use super::*;

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
        Input::DrainToSync {
            generation: old,
            protection: None,
        },
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
    let mut rig = Rig::new(Holds::Protected);
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
    rig.ask(Input::DrainToSync {
        generation,
        protection: None,
    })
    .unwrap();
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

    let mut sync = Rig::new(Holds::Protected);
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
    let mut rig = Rig::new(Holds::Protected);
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
