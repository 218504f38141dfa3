//! How epochs are sealed and committed: the way into async mode, the order of commits, and the way back to sync mode.

use super::*;

#[test]
fn a_new_group_is_in_the_mode_of_its_configuration() {
    assert_eq!(Rig::new(Holds::Protected).machine.gate(), Gate::Through);
    let rig = Rig::new(Holds::Alone);
    assert_eq!(rig.machine.gate(), Gate::Held(FlushRule::SelfCommits));
    assert_eq!(rig.log.mode, Mode::Async { holder: None });
}

#[test]
fn the_first_seal_leads_to_async_mode_only_when_the_log_says_so() {
    let mut rig = Rig::new(Holds::Protected);
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
    let mut rig = Rig::new(Holds::Protected);
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
fn draining_voids_the_memory_before_it_commits_anything() {
    let mut rig = Rig::protected();
    rig.seal();
    let generation = rig.generation();
    rig.machine
        .step(Input::DrainToSync {
            generation,
            protection: None,
        })
        .unwrap();
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
    for holds in [Holds::Protected, Holds::Alone, Holds::Always] {
        let mut rig = Rig::new(holds);
        let generation = rig.attach("a");
        rig.seal();
        rig.commit(Epoch(1), "b").unwrap();
        rig.ask(Input::Detach { generation }).unwrap();
        rig.settle();
        assert_eq!(rig.machine.committed(), Epoch(2));
        assert_eq!(rig.machine.owner(), None);
        assert!(rig.generation() > generation);
        let gate = match holds {
            Holds::Protected => Gate::Through,
            Holds::Alone | Holds::Always => Gate::Held(FlushRule::SelfCommits),
        };
        assert_eq!(rig.machine.gate(), gate);
        assert_eq!(
            rig.machine.admit(None),
            Ok(Admission::Plain { writable: true })
        );
    }
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

/// Found by the simulator (seed 2298): a log that failed at what no request waits for, such as what it says of the images.
#[test]
fn a_log_that_failed_by_itself_stops_everything_as_well() {
    let mut rig = Rig::protected();
    rig.takeover("b").unwrap();
    rig.ask(Input::WriteWaits).unwrap();
    assert_eq!(rig.machine.gate(), Gate::Closed);
    let failed = Input::LogDone {
        done: 0,
        outcome: LogOutcome::Broken,
    };
    assert_eq!(
        rig.machine.step(failed),
        Ok(vec![Effect::Gate(Gate::Broken)])
    );
    let generation = rig.generation();
    assert_eq!(rig.ask(Input::Seal { generation }), Err(Refusal::Broken));
}
