//! Reads all that backups are made of, and checks each byte of it: every pack as a whole, and that every list leads to something that is there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use nbd_server::storage::objects::ObjectError;
use serde::Serialize;

use crate::format::pack::{self, MOST_PACK, Record};
use crate::format::{BLOCK, Id, Located, Manifest, REGION, pieces};
use crate::read::{Regions, list_at, table};
use crate::repository::pack_name;
use crate::{BackupError, Repository, Watch};

/// Tables of packs that are kept in memory.
const KEPT: usize = 256;

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Backups that were looked at.
    pub backups: usize,
    /// Packs that were read.
    pub packs: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// What is wrong, each in one sentence.
    pub problems: Vec<String>,
    /// The backups that can't be restored in full, as `GROUP/ID`.
    pub broken: BTreeSet<String>,
}

type Pack = (Id, u32);

/// Checks the backups of a group, or one of them.
///
/// # Errors
/// If the place can't be asked. What is wrong with the backups is no error, but in [`Checked::problems`].
pub fn verify(
    repository: &Repository,
    group: &str,
    only: Option<&Id>,
    jobs: usize,
    watch: &dyn Watch,
) -> Result<Checked, BackupError> {
    let mut checked = Checked::default();
    let mut manifests = Vec::new();
    for (_, id) in repository.ids(Some(group))? {
        if only.is_some_and(|only| *only != id) {
            continue;
        }
        checked.backups += 1;
        match repository.manifest(group, &id) {
            Ok(manifest) => manifests.push(manifest),
            Err(error) if error.is_damage() => {
                checked.problems.push(error.to_string());
                checked.broken.insert(format!("{group}/{id}"));
            }
            Err(error) => return Err(error),
        }
    }
    if checked.backups == 0 {
        return Err(BackupError::Usage(match only {
            Some(id) => format!(
                "there is no backup {id} of group {group} in {}",
                repository.place()
            ),
            None => format!(
                "there is no backup of group {group} in {}",
                repository.place()
            ),
        }));
    }
    let sizes: HashMap<Pack, u64> = repository.packs(group, None)?.into_iter().collect();
    let mut walk = Walk {
        repository,
        group,
        sizes: &sizes,
        tables: HashMap::new(),
        seen: HashMap::new(),
        users: BTreeMap::new(),
        problems: BTreeSet::new(),
        broken: BTreeSet::new(),
    };
    for manifest in &manifests {
        walk.manifest(manifest, watch)?;
    }
    let users = walk.users;
    checked.problems.extend(walk.problems);
    checked
        .broken
        .extend(walk.broken.into_iter().map(|id| format!("{group}/{id}")));
    watch.begin(users.keys().filter_map(|pack| sizes.get(pack)).sum());
    let packs: Vec<&Pack> = users
        .keys()
        .filter(|pack| sizes.contains_key(pack))
        .collect();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    let work = || -> Result<u64, BackupError> {
        let mut bytes = 0;
        loop {
            if watch.stop() {
                return Err(BackupError::Stopped);
            }
            let Some(at) = packs.get(next.fetch_add(1, Ordering::Relaxed)) else {
                return Ok(bytes);
            };
            let name = pack_name(group, &at.0, at.1);
            let wrong = match repository.objects.get(&name, MOST_PACK) {
                Ok(data) => {
                    bytes += data.len() as u64;
                    watch.done(data.len() as u64);
                    pack::check(&data).err().map(|error| error.to_string())
                }
                Err(error @ (ObjectError::NotFound { .. } | ObjectError::TooLarge { .. })) => {
                    Some(error.to_string())
                }
                Err(error) => return Err(error.into()),
            };
            if let Some(wrong) = wrong {
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                found.push((*at, format!("{name} is damaged: {wrong}")));
            }
        }
    };
    let bytes = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let mut sum = 0;
        for worker in workers {
            match worker.join() {
                Ok(bytes) => sum += bytes?,
                Err(_) => return Err(std::io::Error::other("a worker has failed").into()),
            }
        }
        Ok::<u64, BackupError>(sum)
    })?;
    checked.bytes = bytes;
    checked.packs = packs.len();
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort();
    for (at, problem) in found {
        checked.problems.push(problem);
        let users = users.get(at).into_iter().flatten();
        checked
            .broken
            .extend(users.map(|id| format!("{group}/{id}")));
    }
    Ok(checked)
}

/// What is kept of a table: where something is, how long it is, and the beginning of its digest.
type Table = HashMap<u32, (u32, [u8; 32])>;

/// Goes through all lists.
struct Walk<'a> {
    repository: &'a Repository,
    group: &'a str,
    sizes: &'a HashMap<Pack, u64>,
    tables: HashMap<Pack, Option<Table>>,
    /// Lists that were gone through, and the packs that they lead to.
    seen: HashMap<Located, BTreeSet<Pack>>,
    /// Which backups need a pack.
    users: BTreeMap<Pack, BTreeSet<Id>>,
    problems: BTreeSet<String>,
    broken: BTreeSet<Id>,
}

impl Walk<'_> {
    fn manifest(&mut self, manifest: &Manifest, watch: &dyn Watch) -> Result<(), BackupError> {
        let repository = self.repository;
        for disk in &manifest.disks {
            for span in disk.spans.iter().filter_map(|span| span.located()) {
                self.at(&manifest.id, span)?;
            }
            let mut lists = Regions::new(&repository.objects, self.group, disk);
            for region in 0..pieces(disk.size, REGION) {
                if watch.stop() {
                    return Err(BackupError::Stopped);
                }
                let entry = match lists.entry(region) {
                    Ok(entry) => entry,
                    Err(error) => {
                        self.wrong(&manifest.id, error)?;
                        break;
                    }
                };
                let Some(entry) = entry.filter(|entry| entry.located().is_some()) else {
                    continue;
                };
                let start = region as u64 * REGION;
                let count = pieces((disk.size - start).min(REGION), BLOCK);
                if let Some(located) = entry.located() {
                    self.at(&manifest.id, located)?;
                    if let Some(packs) = self.seen.get(located) {
                        for pack in packs.clone() {
                            self.users
                                .entry(pack)
                                .or_default()
                                .insert(manifest.id.clone());
                        }
                        continue;
                    }
                    match list_at(&repository.objects, self.group, &entry, count) {
                        Err(error) => self.wrong(&manifest.id, error)?,
                        Ok(list) => {
                            let mut packs = BTreeSet::new();
                            let mut good = true;
                            for block in list.iter().filter_map(|block| block.located()) {
                                good &= self.at(&manifest.id, block)?;
                                packs.insert((block.backup.clone(), block.pack));
                            }
                            // One that is not good is gone through again, for the sake of the other backups.
                            if good {
                                self.seen.insert(located.clone(), packs);
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn wrong(&mut self, id: &Id, error: BackupError) -> Result<(), BackupError> {
        if !error.is_damage() {
            return Err(error);
        }
        self.problems.insert(error.to_string());
        self.broken.insert(id.clone());
        Ok(())
    }

    /// Whether what a list names is in the table of its pack.
    fn at(&mut self, id: &Id, at: &Located) -> Result<bool, BackupError> {
        let pack = (at.backup.clone(), at.pack);
        self.users
            .entry(pack.clone())
            .or_default()
            .insert(id.clone());
        if !self.tables.contains_key(&pack) {
            let name = pack_name(self.group, &at.backup, at.pack);
            let read = match self.sizes.get(&pack) {
                Some(size) => table(&self.repository.objects, &name, *size),
                None => Err(BackupError::damaged(&name, "it is missing")),
            };
            let kept = match read {
                Ok(records) => Some(records.iter().map(entry).collect()),
                Err(error) => {
                    self.wrong(id, error)?;
                    None
                }
            };
            if self.tables.len() >= KEPT {
                self.tables.clear();
            }
            self.tables.insert(pack.clone(), kept);
        }
        let good = match self.tables.get(&pack) {
            Some(Some(table)) => {
                let good = table.get(&at.offset) == Some(&(at.stored, at.digest.0));
                if !good {
                    let name = pack_name(self.group, &at.backup, at.pack);
                    self.problems.insert(format!(
                        "{name} does not have what {id} needs at byte {}",
                        at.offset
                    ));
                }
                good
            }
            _ => false,
        };
        if !good {
            self.broken.insert(id.clone());
        }
        Ok(good)
    }
}

fn entry(record: &Record) -> (u32, (u32, [u8; 32])) {
    (record.offset, (record.stored, record.digest.0))
}
