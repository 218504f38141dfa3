//! The source's machine, one rule at a time.

use super::*;

fn commit2(epoch: u64) -> Action {
    Action::Commit2 {
        epoch: Epoch(epoch),
        standby: "b".into(),
    }
}

fn protecting() -> Source {
    let mut source = Source::new(3);
    let standby = "b".to_owned();
    assert_eq!(
        source.step(Event::StandbyJoined { standby }),
        [Action::CopyBase]
    );
    assert_eq!(
        source.step(Event::BaseSent),
        [Action::HoldOutput, Action::Capture]
    );
    source
}

fn protected() -> Source {
    let mut source = protecting();
    source.step(Event::Captured { epoch: Epoch(1) });
    source.step(Event::Commit1Acked { epoch: Epoch(1) });
    source.step(Event::Committed { epoch: Epoch(1) });
    assert!(source.protected());
    source
}

#[test]
fn one_epoch_goes_through_three_commits() {
    let mut source = protecting();
    assert!(!source.protected());
    assert_eq!(
        source.step(Event::Captured { epoch: Epoch(1) }),
        [Action::SendCheckpoint { epoch: Epoch(1) }]
    );
    assert_eq!(
        source.step(Event::Commit1Acked { epoch: Epoch(1) }),
        [commit2(1)]
    );
    assert!(!source.protected());
    assert_eq!(
        source.step(Event::Committed { epoch: Epoch(1) }),
        [
            Action::ReleaseOutput { epoch: Epoch(1) },
            Action::Commit3 { epoch: Epoch(1) }
        ]
    );
    assert!(source.protected());
}

#[test]
fn no_commit_2_without_the_standbys_word() {
    let mut source = protecting();
    source.step(Event::Captured { epoch: Epoch(1) });
    for event in [
        Event::CheckpointDue,
        Event::Commit1Acked { epoch: Epoch(2) },
        Event::Committed { epoch: Epoch(1) },
        Event::CommitFailed { epoch: Epoch(1) },
    ] {
        let actions = source.step(event);
        assert!(!actions.iter().any(|a| matches!(
            a,
            Action::Commit2 { .. } | Action::Commit3 { .. } | Action::ReleaseOutput { .. }
        )));
    }
}

#[test]
fn epochs_in_flight_commit_in_order() {
    let mut source = protected();
    for epoch in 2..5 {
        assert_eq!(source.step(Event::CheckpointDue), [Action::Capture]);
        source.step(Event::Captured {
            epoch: Epoch(epoch),
        });
    }
    assert_eq!(source.step(Event::CheckpointDue), [], "the limit is three");
    assert_eq!(source.step(Event::Commit1Acked { epoch: Epoch(3) }), []);
    assert_eq!(
        source.step(Event::Commit1Acked { epoch: Epoch(2) }),
        [commit2(2)]
    );
    let actions = source.step(Event::Committed { epoch: Epoch(2) });
    assert_eq!(actions.last(), Some(&commit2(3)));
}

#[test]
fn a_lost_standby_drains_and_is_sought_again() {
    let mut source = protected();
    assert_eq!(
        source.step(Event::StandbyLost),
        [Action::DropStandby, Action::DrainToSync]
    );
    assert!(!source.protected());
    assert_eq!(source.step(Event::CheckpointDue), []);
    assert_eq!(source.step(Event::DrainFailed), [Action::DrainToSync]);
    assert_eq!(
        source.step(Event::Drained),
        [Action::PassOutput, Action::SeekStandby]
    );
    assert_eq!(source.phase(), &Phase::Unprotected);
}

#[test]
fn a_drain_waits_for_the_capture_under_way() {
    let mut source = protected();
    source.step(Event::CheckpointDue);
    assert_eq!(source.step(Event::StandbyLost), [Action::DropStandby]);
    assert_eq!(
        source.step(Event::Captured { epoch: Epoch(2) }),
        [Action::DrainToSync]
    );
}

/// Found by the simulator (seed 3203): a capture whose `stop` waits for a flush, which waits for the first commit.
#[test]
fn no_second_capture_before_the_first_commit() {
    let mut source = protecting();
    source.step(Event::Captured { epoch: Epoch(1) });
    assert_eq!(source.step(Event::CheckpointDue), []);
    assert_eq!(
        source.step(Event::StandbyLost),
        [Action::DropStandby, Action::DrainToSync]
    );
}

#[test]
fn a_late_answer_of_a_lost_standby_changes_nothing() {
    let mut source = protected();
    source.step(Event::CheckpointDue);
    source.step(Event::Captured { epoch: Epoch(2) });
    source.step(Event::StandbyLost);
    assert_eq!(source.step(Event::Commit1Acked { epoch: Epoch(2) }), []);
    assert_eq!(source.step(Event::Committed { epoch: Epoch(2) }), []);
}

#[test]
fn a_failed_capture_never_leaves_a_hole() {
    let mut source = protected();
    source.step(Event::CheckpointDue);
    assert_eq!(
        source.step(Event::CaptureFailed),
        [Action::DropStandby, Action::DrainToSync]
    );
}

#[test]
fn a_fenced_source_only_stops() {
    let mut source = protected();
    assert_eq!(source.step(Event::Fenced), [Action::StopVm, Action::Yield]);
    for event in [
        Event::CheckpointDue,
        Event::Captured { epoch: Epoch(2) },
        Event::Drained,
    ] {
        assert_eq!(source.step(event), []);
    }
}

#[test]
fn a_commit_that_failed_is_tried_again() {
    let mut source = protected();
    source.step(Event::CheckpointDue);
    source.step(Event::Captured { epoch: Epoch(2) });
    assert_eq!(
        source.step(Event::Commit1Acked { epoch: Epoch(2) }),
        [commit2(2)]
    );
    assert_eq!(
        source.step(Event::CommitFailed { epoch: Epoch(2) }),
        [commit2(2)]
    );
}

/// Feeds events and returns all actions.
fn after(source: &mut Source, events: impl IntoIterator<Item = Event>) -> Vec<Action> {
    events.into_iter().flat_map(|e| source.step(e)).collect()
}

#[test]
fn a_switchover_ends_with_the_commit_of_its_last_epoch() {
    let mut source = protected();
    assert_eq!(source.step(Event::SwitchoverAsked), [Action::CaptureLast]);
    assert!(source.switching());
    assert!(source.step(Event::CheckpointDue).is_empty());
    let epoch = Epoch(2);
    assert_eq!(
        after(
            &mut source,
            [Event::Captured { epoch }, Event::Commit1Acked { epoch }]
        ),
        [Action::SendCheckpoint { epoch }, commit2(2)]
    );
    assert_eq!(
        source.step(Event::Committed { epoch }),
        [
            Action::ReleaseOutput { epoch },
            Action::Commit3 { epoch },
            Action::StopVm,
            Action::Yield
        ]
    );
    assert_eq!(source.phase(), &Phase::Over);
}

#[test]
fn a_switchover_waits_for_the_capture_under_way_and_for_all_epochs_before_its_own() {
    let mut source = protected();
    assert_eq!(source.step(Event::CheckpointDue), [Action::Capture]);
    assert!(source.step(Event::SwitchoverAsked).is_empty());
    let (two, three) = (Epoch(2), Epoch(3));
    assert_eq!(
        source.step(Event::Captured { epoch: two }),
        [Action::SendCheckpoint { epoch: two }, Action::CaptureLast]
    );
    source.step(Event::Captured { epoch: three });
    source.step(Event::Commit1Acked { epoch: two });
    source.step(Event::Commit1Acked { epoch: three });
    let actions = source.step(Event::Committed { epoch: two });
    assert!(!actions.contains(&Action::StopVm), "{actions:?}");
    let actions = source.step(Event::Committed { epoch: three });
    assert!(actions.contains(&Action::StopVm), "{actions:?}");
}

#[test]
fn only_a_protected_vm_is_switched_over() {
    let mut source = protecting();
    assert!(source.step(Event::SwitchoverAsked).is_empty());
    assert!(!source.switching());
}

#[test]
fn a_switchover_that_is_given_up_leaves_a_vm_that_runs_and_is_protected() {
    let mut source = protected();
    source.step(Event::SwitchoverAsked);
    assert!(
        source.step(Event::SwitchoverOff).is_empty(),
        "it is not paused yet"
    );
    let epoch = Epoch(2);
    assert_eq!(
        source.step(Event::Captured { epoch }),
        [Action::RunOn, Action::SendCheckpoint { epoch }]
    );
    source.step(Event::Commit1Acked { epoch });
    let actions = source.step(Event::Committed { epoch });
    assert!(!actions.contains(&Action::StopVm), "{actions:?}");

    source.step(Event::SwitchoverAsked);
    source.step(Event::Captured { epoch: Epoch(3) });
    assert_eq!(source.step(Event::SwitchoverOff), [Action::RunOn]);
    assert_eq!(source.step(Event::CheckpointDue), [Action::Capture]);
    assert!(source.protected());
}

#[test]
fn a_standby_that_is_lost_in_a_switchover_leaves_a_vm_that_runs() {
    for captured in [false, true] {
        let mut source = protected();
        let mut events = vec![Event::SwitchoverAsked];
        if captured {
            events.push(Event::Captured { epoch: Epoch(2) });
        }
        events.push(Event::StandbyLost);
        if !captured {
            events.push(Event::Captured { epoch: Epoch(2) });
        }
        let actions = after(&mut source, events);
        assert!(actions.contains(&Action::RunOn), "{actions:?}");
        assert!(actions.contains(&Action::DrainToSync), "{actions:?}");
        assert!(!actions.contains(&Action::StopVm), "{actions:?}");
        assert!(!source.switching());
    }
}

#[test]
fn a_failed_last_capture_leaves_a_vm_that_runs() {
    let mut source = protected();
    source.step(Event::SwitchoverAsked);
    let actions = source.step(Event::CaptureFailed);
    assert_eq!(
        actions,
        [Action::RunOn, Action::DropStandby, Action::DrainToSync]
    );
}
