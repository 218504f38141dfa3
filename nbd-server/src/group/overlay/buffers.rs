//! The memory behind the extents of one overlay: slabs that writes are packed into one behind another. Counts what of each slab can still be
//! read, so that what is overwritten whole is given back, and numbers what is written, so that the records in the slabs have an order.
//!
//! What a slab that is given back has said is not missed: each of its bytes was written or cleared again later. Records of clears are never
//! given back, so they lie in slabs of their own.

use std::sync::Arc;

use super::super::arena::{Class, Home, Kind, Record};
use super::super::budget::{Budget, Charge};
use super::super::slabs::Slab;
use super::Clear;

/// Where the bytes of an extent begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    buffer: u32,
    at: u32,
}

impl Place {
    /// The place `distance` bytes further on.
    pub fn later(self, distance: u32) -> Self {
        Self {
            at: self.at + distance,
            ..self
        }
    }
}

#[derive(Debug)]
struct Buffer {
    /// None: given back; the number waits for another slab.
    slab: Option<Slab>,
    /// Bytes that extents lie in, and one for being filled.
    live: u64,
}

/// All slabs of one overlay.
#[derive(Debug)]
pub struct Buffers {
    list: Vec<Buffer>,
    free: Vec<u32>,
    /// The slab that takes writes.
    filling: Option<u32>,
    /// The slab that takes records of clears.
    clears: Option<u32>,
    sequence: u32,
    home: Home,
    charge: Charge,
    budget: Arc<Budget>,
}

impl Buffers {
    /// None yet. What they cost is charged to `budget`.
    pub fn new(budget: &Arc<Budget>, home: Home) -> Self {
        Self {
            list: Vec::new(),
            free: Vec::new(),
            filling: None,
            clears: None,
            sequence: 0,
            home,
            charge: budget.charge(0),
            budget: Arc::clone(budget),
        }
    }

    /// The `len` bytes at `place`.
    pub fn get(&self, place: Place, len: u32) -> &[u8] {
        let (from, to) = (place.at as usize, (place.at + len) as usize);
        let slab = self
            .list
            .get(place.buffer as usize)
            .and_then(|buffer| buffer.slab.as_ref());
        let bytes = slab.and_then(|slab| slab.bytes().get(from..to));
        debug_assert!(bytes.is_some(), "an extent lies outside of its slab");
        bytes.unwrap_or_default()
    }

    /// Puts `data` over the bytes at `place`.
    pub fn overwrite(&mut self, place: Place, data: &[u8]) -> bool {
        self.list
            .get_mut(place.buffer as usize)
            .and_then(|buffer| buffer.slab.as_mut())
            .is_some_and(|slab| slab.overwrite(place.at, data))
    }

    /// Keeps a copy of `data`, which belongs at `offset` of the disk, behind what was copied last. At most a region of it, so that it fits
    /// into any slab but the first.
    pub fn copy(&mut self, offset: u64, data: &[u8]) -> Place {
        let number = self.with_room(Use::Data, data.len());
        let sequence = self.next_sequence();
        let mut at = 0;
        if let Some(Buffer {
            slab: Some(slab),
            live,
        }) = self.list.get_mut(number as usize)
        {
            at = slab.append(sequence, offset, data);
            *live += data.len() as u64;
        }
        Place { buffer: number, at }
    }

    /// Notes that a range was cleared.
    pub fn note_clear(&mut self, offset: u64, len: u64, clear: Clear) {
        let number = self.with_room(Use::Clears, 0);
        let record = Record {
            sequence: self.next_sequence(),
            offset,
            len,
            kind: Kind::Cleared(clear),
        };
        if let Some(Buffer {
            slab: Some(slab), ..
        }) = self.list.get_mut(number as usize)
        {
            slab.note(&record);
        }
    }

    /// Takes the slab of an earlier process, all of whose `data` bytes can be read until something is put over them; its number. A slab
    /// `with_clears` is never given back.
    pub fn adopt(&mut self, slab: Slab, data: u64, with_clears: bool) -> u32 {
        let live = data + u64::from(with_clears);
        self.add(Buffer {
            slab: Some(slab),
            live,
        })
    }

    /// The place at `at` of a slab that was adopted.
    pub fn place(number: u32, at: u32) -> Place {
        Place { buffer: number, at }
    }

    /// The records that an earlier process has left end before this one.
    pub fn go_on_at(&mut self, sequence: u32) {
        self.sequence = sequence;
    }

    /// The `len` bytes at some place of this slab can no longer be read. With the last of them the slab is given back.
    pub fn release(&mut self, place: Place, len: u32) {
        self.lower(place.buffer, u64::from(len));
    }

    fn lower(&mut self, number: u32, by: u64) {
        let Some(buffer) = self.list.get_mut(number as usize) else {
            return;
        };
        buffer.live = buffer.live.saturating_sub(by);
        if buffer.live == 0
            && let Some(slab) = buffer.slab.take()
        {
            self.charge.shrink(cost(&slab));
            self.free.push(number);
        }
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// The slab that takes the next `len` bytes of this use; a new one if the last is full.
    fn with_room(&mut self, what: Use, len: usize) -> u32 {
        let current = match what {
            Use::Data => self.filling,
            Use::Clears => self.clears,
        };
        if let Some(number) = current
            && let Some(Buffer {
                slab: Some(slab), ..
            }) = self.list.get(number as usize)
            && slab.has_room_for(len)
        {
            return number;
        }
        // An epoch of a VM that rests has a few blocks: its first slab is small.
        let small = current.is_none() && len <= SMALL_DATA;
        let class = if small { Class::Small } else { Class::Whole };
        let slab = self.budget.slab(class, self.home);
        // One for being filled. Clears keep it.
        let number = self.add(Buffer {
            slab: Some(slab),
            live: 1,
        });
        match what {
            Use::Data => {
                if let Some(former) = self.filling.replace(number) {
                    self.lower(former, 1);
                }
            }
            Use::Clears => self.clears = Some(number),
        }
        number
    }

    fn add(&mut self, buffer: Buffer) -> u32 {
        self.charge.grow(buffer.slab.as_ref().map_or(0, cost));
        if let Some(number) = self.free.pop()
            && let Some(slot) = self.list.get_mut(number as usize)
        {
            *slot = buffer;
            return number;
        }
        self.list.push(buffer);
        // A budget never holds 4 billion slabs.
        u32::try_from(self.list.len() - 1).unwrap_or(u32::MAX)
    }
}

/// What a slab is filled with.
#[derive(Debug, Clone, Copy)]
enum Use {
    Data,
    Clears,
}

/// Data for which a small slab is enough.
const SMALL_DATA: usize = 16 << 10;

fn cost(slab: &Slab) -> u64 {
    /// The entry in the list, and the row of the arena.
    const BESIDE: u64 = 128;
    slab.bytes().len() as u64 + BESIDE
}
