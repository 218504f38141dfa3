//! The memory that a group's epochs lie in. It outlives the process: a gateway that is killed, or stopped for an upgrade, leaves open and
//! sealed epochs behind, and the next one goes on with them. It does not outlive the machine. Knows slots, not what writes mean.
//!
//! ```text
//!   one file, in a tmpfs:  │ header, 4 KiB │ table: a row per slot │ slot 0 │ slot 1 │ …
//!   header, in words:      │ magic │ version │ id of the log (2) │ boot (2) │ generation │ sealed │ valid from │ volatile │ parked … │
//!   row, in words:         │ use │ epoch │ disk << 8 | class │ – │
//!   slot:                  │ data ▶ ◀ records, see `record` │
//! ```
//!
//! Each use of a slot has a number of its own, higher than all before. A row counts if its use is not 0 and at least *valid from*: so all
//! that is held becomes void with one store, whoever still refers to it. What a row says is stored before its use, and what a record
//! says before its tag, so that a process may be killed between any two stores. Version 1; any change of the layout, of slots or of records
//! takes another, and a gateway that finds one that it does not know starts as if the machine had failed.
//!
//! A group whose arena can't be kept in a file has one without a name: it works the same, and goes with the process.

mod kept;
mod record;
mod words;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use epoch_log::{Epoch, Generation};
use memmap2::{MmapMut, MmapOptions};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};

use words::{WORD, Words};

pub(in crate::group) use kept::boot_id;
pub use kept::{ArenaError, Found, Kept, file_name};
pub use record::{Kind, RECORD, Record, read as read_records, write as write_record};

/// "EPGHELD" and a version of the magic itself.
const MAGIC: u64 = 0x4550_4748_454c_4431;
const VERSION: u64 = 1;
/// Slots that the table has rows for: 65 GiB, far above any budget. The file ends behind the last that was ever used, and the rows of those
/// behind are never touched, so they cost nothing.
const CAPACITY: u32 = 1 << 18;
const HEADER_WORDS: usize = 512;
const ROW_WORDS: usize = 4;
const WORDS: usize = HEADER_WORDS + CAPACITY as usize * ROW_WORDS;

/// Words of the header.
mod at {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 1;
    pub const LOG: [usize; 2] = [2, 3];
    pub const BOOT: [usize; 2] = [4, 5];
    pub const GENERATION: usize = 6;
    pub const SEALED: usize = 7;
    pub const VALID_FROM: usize = 8;
    /// Slabs in use that lie elsewhere, and would be lost.
    pub const VOLATILE: usize = 9;
    /// Odd while the ids below are being changed.
    pub const PARKED_VERSION: usize = 10;
    pub const PARKED_COUNT: usize = 11;
    pub const PARKED: usize = 16;
}

/// Bytes of memory behind a slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The first slab of an overlay: most epochs of a VM that rests need no more.
    Small = 0,
    /// All others.
    Whole = 1,
}

impl Class {
    /// Bytes: a page for records beside the data of whole blocks.
    pub const fn len(self) -> usize {
        match self {
            Self::Small => (16 + 4) << 10,
            Self::Whole => (256 + 4) << 10,
        }
    }
}

/// One that no log comes to.
const NO_GENERATION: Generation = Generation(u64::MAX);

/// Bytes from one slot to the next.
const SLOT: u64 = Class::Whole.len() as u64;

/// Whose writes a slab takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Home {
    /// The epoch.
    pub epoch: Epoch,
    /// Number of the disk in the group.
    pub disk: u16,
}

#[cfg(test)]
impl Home {
    /// The first disk in the first epoch.
    pub const TEST: Self = Self {
        epoch: Epoch(1),
        disk: 0,
    };
}

/// A slot that is handed out. Nobody else has it until it is given back.
#[derive(Debug)]
pub struct Slot {
    number: u32,
    class: Class,
    memory: MmapMut,
}

impl Slot {
    /// Its memory.
    pub fn memory(&self) -> &[u8] {
        &self.memory
    }

    /// Its memory.
    pub fn memory_mut(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// How large it is.
    pub fn class(&self) -> Class {
        self.class
    }
}

#[derive(Debug, Default)]
struct Slots {
    free: Vec<u32>,
    /// This one and all above were never used.
    fresh: u32,
}

/// The arena of one group.
#[derive(Debug)]
pub struct Arena {
    file: File,
    words: Words,
    /// Where it is found again; none: nowhere.
    path: Option<PathBuf>,
    next_use: AtomicU64,
    slots: Mutex<Slots>,
    /// The next gateway takes over what is there: nothing is given back any more.
    left: AtomicBool,
}

impl Arena {
    /// An empty arena that goes with the process.
    ///
    /// # Errors
    /// As memfd_create(2) and mmap(2).
    pub fn unnamed() -> io::Result<Arc<Self>> {
        let file = File::from(memfd_create("epochgate-held", MemfdFlags::CLOEXEC)?);
        Self::start(file, None).map(Arc::new)
    }

    /// Makes an empty arena of `file`.
    fn start(file: File, path: Option<PathBuf>) -> io::Result<Self> {
        file.set_len(0)?;
        fallocate(
            &file,
            FallocateFlags::empty(),
            0,
            (HEADER_WORDS * WORD) as u64,
        )?;
        Self::map(file, path)
    }

    fn map(file: File, path: Option<PathBuf>) -> io::Result<Self> {
        let len = (WORDS * WORD) as u64;
        if file.metadata()?.len() < len {
            file.set_len(len)?;
        }
        let words = Words::map(&file, WORDS)?;
        Ok(Self {
            file,
            words,
            path,
            next_use: AtomicU64::new(1),
            slots: Mutex::default(),
            left: AtomicBool::new(false),
        })
    }

    /// Where it is found again, if it is.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// A slot in use for `home`, with the number of the use. It holds anything.
    ///
    /// # Errors
    /// As fallocate(2) and mmap(2): there is no memory. `OutOfMemory` when all slots are used.
    pub fn slot(&self, class: Class) -> io::Result<Slot> {
        let number = {
            let mut slots = self.slots();
            match slots.free.pop() {
                Some(number) => number,
                None if slots.fresh < CAPACITY => {
                    slots.fresh += 1;
                    slots.fresh - 1
                }
                None => return Err(io::ErrorKind::OutOfMemory.into()),
            }
        };
        // Allocated first, its row as well: a page that can't be had when it is touched would be a SIGBUS.
        let row = (row_of(number) * WORD) as u64;
        let slot = self
            .allocate(row, (ROW_WORDS * WORD) as u64)
            .and_then(|()| self.allocate(start_of(number), class.len() as u64))
            .and_then(|()| self.map_slot(number, class));
        if slot.is_err() {
            self.slots().free.push(number);
        }
        slot
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        Ok(fallocate(&self.file, FallocateFlags::empty(), offset, len)?)
    }

    fn map_slot(&self, number: u32, class: Class) -> io::Result<Slot> {
        // SAFETY: the file is ours: it is opened by the gateway that holds the lock of the group's log, for its user
        // only, and a slot is mapped once at a time. So nobody else changes these bytes while they are borrowed.
        let memory = unsafe {
            MmapOptions::new()
                .offset(start_of(number))
                .len(class.len())
                .populate()
                .map_mut(&self.file)
        }?;
        Ok(Slot {
            number,
            class,
            memory,
        })
    }

    /// From now on the slot belongs to `home`; the number of this use.
    pub fn begin_use(&self, slot: &Slot, home: Home) -> u64 {
        let used = self.next_use.fetch_add(1, Ordering::Relaxed);
        let row = row_of(slot.number);
        self.words.set(row + 1, home.epoch.0);
        let what = u64::from(home.disk) << 8 | slot.class as u64;
        self.words.set(row + 2, what);
        self.words.set(row, used);
        used
    }

    /// Nobody needs what the slot holds.
    pub fn end_use(&self, slot: &Slot) {
        if !self.is_left() {
            self.words.set(row_of(slot.number), 0);
        }
    }

    /// Gives the memory of a slot that is not in use back to the system.
    pub fn give_back(&self, slot: Slot) {
        if self.is_left() {
            return;
        }
        let (number, len) = (slot.number, slot.memory.len() as u64);
        drop(slot);
        self.punch(start_of(number), len);
        self.slots().free.push(number);
    }

    fn punch(&self, offset: u64, len: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(error) = fallocate(&self.file, flags, offset, len) {
            // Then it is held until it is used again.
            tracing::debug!(%error, "memory of an epoch could not be given back");
        }
    }

    /// So many more slabs are in use that lie elsewhere: while there are any, a next gateway can't go on.
    pub fn add_volatile(&self) {
        self.words.add(at::VOLATILE, 1);
    }

    /// One of them is gone.
    pub fn remove_volatile(&self) {
        if !self.is_left() {
            self.words.add(at::VOLATILE, u64::MAX);
        }
    }

    /// All up to this epoch is sealed. Called while no write can happen.
    pub fn set_sealed(&self, epoch: Epoch) {
        self.words.set(at::SEALED, epoch.0);
    }

    /// Everything that is held is void; what comes belongs to `generation`, and epochs up to `sealed` are sealed.
    pub fn restart(&self, generation: Generation, sealed: Epoch) {
        let next = self.next_use.load(Ordering::Relaxed);
        self.words.set(at::VALID_FROM, next);
        self.words.set(at::SEALED, sealed.0);
        self.words.set(at::GENERATION, generation.0);
    }

    /// What was held is of no generation: nobody goes on with it until [`Arena::set_generation`].
    pub fn restart_void(&self, sealed: Epoch) {
        self.restart(NO_GENERATION, sealed);
    }

    /// What is held, and what comes, belongs to `generation`.
    pub fn set_generation(&self, generation: Generation) {
        self.words.set(at::GENERATION, generation.0);
    }

    /// Remembers the standbys that are let in.
    pub fn set_parked<'a>(&self, ids: impl Iterator<Item = &'a str>) {
        kept::write_parked(&self.words, ids);
    }

    /// The next gateway takes over all that is held: from now on nothing is given back, whatever is dropped.
    pub fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }

    /// Removes the file: nothing is held that anybody needs.
    pub fn remove(&self) {
        if let Some(path) = &self.path
            && let Err(error) = std::fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "the memory of the group can't be removed");
        }
    }

    fn is_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn row_of(number: u32) -> usize {
    HEADER_WORDS + number as usize * ROW_WORDS
}

fn start_of(number: u32) -> u64 {
    (WORDS * WORD) as u64 + u64::from(number) * SLOT
}
