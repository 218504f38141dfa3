//! What was written to a disk by several connections at once, and what of it has to be there afterwards.
//!
//! Every block is written whole with a number that no other write has, so a block says which of its versions it holds.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::nbd::{Client, FLUSH, FUA, READ, Request};
use crate::random::Random;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Blocks of the disk.
pub const BLOCKS: usize = 256;
/// Size of the disk in bytes.
pub const BYTES: u64 = (BLOCK * BLOCKS) as u64;
/// Connections that write, each its own blocks.
pub const CONNECTIONS: u64 = 4;

/// When a version of a block was sent and answered, as numbers that grow with everything that happens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Write {
    /// When it was sent.
    pub sent: u64,
    /// When it was answered.
    pub answered: Option<u64>,
}

/// What happened to one block: a write per version, and the version that must survive.
#[derive(Debug, Clone, Default)]
pub struct Block {
    /// Version 0 is what was there at the start.
    pub writes: Vec<Write>,
    /// The version that must survive.
    pub durable: u64,
}

impl Block {
    /// The newest version whose write was answered.
    pub fn newest_answered(&self) -> u64 {
        let answered = self
            .writes
            .iter()
            .rposition(|write| write.answered.is_some());
        answered.unwrap_or(0) as u64
    }
}

/// What is known of every block.
#[derive(Debug)]
pub struct Ledger {
    now: u64,
    /// Version 0 of each block, as a number that it was written with before.
    pub start: Vec<u64>,
    /// The number that the next write gets.
    pub next_content: u64,
    /// Content to (block, version).
    contents: HashMap<u64, (usize, u64)>,
    /// The blocks.
    pub blocks: Vec<Block>,
}

impl Ledger {
    /// Of blocks that were found with these contents.
    pub fn new(found: Vec<u64>, next_content: u64) -> Self {
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
    pub fn all_answered(&self) -> Vec<u64> {
        self.blocks.iter().map(Block::newest_answered).collect()
    }

    /// A flush was answered.
    pub fn flushed(&mut self, covered: &[u64]) {
        for (block, version) in self.blocks.iter_mut().zip(covered) {
            block.durable = block.durable.max(*version);
        }
    }

    /// The version of `block` that has this content.
    #[track_caller]
    pub fn version(&self, block: usize, content: u64) -> u64 {
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
    pub fn check_durable(&self, versions: &[u64]) {
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
    pub fn check_one_instant(&self, versions: &[u64]) {
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

/// Writes blocks of its own and flushes, until the gateway is gone or it is told to stop.
pub fn work(
    mut client: Client,
    index: u64,
    mut random: Random,
    ledger: &Mutex<Ledger>,
    stop: &AtomicBool,
) {
    let share = BLOCKS as u64 / CONNECTIONS;
    while !stop.load(Ordering::Relaxed) {
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
pub fn contents(mut client: Client, whole: bool) -> Vec<Option<u64>> {
    let read = Request::new(READ, 0, u32::try_from(BYTES).unwrap());
    let answer = client.ask(&read).unwrap();
    assert_eq!(answer.error, 0);
    numbers(&answer.data, whole)
}

/// The same of an image that was read.
pub fn numbers(image: &[u8], whole: bool) -> Vec<Option<u64>> {
    let block = |(index, block): (usize, &[u8])| {
        let content = block.first_chunk::<8>().copied().map(u64::from_le_bytes);
        let same = block.chunks(8).all(|chunk| chunk == &block[..8]);
        assert!(same || !whole, "block {index} is torn");
        content.filter(|_| same)
    };
    image.chunks(BLOCK).enumerate().map(block).collect()
}
