//! Groups that keep history hold writes in sync mode, too: nothing but committed epochs reaches their images, a flush is durable, and
//! what was answered is there again after a restart of the gateway.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod group_common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use group_common::{BLOCK, Site, attach, attach_source, checkpoint, commit, try_attach, until};
use nbd_server::control::api::ModeName;
use nbd_server::export::{Export, IoError};
use nbd_server::group::barriers::{Input, Protection, SealNumber};
use nbd_server::group::{Group, GroupError, GroupMode, HistoryConfig, Refusal};
use nbd_server::{Epoch, Generation};

/// A group of one disk that commits by itself at flushes only.
fn site(memory: bool) -> Site {
    let mut site = if memory {
        Site::with_memory(GroupMode::Sync, &["root"])
    } else {
        Site::new(GroupMode::Sync, &["root"])
    };
    site.config.history = Some(HistoryConfig::default());
    site.config.epoch_interval_ms = 3_600_000;
    site
}

fn first_seal(group: &Group, generation: Generation, protection: u64, newest: Epoch) -> Epoch {
    let number = SealNumber {
        epoch: newest.next(),
        protection: Some(Protection(protection)),
    };
    let sealed = group.seal_as(generation, Some(number)).unwrap();
    assert!(sealed.empty_first);
    assert_eq!(sealed.bytes, 0);
    sealed.epoch
}

fn drain(group: &Group, generation: Generation, protection: u64) -> Epoch {
    let input = Input::DrainToSync {
        generation,
        protection: Some(Protection(protection)),
    };
    group.request_blocking(input).unwrap().committed
}

fn filled(byte: u8) -> Vec<u8> {
    vec![byte; BLOCK]
}

#[test]
fn sync_mode_touches_no_image_before_a_commit() {
    let site = site(false);
    let group = site.open();
    attach_source(&group, "source:1");
    let root = attach(&group, "root", Some("source:1"));
    root.write(1, 1);
    root.export
        .write_zeroes(2 * BLOCK as u64, BLOCK as u64, true, true, false)
        .unwrap();
    let status = group.status();
    assert_eq!((status.mode, status.open), (ModeName::Sync, Some(Epoch(1))));
    assert_eq!(root.read(1), 1);
    assert_eq!(site.image_block(0, 1), filled(0));
    root.export.flush().unwrap();
    assert_eq!(group.status().committed, Epoch(1));
    until(|| group.status().applied == Epoch(1));
    assert_eq!(site.image_block(0, 1), filled(1));
}

#[test]
fn sync_mode_commits_by_itself_from_time_to_time() {
    let mut site = site(false);
    site.config.epoch_interval_ms = 5;
    let group = site.open();
    attach_source(&group, "source:1");
    let root = attach(&group, "root", Some("source:1"));
    root.write(1, 1);
    until(|| site.image_block(0, 1) == filled(1));
}

#[test]
fn a_flush_outlives_the_process_and_its_memory() {
    let site = site(false);
    let group = site.open();
    let generation = attach_source(&group, "source:1");
    let root = attach(&group, "root", Some("source:1"));
    root.write(1, 1);
    root.export.flush().unwrap();
    root.write(1, 2);
    root.write(2, 2);
    drop((root, group));

    let group = site.open();
    // Its guest believes block 2 to be written, and runs on.
    assert_eq!(group.status().generation, generation.next());
    assert!(try_attach(&group, "root", Some("source:1")).is_err());
    let plain = attach(&group, "root", None);
    assert_eq!((plain.read(1), plain.read(2)), (1, 0));
}

#[test]
fn a_restart_goes_on_with_what_was_not_flushed() {
    let site = site(true);
    let group = site.open();
    let generation = attach_source(&group, "source:1");
    let root = attach(&group, "root", Some("source:1"));
    root.write(1, 1);
    root.export.flush().unwrap();
    root.write(1, 2);
    drop((root, group));

    let group = site.open();
    assert_eq!(group.status().generation, generation);
    let root = attach(&group, "root", Some("source:1"));
    assert_eq!(root.read(1), 2);
    assert_eq!(site.image_block(0, 1), filled(1), "only what was committed");
    root.write(2, 3);
    // A first seal finds what an earlier process has left.
    let first = first_seal(&group, generation, 1, Epoch(0));
    assert_eq!(first, Epoch(3));
    commit(&group, generation, first, "standby:1").unwrap();
    until(|| group.status().applied == first);
    assert_eq!(site.image_block(0, 1), filled(2));
    assert_eq!(site.image_block(0, 2), filled(3));
}

#[test]
fn a_machine_that_fails_takes_what_was_not_flushed_and_nothing_else() {
    let site = site(true);
    let group = site.open();
    let generation = attach_source(&group, "source:1");
    let root = attach(&group, "root", Some("source:1"));
    root.write(1, 1);
    root.export.flush().unwrap();
    root.write(1, 2);
    drop((root, group));
    for entry in std::fs::read_dir(site.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "held")
        {
            std::fs::remove_file(path).unwrap();
        }
    }

    let group = site.open();
    assert_eq!(group.status().generation, generation, "as in sync mode");
    let root = attach(&group, "root", Some("source:1"));
    assert_eq!(root.read(1), 1);
}

#[test]
fn a_stop_in_order_leaves_nothing_behind() {
    for memory in [false, true] {
        let site = site(memory);
        let group = site.open();
        let generation = attach_source(&group, "source:1");
        let root = attach(&group, "root", Some("source:1"));
        root.write(1, 1);
        drop(root);
        group.stop();
        drop(group);
        assert_eq!(site.image_block(0, 1), filled(1));
        let group = site.open();
        assert_eq!(group.status().generation, generation);
        attach(&group, "root", Some("source:1"));
    }
}

#[test]
fn the_first_epoch_of_a_protection_is_empty_whatever_was_held() {
    let site = site(false);
    let group = site.open();
    let generation = attach_source(&group, "source:1");
    let root = attach(&group, "root", Some("source:1"));
    for byte in 1..4 {
        root.write(1, byte);
        root.export.flush().unwrap();
    }
    root.write(1, 4);
    let first = first_seal(&group, generation, 1, Epoch(0));
    assert_eq!(first, Epoch(5), "after four that the group has committed");
    // QEMU flushes, to complete the checkpoint that the commit needs.
    root.export.flush().unwrap();
    root.write(1, 5);
    assert_eq!(
        commit(&group, generation, first, "standby:1").unwrap(),
        first
    );
    let after = checkpoint(&group, generation, "standby:1").epoch;
    assert_eq!(after, first.next());
    until(|| group.status().applied == after);
    assert_eq!(site.image_block(0, 1), filled(5));
}

#[test]
fn drains_and_detaches_commit_what_is_held() {
    let site = site(false);
    let group = site.open();
    let generation = attach_source(&group, "source:1");
    let root = attach(&group, "root", Some("source:1"));
    let first = first_seal(&group, generation, 1, Epoch(0));
    commit(&group, generation, first, "standby:1").unwrap();
    root.write(1, 1);
    group.seal(generation).unwrap();
    root.write(2, 2);
    let newest = drain(&group, generation, 1);
    assert_eq!(site.image_block(0, 1), filled(1));
    assert_eq!(site.image_block(0, 2), filled(2));
    // It holds again, and so does a next protection find something.
    root.write(3, 3);
    assert_eq!(site.image_block(0, 3), filled(0));
    let first = first_seal(&group, generation, 2, newest);
    commit(&group, generation, first, "standby:2").unwrap();
    drain(&group, generation, 2);
    root.write(4, 4);
    let detached = group
        .request_blocking(Input::Detach { generation })
        .unwrap();
    assert_eq!(detached.generation, generation.next());
    assert_eq!(site.image_block(0, 3), filled(3));
    assert_eq!(site.image_block(0, 4), filled(4));
    assert_eq!(group.status().owner, None);
    assert!(root.is_cut());
}

#[test]
fn an_owner_that_takes_the_disks_of_another_finds_what_that_wrote() {
    let site = site(false);
    let group = site.open();
    let generation = attach_source(&group, "source:1");
    let root = attach(&group, "root", Some("source:1"));
    root.write(1, 1);
    let later = attach_source(&group, "source:2");
    assert!(later > generation && root.is_cut());
    assert_eq!(root.export.flush(), Err(IoError::Shutdown));
    let root = attach(&group, "root", Some("source:2"));
    assert_eq!(root.read(1), 1);
    let refused = group.seal(generation).map(drop);
    assert!(matches!(
        refused,
        Err(GroupError::Refused(Refusal::Fenced { .. }))
    ));
}

#[test]
fn an_abort_drops_what_is_not_committed() {
    let site = site(false);
    let group = site.open();
    let generation = attach_source(&group, "source:1");
    let root = attach(&group, "root", Some("source:1"));
    root.write(1, 1);
    root.export.flush().unwrap();
    root.write(1, 2);
    group.request_blocking(Input::Abort { generation }).unwrap();
    assert_eq!(root.export.flush(), Err(IoError::Shutdown));
    let plain = attach(&group, "root", None);
    assert_eq!(plain.read(1), 1);
}

#[test]
fn after_a_takeover_it_holds_again() {
    let site = site(true);
    let group = site.open();
    let generation = attach_source(&group, "source:1");
    group.park("standby:1").unwrap();
    let root = attach(&group, "root", Some("source:1"));
    root.write(1, 1);
    let first = first_seal(&group, generation, 1, Epoch(0));
    commit(&group, generation, first, "standby:1").unwrap();
    root.write(1, 2);
    let taken = group
        .request_blocking(Input::Takeover {
            standby: "standby:1".into(),
        })
        .unwrap();
    assert_eq!(taken.committed, first);
    drop(root);
    let root = attach(&group, "root", Some("standby:1"));
    assert_eq!(root.read(1), 1);
    root.write(2, 3);
    assert_eq!(site.image_block(0, 2), filled(0));
    root.export.flush().unwrap();
    root.write(2, 4);
    drop((root, group));
    let group = site.open();
    assert_eq!(group.status().generation, taken.generation);
    let root = attach(&group, "root", Some("standby:1"));
    assert_eq!((root.read(1), root.read(2)), (1, 4));
    let next = first_seal(&group, taken.generation, 1, first);
    assert!(next > first.next());
}

/// History is switched off between the death of a process and the next start.
#[test]
fn what_was_held_is_committed_also_when_history_is_off_by_then() {
    let mut site = site(true);
    let group = site.open();
    let generation = attach_source(&group, "source:1");
    let root = attach(&group, "root", Some("source:1"));
    root.write(1, 1);
    drop((root, group));
    // Moved away, as whoever gives a history up has to do.
    std::fs::remove_dir_all(site.config.log.join("history")).unwrap();
    for _ in 0..2 {
        site.config.history = None;
        let group = site.open();
        assert_eq!(group.status().generation, generation);
        let root = attach(&group, "root", Some("source:1"));
        assert_eq!(root.read(1), 1);
        root.write(2, 2);
        assert_eq!(site.image_block(0, 1), filled(1));
        assert_eq!(site.image_block(0, 2), filled(2), "it writes through");
        drop((root, group));
    }
}

/// A guest writes and flushes while protections begin and end; it is paused for each cut. What it was told is durable.
#[test]
fn protections_come_and_go_under_a_guest_that_flushes() {
    let mut site = site(false);
    site.config.epoch_interval_ms = 3;
    let group = site.open();
    let generation = attach_source(&group, "source:1");
    let root = attach(&group, "root", Some("source:1"));
    let (pause, over) = (Mutex::new(()), AtomicBool::new(false));
    let flushed = AtomicU8::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for byte in 1..=250 {
                let running = pause.lock().unwrap();
                root.write(1, byte);
                drop(running);
                root.write(u64::from(byte) % 8 + 2, byte);
                root.export.flush().unwrap();
                flushed.store(byte, Ordering::SeqCst);
            }
            over.store(true, Ordering::SeqCst);
        });
        let mut newest = Epoch(0);
        for protection in 1.. {
            let number = SealNumber {
                epoch: newest.next(),
                protection: Some(Protection(protection)),
            };
            let paused = pause.lock().unwrap();
            let first = group.seal_as(generation, Some(number)).unwrap();
            drop(paused);
            assert!(first.empty_first && first.epoch > newest);
            commit(&group, generation, first.epoch, "standby:1").unwrap();
            newest = drain(&group, generation, protection);
            if over.load(Ordering::SeqCst) {
                break;
            }
        }
    });
    let last = flushed.load(Ordering::SeqCst);
    drop((root, group));
    let group = site.open();
    assert_eq!(attach(&group, "root", None).read(1), last);
}
