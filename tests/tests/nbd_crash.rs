//! The gateway is killed while four connections write: what was promised is there, and in async mode what is there is the disk
//! as it was at one instant.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use epochgate_tests::disk::{Disk, Mode};
use epochgate_tests::ledger::{BLOCKS, BYTES, CONNECTIONS, Ledger, contents, work};
use epochgate_tests::nbd::{Client, FLUSH, READ, Request};
use epochgate_tests::process::signal_pid;
use epochgate_tests::random::Random;
use rustix::process::Signal;

/// The load ends with the gateway.
static NEVER: AtomicBool = AtomicBool::new(false);

/// What is lost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// The gateway's machine, but for the page cache.
    Machine,
    /// The gateway's process.
    Process,
}

fn survives(mode: Mode, loss: Loss, rounds: u64) {
    let random = Random::new("survives");
    let mut disk = Disk::start(mode, BYTES);
    let mut found = vec![0; BLOCKS];
    let mut next = 1;
    for round in 0..rounds {
        let mut random = random.fork(round);
        let ledger = Mutex::new(Ledger::new(found, next));
        std::thread::scope(|scope| {
            for index in 0..CONNECTIONS {
                let client = Client::attach(&disk.socket(), &disk.export(), true);
                let (random, ledger) = (random.fork(index), &ledger);
                scope.spawn(move || work(client, index, random, ledger, &NEVER));
            }
            std::thread::sleep(Duration::from_millis(random.within(20..400)));
            match loss {
                Loss::Machine => disk.kill(),
                Loss::Process => disk.kill_process(),
            }
        });
        disk.start_again();
        let ledger = ledger.into_inner().unwrap();
        // A write that was under way may have gone through in part, where it went to what outlives the process.
        let all_answered = mode == Mode::Sync || loss == Loss::Process;
        let reader = Client::attach(&disk.socket(), &disk.export(), true);
        let contents = contents(reader, !all_answered);
        let contents: Vec<u64> = contents
            .iter()
            .enumerate()
            .map(|(index, content)| {
                content.unwrap_or_else(|| {
                    let under_way = ledger.blocks[index].writes.last().unwrap();
                    assert!(under_way.answered.is_none(), "block {index} is torn");
                    ledger.start[index]
                })
            })
            .collect();
        let versions: Vec<u64> = contents
            .iter()
            .enumerate()
            .map(|(index, content)| ledger.version(index, *content))
            .collect();
        if all_answered {
            // The system is up: whatever was answered is in its page cache, or in the memory of the next gateway.
            for (index, (block, version)) in ledger.blocks.iter().zip(&versions).enumerate() {
                let torn = block.writes.last().unwrap().answered.is_none();
                assert!(*version >= block.newest_answered() || torn, "block {index}");
            }
        } else {
            ledger.check_durable(&versions);
            ledger.check_one_instant(&versions);
        }
        next = ledger.next_content;
        found = contents;
    }
}

#[test]
fn four_connections_lose_nothing_that_was_flushed_in_async_mode() {
    survives(Mode::Async, Loss::Machine, 12);
}

#[test]
fn four_connections_lose_nothing_that_was_flushed_when_only_flushes_commit() {
    survives(Mode::AsyncByFlush, Loss::Machine, 12);
}

#[test]
fn four_connections_lose_nothing_that_was_answered_when_a_process_dies_in_async_mode() {
    survives(Mode::Async, Loss::Process, 12);
}

#[test]
fn four_connections_lose_nothing_that_was_answered_when_a_process_dies_between_flushes() {
    survives(Mode::AsyncByFlush, Loss::Process, 12);
}

#[test]
fn four_connections_lose_nothing_that_was_answered_in_sync_mode() {
    survives(Mode::Sync, Loss::Process, 8);
}

/// While a source owns the group, the gateway goes back to the last committed epoch: not one write more, not one less.
#[test]
fn a_killed_gateway_goes_back_to_the_seal_of_the_last_committed_epoch() {
    let random = Random::new("a_killed_gateway_goes_back_to_the_seal_of_the_last_committed_epoch");
    let mut disk = Disk::start(Mode::SourceByHand, BYTES);
    let mut found = vec![0; BLOCKS];
    let mut next = 1;
    for round in 0..8 {
        let mut random = random.fork(round);
        let ledger = Mutex::new(Ledger::new(found, next));
        // Of each epoch: what had been answered before its seal, and what had been sent after it.
        let mut seals: HashMap<u64, (Vec<u64>, Vec<u64>)> = HashMap::new();
        let acknowledged = std::thread::scope(|scope| {
            for index in 0..CONNECTIONS {
                let client = Client::attach(&disk.socket(), &disk.export(), index % 2 == 0);
                let (random, ledger) = (random.fork(index), &ledger);
                scope.spawn(move || work(client, index, random, ledger, &NEVER));
            }
            let mut acknowledged = 0;
            let epochs = disk.epochs();
            let count = random.within(3..40);
            for at in 0..count {
                let before = ledger.lock().unwrap().all_answered();
                let epoch = epochs.seal();
                let blocks = &ledger.lock().unwrap().blocks;
                let after = blocks.iter().map(|block| block.writes.len() as u64 - 1);
                seals.insert(epoch, (before, after.collect()));
                if at + 1 < count {
                    acknowledged = epochs.commit(epoch).unwrap();
                }
                std::thread::sleep(Duration::from_millis(random.within(0..10)));
            }
            // Killed with an epoch sealed, and half of the times in the midst of its commit.
            let newest = *seals.keys().max().unwrap();
            let in_the_midst = round % 2 == 0;
            std::thread::scope(|commits| {
                if in_the_midst {
                    commits.spawn(move || epochs.commit(newest));
                }
                std::thread::sleep(Duration::from_micros(random.within(0..3_000)));
                signal_pid(disk.pid(), Signal::KILL);
            });
            acknowledged
        });
        // And its memory with it.
        disk.kill();
        let committed = disk.committed().unwrap();
        assert!(committed >= acknowledged, "{committed} < {acknowledged}");
        disk.start_again();
        let ledger = ledger.into_inner().unwrap();
        let reader = Client::attach(&disk.socket(), &disk.export(), true);
        let contents: Vec<u64> = contents(reader, true).into_iter().flatten().collect();
        let (before, after) = &seals[&committed];
        let mut versions = Vec::new();
        for (index, content) in contents.iter().enumerate() {
            let version = ledger.version(index, *content);
            assert!(
                (before[index]..=after[index]).contains(&version),
                "epoch {committed}, block {index}: version {version}, but {} had been answered before its seal and {} was the \
                 newest that had been sent after it",
                before[index],
                after[index]
            );
            versions.push(version);
        }
        ledger.check_one_instant(&versions);
        next = ledger.next_content;
        found = contents;
    }
}

/// What CAN_MULTI_CONN promises: a flush on one connection covers what was answered on another.
#[test]
fn a_flush_on_one_connection_covers_the_writes_of_another() {
    let data = Random::from_seed(1).bytes(200_001);
    let flush = Request::new(FLUSH, 0, 0);
    for mode in [Mode::Sync, Mode::AsyncByFlush] {
        let mut disk = Disk::start(mode, BYTES);
        for round in 0..5 {
            let at = round * 100_000 + 77;
            let attach = || Client::attach(&disk.socket(), &disk.export(), round % 2 == 0);
            let (mut writer, mut flusher) = (attach(), attach());
            // Another has flushed before: its flush must not be taken for the later one's.
            assert_eq!(flusher.ask(&flush).unwrap().error, 0);
            let write = Request::write(at, data.clone());
            assert_eq!(writer.ask(&write).unwrap().error, 0);
            assert_eq!(flusher.ask(&flush).unwrap().error, 0);
            disk.kill();
            let image = std::fs::read(disk.image()).unwrap();
            let start = usize::try_from(at).unwrap();
            if mode == Mode::Sync {
                assert!(image[start..start + data.len()] == data, "round {round}");
            }
            disk.start_again();
            let mut reader = Client::attach(&disk.socket(), &disk.export(), true);
            let read = Request::new(READ, at, u32::try_from(data.len()).unwrap());
            let answer = reader.ask(&read).unwrap();
            assert!(answer.error == 0 && answer.data == data, "round {round}");
        }
    }
}
