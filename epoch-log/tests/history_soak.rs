//! A long run of random histories: every kept epoch reads as it was, through batches, crashes, restarts, trimming, thinning and pins.
//! `make soak` runs a million epochs; the test suite a share of them (HISTORY_EPOCHS).
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use epoch_log::Epoch;
use epoch_log::history::{Anchor, History, Options, Retention, Tier, View};
use epoch_log::storage::directory;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use xxhash_rust::xxh3::xxh3_64;

const DISKS: usize = 3;
const SIZE: usize = 8 << 10;
/// Epochs of one history; then the next begins, with other bounds.
const EACH: u64 = 10_000;

struct Group {
    history: Arc<History>,
    images: Vec<Vec<u8>>,
    applied: u64,
    time: u64,
    /// Checksum of all disks at each epoch.
    sums: BTreeMap<u64, u64>,
    retention: Retention,
}

fn open(dir: &Path, committed: u64, applied: u64, time: u64) -> Arc<History> {
    let anchor = Anchor {
        log_id: [3; 16],
        applied: Epoch(applied),
        committed: Epoch(committed),
    };
    let options = Options {
        run_bytes: 256 << 10,
        run_entries: 800,
        object_bytes: 64 << 10,
    };
    let (history, opened) = History::open(directory(dir), anchor, options, time).unwrap();
    assert!(opened.lost.is_empty(), "{opened:?}");
    history
}

fn retention(random: &mut StdRng) -> Retention {
    let tiers = vec![
        Tier {
            older_than_ms: random.random_range(1_000..10_000),
            one_in_ms: 100,
        },
        Tier {
            older_than_ms: random.random_range(20_000..40_000),
            one_in_ms: 2_000,
        },
    ];
    Retention {
        age_ms: *[u64::MAX, 30_000, 90_000].choose(random).unwrap(),
        bytes: *[u64::MAX, 4 << 20, 12 << 20].choose(random).unwrap(),
        min_free: 0,
        tiers: if random.random() { tiers } else { Vec::new() },
    }
}

impl Group {
    /// A few epochs, committed together: saved at once, applied at once, and sometimes the power goes in between.
    fn step(&mut self, dir: &Path, random: &mut StdRng) -> u64 {
        let count = random.random_range(1..8);
        let mut now = self.images.clone();
        let mut epochs = Vec::new();
        for _ in 0..count {
            let mut writes = Vec::new();
            for _ in 0..random.random_range(0..4) {
                let disk = random.random_range(0..DISKS);
                let at = random.random_range(0..SIZE);
                let most = if random.random_bool(0.1) { SIZE } else { 600 };
                let len = random.random_range(1..=most.min(SIZE - at));
                // Trims and zeroes are zeros here: what they leave is what the image reads.
                let byte = if random.random_bool(0.3) {
                    0
                } else {
                    random.random()
                };
                writes.push((disk, at, len, byte));
            }
            epochs.push(writes);
        }
        let crash = random.random_bool(0.02);
        let first = self.applied + 1;
        for attempt in 0..=usize::from(crash) {
            let mut capture = self.history.capture().unwrap();
            let known = capture.last().epoch.0;
            let mut held = if attempt == 0 {
                self.images.clone()
            } else {
                now.clone()
            };
            for (epoch, writes) in (first..).zip(&epochs) {
                if attempt == 0 {
                    self.time += random.random_range(0..20);
                }
                for (disk, at, len, byte) in writes {
                    let (disk, range) = (*disk, *at..*at + *len);
                    if epoch > known {
                        let image = &held[disk];
                        let save = |at: u64, buffer: &mut [u8]| {
                            buffer.copy_from_slice(&image[at as usize..at as usize + buffer.len()]);
                            Ok(())
                        };
                        let (start, end) = (range.start as u64, range.end as u64);
                        capture.save(disk as u16, start, end, save).unwrap();
                    }
                    held[disk][range.clone()].fill(*byte);
                    now[disk][range].fill(*byte);
                }
                if epoch > known {
                    capture.boundary(Epoch(epoch), self.time, true).unwrap();
                }
                if attempt == 0 {
                    self.sums.insert(epoch, xxh3_64(&now.concat()));
                }
            }
            let last = first + count - 1;
            if crash && attempt == 0 && random.random() {
                // Before it was durable: nothing was applied.
                drop(capture);
                self.crash(dir, last, random);
                now.clone_from(&self.images);
                continue;
            }
            capture.finish(Epoch(last)).unwrap();
            if crash && attempt == 0 {
                self.crash(dir, last, random);
                continue;
            }
            self.images.clone_from(&now);
            self.applied = last;
            self.history.applied(Epoch(last));
        }
        count
    }

    /// The power goes: the file that grows may have something torn at its end.
    fn crash(&mut self, dir: &Path, committed: u64, random: &mut StdRng) {
        let mut runs: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        runs.retain(|path| path.extension().is_some_and(|extension| extension == "run"));
        runs.sort();
        self.reopen(dir, committed, |_| {
            // A merged run has a higher number than the one that grows, and is whole: what is behind its end would damage it.
            if let [only] = runs.as_slice() {
                let mut file = std::fs::OpenOptions::new().append(true).open(only).unwrap();
                let torn: Vec<u8> = (0..random.random_range(0..9000))
                    .map(|_| random.random())
                    .collect();
                file.write_all(&torn).unwrap();
            }
        });
    }

    fn reopen(&mut self, dir: &Path, committed: u64, meanwhile: impl FnOnce(&Path)) {
        let nothing = tempfile::tempdir().unwrap();
        let placeholder = open(nothing.path(), 0, 0, 0);
        drop(std::mem::replace(&mut self.history, placeholder));
        meanwhile(dir);
        self.history = open(dir, committed, self.applied, self.time);
    }

    fn sum(&self, view: &View) -> u64 {
        let mut all = Vec::new();
        for (disk, image) in self.images.iter().enumerate() {
            let mut buffer = vec![0xee; SIZE];
            view.read(disk as u16, 0, &mut buffer, |at, part| {
                part.copy_from_slice(&image[at as usize..at as usize + part.len()]);
                Ok(())
            })
            .unwrap();
            all.extend(buffer);
        }
        xxh3_64(&all)
    }

    /// Reads the points that `look` chooses; returns how many epochs that were.
    fn check(&self, mut look: impl FnMut(usize) -> bool) -> u64 {
        let mut points = Vec::new();
        self.history
            .visit_points(Epoch(0), |point| points.push(point))
            .unwrap();
        let mut read = 0;
        for (number, point) in points.iter().enumerate() {
            if look(number) {
                let view = self.history.view(point.epoch).unwrap();
                let sum = self.sum(&view);
                assert_eq!(sum, self.sums[&point.epoch.0], "{point:?}");
                assert_eq!(sum, self.sums[&point.until.0], "{point:?}");
                read += 1 + point.until.0 - point.epoch.0;
            }
        }
        assert_eq!(points.last().unwrap().until, Epoch(self.applied));
        for pin in self.history.pins() {
            assert!(
                points.iter().any(|point| point.epoch == pin.point.epoch),
                "{pin:?}"
            );
        }
        read
    }
}

#[test]
fn every_kept_epoch_of_many_reads_as_it_was() {
    let epochs: u64 = std::env::var("HISTORY_EPOCHS").map_or(20_000, |text| text.parse().unwrap());
    let (mut done, mut read) = (0, 0);
    let mut seed = 0;
    while done < epochs {
        seed += 1;
        let mut random = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let images = vec![vec![0; SIZE]; DISKS];
        let mut group = Group {
            history: open(dir.path(), 0, 0, 1_000_000),
            sums: BTreeMap::from([(0, xxh3_64(&images.concat()))]),
            images,
            applied: 0,
            time: 1_000_000,
            retention: retention(&mut random),
        };
        while group.applied < EACH.min(epochs) {
            done += group.step(dir.path(), &mut random);
            match random.random_range(0..400) {
                0 => {
                    let applied = group.applied;
                    group.reopen(dir.path(), applied, |_| {});
                }
                1..30 => {
                    while !group
                        .history
                        .maintain(group.time, &group.retention)
                        .unwrap()
                        .is_nothing()
                    {}
                }
                30..34 => {
                    let name = format!("pin-{}", group.applied);
                    drop(group.history.pin(&name, Epoch(group.applied)));
                }
                34..36 => {
                    if let Some(pin) = group.history.pins().choose(&mut random) {
                        group.history.unpin(&pin.name).unwrap();
                    }
                }
                36..39 => read += group.check(|_| random.random_bool(0.02)),
                _ => {}
            }
        }
        read += group.check(|_| true);
    }
    println!("{done} epochs in {seed} histories, {read} of them read");
}
