//! What a disk under test holds: every sector's content is a function of its number and of the version that was written
//! last, so that no byte read can come from another place or an older write without being noticed. Pure: no I/O.

/// Bytes of a sector, the unit that carries its own identity.
pub(crate) const SECTOR: usize = 512;
/// Bytes of a unit: what one version belongs to.
pub(crate) const UNIT: usize = 4096;
/// Words of 8 bytes in a sector.
const WORDS: usize = SECTOR / 8;
/// Added from one word of a sector to the next; odd, so that all words of a sector differ.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The first word of a sector: its number and version, mixed so that no two sectors look alike (the finalizer of
/// splitmix64, a bijection).
fn tag(sector: u64, version: u32) -> u64 {
    let mut x = sector ^ (u64::from(version) << 40) ^ 0x0065_706f_6368_6761;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Fills `buffer` with what belongs at `offset` in `version`. Both are multiples of [`SECTOR`].
pub(crate) fn fill(buffer: &mut [u8], offset: u64, version: u32) {
    let first = offset / SECTOR as u64;
    for (sector, number) in buffer.chunks_exact_mut(SECTOR).zip(first..) {
        let mut word = tag(number, version);
        for bytes in sector.as_chunks_mut::<8>().0 {
            *bytes = word.to_le_bytes();
            word = word.wrapping_add(STEP);
        }
    }
}

/// How much of each sector is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// The first and the last word: cheap, and enough to find any sector that is old, misplaced or torn.
    Ends,
    /// Every byte.
    Full,
}

/// Checks whole sectors; returns the first that is wrong, as an offset in `data`.
pub(crate) fn check(data: &[u8], offset: u64, version: u32, depth: Depth) -> Result<(), usize> {
    let first = offset / SECTOR as u64;
    for ((index, sector), number) in data.chunks_exact(SECTOR).enumerate().zip(first..) {
        let tag = tag(number, version);
        let words = sector.as_chunks::<8>().0;
        let is = |word: Option<&[u8; 8]>, want: u64| word.is_some_and(|w| *w == want.to_le_bytes());
        let last = tag.wrapping_add(STEP.wrapping_mul(WORDS as u64 - 1));
        let mut good = is(words.first(), tag) && is(words.last(), last);
        if depth == Depth::Full {
            let mut word = tag;
            for bytes in words {
                good &= u64::from_le_bytes(*bytes) == word;
                word = word.wrapping_add(STEP);
            }
        }
        if !good {
            return Err(index * SECTOR);
        }
    }
    Ok(())
}

/// The versions of a whole disk: what a reader must find.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    versions: Vec<u32>,
    next: u32,
}

impl Content {
    /// A disk of `size` bytes, a multiple of [`UNIT`], that holds version 0 everywhere.
    pub(crate) fn new(size: u64) -> Self {
        let units = usize::try_from(size / UNIT as u64).unwrap_or(usize::MAX);
        Self {
            versions: vec![0; units],
            next: 1,
        }
    }

    /// A version that was never written before.
    pub(crate) fn next_version(&mut self) -> u32 {
        let version = self.next;
        self.next = self.next.wrapping_add(1).max(1);
        version
    }

    /// Notes that `len` bytes at `offset` hold `version` from now on.
    pub(crate) fn set(&mut self, offset: u64, len: usize, version: u32) {
        let first = usize::try_from(offset / UNIT as u64).unwrap_or(usize::MAX);
        for unit in self.versions.iter_mut().skip(first).take(len / UNIT) {
            *unit = version;
        }
    }

    /// The version of the unit that `offset` lies in.
    pub(crate) fn version(&self, offset: u64) -> u32 {
        usize::try_from(offset / UNIT as u64)
            .ok()
            .and_then(|unit| self.versions.get(unit).copied())
            .unwrap_or(0)
    }

    /// Checks whole sectors from `offset` on; returns the offset on the disk of the first that is wrong.
    pub(crate) fn check(&self, data: &[u8], offset: u64, depth: Depth) -> Result<(), u64> {
        let mut data = data;
        let mut at = offset;
        while !data.is_empty() {
            let in_unit = UNIT - usize::try_from(at % UNIT as u64).unwrap_or(0);
            let (part, rest) = data.split_at(in_unit.min(data.len()));
            check(part, at, self.version(at), depth).map_err(|bad| at + bad as u64)?;
            at += part.len() as u64;
            data = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_filled_is_right_and_nothing_else_is() {
        let mut content = Content::new(1 << 20);
        let version = content.next_version();
        content.set(8192, 4096, version);
        let mut data = vec![0; 12288];
        fill(&mut data[..4096], 4096, 0);
        fill(&mut data[4096..8192], 8192, version);
        fill(&mut data[8192..], 12288, 0);
        content.check(&data, 4096, Depth::Full).unwrap();
        content.check(&data, 4096, Depth::Ends).unwrap();
        // Another place, another version, a flipped bit.
        assert_eq!(content.check(&data[..512], 8192, Depth::Ends), Err(8192));
        fill(&mut data[4096..8192], 8192, 0);
        assert_eq!(content.check(&data, 4096, Depth::Ends), Err(8192));
        fill(&mut data[4096..8192], 8192, version);
        data[4096 + 600] ^= 1;
        assert_eq!(content.check(&data, 4096, Depth::Full), Err(8192 + 512));
        content.check(&data, 4096, Depth::Ends).unwrap();
        data[4096 + 512 + 511] ^= 0x80;
        assert_eq!(content.check(&data, 4096, Depth::Ends), Err(8192 + 512));
    }
}
