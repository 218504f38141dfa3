//! The gateway is killed while four connections write: what was promised is there, and in async mode what is there is the disk
//! as it was at one instant.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use epochgate_tests::disk::{Disk, Mode};
use epochgate_tests::nbd::{Client, FLUSH, FUA, READ, Request};
use epochgate_tests::process::signal_pid;
use epochgate_tests::random::Random;
use rustix::process::Signal;

const BLOCK: usize = 4096;
const BLOCKS: usize = 256;
const BYTES: u64 = (BLOCK * BLOCKS) as u64;
const CONNECTIONS: u64 = 4;

/// When a version of a block was sent and answered, as numbers that grow with everything that happens.
#[derive(Debug, Clone, Copy, Default)]
struct Write {
    sent: u64,
    answered: Option<u64>,
}

/// What happened to one block: a write per version, and the version that must survive.
#[derive(Debug, Clone, Default)]
struct Block {
    /// Version 0 is what was there at the start.
    writes: Vec<Write>,
    durable: u64,
}

impl Block {
    fn newest_answered(&self) -> u64 {
        let answered = self
            .writes
            .iter()
            .rposition(|write| write.answered.is_some());
        answered.unwrap_or(0) as u64
    }
}

/// What is known of every block.
#[derive(Debug)]
struct Ledger {
    now: u64,
    /// Version 0 of each block, as a number that it was written with before.
    start: Vec<u64>,
    next_content: u64,
    /// Content to (block, version).
    contents: HashMap<u64, (usize, u64)>,
    blocks: Vec<Block>,
}

impl Ledger {
    fn new(found: Vec<u64>, next_content: u64) -> Self {
        let first = Block {
            writes: vec![Write {
                sent: 0,
                answered: Some(0),
            }],
            durable: 0,
        };
        Self {
            now: 0,
            blocks: vec![first; BLOCKS],
            contents: HashMap::new(),
            next_content,
            start: found,
        }
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A write of this block is about to be sent: its version, and what to write.
    fn send(&mut self, block: usize) -> (u64, u64) {
        let sent = self.tick();
        let content = self.next_content;
        self.next_content += 1;
        let writes = &mut self.blocks[block].writes;
        let version = writes.len() as u64;
        writes.push(Write {
            sent,
            answered: None,
        });
        self.contents.insert(content, (block, version));
        (version, content)
    }

    fn answered(&mut self, block: usize, version: u64, durable: bool) {
        let now = self.tick();
        let block = &mut self.blocks[block];
        block.writes[usize::try_from(version).unwrap()].answered = Some(now);
        if durable {
            block.durable = block.durable.max(version);
        }
    }

    /// The newest answered version of every block: what a flush that is sent now has to cover.
    fn all_answered(&self) -> Vec<u64> {
        self.blocks.iter().map(Block::newest_answered).collect()
    }

    fn flushed(&mut self, covered: &[u64]) {
        for (block, version) in self.blocks.iter_mut().zip(covered) {
            block.durable = block.durable.max(*version);
        }
    }

    /// The version of `block` that has this content.
    #[track_caller]
    fn version(&self, block: usize, content: u64) -> u64 {
        if content == self.start[block] {
            return 0;
        }
        let found = self.contents.get(&content);
        let &(of, version) =
            found.unwrap_or_else(|| panic!("block {block} has {content}, which nobody wrote"));
        assert_eq!(of, block, "a misplaced write: version {version}");
        version
    }

    /// Asserts that nothing promised is missing.
    #[track_caller]
    fn check_durable(&self, versions: &[u64]) {
        for (index, (block, version)) in self.blocks.iter().zip(versions).enumerate() {
            assert!(
                *version >= block.durable,
                "block {index}: version {} was flushed, {version} is left",
                block.durable
            );
        }
    }

    /// Asserts that there was an instant at which the disk was so: no write is there that was sent after one that is not
    /// there had been answered.
    #[track_caller]
    fn check_one_instant(&self, versions: &[u64]) {
        let newest =
            self.blocks
                .iter()
                .zip(versions)
                .enumerate()
                .map(|(index, (block, version))| {
                    let write = block.writes[usize::try_from(*version).unwrap()];
                    (write.sent, index, *version)
                });
        let (sent, newest, newest_version) = newest.max().unwrap();
        for (index, (block, version)) in self.blocks.iter().zip(versions).enumerate() {
            let lost = block.writes.get(usize::try_from(version + 1).unwrap());
            let answered = lost.and_then(|write| write.answered);
            assert!(
                answered.is_none_or(|answered| answered > sent),
                "version {newest_version} of block {newest} is there; version {} of block {index}, answered before that was \
                 sent, is not",
                version + 1
            );
        }
    }
}

/// Writes blocks of its own and flushes, until the gateway is gone.
fn work(mut client: Client, index: u64, mut random: Random, ledger: &Mutex<Ledger>) {
    let share = BLOCKS as u64 / CONNECTIONS;
    loop {
        let count = random.within(1..16);
        // Each block once, so that there is an order among the versions of a block.
        let first = random.within(0..share);
        let mut requests = Vec::new();
        let mut sent = Vec::new();
        let fua = random.one_in(20);
        for i in 0..count {
            let block = usize::try_from(index * share + (first + i * 7) % share).unwrap();
            if sent.iter().any(|(other, _)| *other == block) {
                continue;
            }
            let (version, content) = ledger.lock().unwrap().send(block);
            let payload = content.to_le_bytes().repeat(BLOCK / 8);
            let request = Request::write((block * BLOCK) as u64, payload);
            requests.push(request.with(if fua { FUA } else { 0 }));
            sent.push((block, version));
        }
        let Ok(answers) = client.exchange(&requests) else {
            return;
        };
        assert!(answers.iter().all(|answer| answer.error == 0));
        let mut known = ledger.lock().unwrap();
        for (block, version) in sent {
            known.answered(block, version, fua);
        }
        drop(known);
        if random.one_in(10) {
            let covered = ledger.lock().unwrap().all_answered();
            let Ok(answer) = client.ask(&Request::new(FLUSH, 0, 0)) else {
                return;
            };
            assert_eq!(answer.error, 0);
            ledger.lock().unwrap().flushed(&covered);
        }
    }
}

/// The number that every block was written with. `whole`: no block may be a mixture.
fn contents(disk: &Disk, whole: bool) -> Vec<Option<u64>> {
    let mut client = Client::attach(&disk.socket(), &disk.export(), true);
    let read = Request::new(READ, 0, u32::try_from(BYTES).unwrap());
    let answer = client.ask(&read).unwrap();
    assert_eq!(answer.error, 0);
    let block = |(index, block): (usize, &[u8])| {
        let content = block.first_chunk::<8>().copied().map(u64::from_le_bytes);
        let same = block.chunks(8).all(|chunk| chunk == &block[..8]);
        assert!(same || !whole, "block {index} is torn");
        content.filter(|_| same)
    };
    answer.data.chunks(BLOCK).enumerate().map(block).collect()
}

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
                scope.spawn(move || work(client, index, random, ledger));
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
        let contents = contents(&disk, !all_answered);
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
                scope.spawn(move || work(client, index, random, ledger));
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
        let contents: Vec<u64> = contents(&disk, true).into_iter().flatten().collect();
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
