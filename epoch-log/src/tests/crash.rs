//! Every crash: a history is watched, and the power goes before each of its changes of a file, in every way in which it can (or, where
//! there are too many, in a selection of them). What must hold afterwards: everything whose call had returned, and of the call that was
//! interrupted all or nothing. Recovery is crashed in the same way, and must come to the same.

use std::collections::HashSet;
use std::sync::Mutex;

use proptest::{prelude::*, test_runner::TestRunner};
use rand::{Rng, SeedableRng, rngs::StdRng};
use xxhash_rust::xxh3::Xxh3;

use super::forgetful::{Disk, Files, selections};
use super::model::{
    Call, Durable, Model, Owned, OwnedContent, call, durable, open, pattern, restore, run, scratch,
    snapshot,
};
use crate::faults::{self, Op};

/// How much is tried.
#[derive(Clone, Copy)]
struct Effort {
    /// Crash states per point of a history, at most.
    states: usize,
    /// One in so many recoveries is crashed as well,
    recoveries: u32,
    /// into so many states per point of the recovery, at most.
    within_recovery: usize,
}

/// Crash states that were recovered from; each is another one.
#[derive(Default)]
struct Seen {
    keys: Mutex<HashSet<u64>>,
}

impl Seen {
    /// False if this state was seen at this point already: `must` tells what has to hold.
    fn is_new(&self, files: &Files, must: &str) -> bool {
        let mut sum = Xxh3::new();
        sum.update(must.as_bytes());
        for (name, bytes) in files {
            sum.update(name.as_bytes());
            sum.update(&bytes.len().to_le_bytes());
            sum.update(bytes);
        }
        self.keys.lock().unwrap().insert(sum.digest())
    }
}

/// A history as it was seen from below.
struct Watched {
    ops: Vec<Op>,
    /// For each call: how many changes had been made when it returned, and what must then be durable.
    returned: Vec<(usize, Durable)>,
}

fn watch(calls: &[Call]) -> Watched {
    let dir = scratch();
    let mut model = Model::new();
    faults::start(None);
    let mut slot = Some(open(dir.path()).unwrap().0);
    let mut returned = vec![(faults::count(), model.durable.clone())];
    for call in calls {
        let expected = model.call(call);
        assert_eq!(run(&mut slot, dir.path(), call).is_ok(), expected);
        returned.push((faults::count(), model.durable.clone()));
    }
    Watched {
        ops: faults::stop(),
        returned,
    }
}

/// Recovers from one crash and checks all that must hold. Returns what was found and the changes that recovery made.
fn check(files: &Files, allowed: &[Durable], what: &str) -> (Durable, Vec<Op>) {
    let dir = restore(files);
    faults::start(None);
    let opened = open(dir.path());
    let changes = faults::stop();
    let (log, recovered) = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = durable(&log);
    assert!(
        allowed.contains(&found),
        "{what}: found {found:?}, allowed are {allowed:?}"
    );
    drop(log);
    let once = snapshot(dir.path());
    let (mut log, again) = open(dir.path()).unwrap();
    assert_eq!(again.cut_bytes, 0, "{what}");
    assert_eq!(again.repaired_sectors, 0, "{what}");
    assert!(
        again.dropped_epochs.is_empty(),
        "{what}: {recovered:?}, then {again:?}"
    );
    assert_eq!(
        once,
        snapshot(dir.path()),
        "{what}: the second recovery changed something"
    );
    assert_eq!(durable(&log), found, "{what}");

    // And life goes on: the next epoch holds what is given now, nothing of what was lost.
    let next = found.state.committed.next();
    let extent = data(1, 512, 700, 9);
    log.append(found.state.generation, next, &[extent.borrow()])
        .unwrap();
    log.commit(found.state.generation, next, Some("next"))
        .unwrap();
    drop(log);
    let mut expected = found.epochs.clone();
    expected.insert(next, vec![extent]);
    assert_eq!(
        durable(&open(dir.path()).unwrap().0).epochs,
        expected,
        "{what}"
    );
    (found, changes)
}

/// The power goes during a recovery: the next one comes to the same.
fn crash_recovery(
    files: &Files,
    changes: &[Op],
    found: &Durable,
    what: &str,
    effort: Effort,
    random: &mut StdRng,
    seen: &Seen,
) {
    let mut disk = Disk::holding(files);
    for (number, op) in changes.iter().enumerate() {
        for kept in selections(disk.parts(), effort.within_recovery, random) {
            let left = disk.after_crash(&kept);
            if seen.is_new(&left, &format!("{found:?}")) {
                let what = format!("{what}, then before change {number} of the recovery");
                check(&left, std::slice::from_ref(found), &what);
            }
        }
        disk.act(op);
    }
}

/// Crashes `calls` before each of their changes. Returns from how many different states the log recovered.
fn crash_everywhere(calls: &[Call], seed: u64, effort: Effort) -> usize {
    let watched = watch(calls);
    let seen = Seen::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for share in 0..threads {
            let (watched, seen) = (&watched, &seen);
            scope.spawn(move || crash_share(watched, share, threads, seed, effort, seen));
        }
    });
    seen.keys.into_inner().unwrap().len()
}

/// One thread's part of that: each of `shares` has every so many points of the history.
fn crash_share(
    watched: &Watched,
    share: usize,
    shares: usize,
    seed: u64,
    effort: Effort,
    seen: &Seen,
) {
    let mut random = StdRng::seed_from_u64(seed ^ (share as u64) << 32);
    let mut disk = Disk::default();
    for (number, op) in watched.ops.iter().map(Some).chain([None]).enumerate() {
        if let Some(op) = op
            && number % shares != share
        {
            disk.act(op);
            continue;
        }
        let done = watched.returned.iter().rposition(|(ops, _)| *ops <= number);
        let mut allowed = Vec::new();
        if let Some(done) = done {
            allowed.push(watched.returned[done].1.clone());
            // A call that has begun may also be done.
            let next = watched
                .returned
                .get(done + 1)
                .filter(|_| watched.returned[done].0 < number);
            allowed.extend(next.map(|(_, durable)| durable.clone()));
        } else {
            allowed.push(Model::new().durable);
        }
        for kept in selections(disk.parts(), effort.states, &mut random) {
            let files = disk.after_crash(&kept);
            if !seen.is_new(&files, &format!("{done:?} {}", allowed.len())) {
                continue;
            }
            let what = format!("seed {seed}: crash before change {number}, kept {kept:?}");
            let (found, changes) = check(&files, &allowed, &what);
            if random.random_ratio(1, effort.recoveries) {
                crash_recovery(&files, &changes, &found, &what, effort, &mut random, seen);
            }
        }
        if let Some(op) = op {
            disk.act(op);
        }
    }
}

fn data(disk: u16, offset: u64, len: usize, fill: u8) -> Owned {
    Owned {
        disk,
        offset,
        len: len as u64,
        content: OwnedContent::Data(pattern(len, fill)),
    }
}

fn append(ahead: u64, extents: Vec<Owned>) -> Call {
    Call::Append { ahead, extents }
}

fn commit() -> Call {
    Call::Commit { standby: Some(1) }
}

/// Small epochs, so that every subset of what is not synced can be tried.
fn small(ahead: u64, fill: u8) -> Call {
    append(
        ahead,
        vec![data(0, 100, 300, fill), data(1, 4096, 100, fill)],
    )
}

/// What the log does in its life, each with as little data as shows it.
fn scenarios() -> Vec<(&'static str, Vec<Call>)> {
    let zero = Owned {
        disk: 0,
        offset: 0,
        len: 8192,
        content: OwnedContent::Zero,
    };
    let turnover: Vec<Call> = (0..6)
        .flat_map(|fill| [append(0, vec![data(0, 0, 9000, fill)]), commit()])
        .collect();
    let reused = [
        turnover.clone(),
        vec![Call::Applied { behind: 1 }],
        turnover.clone(),
        vec![Call::Applied { behind: 0 }],
        turnover.clone(),
    ];
    vec![
        (
            "append and commit, several disks",
            vec![
                small(0, 1),
                commit(),
                append(0, vec![zero]),
                commit(),
                small(0, 2),
                commit(),
            ],
        ),
        (
            "two epochs under way",
            vec![
                small(0, 1),
                small(1, 2),
                commit(),
                small(0, 3),
                small(1, 4),
                commit(),
                commit(),
            ],
        ),
        (
            "a sync of its own",
            vec![
                small(0, 1),
                Call::SyncData,
                small(0, 2),
                commit(),
                small(0, 3),
                Call::SyncData,
            ],
        ),
        (
            "takeovers",
            vec![
                small(0, 1),
                commit(),
                small(0, 2),
                Call::Raise { owner: Some(2) },
                Call::SetMode {
                    asynchronous: false,
                },
                small(0, 3),
                Call::Raise { owner: None },
                small(0, 4),
                commit(),
            ],
        ),
        (
            "epochs that are given up",
            vec![
                small(0, 1),
                Call::Abort,
                small(0, 2),
                small(1, 3),
                commit(),
                Call::Abort,
                commit(),
            ],
        ),
        (
            "apply, stop and start",
            vec![
                small(0, 1),
                commit(),
                Call::Applied { behind: 0 },
                small(0, 2),
                commit(),
                Call::CleanStop,
                small(0, 3),
                Call::Reopen,
                small(0, 4),
                commit(),
            ],
        ),
        ("segments begin", turnover),
        ("segments are freed and written again", reused.concat()),
    ]
}

#[test]
fn every_crash_state_of_every_scenario_recovers() {
    let states = std::env::var("EPOCH_LOG_CRASH_STATES")
        .ok()
        .and_then(|states| states.parse().ok())
        .unwrap_or(2500);
    let effort = Effort {
        states,
        recoveries: 12,
        within_recovery: 12,
    };
    let mut total = 0;
    for (name, calls) in scenarios() {
        let count = crash_everywhere(&calls, 1, effort);
        println!("{count:>8} crash states: {name}");
        total += count;
    }
    println!("{total:>8} crash states in all, all recovered");
    assert!(
        total > 15 * states,
        "only {total} crash states were tried: the enumeration has lost its way"
    );
}

#[test]
fn every_crash_of_random_histories_keeps_what_was_committed() {
    let cases = std::env::var("EPOCH_LOG_CRASH_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(8);
    let mut runner = TestRunner::new(ProptestConfig {
        cases,
        ..ProptestConfig::default()
    });
    let effort = Effort {
        states: 6,
        recoveries: 10,
        within_recovery: 4,
    };
    let history = (prop::collection::vec(call(), 5..16), any::<u64>());
    runner
        .run(&history, |(calls, seed)| {
            crash_everywhere(&calls, seed, effort);
            Ok(())
        })
        .unwrap();
}

/// What random histories seldom do: epochs and cuts over several segments, and another epoch in between.
#[test]
fn every_crash_of_large_epochs_keeps_what_was_committed() {
    let large = |ahead| append(ahead, vec![data(0, 0, 30_000, 5)]);
    let calls = [
        large(0),
        large(1),
        large(0),
        commit(),
        large(1),
        large(0),
        commit(),
        large(0),
        large(0),
        large(0),
        Call::Abort,
        commit(),
        Call::Applied { behind: 1 },
        large(0),
        large(1),
        large(1),
        Call::Reopen,
        large(0),
        commit(),
        Call::Applied { behind: 0 },
    ];
    let effort = Effort {
        states: 8,
        recoveries: 10,
        within_recovery: 4,
    };
    for seed in 0..2 {
        crash_everywhere(&calls, seed, effort);
    }
}
