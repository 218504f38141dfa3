//! Every crash: a history is watched, and the power goes before each of its changes of a file. What was written since the last sync is
//! then on disk in full, not at all, up to some sector, or in any selection of sectors. What must hold afterwards: everything
//! whose call had returned, and of the call that was interrupted all or nothing.

use std::collections::BTreeMap;

use proptest::{prelude::*, test_runner::TestRunner};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::model::{
    Call, Durable, Model, Owned, OwnedContent, call, durable, open, pattern, restore, run, snapshot,
};
use crate::faults::{self, Op};

/// How the part that was not synced looks after the crash.
#[derive(Clone, Copy, Debug)]
enum Unsynced {
    Lost,
    Kept,
    Prefix,
    Selection,
}

/// A file system that forgets.
#[derive(Clone, Default)]
struct Disk {
    /// Files by id: what is durable, and what was done since.
    files: Vec<(Vec<u8>, Vec<Op>)>,
    /// Names that are durable, names as they are seen, and what was done to them since they were durable.
    durable_names: Names,
    names: Names,
    unsynced_names: Vec<NameChange>,
}

type Names = BTreeMap<String, usize>;

#[derive(Clone)]
enum NameChange {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

impl NameChange {
    /// Does it to `names`, if it can be done there.
    fn act(&self, names: &mut Names) {
        match self {
            Self::Create(name, id) => {
                names.insert(name.clone(), *id);
            }
            Self::Rename(from, to) => {
                if let Some(id) = names.remove(from) {
                    names.insert(to.clone(), id);
                }
            }
            Self::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

impl Disk {
    fn change(&mut self, change: NameChange) {
        change.act(&mut self.names);
        self.unsynced_names.push(change);
    }

    fn act(&mut self, op: &Op) {
        match op {
            Op::Create { name } => {
                self.files.push((Vec::new(), Vec::new()));
                self.change(NameChange::Create(name.clone(), self.files.len() - 1));
            }
            Op::Rename { from, to } => self.change(NameChange::Rename(from.clone(), to.clone())),
            Op::Remove { name } => self.change(NameChange::Remove(name.clone())),
            Op::SyncDir => {
                self.durable_names = self.names.clone();
                self.unsynced_names.clear();
            }
            Op::Write { name, .. } | Op::Truncate { name, .. } => {
                self.files[self.names[name]].1.push(op.clone());
            }
            Op::Sync { name } => {
                let (durable, unsynced) = &mut self.files[self.names[name]];
                for op in unsynced.drain(..) {
                    act_on(durable, &op, |_| true);
                }
            }
        }
    }

    fn crash(&self, how: Unsynced, random: &mut StdRng) -> BTreeMap<String, Vec<u8>> {
        let prefix = random.random_range(0..=self.unsynced_names.len());
        let mut names = self.durable_names.clone();
        for (number, change) in self.unsynced_names.iter().enumerate() {
            let reaches = match how {
                Unsynced::Lost => false,
                Unsynced::Kept => true,
                Unsynced::Prefix => number < prefix,
                Unsynced::Selection => random.random(),
            };
            if reaches {
                change.act(&mut names);
            }
        }
        names
            .iter()
            .map(|(name, id)| (name.clone(), self.content(*id, how, random)))
            .collect()
    }

    fn content(&self, id: usize, how: Unsynced, random: &mut StdRng) -> Vec<u8> {
        let (durable, unsynced) = &self.files[id];
        let mut bytes = durable.clone();
        let all: usize = unsynced.iter().map(sectors).sum();
        let prefix = random.random_range(0..=all);
        let mut seen = 0;
        for op in unsynced {
            let first = seen;
            seen += sectors(op);
            act_on(&mut bytes, op, |sector| match how {
                Unsynced::Lost => false,
                Unsynced::Kept => true,
                Unsynced::Prefix => first + sector < prefix,
                Unsynced::Selection => random.random(),
            });
        }
        bytes
    }
}

fn sectors(op: &Op) -> usize {
    if let Op::Write { bytes, .. } = op {
        bytes.len().div_ceil(512)
    } else {
        1
    }
}

/// Does to a file what `op` says, with those sectors that `reaches` the disk.
fn act_on(file: &mut Vec<u8>, op: &Op, mut reaches: impl FnMut(usize) -> bool) {
    match op {
        Op::Truncate { len, .. } => {
            if reaches(0) {
                file.truncate(usize::try_from(*len).unwrap());
            }
        }
        Op::Write { offset, bytes, .. } => {
            let offset = usize::try_from(*offset).unwrap();
            for (number, sector) in bytes.chunks(512).enumerate() {
                if reaches(number) {
                    let at = offset + number * 512;
                    file.resize(file.len().max(at + sector.len()), 0);
                    file[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        other => panic!("{other:?} is not done to a file"),
    }
}

/// A history as it was seen from below.
struct Watched {
    ops: Vec<Op>,
    /// For each call: how many changes had been made when it returned, and what must then be durable.
    returned: Vec<(usize, Durable)>,
}

fn watch(calls: &[Call]) -> Watched {
    let dir = tempfile::tempdir().unwrap();
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

/// Recovers from one crash and checks all that must hold.
fn check(files: &BTreeMap<String, Vec<u8>>, allowed: &[Durable], what: &str) {
    let dir = restore(files);
    let (log, recovered) = open(dir.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
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
    let extent = Owned {
        disk: 1,
        offset: 512,
        len: 700,
        content: OwnedContent::Data(pattern(700, 9)),
    };
    log.append(found.state.generation, next, &[extent.borrow()])
        .unwrap();
    log.commit(found.state.generation, next, Some("next"))
        .unwrap();
    drop(log);
    let mut expected = found.epochs;
    expected.insert(next, vec![extent]);
    assert_eq!(
        durable(&open(dir.path()).unwrap().0).epochs,
        expected,
        "{what}"
    );
}

fn crash_everywhere(calls: &[Call], seed: u64) {
    let watched = watch(calls);
    let mut random = StdRng::seed_from_u64(seed);
    let mut disk = Disk::default();
    for (number, op) in watched.ops.iter().map(Some).chain([None]).enumerate() {
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
        for how in [
            Unsynced::Lost,
            Unsynced::Kept,
            Unsynced::Prefix,
            Unsynced::Selection,
        ] {
            let files = disk.crash(how, &mut random);
            check(
                &files,
                &allowed,
                &format!("crash before change {number} ({how:?})"),
            );
        }
        if let Some(op) = op {
            disk.act(op);
        }
    }
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
    let history = (prop::collection::vec(call(), 5..16), any::<u64>());
    runner
        .run(&history, |(calls, seed)| {
            crash_everywhere(&calls, seed);
            Ok(())
        })
        .unwrap();
}

/// What random histories seldom do: epochs and cuts over several segments, and another epoch in between.
#[test]
fn every_crash_of_large_epochs_keeps_what_was_committed() {
    let large = |ahead| {
        let content = OwnedContent::Data(pattern(30_000, 5));
        Call::Append {
            ahead,
            extents: vec![Owned {
                disk: 0,
                offset: 0,
                len: 30_000,
                content,
            }],
        }
    };
    let commit = || Call::Commit { standby: Some(1) };
    let calls = [
        vec![
            large(0),
            large(1),
            large(0),
            commit(),
            large(1),
            large(0),
            commit(),
        ],
        vec![
            large(0),
            large(0),
            large(0),
            Call::Abort,
            commit(),
            Call::Applied { behind: 1 },
        ],
        vec![
            large(0),
            large(1),
            large(1),
            Call::Reopen,
            large(0),
            commit(),
            Call::Applied { behind: 0 },
        ],
    ];
    for seed in 0..2 {
        crash_everywhere(&calls.concat(), seed);
    }
}
