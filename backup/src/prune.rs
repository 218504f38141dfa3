//! Removes backups, and then the packs that no other one needs. First the manifests go: what is interrupted leaves packs that nobody needs, which
//! the next run finds.

use std::collections::{BTreeSet, HashSet};

use nbd_server::storage::objects::ObjectError;
use serde::Serialize;

use crate::format::{BLOCK, Entry, Id, Located, Manifest, REGION, pieces};
use crate::lock::Lock;
use crate::read::{Regions, list_at};
use crate::repository::pack_name;
use crate::{BackupError, Repository, Watch};

/// Which backups stay. One that any of the rules wants stays, and so does the newest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// So many of the newest.
    pub last: Option<usize>,
    /// All that are no older than this, in milliseconds since 1970.
    pub since_ms: Option<u64>,
}

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// The backups, oldest first.
    pub removed: Vec<String>,
    /// Those that are left.
    pub kept: Vec<String>,
    /// Packs that nobody needs any more.
    pub packs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Pins that the gateway may keep for backups that are gone.
    pub pins: Vec<String>,
}

/// Removes all backups of a group that no rule keeps, and what is left over of earlier ones. `pretend`: only says what would go.
///
/// # Errors
/// [`BackupError`]; if a manifest that stays is damaged, nothing is removed: what it needs is not known.
pub fn prune(
    repository: &Repository,
    group: &str,
    keep: Keep,
    pretend: bool,
    watch: &dyn Watch,
) -> Result<Pruned, BackupError> {
    let choose = |manifests: &[Manifest]| {
        let newest = manifests
            .len()
            .saturating_sub(keep.last.unwrap_or(1).max(1));
        let old = |manifest: &Manifest| match (keep.last, keep.since_ms) {
            (None, None) => false,
            (_, since) => since.is_none_or(|since| manifest.time_ms < since),
        };
        let old = manifests
            .iter()
            .take(newest)
            .filter(|manifest| old(manifest));
        old.map(|manifest| manifest.id.clone()).collect()
    };
    sweep(repository, group, &choose, None, pretend, watch)
}

/// Removes one backup, also one whose manifest is damaged.
///
/// # Errors
/// [`BackupError`]
pub fn remove(
    repository: &Repository,
    group: &str,
    id: &Id,
    watch: &dyn Watch,
) -> Result<Pruned, BackupError> {
    if !repository
        .ids(Some(group))?
        .iter()
        .any(|(_, other)| other == id)
    {
        return Err(BackupError::Usage(format!(
            "there is no backup {id} of group {group} in {}",
            repository.place()
        )));
    }
    sweep(
        repository,
        group,
        &|_| BTreeSet::from([id.clone()]),
        Some(id),
        false,
        watch,
    )
}

fn sweep(
    repository: &Repository,
    group: &str,
    choose: &dyn Fn(&[Manifest]) -> BTreeSet<Id>,
    damaged: Option<&Id>,
    pretend: bool,
    watch: &dyn Watch,
) -> Result<Pruned, BackupError> {
    let lock = Lock::take(repository, group, watch)?;
    let (mut manifests, mut pins) = (Vec::new(), Vec::new());
    for (_, id) in repository.ids(Some(group))? {
        match repository.manifest(group, &id) {
            Ok(manifest) => manifests.push(manifest),
            Err(error) if error.is_damage() && damaged == Some(&id) => {}
            Err(error) if error.is_damage() => {
                return Err(BackupError::Damaged {
                    name: format!("the manifest of {id}"),
                    why: format!(
                        "{error}. Nothing was removed, as nobody knows what it needs; if it is given up: epochgate backup remove {} --backup {id}",
                        repository.place()
                    ),
                });
            }
            Err(error) => return Err(error),
        }
    }
    manifests.sort_by(|a, b| (a.time_ms, a.made_ms, &a.id).cmp(&(b.time_ms, b.made_ms, &b.id)));
    let gone = choose(&manifests);
    if let Some(newest) = manifests.last()
        && gone.contains(&newest.id)
    {
        pins.push(newest.id.pin());
    }
    let stays = |manifest: &&Manifest| !gone.contains(&manifest.id);
    let mut needed = HashSet::new();
    let mut seen = HashSet::new();
    for manifest in manifests.iter().filter(stays) {
        needs(repository, manifest, &mut needed, &mut seen, watch)?;
    }
    let pending = repository.pending(group)?.map(|pending| pending.id);
    let mut pruned = Pruned {
        removed: manifests
            .iter()
            .filter(|manifest| !stays(manifest))
            .map(|manifest| manifest.id.to_string())
            .collect(),
        kept: manifests
            .iter()
            .filter(stays)
            .map(|manifest| manifest.id.to_string())
            .collect(),
        pins,
        ..Pruned::default()
    };
    if let Some(id) = damaged
        && !pruned.removed.contains(&id.to_string())
    {
        pruned.removed.push(id.to_string());
    }
    if !pretend {
        lock.check()?;
        for id in gone.iter().chain(damaged) {
            repository.remove_manifest(group, id)?;
        }
    }
    let unneeded = repository
        .packs(group, None)?
        .into_iter()
        .filter(|(pack, _)| {
            let interrupted = pending.as_deref() == Some(pack.0.as_str());
            !needed.contains(pack) && !interrupted
        });
    for ((id, number), size) in unneeded {
        if watch.stop() {
            return Err(BackupError::Stopped);
        }
        pruned.packs += 1;
        pruned.bytes += size;
        if !pretend {
            lock.check()?;
            repository.objects.delete(&pack_name(group, &id, number))?;
        }
    }
    Ok(pruned)
}

/// Adds all packs that a backup needs.
fn needs(
    repository: &Repository,
    manifest: &Manifest,
    needed: &mut HashSet<(Id, u32)>,
    seen: &mut HashSet<Located>,
    watch: &dyn Watch,
) -> Result<(), BackupError> {
    let mut need = |at: &Located| {
        needed.insert((at.backup.clone(), at.pack));
    };
    let group = &manifest.group;
    for disk in &manifest.disks {
        disk.spans
            .iter()
            .filter_map(Entry::located)
            .for_each(&mut need);
        let mut lists = Regions::new(&repository.objects, group, disk);
        for region in 0..pieces(disk.size, REGION) {
            if watch.stop() {
                return Err(BackupError::Stopped);
            }
            let Some(entry) = lists.entry(region)? else {
                continue;
            };
            let Some(at) = entry.located() else {
                continue;
            };
            need(at);
            if !seen.insert(at.clone()) {
                continue;
            }
            let start = region as u64 * REGION;
            let count = pieces((disk.size - start).min(REGION), BLOCK);
            let list =
                list_at(&repository.objects, group, &entry, count).map_err(
                    |error| match error {
                        BackupError::Object(ObjectError::NotFound { name, .. }) => {
                            BackupError::damaged(
                                &name,
                                format!(
                                    "it is missing, and {} needs it. Nothing was removed",
                                    manifest.id
                                ),
                            )
                        }
                        error => error,
                    },
                )?;
            list.iter().filter_map(Entry::located).for_each(&mut need);
        }
    }
    Ok(())
}
