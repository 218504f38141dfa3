//! Groups on real files and a real log: what is written, sealed, committed, lost and found again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

mod group_common;

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use epoch_log::Mode;
use group_common::{
    BLOCK, SIZE, Site, attach, attach_source, checkpoint, commit, try_attach, until,
};
use nbd_server::Epoch;
use nbd_server::export::{Export, IoError};
use nbd_server::group::barriers::Input;
use nbd_server::group::{GroupError, GroupMode, Refusal};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[test]
fn sync_mode_writes_through_and_reads_back() {
    let site = Site::new(GroupMode::Sync, &["root"]);
    let group = site.open();
    let disk = attach(&group, "root", None);
    disk.write(3, 7);
    assert_eq!(site.image_block(0, 3), vec![7; BLOCK]);
    disk.export
        .write_zeroes(3 * BLOCK as u64, BLOCK as u64, false, false, true)
        .unwrap();
    assert_eq!(disk.read(3), 0);
    disk.export.flush().unwrap();
    group.stop();
}

#[test]
fn a_group_without_a_source_keeps_what_was_flushed_over_a_crash() {
    let site = Site::new(GroupMode::Async, &["root"]);
    let group = site.open();
    let disk = attach(&group, "root", None);
    disk.write(1, 1);
    disk.export.flush().unwrap();
    disk.write(2, 2);
    drop(disk);
    drop(group);
    let group = site.open();
    let disk = attach(&group, "root", None);
    assert_eq!(disk.read(1), 1);
    assert_eq!(
        site.image_block(0, 1),
        vec![1; BLOCK],
        "committed epochs are applied at the start"
    );
    disk.write(3, 3);
    drop(disk);
    group.stop();
    drop(group);
    assert_eq!(
        site.image_block(0, 3),
        vec![3; BLOCK],
        "an orderly stop commits and applies everything"
    );
    let generation = site.open().status().generation;
    assert_eq!(
        site.open().status().generation.0,
        generation.0 + 1,
        "a crash fences, an orderly stop does not"
    );
}

#[test]
fn concurrent_clients_never_lose_a_flush() {
    const CLIENTS: u64 = 4;
    const BLOCKS: u64 = 16;
    let site = Site::new(GroupMode::Async, &["a", "b"]);
    for round in 0..4_u64 {
        let group = site.open();
        let stop = AtomicBool::new(false);
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let (group, stop) = (&group, &stop);
                    scope.spawn(move || {
                        let mut rng = StdRng::seed_from_u64(round * 100 + client);
                        let disk = attach(group, if client % 2 == 0 { "a" } else { "b" }, None);
                        let mut written: Vec<u8> = (0..BLOCKS)
                            .map(|i| disk.read(client * BLOCKS + i))
                            .collect();
                        let mut flushed: Vec<Vec<u8>> =
                            written.iter().map(|byte| vec![*byte]).collect();
                        while !stop.load(Ordering::Relaxed) {
                            let i = rng.random_range(0..BLOCKS);
                            let block = client * BLOCKS + i;
                            match rng.random_range(0..20) {
                                0 => {
                                    disk.export.flush().unwrap();
                                    flushed = written.iter().map(|byte| vec![*byte]).collect();
                                }
                                1..8 => assert_eq!(disk.read(block), written[i as usize]),
                                _ => {
                                    let byte = rng.random();
                                    disk.write(block, byte);
                                    written[i as usize] = byte;
                                    // Since the last flush any of these may be what a crash leaves.
                                    flushed[i as usize].push(byte);
                                }
                            }
                        }
                        flushed
                    })
                })
                .collect();
            std::thread::sleep(std::time::Duration::from_millis(300));
            stop.store(true, Ordering::Relaxed);
            clients
                .into_iter()
                .map(|client| client.join().unwrap())
                .collect()
        });
        drop(group);
        let group = site.open();
        for (client, possible) in outcomes.iter().enumerate() {
            let disk = attach(&group, if client % 2 == 0 { "a" } else { "b" }, None);
            for (i, possible) in possible.iter().enumerate() {
                let found = disk.read(client as u64 * BLOCKS + i as u64);
                assert!(
                    possible.contains(&found),
                    "client {client}, block {i}: {found} of {possible:?}"
                );
            }
        }
    }
}

#[test]
fn a_first_epoch_is_named_to_nobody_before_a_restart_would_remember_it() {
    for _ in 0..20 {
        let site = Site::new(GroupMode::Sync, &["root"]);
        let group = site.open();
        let generation = attach_source(&group, "a");
        let first = group.seal(generation).unwrap();
        let log = epoch_log::inspect::inspect(&site.config.log).unwrap();
        assert_eq!(log.state.mode, Mode::Async { holder: None });
        drop(group);
        let group = site.open();
        let late = commit(&group, generation, first.epoch, "b");
        let fenced = matches!(late, Err(GroupError::Refused(Refusal::Fenced { .. })));
        assert!(fenced, "{late:?}");
    }
}

#[test]
fn a_checkpoint_decides_what_survives_the_gateway() {
    let site = Site::new(GroupMode::Sync, &["root", "data"]);
    let group = site.open();
    let generation = attach_source(&group, "a");
    let (root, data) = (
        attach(&group, "root", Some("a")),
        attach(&group, "data", Some("a")),
    );
    root.write(0, 10);
    let first = checkpoint(&group, generation, "b");
    assert!(first.empty_first && first.bytes == 0);
    root.write(0, 11);
    data.write(0, 21);
    data.export.flush().unwrap();
    let second = checkpoint(&group, generation, "b");
    assert_eq!(
        (second.epoch, second.bytes, second.empty_first),
        (Epoch(2), 2 * BLOCK as u64, false)
    );
    root.write(0, 12);
    let third = group.seal(generation).unwrap();
    data.write(0, 23);
    assert_eq!(
        (root.read(0), data.read(0)),
        (12, 23),
        "the guest reads its own writes"
    );
    drop((root, data, group));

    let group = site.open();
    let status = group.status();
    assert_eq!(
        (status.owner, status.holder.as_deref(), status.committed),
        (None, Some("b"), second.epoch)
    );
    assert!(status.generation > generation);
    assert!(matches!(
        commit(&group, generation, third.epoch, "b"),
        Err(GroupError::Refused(Refusal::Fenced { .. }))
    ));
    assert!(
        try_attach(&group, "root", Some("a")).is_err(),
        "the old owner is out"
    );
    let answer = group
        .request_blocking(Input::Takeover {
            standby: "b".into(),
        })
        .unwrap();
    assert_eq!(answer.committed, second.epoch);
    let (root, data) = (
        attach(&group, "root", Some("b")),
        attach(&group, "data", Some("b")),
    );
    assert_eq!((root.read(0), data.read(0)), (11, 21));
    root.write(0, 13);
    root.export.flush().unwrap();
    assert_eq!(site.image_block(0, 0), vec![13; BLOCK]);
    assert_eq!(
        group.status().holder,
        None,
        "with the first write the old memory is void"
    );
}

#[test]
fn a_takeover_fences_the_source_and_wakes_the_parked_attachments() {
    let site = Site::new(GroupMode::Sync, &["root"]);
    let group = site.open();
    group.park("b").unwrap();
    let parked = attach(&group, "root", Some("b"));
    let plain = attach(&group, "root", None);
    let generation = attach_source(&group, "a");
    assert!(plain.is_cut(), "a cold start cuts everyone of before");
    assert!(!parked.is_cut());
    let source = attach(&group, "root", Some("a"));
    let viewer = attach(&group, "root", None);
    source.write(0, 1);
    checkpoint(&group, generation, "b");
    source.write(0, 2);
    let sealed = group.seal(generation).unwrap();
    source.write(0, 3);
    assert_eq!((source.read(0), parked.read(0), viewer.read(0)), (3, 1, 1));
    commit(&group, generation, sealed.epoch, "b").unwrap();
    assert_eq!((source.read(0), parked.read(0), viewer.read(0)), (3, 2, 2));
    let block = Bytes::from(vec![9; BLOCK]);
    assert_eq!(
        parked.export.write(0, block.clone(), false),
        Err(IoError::Perm)
    );
    assert_eq!(
        viewer.export.write(0, block.clone(), false),
        Err(IoError::Perm)
    );
    assert!(viewer.export.info().read_only && !parked.export.info().read_only);

    let answer = group
        .request_blocking(Input::Takeover {
            standby: "b".into(),
        })
        .unwrap();
    assert_eq!(answer.committed, sealed.epoch);
    assert!(source.is_cut() && viewer.is_cut() && !parked.is_cut());
    assert_eq!(
        source.export.write(0, block.clone(), false),
        Err(IoError::Shutdown)
    );
    assert_eq!(
        source.export.try_write(0, &block, false),
        Err(IoError::Shutdown)
    );
    assert_eq!(source.export.read(0, &mut [0; 8]), Err(IoError::Shutdown));
    assert_eq!(source.export.flush(), Err(IoError::Shutdown));
    assert_eq!(parked.read(0), 2);
    parked.write(0, 4);
    assert_eq!(parked.read(0), 4);
    until(|| site.image_block(0, 0) == vec![4; BLOCK]);
}

#[test]
fn the_cut_is_one_instant_over_all_disks() {
    let site = Site::new(GroupMode::Sync, &["first", "second"]);
    let group = site.open();
    group.park("b").unwrap();
    let generation = attach_source(&group, "a");
    checkpoint(&group, generation, "b");
    let (first, second) = (
        attach(&group, "first", Some("a")),
        attach(&group, "second", Some("a")),
    );
    let (seen_first, seen_second) = (
        attach(&group, "first", Some("b")),
        attach(&group, "second", Some("b")),
    );
    let stop = AtomicBool::new(false);
    let number = |disk: &group_common::Attached| {
        let mut buf = [0; 8];
        disk.export.read(0, &mut buf).unwrap();
        u64::from_le_bytes(buf)
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for count in 1_u64.. {
                for disk in [&first, &second] {
                    disk.export
                        .write(0, Bytes::copy_from_slice(&count.to_le_bytes()), false)
                        .unwrap();
                }
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let mut between = 0;
        for _ in 0..200 {
            checkpoint(&group, generation, "b");
            let (first, second) = (number(&seen_first), number(&seen_second));
            assert!(
                first == second || first == second + 1,
                "{first} on the first disk, {second} on the second"
            );
            between += u64::from(first != second);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(
            between > 0,
            "the cut never fell between the two writes: this test tests nothing"
        );
    });
}

#[test]
fn memory_is_bounded_and_relief_lets_a_stopping_guest_drain() {
    let mut site = Site::new(GroupMode::Sync, &["root"]);
    site.config.memory_budget_mib = 1;
    let group = site.open();
    let generation = attach_source(&group, "a");
    checkpoint(&group, generation, "b");
    let mut events = group.subscribe(generation).unwrap();
    let disk = attach(&group, "root", Some("a"));
    let block = Bytes::from(vec![1; BLOCK]);
    let mut written = 0;
    while disk
        .export
        .try_write(
            written * BLOCK as u64 % SIZE,
            &Bytes::from(vec![1; BLOCK]),
            false,
        )
        .unwrap()
    {
        written += 1;
    }
    assert!(
        (128..=256).contains(&written),
        "{written} blocks of 4 KiB fit into 1 MiB, in slabs"
    );
    let event = events.blocking_recv().unwrap();
    assert!(
        matches!(event, nbd_server::control::api::Event::Pressure { .. }),
        "{event:?}"
    );
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| disk.export.write(0, block.clone(), false));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!waiting.is_finished());
        group.relieve(generation).unwrap();
        waiting.join().unwrap().unwrap();
    });
    let sealed = group.seal(generation).unwrap();
    assert!(
        !disk.export.try_write(0, &block, false).unwrap(),
        "the relief ends with the seal"
    );
    commit(&group, generation, sealed.epoch, "b").unwrap();
    disk.export.write(0, block, false).unwrap();
    until(|| group.status().bytes_held < 100_000);
}

#[test]
fn a_group_without_a_source_makes_room_by_itself() {
    let mut site = Site::new(GroupMode::Async, &["root"]);
    site.config.memory_budget_mib = 1;
    site.config.epoch_interval_ms = 3_600_000;
    let group = site.open();
    let disk = attach(&group, "root", None);
    for i in 0..2000_u64 {
        let data = Bytes::from(vec![i as u8; BLOCK]);
        disk.export
            .write(i * BLOCK as u64 % SIZE, data, false)
            .unwrap();
    }
    let status = group.status();
    assert!(status.committed > Epoch(3), "{status:?}");
}

#[test]
fn before_the_first_commit_a_flush_waits_for_it() {
    let site = Site::new(GroupMode::Sync, &["root"]);
    let group = site.open();
    let generation = attach_source(&group, "a");
    let disk = attach(&group, "root", Some("a"));
    let sealed = group.seal(generation).unwrap();
    disk.write(0, 5);
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| disk.export.flush());
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!flush.is_finished());
        commit(&group, generation, sealed.epoch, "b").unwrap();
        flush.join().unwrap().unwrap();
    });
    // The other way out: no standby, so everything is committed and written through.
    group
        .request_blocking(Input::DrainToSync {
            generation,
            protection: None,
        })
        .unwrap();
    assert_eq!(site.image_block(0, 0), vec![5; BLOCK]);
    disk.write(0, 6);
    assert_eq!(site.image_block(0, 0), vec![6; BLOCK]);
}

#[test]
fn several_epochs_in_flight_commit_in_order_and_a_detach_commits_the_rest() {
    let site = Site::new(GroupMode::Async, &["root"]);
    let group = site.open();
    let plain = attach(&group, "root", None);
    plain.write(9, 9);
    let generation = attach_source(&group, "a");
    let disk = attach(&group, "root", Some("a"));
    assert_eq!(
        disk.read(9),
        9,
        "what clients were told is written is there when the VM starts"
    );
    checkpoint(&group, generation, "b");
    let sealed: Vec<_> = (0..5)
        .map(|i| {
            disk.write(i, i as u8 + 1);
            disk.export.trim(i * BLOCK as u64, 512, false).unwrap();
            group.seal(generation).unwrap().epoch
        })
        .collect();
    assert!(matches!(
        commit(&group, generation, sealed[1], "b"),
        Err(GroupError::Refused(Refusal::OutOfOrder { .. }))
    ));
    for epoch in &sealed[..3] {
        commit(&group, generation, *epoch, "b").unwrap();
    }
    disk.write(7, 77);
    let answer = group
        .request_blocking(Input::Detach { generation })
        .unwrap();
    assert!(answer.generation > generation);
    assert!(disk.is_cut());
    assert_eq!(site.image_block(0, 7), vec![77; BLOCK]);
    let mut expected = vec![5; BLOCK];
    expected[..512].fill(0);
    assert_eq!(site.image_block(0, 4), expected);
    attach(&group, "root", None).write(0, 1);
}

#[test]
fn an_image_is_not_shared_with_another_server_or_disk() {
    let site = Site::new(GroupMode::Sync, &["root"]);
    let _group = site.open();
    let mut other = Site::new(GroupMode::Sync, &["root"]);
    other.config.disks[0].image = site.image(0);
    let error = nbd_server::group::Group::open(&other.config, &mut |_| {}).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("in use by another server"), "{cause}");
}
