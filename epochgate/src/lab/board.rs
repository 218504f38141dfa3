//! The page in the guest's RAM through which a load in the guest (tests/witness/src/load.rs, where it is drawn) is told what to do and says
//! how much it did. It is read and written as its host has it, in the RAM file: the guest's clock stands still while it is paused,
//! and what goes over a network or a serial line would be held up with it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use coordinator::saved_state::next_data;

use super::site::heed_interruption;

/// What the page begins with, and after it the complement.
const MARK: u64 = 0x4550_4f43_4c4f_4144;
const PAGE: usize = 4096;
/// Read at once in search of the page.
const PIECE: usize = 1 << 20;
/// Words of the page.
const CHOSEN: u64 = 2;
const BEAT: u64 = 3;
/// A guest without KVM on a machine that has other work gets as far within it.
const LIMIT: Duration = Duration::from_secs(90);
const TICK: Duration = Duration::from_millis(20);

/// A loop of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loop {
    /// None.
    Idle = 0,
    /// Arithmetic.
    Processor = 1,
    /// Pages of memory.
    Memory = 2,
    /// Blocks of a disk, each with a flush.
    Disk = 3,
}

/// The page of a running guest.
#[derive(Debug)]
pub(crate) struct Board {
    ram: File,
    at: u64,
}

impl Board {
    /// Waits until the load runs in the guest whose RAM file is in `dir`. Calls `meanwhile` again and again.
    pub(crate) fn find(
        dir: &Path,
        mut meanwhile: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let deadline = Instant::now() + LIMIT;
        loop {
            heed_interruption()?;
            meanwhile()?;
            if let Some(board) = Self::look(dir)? {
                return Ok(board);
            }
            if Instant::now() > deadline {
                bail!(
                    "the load does not run in the guest; is the guest that of this version? `make guest` builds it"
                );
            }
            std::thread::sleep(10 * TICK);
        }
    }

    /// The page, if there is one and its guest lives.
    fn look(dir: &Path) -> anyhow::Result<Option<Self>> {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if !path.to_string_lossy().contains("-source-") {
                continue;
            }
            let ram = File::options().read(true).write(true).open(&path)?;
            let found =
                marked(&ram).with_context(|| format!("{} can't be read", path.display()))?;
            for at in found {
                let board = Self {
                    ram: ram.try_clone()?,
                    at,
                };
                let before = board.word(BEAT)?;
                std::thread::sleep(5 * TICK);
                if board.word(BEAT)? != before {
                    return Ok(Some(board));
                }
            }
        }
        Ok(None)
    }

    /// Has the guest run this loop, and waits until it does.
    pub(crate) fn choose(&self, which: Loop) -> anyhow::Result<()> {
        let word = which as u64;
        self.ram
            .write_all_at(&word.to_le_bytes(), self.at + 8 * CHOSEN)?;
        let (before, deadline) = (self.word(BEAT)?, Instant::now() + LIMIT);
        // The turn under way may be of the loop before.
        while self.word(BEAT)?.wrapping_sub(before) < 2 {
            heed_interruption()?;
            if Instant::now() > deadline {
                bail!("the load in the guest stands still");
            }
            std::thread::sleep(TICK / 20);
        }
        Ok(())
    }

    /// What a loop has done so far.
    pub(crate) fn done(&self, which: Loop) -> anyhow::Result<u64> {
        self.word(BEAT + which as u64)
    }

    fn word(&self, word: u64) -> anyhow::Result<u64> {
        let mut bytes = [0; 8];
        self.ram.read_exact_at(&mut bytes, self.at + 8 * word)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// Offsets of the pages with the mark.
fn marked(ram: &File) -> std::io::Result<Vec<u64>> {
    let mut sign = [0; 16];
    sign[..8].copy_from_slice(&MARK.to_le_bytes());
    sign[8..].copy_from_slice(&(!MARK).to_le_bytes());
    let mut piece = vec![0; PIECE];
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(data) = next_data(ram, at)? {
        at = data.start;
        while at < data.end {
            let length = usize::try_from(data.end - at).map_or(PIECE, |left| left.min(PIECE));
            ram.read_exact_at(&mut piece[..length], at)?;
            for (page, offset) in piece[..length].chunks(PAGE).zip((at..).step_by(PAGE)) {
                if page.starts_with(&sign) {
                    found.push(offset);
                }
            }
            at += length as u64;
        }
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_found_behind_holes_and_only_at_the_start_of_a_page() {
        let ram = tempfile::tempfile().unwrap();
        ram.set_len(8 << 20).unwrap();
        assert!(marked(&ram).unwrap().is_empty());
        let sign = [MARK.to_le_bytes(), (!MARK).to_le_bytes()].concat();
        ram.write_all_at(&sign, (5 << 20) + 8).unwrap();
        ram.write_all_at(&sign, (6 << 20) + PAGE as u64).unwrap();
        assert_eq!(marked(&ram).unwrap(), [(6 << 20) + PAGE as u64]);
    }
}
