//! What an earlier process has left in an arena: is it ours, of this boot, whole, and what is in it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use epoch_log::{Epoch, Generation};
use rustix::fs::OFlags;

use super::super::barriers::{MAX_ID_BYTES, MAX_PARKED, valid_id};
use super::words::{WORD, Words};
use super::{Arena, CAPACITY, Class, Home, MAGIC, Slot, VERSION, WORDS, at, row_of, start_of};

/// Words of one id: its length, then its bytes.
const ID_WORDS: usize = 1 + MAX_ID_BYTES.div_ceil(WORD);

/// Why a group's memory can't be kept in a file.
#[derive(Debug, thiserror::Error)]
#[error(
    "the memory of held epochs can't be kept in {}; set `epoch_memory` to a directory in a tmpfs that only this user writes, or to \"\" to do without", path.display()
)]
pub struct ArenaError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What was found where the arena lies.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// Something that nobody can go on with, and why.
    Useless(&'static str),
    /// Something of another start of the machine.
    OtherStart,
    /// What an earlier process held.
    Kept(Kept),
}

/// What an earlier process held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Of this generation.
    pub generation: Generation,
    /// The newest sealed epoch; what is above is open.
    pub sealed: Epoch,
    /// The standbys that were let in; `None`: it is not known.
    pub parked: Option<Vec<String>>,
    /// The slabs in use, in no order.
    pub slabs: Vec<KeptSlab>,
}

/// One slab of an earlier process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptSlab {
    /// Whose writes it has.
    pub home: Home,
    /// Of which use its records must be.
    pub used: u64,
    number: u32,
    class: Class,
}

/// Name of the file of a group whose log has this id.
pub fn file_name(group: &str, log: [u8; 16]) -> String {
    let id = u128::from_be_bytes(log) >> 64;
    format!("epochgate-{group}-{id:016x}.held")
}

impl Arena {
    /// The arena at `path`, of the group whose log has the id `log`, and what an earlier process has left in it. What is left stays until
    /// [`Arena::forget_kept`] or [`Arena::take_kept`].
    ///
    /// # Errors
    /// [`ArenaError`]: the file can't be made or used, or is another user's.
    pub fn open(path: &Path, log: [u8; 16]) -> Result<(Arc<Self>, Found), ArenaError> {
        let (arena, found) = open(path, log).map_err(|source| ArenaError {
            path: path.to_owned(),
            source,
        })?;
        Ok((Arc::new(arena), found))
    }

    /// What the slab of an earlier process lies in. Once for each.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn take_kept(&self, kept: &KeptSlab) -> io::Result<Slot> {
        self.map_slot(kept.number, kept.class)
    }

    /// Nobody goes on with this slab.
    pub fn forget_kept(&self, kept: &KeptSlab) {
        self.words.set(row_of(kept.number), 0);
        self.punch(start_of(kept.number), kept.class.len() as u64);
        self.slots().free.push(kept.number);
    }

    fn look(&self) -> Found {
        let words = &self.words;
        if words.get(at::VOLATILE) != 0 {
            return Found::Useless("a part of it lay elsewhere, as the shared memory was full");
        }
        let valid_from = words.get(at::VALID_FROM).max(1);
        let rows = (0..self.slots_in_file()).filter_map(|number| {
            let row = row_of(number);
            let used = words.get(row);
            let what = words.get(row + 2);
            let class = if what & 0xff == 0 {
                Class::Small
            } else {
                Class::Whole
            };
            let home = Home {
                epoch: Epoch(words.get(row + 1)),
                disk: u16::try_from(what >> 8).unwrap_or(u16::MAX),
            };
            (used >= valid_from).then_some(KeptSlab {
                home,
                used,
                number,
                class,
            })
        });
        Found::Kept(Kept {
            generation: Generation(words.get(at::GENERATION)),
            sealed: Epoch(words.get(at::SEALED)),
            parked: read_parked(words),
            slabs: rows.collect(),
        })
    }

    /// All slots that were ever used lie before the end of the file.
    fn slots_in_file(&self) -> u32 {
        let end = self.file.metadata().map_or(0, |metadata| metadata.len());
        let slots = end.saturating_sub(start_of(0)).div_ceil(super::SLOT);
        u32::try_from(slots).unwrap_or(CAPACITY).min(CAPACITY)
    }

    /// Slots that nobody has kept are free, and uses go on behind all that were.
    fn account_for(&mut self, kept: &[KeptSlab]) {
        let taken: BTreeSet<u32> = kept.iter().map(|slab| slab.number).collect();
        let fresh = self.slots_in_file();
        for number in (0..fresh).filter(|number| !taken.contains(number)) {
            self.words.set(row_of(number), 0);
            self.punch(start_of(number), super::SLOT);
            self.slots().free.push(number);
        }
        self.slots().fresh = fresh;
        let last = kept.iter().map(|slab| slab.used).max().unwrap_or(0);
        let next = last.max(self.words.get(at::VALID_FROM)) + 1;
        self.next_use.store(next, Ordering::Relaxed);
    }
}

fn open(path: &Path, log: [u8; 16]) -> io::Result<(Arena, Found)> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0))
        .open(path)?;
    let metadata = file.metadata()?;
    if metadata.uid() != rustix::process::geteuid().as_raw() || !metadata.is_file() {
        let what = "it is there already, and not a file of this user";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    let (log, boot) = (halves(log), halves(boot_id()?));
    let found = if metadata.len() == 0 {
        Found::Nothing
    } else if metadata.len() < (WORDS * WORD) as u64 {
        Found::Useless("it is too short")
    } else {
        let mut arena = Arena::map(file.try_clone()?, Some(path.to_owned()))?;
        let words = &arena.words;
        let pair = |numbers: [usize; 2]| numbers.map(|number| words.get(number));
        let found = if words.get(at::MAGIC) != MAGIC {
            Found::Useless("it is something else")
        } else if words.get(at::VERSION) != VERSION {
            Found::Useless("it is of another version of epochgate")
        } else if pair(at::LOG) != log {
            Found::Useless("it belongs to another log")
        } else if pair(at::BOOT) != boot {
            Found::OtherStart
        } else {
            arena.look()
        };
        if let Found::Kept(kept) = &found {
            arena.account_for(&kept.slabs);
            return Ok((arena, found));
        }
        found
    };
    let arena = Arena::start(file, Some(path.to_owned()))?;
    for (number, value) in at::LOG
        .into_iter()
        .zip(log)
        .chain(at::BOOT.into_iter().zip(boot))
    {
        arena.words.set(number, value);
    }
    arena.words.set(at::VERSION, VERSION);
    arena.words.set(at::MAGIC, MAGIC);
    Ok((arena, found))
}

/// Tells this start of the machine from all others (random(4)).
pub(in crate::group) fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let id = u128::from_str_radix(&text.trim().replace('-', ""), 16);
    Ok(id.map_err(io::Error::other)?.to_be_bytes())
}

fn halves(id: [u8; 16]) -> [u64; 2] {
    let id = u128::from_be_bytes(id);
    // The halves of a number fit.
    #[allow(clippy::cast_possible_truncation)]
    [(id >> 64) as u64, id as u64]
}

pub(super) fn write_parked<'a>(words: &Words, ids: impl Iterator<Item = &'a str>) {
    words.add(at::PARKED_VERSION, 1);
    let mut count = 0;
    for id in ids.take(MAX_PARKED) {
        let start = at::PARKED + count * ID_WORDS;
        words.set(start, id.len() as u64);
        for (number, chunk) in id.as_bytes().chunks(WORD).enumerate() {
            let mut bytes = [0; WORD];
            for (byte, from) in bytes.iter_mut().zip(chunk) {
                *byte = *from;
            }
            words.set(start + 1 + number, u64::from_le_bytes(bytes));
        }
        count += 1;
    }
    words.set(at::PARKED_COUNT, count as u64);
    words.add(at::PARKED_VERSION, 1);
}

fn read_parked(words: &Words) -> Option<Vec<String>> {
    if words.get(at::PARKED_VERSION) % 2 == 1 {
        return None;
    }
    let count = usize::try_from(words.get(at::PARKED_COUNT)).ok()?;
    let ids = (0..count.min(MAX_PARKED)).map(|index| {
        let start = at::PARKED + index * ID_WORDS;
        let len = usize::try_from(words.get(start)).ok()?;
        let mut bytes: Vec<u8> = (0..len.min(MAX_ID_BYTES).div_ceil(WORD))
            .flat_map(|number| words.get(start + 1 + number).to_le_bytes())
            .collect();
        bytes.truncate(len);
        String::from_utf8(bytes).ok().filter(|id| valid_id(id))
    });
    ids.collect()
}
