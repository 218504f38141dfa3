//! Fixed pieces of memory that the writes of an overlay are packed into, each with the records that tell of them. They come back to a pool, so
//! that an epoch finds warm pages instead of asking the system for new ones. Knows the arena that they lie in, and no disks.
//!
//! A slab that is given back waits: shared memory that is new costs the kernel half as much again as a write, and a busy group needs it
//! again at once. What nobody has needed for a while goes back to the system, beyond a part that always waits ([`SlabPool::trim`]).

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::arena::{self, Arena, Class, Home, Kind, RECORD, Record, Slot};

/// What has waited for so long is not needed soon.
const UNUSED: Duration = Duration::from_secs(1);
/// Slabs that one call of [`SlabPool::trim`] gives back: each takes tens of microseconds, and a commit may be waiting.
const TRIM: usize = 16;

/// Slabs that wait for use.
#[derive(Debug)]
pub struct SlabPool {
    arena: Arc<Arena>,
    idle: Mutex<Idle>,
    /// So many bytes always wait.
    reserve: usize,
    /// There was no shared memory for the last slab that needed new memory.
    short: AtomicBool,
}

#[derive(Debug)]
struct Idle {
    small: Vec<Slot>,
    whole: Vec<Slot>,
    bytes: usize,
    /// The fewest bytes that waited since `since`.
    least: usize,
    since: Instant,
    /// Bytes that nobody has needed, to be given back.
    surplus: usize,
}

impl Idle {
    fn of(&mut self, class: Class) -> &mut Vec<Slot> {
        match class {
            Class::Small => &mut self.small,
            Class::Whole => &mut self.whole,
        }
    }
}

impl SlabPool {
    /// A pool in `arena` that keeps `reserve` bytes also when nobody needs them.
    pub fn new(arena: Arc<Arena>, reserve: u64) -> Arc<Self> {
        Arc::new(Self {
            arena,
            idle: Mutex::new(Idle {
                small: Vec::new(),
                whole: Vec::new(),
                bytes: 0,
                least: 0,
                since: Instant::now(),
                surplus: 0,
            }),
            reserve: usize::try_from(reserve).unwrap_or(usize::MAX),
            short: AtomicBool::new(false),
        })
    }

    /// The arena.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// An empty slab for the writes of `home`.
    pub fn take(self: &Arc<Self>, class: Class, home: Home) -> Slab {
        let warm = {
            let mut idle = self.idle();
            let warm = idle.of(class).pop();
            if warm.is_some() {
                idle.bytes -= class.len();
                idle.least = idle.least.min(idle.bytes);
            }
            warm
        };
        let memory = match warm.map_or_else(|| self.new_slot(class), Ok) {
            Ok(slot) => Memory::Kept(self.arena.begin_use(&slot, home), slot),
            Err(error) => {
                // The heap may still have it. A next gateway could not go on.
                if !self.short.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        %error,
                        "no shared memory for held writes: until there is, a restart of the gateway loses them; \
                         enlarge the file system of `epoch_memory`, or lower `memory_budget_mib`"
                    );
                }
                self.arena.add_volatile();
                Memory::Volatile(vec![0; class.len()].into_boxed_slice())
            }
        };
        Slab {
            memory,
            filled: 0,
            records: 0,
            pool: Arc::clone(self),
        }
    }

    fn new_slot(&self, class: Class) -> io::Result<Slot> {
        let slot = self.arena.slot(class)?;
        self.short.store(false, Ordering::Relaxed);
        Ok(slot)
    }

    /// The slab that an earlier process has left, with its records. Nothing more goes into it.
    pub fn adopt(self: &Arc<Self>, slot: Slot, used: u64) -> (Slab, Vec<Record>) {
        let records: Vec<Record> = arena::read_records(slot.memory(), used).collect();
        let slab = Slab {
            filled: slot.memory().len(),
            records: records.len(),
            memory: Memory::Kept(used, slot),
            pool: Arc::clone(self),
        };
        (slab, records)
    }

    fn take_back(&self, slot: Slot) {
        self.arena.end_use(&slot);
        let mut idle = self.idle();
        idle.bytes += slot.class().len();
        idle.of(slot.class()).push(slot);
    }

    /// Gives back some of what nobody has needed for a while. To be called now and then.
    pub fn trim(&self, now: Instant) {
        let mut idle = self.idle();
        if now.saturating_duration_since(idle.since) >= UNUSED {
            idle.surplus = idle.least.saturating_sub(self.reserve);
            idle.least = idle.bytes;
            idle.since = now;
        }
        let mut unused = Vec::new();
        while idle.surplus > 0 && unused.len() < TRIM {
            let Some(slot) = idle.whole.pop().or_else(|| idle.small.pop()) else {
                idle.surplus = 0;
                break;
            };
            let len = slot.class().len();
            idle.bytes -= len;
            idle.surplus = idle.surplus.saturating_sub(len);
            unused.push(slot);
        }
        idle.least = idle.least.min(idle.bytes);
        drop(idle);
        for slot in unused {
            self.arena.give_back(slot);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One slab; dropping it gives it back.
#[derive(Debug)]
pub struct Slab {
    memory: Memory,
    /// Bytes of data, from the front.
    filled: usize,
    /// Records, from the back.
    records: usize,
    pool: Arc<SlabPool>,
}

#[derive(Debug)]
enum Memory {
    /// Of the arena, in this use.
    Kept(u64, Slot),
    /// It goes with the process.
    Volatile(Box<[u8]>),
    /// Taken back.
    Gone,
}

impl Slab {
    /// Its memory.
    pub fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Kept(_, slot) => slot.memory(),
            Memory::Volatile(memory) => memory,
            Memory::Gone => &[],
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Kept(_, slot) => slot.memory_mut(),
            Memory::Volatile(memory) => memory,
            Memory::Gone => &mut [],
        }
    }

    /// Whether a write of `len` bytes and its record go into it.
    pub fn has_room_for(&self, len: usize) -> bool {
        self.filled + len + RECORD * (self.records + 1) <= self.bytes().len()
    }

    /// Puts `data`, for byte `offset` of the disk, behind what was put last; where it begins. There is room for it.
    pub fn append(&mut self, sequence: u32, offset: u64, data: &[u8]) -> u32 {
        let from = self.filled;
        if let Some(target) = self.bytes_mut().get_mut(from..from + data.len()) {
            target.copy_from_slice(data);
        }
        self.filled += data.len();
        let at = u32::try_from(from).unwrap_or(u32::MAX);
        self.note(&Record {
            sequence,
            offset,
            len: data.len() as u64,
            kind: Kind::Data { at },
        });
        at
    }

    /// Adds a record. There is room for it.
    pub fn note(&mut self, record: &Record) {
        let index = self.records;
        self.records += 1;
        if let Memory::Kept(used, slot) = &mut self.memory {
            arena::write_record(slot.memory_mut(), *used, index, record);
        }
    }

    /// Puts `data` over the bytes at `at`; false, and nothing done, if they don't lie inside.
    pub fn overwrite(&mut self, at: u32, data: &[u8]) -> bool {
        let from = at as usize;
        match self.bytes_mut().get_mut(from..from + data.len()) {
            Some(target) => {
                target.copy_from_slice(data);
                true
            }
            None => false,
        }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.memory, Memory::Gone) {
            Memory::Kept(_, slot) => self.pool.take_back(slot),
            Memory::Volatile(_) => self.pool.arena.remove_volatile(),
            Memory::Gone => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HOME: Home = Home::TEST;

    #[test]
    fn slabs_wait_for_use_until_nobody_has_needed_them_for_a_while() {
        let (whole, small) = (Class::Whole.len(), Class::Small.len());
        let pool = SlabPool::new(Arena::unnamed().unwrap(), 8 * whole as u64);
        let start = Instant::now();
        let take =
            |count| -> Vec<_> { (0..count).map(|_| pool.take(Class::Whole, HOME)).collect() };
        let idle = || {
            let idle = pool.idle();
            (idle.small.len(), idle.whole.len(), idle.bytes)
        };
        drop((take(40), pool.take(Class::Small, HOME)));
        assert_eq!(idle(), (1, 40, 40 * whole + small));
        // 10 of them are not needed within a second, 30 are.
        pool.trim(start + 2 * UNUSED);
        drop(take(30));
        assert_eq!(idle().1, 40);
        pool.trim(start + 3 * UNUSED);
        assert_eq!(
            idle().1,
            37,
            "beyond the reserve of 8, what nobody needed goes"
        );
        // Then all of them rest.
        for second in 4..20 {
            pool.trim(start + second * UNUSED);
            pool.trim(start + second * UNUSED);
        }
        assert!(idle().2 <= 8 * whole + small, "{:?}", idle());
        assert!(idle().2 > 7 * whole, "{:?}", idle());
    }

    #[test]
    fn a_slab_is_full_when_data_and_records_meet() {
        let pool = SlabPool::new(Arena::unnamed().unwrap(), 0);
        let mut slab = pool.take(Class::Small, HOME);
        let mut count = 0_usize;
        while slab.has_room_for(512) {
            slab.append(0, 0, &[7; 512]);
            count += 1;
        }
        assert_eq!(count, Class::Small.len() / (512 + RECORD));
        let data = slab.bytes().get(..count * 512).unwrap();
        assert!(data.iter().all(|byte| *byte == 7));
    }
}
