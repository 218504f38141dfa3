//! The memory behind the extents of one overlay: slabs that small writes are packed into one behind another, and large payloads
//! kept as they came. Counts what of each buffer can still be read, so that what is overwritten whole is given back. Knows no offsets of
//! disks.

use std::sync::Arc;

use bytes::Bytes;

use super::super::budget::{Budget, Charge};
use super::super::slabs::Slab;

/// Payloads above this are kept as they came, with the buffer they were received into; copying them would cost more than a buffer of
/// their own.
pub const LARGE: usize = 64 << 10;

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
enum Memory {
    /// Ours alone: it may be written in place while the overlay is open.
    Slab(Slab),
    /// A payload as it came.
    Payload(Bytes),
    /// Given back; the number waits for another buffer.
    Free,
}

#[derive(Debug)]
struct Buffer {
    memory: Memory,
    /// Bytes that extents lie in.
    live: u32,
}

/// All buffers of one overlay.
#[derive(Debug)]
pub struct Buffers {
    list: Vec<Buffer>,
    free: Vec<u32>,
    /// The slab that takes small writes, and how much of it is taken.
    filling: Option<(u32, u32)>,
    charge: Charge,
    budget: Arc<Budget>,
}

impl Buffers {
    /// None yet. What they cost is charged to `budget`.
    pub fn new(budget: &Arc<Budget>) -> Self {
        Self {
            list: Vec::new(),
            free: Vec::new(),
            filling: None,
            charge: budget.charge(0),
            budget: Arc::clone(budget),
        }
    }

    /// The `len` bytes at `place`.
    pub fn get(&self, place: Place, len: u32) -> &[u8] {
        let (from, to) = (place.at as usize, (place.at + len) as usize);
        let buffer = self.list.get(place.buffer as usize);
        let bytes = match buffer.map(|buffer| &buffer.memory) {
            Some(Memory::Slab(slab)) => slab.get(from..to),
            Some(Memory::Payload(bytes)) => bytes.get(from..to),
            Some(Memory::Free) | None => None,
        };
        debug_assert!(bytes.is_some(), "an extent lies outside of its buffer");
        bytes.unwrap_or_default()
    }

    /// Puts `data` over the bytes at `place`, if they lie in a slab.
    pub fn overwrite(&mut self, place: Place, data: &[u8]) -> bool {
        let buffer = self.list.get_mut(place.buffer as usize);
        let Some(Memory::Slab(slab)) = buffer.map(|buffer| &mut buffer.memory) else {
            return false;
        };
        let from = place.at as usize;
        match slab.get_mut(from..from + data.len()) {
            Some(target) => {
                target.copy_from_slice(data);
                true
            }
            None => false,
        }
    }

    /// Keeps a copy of `data`, at most [`LARGE`] bytes, behind what was copied last.
    pub fn copy(&mut self, data: &[u8]) -> Place {
        let len = data.len();
        let fits = |slab: &Slab, used: u32| slab.len() - used as usize >= len;
        let room = self.filling.filter(|(number, used)| {
            matches!(self.list.get(*number as usize), Some(Buffer { memory: Memory::Slab(slab), .. }) if fits(slab, *used))
        });
        let (number, used) = match room {
            Some(room) => room,
            None => (self.begin_slab(len), 0),
        };
        if let Some(Buffer {
            memory: Memory::Slab(slab),
            live,
        }) = self.list.get_mut(number as usize)
            && let Some(target) = slab.get_mut(used as usize..used as usize + len)
        {
            target.copy_from_slice(data);
            *live += short(len);
        }
        self.filling = Some((number, used + short(len)));
        Place {
            buffer: number,
            at: used,
        }
    }

    /// Keeps `data` as it is.
    pub fn keep(&mut self, data: Bytes) -> Place {
        let live = short(data.len());
        let number = self.add(Buffer {
            memory: Memory::Payload(data),
            live,
        });
        Place {
            buffer: number,
            at: 0,
        }
    }

    /// The `len` bytes at some place of this buffer can no longer be read. With the last of them the buffer is given back.
    pub fn release(&mut self, place: Place, len: u32) {
        let Some(buffer) = self.list.get_mut(place.buffer as usize) else {
            return;
        };
        buffer.live = buffer.live.saturating_sub(len);
        if buffer.live > 0 {
            return;
        }
        if let Some((number, used)) = &mut self.filling
            && *number == place.buffer
        {
            *used = 0;
            return;
        }
        let cost = buffer.memory.cost();
        buffer.memory = Memory::Free;
        self.free.push(place.buffer);
        self.charge.shrink(cost);
    }

    fn begin_slab(&mut self, at_least: usize) -> u32 {
        if let Some((former, _)) = self.filling.take() {
            // Whoever held the last of it was the one filling it.
            self.release(
                Place {
                    buffer: former,
                    at: 0,
                },
                0,
            );
        }
        // An epoch of a VM that rests has a few blocks: its first slab is small.
        let first = self.list.is_empty();
        let slab = self.budget.slab(first, at_least);
        self.add(Buffer {
            memory: Memory::Slab(slab),
            live: 0,
        })
    }

    fn add(&mut self, buffer: Buffer) -> u32 {
        self.charge.grow(buffer.memory.cost());
        if let Some(number) = self.free.pop()
            && let Some(slot) = self.list.get_mut(number as usize)
        {
            *slot = buffer;
            return number;
        }
        self.list.push(buffer);
        short(self.list.len() - 1)
    }
}

impl Memory {
    fn cost(&self) -> u64 {
        /// The entry in the list, and what an allocation costs besides.
        const BESIDE: u64 = 64;
        match self {
            Self::Slab(slab) => slab.len() as u64 + BESIDE,
            Self::Payload(bytes) => bytes.len() as u64 + BESIDE,
            Self::Free => 0,
        }
    }
}

/// Payloads end at 32 MiB, and a budget never holds 4 billion buffers.
#[allow(clippy::cast_possible_truncation)]
fn short(len: usize) -> u32 {
    len as u32
}
