//! A load for measurements: plain loops that count what they did, one at a time. Judges nothing.
//!
//! Which loop runs is said from outside, and the counters are read from outside, both through the guest's RAM as its host sees
//! it: a page with a mark ([`Board`]). A guest's own clock stands still while it is paused, so a rate must be taken by the clock of
//! the host; and neither question nor answer disturbs what is measured.
//!
//! ```text
//! word 0, 1   the mark: MARK (its two halves together) and its complement
//! word 2      the loop to run (1: word 4, 2: word 5, 3: word 6, else none); written by the host
//! word 3      one more each time around, whatever runs: the guest lives
//! word 4      turns of the processor loop, 100,000 steps of arithmetic each
//! word 5      pages of 4 KiB written in memory, one after the other through all of the load's memory, and over again
//! word 6      blocks of 4 KiB written to the first disk, one after the other, each made durable by a flush
//! ```

use std::hint::black_box;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::block::BLOCK_SIZE;
use crate::disk::{Buffer, Disk};

/// What the page begins with. Put together while it runs: the program's own code must not look like the page.
const MARK: [u64; 2] = [0x4550_4f43_4847_0000, 0x4c4f_4144];
/// Steps of arithmetic in one turn.
const STEPS: u64 = 100_000;
/// Pages written between two looks at what is to run.
const PAGES_PER_TURN: usize = 64;
/// How long an idle load sleeps.
const IDLE: Duration = Duration::from_millis(2);

/// The page.
#[repr(C, align(4096))]
struct Board {
    mark: [AtomicU64; 2],
    chosen: AtomicU64,
    beat: AtomicU64,
    turns: AtomicU64,
    pages: AtomicU64,
    blocks: AtomicU64,
    rest: [u64; 505],
}

static BOARD: Board = Board {
    mark: [AtomicU64::new(0), AtomicU64::new(0)],
    chosen: AtomicU64::new(0),
    beat: AtomicU64::new(0),
    turns: AtomicU64::new(0),
    pages: AtomicU64::new(0),
    blocks: AtomicU64::new(0),
    rest: [0; 505],
};

/// What the loops work on.
struct Load<'a> {
    memory: Vec<u64>,
    page: usize,
    word: u64,
    disk: Option<&'a Disk>,
    block: usize,
    buffer: Buffer,
}

/// Touches so many MiB, and holds them.
pub fn fill(mib: usize) -> Vec<u8> {
    let mut held = vec![0; mib << 20];
    for page in held.chunks_mut(BLOCK_SIZE) {
        page[0] = black_box(0);
    }
    held
}

/// Runs what the host chooses, for ever, on `mib` MiB of memory and the first of `disks`.
///
/// # Errors
/// The disk's reason for not taking a write.
pub fn run(mib: usize, disks: &[Disk]) -> io::Result<()> {
    let mark = black_box(MARK[0]) | black_box(MARK[1]);
    BOARD.mark[1].store(!mark, Ordering::SeqCst);
    BOARD.mark[0].store(mark, Ordering::SeqCst);
    // The page is whole, and not a part of a file any more.
    black_box(&BOARD.rest);
    let mut load = Load::new(mib, disks.first());
    loop {
        BOARD.beat.fetch_add(1, Ordering::Relaxed);
        match BOARD.chosen.load(Ordering::Relaxed) {
            1 => load.turn(),
            2 => load.write_memory(),
            3 => load.write_disk()?,
            _ => thread::sleep(IDLE),
        }
    }
}

impl<'a> Load<'a> {
    fn new(mib: usize, disk: Option<&'a Disk>) -> Self {
        Self {
            memory: vec![0; (mib << 20) / size_of::<u64>()],
            page: 0,
            word: 1,
            disk,
            block: 0,
            buffer: Buffer::new(1),
        }
    }

    fn turn(&mut self) {
        for _ in 0..STEPS {
            self.word = black_box(self.word)
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
        }
        BOARD.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// Every page gets another content each time, as no memory-bound program writes what is there already.
    fn write_memory(&mut self) {
        let words = BLOCK_SIZE / size_of::<u64>();
        for _ in 0..PAGES_PER_TURN {
            self.word = self.word.wrapping_add(1);
            let start = self.page * words;
            self.memory[start..start + words].fill(self.word);
            self.page = (self.page + 1) % (self.memory.len() / words);
        }
        BOARD
            .pages
            .fetch_add(PAGES_PER_TURN as u64, Ordering::Relaxed);
    }

    fn write_disk(&mut self) -> io::Result<()> {
        let Some(disk) = self.disk else {
            thread::sleep(IDLE);
            return Ok(());
        };
        self.word = self.word.wrapping_add(1);
        let bytes = self.buffer.blocks_mut(1);
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&self.word.to_le_bytes());
        }
        disk.write(bytes, (self.block * BLOCK_SIZE) as u64)?;
        disk.flush()?;
        self.block = (self.block + 1) % disk.blocks();
        BOARD.blocks.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_loop_counts_what_it_did() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [0; 2 * BLOCK_SIZE]).unwrap();
        let disk = Disk::open(&path, 2).unwrap();
        let mut load = Load::new(1, Some(&disk));
        let counts =
            || [&BOARD.turns, &BOARD.pages, &BOARD.blocks].map(|n| n.load(Ordering::Relaxed));
        assert_eq!(counts(), [0, 0, 0]);
        load.turn();
        (0..5).for_each(|_| load.write_memory());
        (0..3).for_each(|_| load.write_disk().unwrap());
        assert_eq!(counts(), [1, 5 * PAGES_PER_TURN as u64, 3]);
        // Memory has 256 pages and the disk two blocks: both were gone through more than once.
        assert_eq!(load.page, 64);
        assert!(load.memory.iter().all(|word| *word != 0));
        assert!(std::fs::read(&path).unwrap().iter().any(|byte| *byte != 0));
        assert_eq!(load.block, 1);
    }
}
