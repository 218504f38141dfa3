//! A group whose old history goes to a store of objects, here a directory: every kept epoch reads as it was, also after a restart; while the
//! store is away, and when it has lost something, that costs what needs it and nothing else.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

mod group_common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use epoch_log::history::{ColdStore, HistoryStatus, verify};
use group_common::{SIZE, Site, attach, until};
use nbd_server::Epoch;
use nbd_server::export::{Cutter, Export, IoError};
use nbd_server::group::history::{ColdConfig, ColdObjects, HistoryConfig, Thin};
use nbd_server::group::{Group, GroupMode, OpenError};

/// What the disk held at each epoch.
type Epochs = BTreeMap<u64, Vec<u8>>;

struct Bench {
    site: Site,
    state: Vec<u8>,
    epochs: Epochs,
}

impl Bench {
    /// Runs are closed after a second, and go to the store at once.
    fn new() -> Self {
        let mut site = Site::new(GroupMode::Async, &["root"]);
        site.config.epoch_interval_ms = 3_600_000;
        let store = site.dir.path().join("store");
        std::fs::create_dir(&store).unwrap();
        let cold = ColdConfig {
            to: store.display().to_string(),
            after: "1s".parse().unwrap(),
            when_above: Some("1B".parse().unwrap()),
        };
        site.config.history = Some(HistoryConfig {
            thin: vec![Thin {
                after: "1s".parse().unwrap(),
                every: "1ms".parse().unwrap(),
            }],
            min_free: "0B".parse().unwrap(),
            cold: Some(cold),
            ..HistoryConfig::default()
        });
        let state = vec![0; SIZE as usize];
        let epochs = BTreeMap::from([(0, state.clone())]);
        Self {
            site,
            state,
            epochs,
        }
    }

    fn store(&self) -> PathBuf {
        self.site.dir.path().join("store")
    }

    fn write(&mut self, group: &Group, count: u64) {
        for _ in 0..count {
            let number = self.epochs.len() as u64;
            // Each overwrites what others have written.
            let (at, byte) = (number * 7_001 % 60_000, number as u8 | 1);
            let export = attach(group, "root", None).export;
            let data = Bytes::from(vec![byte; 30_000]);
            export.write(at, data, false).unwrap();
            export.flush().unwrap();
            self.state[at as usize..at as usize + 30_000].fill(byte);
            let committed = group.status().committed.0;
            self.epochs.insert(committed, self.state.clone());
        }
    }

    /// The same, and waits until all of it but what grows is cold.
    fn write_cold(&mut self, group: &Group, count: u64) {
        let before = history(group).cold_runs;
        self.write(group, count);
        until(|| {
            let status = history(group);
            status.cold_runs > before && status.cold_runs + 1 == status.runs
        });
    }

    /// Every point that is kept; returns those that can't be read.
    fn check(&self, group: &Group) -> Vec<u64> {
        let mut kept = Vec::new();
        let past = &group.history().unwrap().past;
        past.visit_points(Epoch(0), |point| kept.push(point.epoch.0))
            .unwrap();
        assert!(kept.len() > self.epochs.len() / 2, "{kept:?}");
        let wrong = |epoch: &u64| match read(group, *epoch) {
            Ok(content) => {
                assert!(content == self.epochs[epoch], "epoch {epoch}");
                false
            }
            Err(error) => {
                assert!(matches!(error, IoError::Io), "{error:?}");
                true
            }
        };
        kept.into_iter().filter(wrong).collect()
    }

    fn verify(&self, cold: bool) -> Vec<String> {
        let place = self.store().display().to_string().parse().unwrap();
        let store = cold.then(|| Arc::new(ColdObjects::new(place)) as Arc<dyn ColdStore>);
        let dir = self.site.config.log.join("history");
        verify(&dir, store).unwrap().unwrap().damages
    }
}

fn read(group: &Group, epoch: u64) -> Result<Vec<u8>, IoError> {
    let point = format!("epoch={epoch}");
    let export = group.attach_any("root", Some(&point), Cutter::inert());
    let mut all = vec![0xee; SIZE as usize];
    export.unwrap().unwrap().read(0, &mut all).map(|()| all)
}

fn history(group: &Group) -> HistoryStatus {
    group.status().history.unwrap()
}

fn objects(store: &Path) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(store).unwrap();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().path()).collect()
}

#[test]
fn old_history_goes_away_and_every_epoch_reads_as_it_was() {
    let mut bench = Bench::new();
    let mut group = bench.site.open();
    for round in 0..3 {
        bench.write_cold(&group, 12);
        assert!(bench.check(&group).is_empty());
        group.stop();
        drop(group);
        group = bench.site.open();
        assert!(history(&group).cold_bytes > 0, "round {round}");
        assert!(bench.check(&group).is_empty());
    }
    // A rewind to what is cold.
    let to = *bench.epochs.keys().nth(5).unwrap();
    group.stop();
    drop(group);
    let rewound = bench.site.config.rewind(Epoch(to)).unwrap();
    let then = bench.epochs[&to].clone();
    bench.epochs.insert(rewound.epoch.0, then.clone());
    let group = bench.site.open();
    let mut live = vec![0; SIZE as usize];
    attach(&group, "root", None)
        .export
        .read(0, &mut live)
        .unwrap();
    assert!(live == then);
    assert!(bench.check(&group).is_empty());
    group.stop();
    assert_eq!(bench.verify(true), Vec::<String>::new());
}

#[test]
fn a_store_that_is_away_costs_nothing_but_what_is_in_it() {
    let mut bench = Bench::new();
    let group = bench.site.open();
    bench.write_cold(&group, 12);
    group.stop();
    drop(group);
    let away = bench.site.dir.path().join("away");
    std::fs::rename(bench.store(), &away).unwrap();
    // It starts, serves the head, keeps history, and tells what has changed.
    let group = bench.site.open();
    bench.write(&group, 6);
    let past = &group.history().unwrap().past;
    let newest = group.status().committed;
    group
        .view(&format!("epoch={newest}").parse().unwrap())
        .unwrap();
    let changes = past.changes(Epoch(0), newest).unwrap();
    assert!(!changes.changed(0, 0, SIZE).unwrap().is_empty());
    drop(changes);
    let lost = bench.check(&group);
    assert!(lost.len() > 6 && !lost.contains(&newest.0), "{lost:?}");
    until(|| {
        let trouble = group.status().last_error;
        trouble.is_some_and(|trouble| trouble.contains("cold storage"))
    });
    assert!(!bench.store().exists(), "it is not made anew");
    group.stop();
    drop(group);
    let refused = bench.site.config.rewind(Epoch(lost[0])).unwrap_err();
    assert!(matches!(refused, OpenError::History { .. }), "{refused}");
    let group = bench.site.open();
    std::fs::rename(&away, bench.store()).unwrap();
    assert!(bench.check(&group).is_empty());
    until(|| group.status().last_error.is_none());
    bench.write_cold(&group, 3);
    assert!(bench.check(&group).is_empty());
}

#[test]
fn what_the_store_has_lost_is_named() {
    let mut bench = Bench::new();
    let mut group = bench.site.open();
    for _ in 0..3 {
        bench.write_cold(&group, 8);
    }
    group.stop();
    drop(group);
    let all = objects(&bench.store());
    assert!(all.len() >= 3);
    let victim = all.iter().min().unwrap();
    let name = victim.file_name().unwrap().to_str().unwrap().to_owned();
    let held = std::fs::read(victim).unwrap();
    let damaged: Vec<u8> = held.iter().map(|byte| byte ^ 1).collect();
    for instead in [Some(damaged), None] {
        match &instead {
            Some(bytes) => std::fs::write(victim, bytes).unwrap(),
            None => std::fs::remove_file(victim).unwrap(),
        }
        group = bench.site.open();
        let lost = bench.check(&group);
        assert!(!lost.is_empty());
        // Those that need it only; what lies behind it does not.
        let newest = *bench.epochs.keys().next_back().unwrap();
        assert!(!lost.contains(&newest));
        group.stop();
        drop(group);
        let damages = bench.verify(true);
        assert!(
            damages.iter().any(|damage| damage.contains(&name)),
            "{damages:?}"
        );
        assert_eq!(bench.verify(false), Vec::<String>::new());
    }
    std::fs::write(victim, held).unwrap();
    assert_eq!(bench.verify(true), Vec::<String>::new());
    assert!(bench.check(&bench.site.open()).is_empty());
}

#[test]
fn what_is_too_old_goes_from_the_store_as_well() {
    let mut bench = Bench::new();
    bench.site.config.history.as_mut().unwrap().age = "4s".parse().unwrap();
    let group = bench.site.open();
    bench.write(&group, 8);
    until(|| history(&group).cold_runs > 0);
    assert!(!objects(&bench.store()).is_empty());
    until(|| objects(&bench.store()).is_empty());
    assert_eq!(history(&group).cold_runs, 0);
    group.stop();
    assert_eq!(bench.verify(true), Vec::<String>::new());
}
