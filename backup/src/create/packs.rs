//! What all workers of a backup store goes into packs here, several at once under way, each uploaded by the worker that filled it. Knows what an
//! interrupted run has stored.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use nbd_server::storage::objects::Objects;

use crate::format::pack::{Builder, Kind};
use crate::format::{BLOCK, Digest, Entry, FAN, FormatError, Id, Located, compress, list};
use crate::read::table;
use crate::repository::{SizedPack, pack_name};
use crate::{BackupError, Repository};

#[derive(Debug)]
struct Filling {
    builder: Builder,
    number: u32,
}

#[derive(Debug)]
pub(super) struct Packs {
    objects: Objects,
    group: String,
    id: Id,
    filling: Mutex<Filling>,
    stored: AtomicU64,
    /// The packs of an interrupted run in which there are blocks of a region of a disk, and their sizes.
    earlier: BTreeMap<(usize, u64), Vec<(u32, u64)>>,
}

impl Packs {
    /// `earlier` are the packs that the backup has already.
    pub fn new(
        repository: &Repository,
        group: &str,
        id: &Id,
        earlier: &[SizedPack],
    ) -> Result<Self, BackupError> {
        let mut packs = Self {
            objects: repository.objects.clone(),
            group: group.to_owned(),
            id: id.clone(),
            filling: Mutex::new(Filling {
                builder: Builder::default(),
                number: 0,
            }),
            stored: AtomicU64::new(0),
            earlier: BTreeMap::new(),
        };
        let mut next = 0;
        for ((_, number), size) in earlier {
            next = next.max(number.saturating_add(1));
            packs.stored.fetch_add(*size, Ordering::Relaxed);
            for record in table(&packs.objects, &pack_name(group, id, *number), *size)? {
                if record.kind == Kind::Block {
                    let part = (usize::from(record.disk), record.number / FAN as u64);
                    let list = packs.earlier.entry(part).or_default();
                    if list.last() != Some(&(*number, *size)) {
                        list.push((*number, *size));
                    }
                }
            }
        }
        packs.filling = Mutex::new(Filling {
            builder: Builder::default(),
            number: next,
        });
        Ok(packs)
    }

    /// The blocks of a region that an interrupted run has stored, by their number on the disk.
    pub fn earlier(&self, disk: usize, region: u64) -> Result<BTreeMap<u64, Located>, BackupError> {
        let mut found = BTreeMap::new();
        for (number, size) in self.earlier.get(&(disk, region)).into_iter().flatten() {
            for record in table(
                &self.objects,
                &pack_name(&self.group, &self.id, *number),
                *size,
            )? {
                let here = usize::from(record.disk) == disk && record.number / FAN as u64 == region;
                if record.kind == Kind::Block && here {
                    let located = Located {
                        backup: self.id.clone(),
                        pack: *number,
                        offset: record.offset,
                        stored: record.stored,
                        digest: record.digest,
                    };
                    found.insert(record.number, located);
                }
            }
        }
        Ok(found)
    }

    /// Bytes of all packs, those of an interrupted run too.
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// Stores a block.
    pub fn block(
        &self,
        disk: usize,
        number: u64,
        raw: &[u8],
        digest: Digest,
    ) -> Result<Entry, BackupError> {
        debug_assert!(raw.len() as u64 <= BLOCK);
        self.put(Kind::Block, disk, number, raw, digest)
    }

    /// Stores a list, unless it is nothing but zeros, or that of the parent.
    pub fn list(
        &self,
        disk: usize,
        entries: &[Entry],
        before: Option<&Entry>,
    ) -> Result<Entry, BackupError> {
        if entries.iter().all(|entry| *entry == Entry::Zeros) {
            return Ok(Entry::Zeros);
        }
        let raw = list::encode(entries).map_err(too_much)?;
        let digest = Digest::of(&raw);
        match before {
            Some(Entry::At(before)) if before.digest == digest => Ok(Entry::At(before.clone())),
            _ => self.put(Kind::List, disk, 0, &raw, digest),
        }
    }

    fn put(
        &self,
        kind: Kind,
        disk: usize,
        number: u64,
        raw: &[u8],
        digest: Digest,
    ) -> Result<Entry, BackupError> {
        let stored = compress(raw).map_err(too_much)?;
        let disk = u16::try_from(disk).unwrap_or(u16::MAX);
        let mut filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        let record = filling.builder.push(kind, disk, number, digest, &stored);
        let pack = filling.number;
        let full = match filling.builder.is_full() {
            true => {
                filling.number += 1;
                Some(std::mem::take(&mut filling.builder))
            }
            false => None,
        };
        drop(filling);
        if let Some(full) = full {
            self.upload(pack, full)?;
        }
        Ok(Entry::At(Located {
            backup: self.id.clone(),
            pack,
            offset: record.offset,
            stored: record.stored,
            digest,
        }))
    }

    /// Stores what is left.
    pub fn flush(&self) -> Result<(), BackupError> {
        let mut filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        let builder = std::mem::take(&mut filling.builder);
        let number = filling.number;
        filling.number += 1;
        drop(filling);
        match builder.is_empty() {
            true => Ok(()),
            false => self.upload(number, builder),
        }
    }

    fn upload(&self, number: u32, builder: Builder) -> Result<(), BackupError> {
        let bytes = builder.finish();
        self.stored.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let name = pack_name(&self.group, &self.id, number);
        Ok(self.objects.put(&name, Bytes::from(bytes))?)
    }
}

fn too_much(error: FormatError) -> BackupError {
    std::io::Error::other(error).into()
}
