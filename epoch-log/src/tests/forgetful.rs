//! A disk that forgets: it is told every change of the log's files, and gives the states in which a crash could leave them.
//! What was synced is there. Of the rest, any sector of 512 bytes may have reached the disk or not, whatever came before or
//! after it, and so may each change of a name.

use std::collections::BTreeMap;

use rand::{Rng, rngs::StdRng, seq::SliceRandom};

use crate::faults::Op;
use crate::forgetful::{Change, NameChange, Names};

/// Files by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// The disk.
#[derive(Clone, Default)]
pub struct Disk {
    /// Files by id: what is durable, and what was done since.
    files: Vec<(Vec<u8>, Vec<Change>)>,
    /// Names that are durable, names as they are seen, and what was done to them since they were durable.
    durable_names: Names<usize>,
    names: Names<usize>,
    unsynced_names: Vec<NameChange<usize>>,
}

impl Disk {
    /// A disk that durably holds `files`.
    pub fn holding(files: &Files) -> Self {
        let mut disk = Self::default();
        for (name, bytes) in files {
            disk.durable_names.insert(name.clone(), disk.files.len());
            disk.files.push((bytes.clone(), Vec::new()));
        }
        disk.names = disk.durable_names.clone();
        disk
    }

    /// The next change.
    pub fn act(&mut self, op: &Op) {
        match op {
            Op::Create { name } => {
                if let Some(id) = self.names.get(name) {
                    // It is there already, and emptied.
                    self.files[*id].1.push(Change::Truncate { len: 0 });
                } else {
                    self.files.push((Vec::new(), Vec::new()));
                    self.change(NameChange::Create(name.clone(), self.files.len() - 1));
                }
            }
            Op::Rename { from, to } => self.change(NameChange::Rename(from.clone(), to.clone())),
            Op::Remove { name } => self.change(NameChange::Remove(name.clone())),
            Op::SyncDir => {
                self.durable_names = self.names.clone();
                self.unsynced_names.clear();
            }
            Op::Write {
                name,
                offset,
                bytes,
            } => {
                let (offset, bytes) = (usize::try_from(*offset).unwrap(), bytes.clone());
                self.unsynced(name).push(Change::Write { offset, bytes });
            }
            Op::Truncate { name, len } => {
                let len = usize::try_from(*len).unwrap();
                self.unsynced(name).push(Change::Truncate { len });
            }
            Op::Sync { name } => {
                let (durable, unsynced) = &mut self.files[self.names[name]];
                for op in unsynced.drain(..) {
                    op.act_on(durable, || true);
                }
            }
        }
    }

    fn unsynced(&mut self, name: &str) -> &mut Vec<Change> {
        &mut self.files[self.names[name]].1
    }

    fn change(&mut self, change: NameChange<usize>) {
        change.act(&mut self.names);
        self.unsynced_names.push(change);
    }

    /// How many parts a crash may keep or lose: sectors, truncations, changes of names.
    pub fn parts(&self) -> usize {
        let unsynced = self.files.iter().flat_map(|(_, unsynced)| unsynced);
        self.unsynced_names.len() + unsynced.map(Change::parts).sum::<usize>()
    }

    /// The state after a crash that keeps those parts, of [`Disk::parts`], that `kept` says.
    pub fn after_crash(&self, kept: &[bool]) -> Files {
        let mut kept = kept.iter().copied();
        let mut reaches = || kept.next().unwrap();
        let mut names = self.durable_names.clone();
        for change in &self.unsynced_names {
            if reaches() {
                change.act(&mut names);
            }
        }
        let contents: Vec<Vec<u8>> = self
            .files
            .iter()
            .map(|(durable, unsynced)| {
                let mut bytes = durable.clone();
                for op in unsynced {
                    op.act_on(&mut bytes, &mut reaches);
                }
                bytes
            })
            .collect();
        names
            .into_iter()
            .map(|(name, id)| (name, contents[id].clone()))
            .collect()
    }
}

/// Which of `parts` crashes keep: every subset if there are at most `most`; else none, all, all up to each, each alone, all but each,
/// and random ones; of those a random selection if they are too many.
pub fn selections(parts: usize, most: usize, random: &mut StdRng) -> Vec<Vec<bool>> {
    if parts < 20 && 1 << parts <= most {
        return (0..1_usize << parts)
            .map(|set| (0..parts).map(|part| set >> part & 1 == 1).collect())
            .collect();
    }
    let mut some = vec![vec![false; parts], vec![true; parts]];
    let mut shaped: Vec<Vec<bool>> = (0..parts)
        .flat_map(|at| {
            [
                (0..parts).map(|part| part < at).collect(),
                (0..parts).map(|part| part == at).collect(),
                (0..parts).map(|part| part != at).collect(),
            ]
        })
        .collect();
    shaped.shuffle(random);
    shaped.truncate(most * 3 / 4);
    some.extend(shaped);
    while some.len() < most {
        let share = [0.1, 0.5, 0.9][random.random_range(0..3)];
        some.push((0..parts).map(|_| random.random_bool(share)).collect());
    }
    some.truncate(most.max(2));
    some
}
