//! A group that holds writes in sync mode, too: it commits by itself until its source is protected, and nothing is lost on the way.

use super::*;

const SELF_COMMITS: Gate = Gate::Held(FlushRule::SelfCommits);

/// The group of a source without a standby.
fn unprotected() -> Rig {
    let mut rig = Rig::new(Holds::Always);
    rig.attach("a");
    rig
}

fn seal_as(rig: &mut Rig, protection: u64, epoch: u64) -> Result<Epoch, Refusal> {
    let generation = rig.generation();
    let protection = Some(Protection(protection));
    rig.ask(Input::SealAs {
        generation,
        number: SealNumber {
            epoch: Epoch(epoch),
            protection,
        },
    })?;
    Ok(rig.machine.sealed())
}

#[test]
fn sync_mode_holds_and_commits_by_itself() {
    let mut rig = unprotected();
    assert_eq!(
        (rig.machine.gate(), rig.machine.phase()),
        (SELF_COMMITS, Phase::Through)
    );
    let first = rig.self_commit();
    assert_eq!(rig.self_commit(), first.next());
    assert_eq!(rig.log.mode, Mode::Sync, "no memory of a standby fits");
    // It goes on without waiting for the images.
    assert!(rig.machine.applied() < rig.machine.committed());
    assert_eq!(rig.machine.gate(), SELF_COMMITS);
    assert_eq!(rig.machine.open(), Some(first.next().next()));
}

#[test]
fn without_a_source_it_is_as_in_async_mode() {
    let rig = Rig::new(Holds::Always);
    assert_eq!(
        (rig.machine.gate(), rig.machine.phase()),
        (SELF_COMMITS, Phase::Held)
    );
    assert_eq!(rig.log.mode, Mode::Async { holder: None });
}

#[test]
fn no_standby_acknowledges_what_it_commits_by_itself() {
    let mut rig = unprotected();
    rig.self_commit();
    rig.ask(Input::SelfSeal).unwrap();
    let epoch = rig.machine.sealed();
    let sealed = rig.machine.committed();
    assert_eq!(
        rig.commit(epoch, "b"),
        Err(Refusal::NotSealed { epoch, sealed })
    );
    rig.commit_sealed();
    assert_eq!(rig.machine.holder(), None);
}

#[test]
fn the_first_seal_waits_until_all_before_it_is_committed() {
    let mut rig = unprotected();
    rig.ask(Input::SelfSeal).unwrap();
    assert_eq!(seal_as(&mut rig, 1, 1), Err(Refusal::Unsettled));
    let generation = rig.generation();
    assert_eq!(rig.ask(Input::Seal { generation }), Err(Refusal::Unsettled));
    rig.commit_sealed();
    assert_eq!(seal_as(&mut rig, 1, 1), Ok(Epoch(2)));
    assert_eq!(rig.machine.gate(), Gate::Held(FlushRule::Waits));
    assert_eq!(rig.ask(Input::SelfSeal), Err(Refusal::Busy));
    rig.commit(Epoch(2), "b").unwrap();
    assert_eq!(rig.machine.gate(), Gate::Held(FlushRule::Free));
}

#[test]
fn the_first_seal_also_waits_for_a_commit_that_is_being_written() {
    let mut rig = unprotected();
    rig.ask(Input::SelfSeal).unwrap();
    let generation = rig.generation();
    let commit = Input::Commit {
        generation,
        epoch: Epoch(1),
        standby: None,
    };
    rig.machine.step(commit).unwrap();
    assert_eq!(
        rig.machine.step(Input::Seal { generation }),
        Err(Refusal::Unsettled)
    );
    rig.perform_log();
    assert_eq!(rig.seal(), Epoch(2));
}

#[test]
fn the_number_of_the_first_seal_is_the_lowest_that_it_may_get() {
    let mut rig = unprotected();
    for _ in 0..3 {
        rig.self_commit();
    }
    // Its source was told of epoch 0.
    assert_eq!(seal_as(&mut rig, 1, 1), Ok(Epoch(4)));
    assert_eq!(seal_as(&mut rig, 1, 1), Ok(Epoch(4)), "asked again");
    assert_eq!(seal_as(&mut rig, 1, 4), Ok(Epoch(4)), "or by its number");
    let next = Epoch(5);
    assert_eq!(
        seal_as(&mut rig, 1, 6),
        Err(Refusal::OutOfOrder {
            epoch: Epoch(6),
            next
        })
    );
    rig.commit(Epoch(4), "b").unwrap();
    // From here on a number is exact.
    for epoch in [1, 4] {
        let epoch = Epoch(epoch);
        let refused = Err(Refusal::OutOfOrder { epoch, next });
        assert_eq!(seal_as(&mut rig, 1, epoch.0), refused);
    }
    assert_eq!(seal_as(&mut rig, 1, 5), Ok(next));
    assert_eq!(seal_as(&mut rig, 1, 5), Ok(next));
}

#[test]
fn a_number_ahead_of_the_group_or_of_no_protection_is_exact() {
    let mut rig = unprotected();
    rig.self_commit();
    let (generation, next) = (rig.generation(), Epoch(2));
    for (epoch, protection) in [(Epoch(3), Some(Protection(1))), (Epoch(1), None)] {
        let number = SealNumber { epoch, protection };
        assert_eq!(
            rig.ask(Input::SealAs { generation, number }),
            Err(Refusal::OutOfOrder { epoch, next })
        );
    }
}

#[test]
fn a_first_seal_that_was_given_up_changes_nothing() {
    let mut rig = unprotected();
    rig.self_commit();
    let generation = rig.generation();
    let drain = |protection| Input::DrainToSync {
        generation,
        protection: Some(Protection(protection)),
    };
    rig.ask(drain(1)).unwrap();
    assert!(matches!(
        seal_as(&mut rig, 1, 1),
        Err(Refusal::Overtaken { .. })
    ));
    seal_as(&mut rig, 2, 1).unwrap();
    rig.commit(Epoch(2), "b").unwrap();
    rig.ask(drain(2)).unwrap();
    rig.settle();
    assert_eq!(
        (rig.machine.gate(), &rig.log.mode),
        (SELF_COMMITS, &Mode::Sync)
    );
    for epoch in [1, 2, 3, 4] {
        assert!(matches!(
            seal_as(&mut rig, 2, epoch),
            Err(Refusal::Overtaken { .. })
        ));
    }
}

#[test]
fn a_first_seal_that_does_not_fit_into_the_log_leaves_sync_mode_as_it_was() {
    let mut rig = unprotected();
    rig.self_commit();
    let generation = rig.generation();
    rig.machine.step(Input::Seal { generation }).unwrap();
    let full = Input::LogDone {
        done: 0,
        outcome: LogOutcome::Retry,
    };
    let effects = rig.machine.step(full).unwrap();
    assert_eq!(
        effects,
        [Effect::DropUncommitted, Effect::Gate(SELF_COMMITS)]
    );
    assert_eq!(rig.self_commit(), Epoch(2), "no number is missing");
}

#[test]
fn a_detach_commits_what_is_held_in_sync_mode() {
    let mut rig = unprotected();
    rig.self_commit();
    let generation = rig.generation();
    let effects = rig.ask(Input::Detach { generation }).unwrap();
    assert_eq!(
        effects,
        [
            Effect::Gate(Gate::Closed),
            Effect::Seal(Epoch(2)),
            Effect::Gate(Gate::Closed)
        ]
    );
    rig.settle();
    assert_eq!(rig.machine.committed(), Epoch(2));
    assert_eq!(rig.machine.owner(), None);
    assert_eq!(rig.machine.gate(), SELF_COMMITS);
}

#[test]
fn after_a_takeover_it_holds_from_the_first_write_on() {
    let mut rig = unprotected();
    let epoch = rig.seal();
    rig.commit(epoch, "b").unwrap();
    rig.seal();
    rig.takeover("b").unwrap();
    assert_eq!(rig.machine.gate(), Gate::Closed, "disk E is untouched");
    rig.ask(Input::WriteWaits).unwrap();
    rig.settle();
    assert_eq!(
        (rig.machine.gate(), &rig.log.mode),
        (SELF_COMMITS, &Mode::Sync)
    );
    let stale = Err(Refusal::MemoryStale { since: epoch });
    assert_eq!(rig.takeover("b"), stale);
    assert_eq!(rig.self_commit(), epoch.next());
}

#[test]
fn a_restart_goes_on_with_what_was_held_in_sync_mode() {
    let mut rig = unprotected();
    rig.self_commit();
    rig.ask(Input::SelfSeal).unwrap();
    let mut resumed = rig.resume(Holds::Always, true).unwrap();
    assert_eq!(resumed.generation(), rig.generation());
    assert_eq!(
        (resumed.machine.gate(), resumed.machine.sealed()),
        (SELF_COMMITS, Epoch(2))
    );
    assert_eq!(resumed.machine.admit(Some("a")), Ok(Admission::Source));
    assert_eq!(seal_as(&mut resumed, 1, 1), Err(Refusal::Unsettled));
    resumed.commit_sealed();
    assert_eq!(seal_as(&mut resumed, 1, 1), Ok(Epoch(3)));
}

/// The cut was made, and the process died before the log said *async mode*.
#[test]
fn a_first_seal_that_a_restart_cut_short_is_asked_again() {
    let mut rig = unprotected();
    let generation = rig.generation();
    rig.machine.step(Input::Seal { generation }).unwrap();
    let mut resumed = rig.resume(Holds::Always, false).unwrap();
    assert_eq!(resumed.machine.phase(), Phase::Through);
    assert_eq!(seal_as(&mut resumed, 1, 1), Err(Refusal::Unsettled));
    resumed.commit_sealed();
    assert_eq!(seal_as(&mut resumed, 1, 1), Ok(Epoch(2)));
}

#[test]
fn an_owner_is_fenced_if_its_unflushed_writes_may_be_gone_while_it_runs() {
    let mut rig = unprotected();
    rig.self_commit();
    let of = |ending| Rig::of(rig.log_applied(), ending, Holds::Always);
    let died = of(Ending::Died);
    assert!(died.generation() > rig.generation());
    assert_eq!(died.machine.owner(), None);
    assert_eq!(died.machine.gate(), SELF_COMMITS);
    for ending in [Ending::Closed, Ending::MachineFailed] {
        let restarted = of(ending);
        assert_eq!(restarted.generation(), rig.generation());
        assert_eq!(restarted.machine.admit(Some("a")), Ok(Admission::Source));
        assert_eq!(restarted.machine.gate(), SELF_COMMITS);
    }
}

#[test]
fn a_group_that_no_longer_holds_always_commits_first_what_was_held() {
    let mut rig = unprotected();
    rig.self_commit();
    rig.ask(Input::SelfSeal).unwrap();
    assert!(rig.resume(Holds::Protected, false).is_none(), "nothing was");
    let mut resumed = rig.resume(Holds::Protected, true).unwrap();
    assert_eq!(resumed.machine.gate(), Gate::Closed);
    resumed.settle();
    assert_eq!(resumed.machine.committed(), Epoch(3), "the open epoch, too");
    assert_eq!(resumed.generation(), rig.generation());
    assert_eq!(
        (resumed.machine.gate(), &resumed.log.mode),
        (Gate::Through, &Mode::Sync)
    );
}
