//! What a crash may leave of changes that were not synced: of a write any of its sectors, in any order, and so of each change of a name.
//! The semantics that tests of the log and the simulator share; the log itself never uses it.

use std::collections::BTreeMap;

/// Bytes that reach a disk together or not at all.
pub const SECTOR: usize = 512;

/// A change of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Bytes were written.
    Write {
        /// Where.
        offset: usize,
        /// What.
        bytes: Vec<u8>,
    },
    /// The file was cut.
    Truncate {
        /// To this length.
        len: usize,
    },
}

impl Change {
    /// How many parts of it may reach the disk without the others.
    #[must_use]
    pub fn parts(&self) -> usize {
        match self {
            Self::Write { offset, bytes } => {
                (offset + bytes.len()).div_ceil(SECTOR) - offset / SECTOR
            }
            Self::Truncate { .. } => 1,
        }
    }

    /// Does it to a file, with those parts that `reaches` says, which is asked once for each.
    pub fn act_on(&self, file: &mut Vec<u8>, mut reaches: impl FnMut() -> bool) {
        match self {
            Self::Truncate { len } => {
                if reaches() {
                    file.truncate(*len);
                }
            }
            Self::Write { offset, bytes } => {
                let mut at = *offset;
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let (sector, later) = rest.split_at(rest.len().min(SECTOR - at % SECTOR));
                    if reaches() {
                        file.resize(file.len().max(at + sector.len()), 0);
                        if let Some(place) = file.get_mut(at..at + sector.len()) {
                            place.copy_from_slice(sector);
                        }
                    }
                    at += sector.len();
                    rest = later;
                }
            }
        }
    }
}

/// Files, whatever tells them apart, by their names.
pub type Names<File> = BTreeMap<String, File>;

/// A change of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameChange<File> {
    /// A file was created.
    Create(String, File),
    /// A file got another name.
    Rename(String, String),
    /// A file was removed.
    Remove(String),
}

impl<File: Clone> NameChange<File> {
    /// Does it to `names`, if it can be done there.
    pub fn act(&self, names: &mut Names<File>) {
        match self {
            Self::Create(name, file) => {
                names.insert(name.clone(), file.clone());
            }
            Self::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Self::Remove(name) => {
                names.remove(name);
            }
        }
    }
}
