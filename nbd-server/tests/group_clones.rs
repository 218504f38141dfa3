//! Clones of a group: writable, apart from the group and from each other, there after restarts and crashes as far as they were flushed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

mod group_common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use group_common::{BLOCK, SIZE, Site, attach};
use nbd_server::Epoch;
use nbd_server::control::api::ErrorKind;
use nbd_server::export::{Cutter, Export};
use nbd_server::group::history::{HistoryConfig, Point, now_ms};
use nbd_server::group::{Group, GroupMode};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const DISKS: [&str; 2] = ["root", "data"];
/// Blocks of a disk.
const BLOCKS: usize = SIZE as usize / BLOCK;

fn site() -> Site {
    let mut site = Site::new(GroupMode::Async, &DISKS);
    site.config.epoch_interval_ms = 3_600_000;
    site.config.history = Some(HistoryConfig::default());
    site
}

fn files(site: &Site, name: &str) -> PathBuf {
    site.config.log.join("history-clones").join(name)
}

fn try_clone(group: &Group, disk: &str, name: &str) -> Result<Arc<dyn Export>, String> {
    let attached = group.attach_any(disk, Some(&format!("clone={name}")), Cutter::inert());
    let attached = attached.expect("the disk exists");
    attached.map_err(|refusal| refusal.to_string())
}

fn clone(group: &Group, disk: &str, name: &str) -> Arc<dyn Export> {
    try_clone(group, disk, name).unwrap()
}

fn read(export: &dyn Export) -> Vec<u8> {
    let mut all = vec![0xee; SIZE as usize];
    export.read(0, &mut all).unwrap();
    all
}

/// Fills both disks of the group with something, durably.
fn fill(group: &Group, random: &mut StdRng) -> Vec<Vec<u8>> {
    let mut state = Vec::new();
    for disk in DISKS {
        let export = attach(group, disk, None).export;
        let mut content = vec![0; SIZE as usize];
        for part in content.chunks_mut(64 << 10) {
            if random.random_bool(0.7) {
                random.fill(part);
            }
        }
        export
            .write(0, Bytes::from(content.clone()), false)
            .unwrap();
        export.trim(5 * BLOCK as u64, 30_000, false).unwrap();
        content[5 * BLOCK..5 * BLOCK + 30_000].fill(0);
        export.flush().unwrap();
        state.push(content);
    }
    state
}

/// Runs of the history that noise has merged.
static MERGED: AtomicUsize = AtomicUsize::new(0);

/// Writes to the group's disks until it is dropped, and keeps only the newest part of their history.
struct Noise {
    group: Arc<Group>,
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Noise {
    fn new(group: &Arc<Group>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let run = |mut act: Box<dyn FnMut(&Group) + Send>| {
            let (group, stop) = (Arc::clone(group), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    act(&group);
                }
            })
        };
        let mut random = StdRng::seed_from_u64(1);
        let write = move |group: &Group| {
            let export = attach(group, DISKS[random.random_range(0..2)], None).export;
            let offset = random.random_range(0..SIZE - 70_000);
            let data = vec![random.random(); random.random_range(1..70_000)];
            export.write(offset, Bytes::from(data), false).unwrap();
            export.flush().unwrap();
        };
        let maintain = |group: &Group| {
            let history = group.history().unwrap();
            let mut retention = history.retention.clone();
            retention.age_ms = 1;
            let later = now_ms() + 3_600_000;
            let done = history.past.maintain(later, &retention).unwrap();
            MERGED.fetch_add(done.merged, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(2));
        };
        Self {
            group: Arc::clone(group),
            threads: vec![run(Box::new(write)), run(Box::new(maintain))],
            stop,
        }
    }

    /// Ends it, and hands the group back.
    fn end(self) -> Group {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        Arc::into_inner(self.group).expect("nobody else has it")
    }
}

/// What a disk of a clone may hold, block by block.
struct Model {
    /// As it reads while the process lives.
    now: Vec<u8>,
    /// What each block may be after the machine has failed: what it was when it was flushed, and all that was written since.
    or: Vec<Vec<Vec<u8>>>,
}

impl Model {
    fn new(content: &[u8]) -> Self {
        let blocks = content.chunks(BLOCK).map(|block| vec![block.to_vec()]);
        Self {
            now: content.to_vec(),
            or: blocks.collect(),
        }
    }

    fn change(&mut self, offset: u64, len: u64, change: impl FnOnce(&mut [u8])) {
        let range = offset as usize..(offset + len) as usize;
        change(&mut self.now[range.clone()]);
        for block in range.start / BLOCK..range.end.div_ceil(BLOCK) {
            let new = self.block(block);
            self.or[block].push(new);
        }
    }

    fn block(&self, block: usize) -> Vec<u8> {
        self.now[block * BLOCK..(block + 1) * BLOCK].to_vec()
    }

    fn flushed(&mut self) {
        for block in 0..BLOCKS {
            self.or[block] = vec![self.block(block)];
        }
    }

    /// After a failure of the machine: what is there is what there is from now on.
    fn survived(&mut self, found: Vec<u8>) {
        for (block, content) in found.chunks(BLOCK).enumerate() {
            assert!(
                self.or[block].iter().any(|old| old == content),
                "block {block} is neither old nor new"
            );
        }
        *self = Self::new(&found);
    }
}

fn act(export: &dyn Export, model: &mut Model, random: &mut StdRng) {
    let mut offset = random.random_range(0..SIZE - 1);
    let mut len = random.random_range(1..=(SIZE - offset).min(40_000));
    if random.random_bool(0.3) {
        offset -= offset % BLOCK as u64;
        len = len.next_multiple_of(BLOCK as u64).min(SIZE - offset);
    }
    let fua = random.random_bool(0.1);
    match random.random_range(0..10) {
        0 => export.flush().unwrap(),
        1 => {
            export.trim(offset, len, fua).unwrap();
            model.change(offset, len, |range| range.fill(0));
        }
        2 => {
            let may_trim = random.random();
            export
                .write_zeroes(offset, len, may_trim, false, fua)
                .unwrap();
            model.change(offset, len, |range| range.fill(0));
        }
        3 => {
            let mut found = vec![0xee; len as usize];
            export.read(offset, &mut found).unwrap();
            assert!(found == model.now[offset as usize..(offset + len) as usize]);
            return;
        }
        _ => {
            let mut data = vec![0; len as usize];
            random.fill(&mut data[..]);
            model.change(offset, len, |range| range.copy_from_slice(&data));
            export.write(offset, Bytes::from(data), fua).unwrap();
        }
    }
    // A FLUSH, and FUA here too, covers all that was answered before.
    if fua {
        model.flushed();
    }
}

/// What BLOCK_STATUS calls zero is zero, what was never written nor is in the image is a hole, and nothing is left out.
fn check_layout(export: &dyn Export, content: &[u8]) {
    let mut at = 0;
    while at < SIZE {
        for extent in export.block_status(at, SIZE - at, 3).unwrap() {
            let end = at + extent.len;
            assert!(end <= SIZE);
            let zeros = content[at as usize..end as usize]
                .iter()
                .all(|byte| *byte == 0);
            assert!(!extent.zero || zeros, "at {at}");
            at = end;
        }
    }
}

/// As a failure of the machine leaves it: what belongs to one start of the machine is of no use to the next.
fn machine_fails(site: &Site, name: &str) {
    for disk in DISKS {
        std::fs::remove_file(files(site, name).join(format!("{disk}.recent"))).unwrap();
    }
}

#[test]
fn clones_hold_what_was_written_to_them_whatever_happens_around_them() {
    for seed in 0..6 {
        let mut random = StdRng::seed_from_u64(seed);
        let site = site();
        let mut group = site.open();
        let then = fill(&group, &mut random);
        let epoch = group.status().committed;
        let mut names = Vec::new();
        for name in ["a", "b"] {
            let status = group
                .add_clone(name, Some(&Point::Epoch(epoch)), None)
                .unwrap();
            assert_eq!((status.epoch, status.error), (Some(epoch), None));
            names.push(name);
        }
        let model = || -> Vec<Model> { then.iter().map(|disk| Model::new(disk)).collect() };
        let mut models = [model(), model()];
        for round in 0..8 {
            let noise = Noise::new(&Arc::new(group));
            for (name, models) in names.iter().zip(&mut models) {
                for (disk, model) in DISKS.iter().zip(models) {
                    let export = clone(&noise.group, disk, name);
                    for _ in 0..random.random_range(0..30) {
                        act(export.as_ref(), model, &mut random);
                    }
                    assert!(
                        read(export.as_ref()) == model.now,
                        "seed {seed}: {name} {disk}"
                    );
                    check_layout(export.as_ref(), &model.now);
                }
            }
            group = noise.end();
            match (round + seed) % 4 {
                // The gateway is stopped: everything is durable.
                0 => {
                    group.stop();
                    drop(group);
                    names.iter().for_each(|name| machine_fails(&site, name));
                    group = site.open();
                }
                // Its process is killed.
                1 => {
                    drop(group);
                    group = site.open();
                }
                // The machine fails.
                2 => {
                    drop(group);
                    names.iter().for_each(|name| machine_fails(&site, name));
                    group = site.open();
                    for (name, models) in names.iter().zip(&mut models) {
                        for (disk, model) in DISKS.iter().zip(models) {
                            model.survived(read(clone(&group, disk, name).as_ref()));
                        }
                    }
                }
                _ => {}
            }
            if (round + seed) % 4 == 0 {
                models.iter_mut().flatten().for_each(Model::flushed);
            }
        }
    }
    assert!(
        MERGED.load(Ordering::SeqCst) > 0,
        "nothing was ever trimmed"
    );
}

#[test]
fn a_flush_on_one_connection_covers_all_and_a_crash_takes_nothing_flushed() {
    let site = site();
    let group = site.open();
    group.add_clone("a", None, None).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let export = clone(&group, "root", "a");
            assert!(export.info().multi_conn);
            scope.spawn(move || {
                // All write parts of the same blocks.
                for block in 0..BLOCKS as u64 {
                    let offset = block * BLOCK as u64 + u64::from(thread) * 1000;
                    let data = Bytes::from(vec![thread + 1; 1000]);
                    export.write(offset, data, false).unwrap();
                }
            });
        }
    });
    clone(&group, "root", "a").flush().unwrap();
    drop(group);
    machine_fails(&site, "a");
    let group = site.open();
    let content = read(clone(&group, "root", "a").as_ref());
    for block in content.chunks(BLOCK) {
        for thread in 0..4 {
            let part = &block[thread * 1000..(thread + 1) * 1000];
            assert!(part.iter().all(|byte| *byte == thread as u8 + 1));
        }
        assert!(block[4000..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_removed_clone_leaves_nothing() {
    let site = site();
    let group = site.open();
    fill(&group, &mut StdRng::seed_from_u64(3));
    let pins = || group.history().unwrap().past.pins().len();
    let elsewhere = site.dir.path().join("elsewhere");
    group.add_clone("a", None, None).unwrap();
    let status = group.add_clone("b", None, Some(&elsewhere)).unwrap();
    assert_eq!(status.dir, elsewhere);
    assert_eq!(pins(), 2);
    let cut = Arc::new(AtomicBool::new(false));
    for name in ["a", "b"] {
        let ended = Arc::clone(&cut);
        let (sender, told) = std::sync::mpsc::channel();
        let cutter = Cutter::new(
            || {},
            move || {
                ended.store(true, Ordering::SeqCst);
                let _ = sender.send(());
            },
        );
        let export = group
            .attach_any("root", Some(&format!("clone={name}")), cutter)
            .unwrap()
            .unwrap();
        export.write(0, Bytes::from_static(b"x"), true).unwrap();
        let error = group.remove_clone(name, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("1 connections"), "{error}");
        assert!(!cut.load(Ordering::SeqCst));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                told.recv().unwrap();
                drop(export);
            });
            group.remove_clone(name, true).unwrap();
        });
        assert!(cut.swap(false, Ordering::SeqCst));
        assert!(files(&site, name).symlink_metadata().is_err());
        let error = try_clone(&group, "root", name).err().unwrap();
        assert!(error.contains("there is no clone"), "{error}");
    }
    assert_eq!(pins(), 0);
    assert!(!elsewhere.exists());
    let error = group.remove_clone("a", true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownClone);
    assert!(group.clone_statuses().is_empty());
}

#[test]
fn a_clone_elsewhere_is_there_after_a_restart_and_when_its_directory_is_not() {
    let site = site();
    let elsewhere = site.dir.path().join("elsewhere");
    let group = site.open();
    group.add_clone("a", None, Some(&elsewhere)).unwrap();
    clone(&group, "data", "a")
        .write(4095, Bytes::from_static(b"xy"), false)
        .unwrap();
    group.stop();
    drop(group);
    let away = site.dir.path().join("away");
    std::fs::rename(&elsewhere, &away).unwrap();
    let group = site.open();
    let status = group.clone_statuses().remove(0);
    assert!(status.error.unwrap().contains("CLONE"));
    assert_eq!(group.history().unwrap().past.pins().len(), 1);
    drop(group);
    std::fs::rename(&away, &elsewhere).unwrap();
    let group = site.open();
    let mut found = [0; 2];
    clone(&group, "data", "a").read(4095, &mut found).unwrap();
    assert_eq!(&found, b"xy");
}

#[test]
fn names_points_and_directories_that_can_not_be_are_refused() {
    let site = site();
    let group = site.open();
    let refused = |name: &str, at: Option<Point>, dir: Option<&Path>| {
        let error = group.add_clone(name, at.as_ref(), dir).unwrap_err();
        (error.kind(), error.to_string())
    };
    for name in ["", ".", "..", ".a", "a/b", "a=b", &"x".repeat(59)] {
        let (kind, said) = refused(name, None, None);
        assert_eq!(kind, ErrorKind::BadRequest, "{name}: {said}");
    }
    group.add_clone(&"x".repeat(58), None, None).unwrap();
    let (kind, said) = refused(&"x".repeat(58), None, None);
    assert!(
        kind == ErrorKind::Refused && said.contains("already"),
        "{said}"
    );
    let (kind, said) = refused("a", Some(Point::Epoch(Epoch(77))), None);
    assert!(
        kind == ErrorKind::Refused && said.contains("not kept"),
        "{said}"
    );
    let (kind, said) = refused("a", None, Some(site.dir.path()));
    assert!(
        kind == ErrorKind::BadRequest && said.contains("something in it"),
        "{said}"
    );
    assert!(site.image(0).exists());
    let (kind, said) = refused("a", None, Some(&site.dir.path().join("no/where")));
    assert!(
        kind == ErrorKind::BadRequest && said.contains("does not exist"),
        "{said}"
    );
    assert_eq!(group.history().unwrap().past.pins().len(), 1);
    let plain = Site::new(GroupMode::Async, &DISKS);
    let said = plain.open().add_clone("a", None, None).unwrap_err();
    assert!(said.to_string().contains("keeps no history"), "{said}");
}

/// Every other clone, and the group, go on.
#[test]
fn a_damaged_clone_says_so_and_harms_no_other() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm, &str); 6] = [
        (
            "record",
            |dir| flip_byte(&dir.join("root.map"), 4096 + 30),
            "damaged",
        ),
        ("head", |dir| flip_byte(&dir.join("root.map"), 3), "damaged"),
        ("map", |dir| shorten(&dir.join("root.map"), 5000), "damaged"),
        (
            "data",
            |dir| shorten(&dir.join("data.data"), SIZE - 1),
            "damaged",
        ),
        ("what", |dir| flip_byte(&dir.join("CLONE"), 60), "damaged"),
        (
            "other",
            |dir| {
                let other = dir.with_file_name("good").join("root.map");
                std::fs::copy(other, dir.join("root.map")).unwrap();
            },
            "does not belong",
        ),
    ];
    let site = site();
    let group = site.open();
    fill(&group, &mut StdRng::seed_from_u64(9));
    for name in harms.iter().map(|(name, ..)| *name).chain(["good"]) {
        group.add_clone(name, None, None).unwrap();
        let export = clone(&group, "root", name);
        for block in (0..BLOCKS as u64).step_by(2) {
            let data = Bytes::from(vec![7; BLOCK]);
            export.write(block * BLOCK as u64, data, false).unwrap();
        }
    }
    group.stop();
    drop(group);
    for (name, harm, _) in &harms {
        harm(&files(&site, name));
    }
    let group = site.open();
    assert_eq!(read(clone(&group, "root", "good").as_ref())[0], 7);
    for (name, _, says) in &harms {
        let said = try_clone(&group, "root", name).err().unwrap();
        assert!(said.contains(says), "{name}: {said}");
        group.remove_clone(name, false).unwrap();
        assert!(!files(&site, name).exists());
    }
    assert_eq!(group.history().unwrap().past.pins().len(), 1);
}

fn flip_byte(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn shorten(path: &Path, len: u64) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len(len).unwrap();
}

#[test]
fn a_clone_is_never_put_over_another_log_or_moment() {
    let site = site();
    let group = site.open();
    fill(&group, &mut StdRng::seed_from_u64(4));
    group.add_clone("a", None, None).unwrap();
    group.stop();
    drop(group);
    // The history begins anew, at the same epoch.
    let history = site.config.log.join("history");
    std::fs::rename(&history, site.dir.path().join("old")).unwrap();
    let group = site.open();
    let said = try_clone(&group, "root", "a").err().unwrap();
    assert!(said.contains("point in time is gone"), "{said}");
    drop(group);
    // The files of a clone come to another group.
    let other = self::site();
    other.open().stop();
    let there = files(&other, "a");
    std::fs::create_dir_all(there.parent().unwrap()).unwrap();
    std::fs::rename(files(&site, "a"), &there).unwrap();
    let group = other.open();
    let said = try_clone(&group, "root", "a").err().unwrap();
    assert!(said.contains("does not belong"), "{said}");
}

#[test]
fn what_was_left_half_done_is_taken_away_at_the_next_opening() {
    let site = site();
    let group = site.open();
    for name in ["half", "pin", "whole"] {
        group.add_clone(name, None, None).unwrap();
    }
    drop(group);
    std::fs::remove_file(files(&site, "half").join("CLONE")).unwrap();
    std::fs::remove_dir_all(files(&site, "pin")).unwrap();
    let group = site.open();
    assert!(!files(&site, "half").exists());
    let names: Vec<_> = group.clone_statuses().into_iter().map(|c| c.name).collect();
    assert_eq!(names, ["whole"]);
    assert_eq!(group.history().unwrap().past.pins().len(), 1);
    // A pin that somebody has taken away comes back, as long as its point is there.
    group.history().unwrap().past.unpin("clone-whole").unwrap();
    drop(group);
    let group = site.open();
    clone(&group, "root", "whole");
    assert_eq!(group.history().unwrap().past.pins().len(), 1);
}
