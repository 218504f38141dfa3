//! A list: where the parts of something are, up to 1024 of them. The parts are blocks of a disk, or lists.
//!
//! ```text
//!   "EGL1"  entries u16  backups u16
//!   for each backup: length u8, name
//!   for each entry: number of the backup u16; 0xffff for zeros, and then nothing more
//!                   pack u32  offset in it u32  stored bytes u32  SHA-256 of the content (32 bytes)
//! ```

use super::pack::{MOST_PACK, MOST_STORED};
use super::{Digest, FAN, FormatError, Id, Reader, wrong};

const MAGIC: &[u8; 4] = b"EGL1";
const ZEROS: u16 = u16::MAX;

/// Where a block or a list is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Located {
    /// The backup that brought it along.
    pub backup: Id,
    /// Number of the pack.
    pub pack: u32,
    /// Where in the pack it begins.
    pub offset: u32,
    /// Its length there.
    pub stored: u32,
    /// Of its content.
    pub digest: Digest,
}

impl Located {
    /// Whether it can be in a pack at all.
    pub(crate) fn fits(&self) -> bool {
        (1..=MOST_STORED).contains(&self.stored)
            && u64::from(self.offset) + u64::from(self.stored) <= MOST_PACK
    }
}

/// A part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// It is all zeros; of a list: so is everything below.
    Zeros,
    /// It is there.
    At(Located),
}

impl Entry {
    /// Where it is, if it is anywhere.
    pub fn located(&self) -> Option<&Located> {
        match self {
            Self::Zeros => None,
            Self::At(located) => Some(located),
        }
    }
}

/// The bytes of a list.
///
/// # Errors
/// If there are too many.
pub fn encode(entries: &[Entry]) -> Result<Vec<u8>, FormatError> {
    let mut backups: Vec<&Id> = entries
        .iter()
        .filter_map(Entry::located)
        .map(|located| &located.backup)
        .collect();
    backups.sort_unstable();
    backups.dedup();
    let (Ok(count), true) = (u16::try_from(entries.len()), entries.len() <= FAN) else {
        return wrong(format!("{} entries are too many for a list", entries.len()));
    };
    let mut bytes = Vec::with_capacity(16 + entries.len() * 46);
    bytes.extend(MAGIC);
    bytes.extend(count.to_le_bytes());
    // As many as entries at most.
    bytes.extend(u16::try_from(backups.len()).unwrap_or(count).to_le_bytes());
    for backup in &backups {
        let name = backup.as_str();
        bytes.push(u8::try_from(name.len()).unwrap_or(0));
        bytes.extend(name.as_bytes());
    }
    for entry in entries {
        let Some(located) = entry.located() else {
            bytes.extend(ZEROS.to_le_bytes());
            continue;
        };
        let number = backups.binary_search(&&located.backup).unwrap_or(0);
        bytes.extend(u16::try_from(number).unwrap_or(0).to_le_bytes());
        bytes.extend(located.pack.to_le_bytes());
        bytes.extend(located.offset.to_le_bytes());
        bytes.extend(located.stored.to_le_bytes());
        bytes.extend(located.digest.0);
    }
    Ok(bytes)
}

/// Reads a list of exactly `count` entries.
///
/// # Errors
/// If it is none.
pub fn decode(bytes: &[u8], count: usize) -> Result<Vec<Entry>, FormatError> {
    let mut reader = Reader(bytes);
    if reader.array() != Some(*MAGIC) {
        return wrong("it is no list");
    }
    let read = |reader: &mut Reader<'_>| {
        let (entries, backups) = (reader.u16()?, reader.u16()?);
        Some((usize::from(entries), usize::from(backups)))
    };
    let Some((entries, backups)) = read(&mut reader) else {
        return wrong("the list is cut off");
    };
    if entries != count || count > FAN || backups > entries {
        return wrong(format!(
            "the list has {entries} entries of {backups} backups, where {count} entries must be"
        ));
    }
    let mut names = Vec::with_capacity(backups);
    for _ in 0..backups {
        let name = reader.u8().and_then(|len| reader.bytes(len.into()));
        match name.map(std::str::from_utf8) {
            Some(Ok(name)) => names.push(Id::new(name)?),
            _ => return wrong("the list names a backup that can't be"),
        }
    }
    let mut list = Vec::with_capacity(count);
    for _ in 0..count {
        match entry(&mut reader, &names) {
            Some(entry) => list.push(entry),
            None => return wrong("the list has an entry that can't be, or is cut off"),
        }
    }
    if !reader.0.is_empty() {
        return wrong("the list is longer than it says");
    }
    Ok(list)
}

fn entry(reader: &mut Reader<'_>, names: &[Id]) -> Option<Entry> {
    let number = reader.u16()?;
    if number == ZEROS {
        return Some(Entry::Zeros);
    }
    let located = Located {
        backup: names.get(usize::from(number))?.clone(),
        pack: reader.u32()?,
        offset: reader.u32()?,
        stored: reader.u32()?,
        digest: Digest(reader.array()?),
    };
    located.fits().then_some(Entry::At(located))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::format::MOST_RAW;

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let located = (
            "[a-c]{1,2}",
            any::<u32>(),
            0u32..9_000_000,
            1u32..9000,
            any::<[u8; 32]>(),
        );
        let entry = prop::option::of(located).prop_map(|located| match located {
            None => Entry::Zeros,
            Some((backup, pack, offset, stored, digest)) => Entry::At(Located {
                backup: Id::new(&backup).unwrap(),
                pack,
                offset,
                stored,
                digest: Digest(digest),
            }),
        });
        prop::collection::vec(entry, 0..40)
    }

    proptest! {
        #[test]
        fn lists_come_back(list in entries()) {
            let bytes = encode(&list).unwrap();
            prop_assert_eq!(decode(&bytes, list.len()).unwrap(), list.clone());
            prop_assert!(decode(&bytes, list.len() + 1).is_err());
        }

        #[test]
        fn anything_is_taken_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), count in 0usize..2000) {
            let _ = decode(&bytes, count);
            let mut told = MAGIC.to_vec();
            told.extend(bytes);
            let _ = decode(&told, count);
        }

        #[test]
        fn what_is_altered_is_refused_or_is_another_list(list in entries(), at: usize, bit in 0u8..8) {
            let mut bytes = encode(&list).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok(other) = decode(&bytes, list.len()) {
                prop_assert_ne!(other, list);
            }
        }
    }

    #[test]
    fn the_longest_list_fits_a_block() {
        let list: Vec<Entry> = (0..FAN)
            .map(|number| {
                Entry::At(Located {
                    backup: Id::new(&format!("{number:057}")).unwrap(),
                    pack: 1,
                    offset: 2,
                    stored: 3,
                    digest: Digest::of(b""),
                })
            })
            .collect();
        let bytes = encode(&list).unwrap();
        assert!(bytes.len() <= MOST_RAW, "{}", bytes.len());
        assert_eq!(decode(&bytes, FAN).unwrap(), list);
    }
}
