//! The guest: a small memory in which it remembers what it wrote to its disks and how many packets it sent. It is its own witness: what
//! it reads must be what it remembers, also when it has been continued elsewhere.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use crate::blocks::{PLACES, Stamp};

/// Bytes of a page.
pub const PAGE: usize = 512;
const TABLE_PAGES: usize = (PLACES * 8).div_ceil(PAGE);
const COUNTERS: usize = TABLE_PAGES * PAGE;
const SCRATCH: usize = COUNTERS + PAGE;
/// Bytes of guest RAM.
pub const RAM: usize = SCRATCH + 4 * PAGE;

/// Guest RAM: the table of what is where, the counters, and pages that just change.
#[derive(Debug, Clone)]
pub struct Memory {
    bytes: Vec<u8>,
    dirty: Vec<bool>,
}

impl Memory {
    /// The memory of a guest that has booted from disks which hold `table`.
    pub fn booted(table: &[Stamp], chain: u64) -> Self {
        let mut memory = Self::from(vec![0; RAM]);
        for (place, stamp) in table.iter().enumerate() {
            memory.set(place * 8, *stamp);
        }
        memory.set(COUNTERS + 8, chain);
        memory
    }

    /// Memory that holds `bytes`.
    pub fn from(bytes: Vec<u8>) -> Self {
        Self {
            dirty: vec![true; bytes.len() / PAGE],
            bytes,
        }
    }

    fn set(&mut self, at: usize, word: u64) {
        self.bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        self.dirty[at / PAGE] = true;
    }

    fn get(&self, at: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes[at..at + 8]);
        u64::from_le_bytes(word)
    }

    /// What it remembers of a place.
    pub fn stamp(&self, place: usize) -> Stamp {
        self.get(place * 8)
    }

    /// Remembers a write.
    pub fn wrote(&mut self, place: usize, stamp: Stamp) {
        self.set(place * 8, stamp);
    }

    /// All that it remembers of its disks.
    pub fn table(&self) -> Vec<Stamp> {
        (0..PLACES).map(|place| self.stamp(place)).collect()
    }

    /// Sends a packet: how many there were, and a number that stands for all of them.
    pub fn send(&mut self, fresh: u64) -> (u64, u64) {
        self.set(COUNTERS, self.get(COUNTERS) + 1);
        self.set(COUNTERS + 8, fresh);
        self.sent()
    }

    /// The last packet.
    pub fn sent(&self) -> (u64, u64) {
        (self.get(COUNTERS), self.get(COUNTERS + 8))
    }

    /// Changes a byte of no meaning.
    pub fn scribble(&mut self, at: usize, byte: u64) {
        let room = (RAM - SCRATCH) / 8;
        self.set(SCRATCH + at % room * 8, byte);
    }

    /// Stands for all of it.
    pub fn hash(&self) -> u64 {
        xxh3_64(&self.bytes)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// From now on only changes are dirty.
    pub fn track(&mut self) {
        self.dirty.fill(false);
    }

    /// The dirty pages, which are clean then: their ranges, and their bytes.
    pub fn take_dirty(&mut self) -> (Vec<(u64, u64)>, Vec<u8>) {
        let (mut ranges, mut data) = (Vec::new(), Vec::new());
        for (page, dirty) in self.dirty.iter_mut().enumerate() {
            if std::mem::take(dirty) {
                ranges.push(((page * PAGE) as u64, PAGE as u64));
                data.extend_from_slice(&self.bytes[page * PAGE..(page + 1) * PAGE]);
            }
        }
        (ranges, data)
    }
}

/// What a guest asks of its disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Write these units, or clear them.
    Write {
        /// The stamp.
        stamp: Stamp,
    },
    /// Read these units.
    Read,
    /// Flush.
    Flush,
}

/// A request under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Its number.
    pub number: u64,
    /// The first unit.
    pub place: usize,
    /// How many, on one disk.
    pub count: usize,
    /// What.
    pub what: What,
}

/// A running, or stopped, VM.
#[derive(Debug)]
pub struct Vm {
    /// Its memory.
    pub memory: Memory,
    /// Requests that are not answered.
    pub requests: BTreeMap<u64, Request>,
    /// It issues no new requests.
    pub stopped: bool,
}

impl Vm {
    /// A VM that runs with this memory.
    pub fn new(memory: Memory) -> Self {
        Self {
            memory,
            requests: BTreeMap::new(),
            stopped: false,
        }
    }

    /// Whether no request touches a place.
    pub fn is_free(&self, place: usize, count: usize) -> bool {
        self.requests
            .values()
            .all(|request| request.place + request.count <= place || place + count <= request.place)
    }
}
