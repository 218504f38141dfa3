//! A place with backups: what is called how, and what is there.

use bytes::Bytes;
use nbd_server::control::api::Point;
use nbd_server::storage::objects::{ObjectError, Objects, Place};
use serde::{Deserialize, Serialize};

use crate::BackupError;
use crate::format::manifest::{self, MOST_MANIFEST};
use crate::format::{Id, Manifest, name};

/// A pack, by its backup and its number there, and its length in bytes.
pub(crate) type SizedPack = ((Id, u32), u64);

/// Most objects of one kind that are looked at.
const MOST_OBJECTS: usize = 50_000_000;
/// Most backups in one place.
const MOST_BACKUPS: usize = 1_000_000;
/// Manifests that are read at once.
const READERS: usize = 8;
/// Longest note on the backup that is under way, in bytes.
const MOST_PENDING: u64 = 1 << 20;

/// A place with backups.
#[derive(Debug, Clone)]
pub struct Repository {
    pub(crate) objects: Objects,
}

/// Which backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The newest.
    Latest,
    /// By its name.
    Id(Id),
    /// The newest at or before a time, in milliseconds since 1970.
    Time(u64),
}

/// A backup that is under way, or was interrupted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub id: String,
    /// What it was asked to be of.
    pub at: Option<String>,
    /// It shall share nothing with earlier ones.
    pub full: bool,
}

impl Pending {
    pub fn new(id: &Id, at: Option<&Point>, full: bool) -> Self {
        Self {
            id: id.to_string(),
            at: at.map(ToString::to_string),
            full,
        }
    }
}

impl Repository {
    /// A place that is there.
    ///
    /// # Errors
    /// [`BackupError::Object`]
    pub fn open(place: &Place) -> Result<Self, BackupError> {
        Ok(Self {
            objects: Objects::open(place)?,
        })
    }

    /// The same; a directory is made if it is not there.
    ///
    /// # Errors
    /// [`BackupError::Object`]
    pub fn create(place: &Place) -> Result<Self, BackupError> {
        Ok(Self {
            objects: Objects::create(place)?,
        })
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        self.objects.place()
    }

    /// The names of all backups, by group and name.
    ///
    /// # Errors
    /// [`BackupError::Object`]
    pub fn ids(&self, group: Option<&str>) -> Result<Vec<(String, Id)>, BackupError> {
        let folder = match group {
            Some(group) => {
                named("a group", group)?;
                format!("backups/{group}")
            }
            None => "backups".to_owned(),
        };
        let mut found = Vec::new();
        for meta in self.objects.list(&folder, MOST_BACKUPS)? {
            let parts: Vec<&str> = meta.name.split('/').collect();
            // What has another name is not ours.
            if let ["backups", group, file] = *parts.as_slice()
                && name::check("a group", group).is_ok()
                && let Some(id) = file.strip_suffix(".json").and_then(|id| Id::new(id).ok())
            {
                found.push((group.to_owned(), id));
            }
        }
        found.sort();
        Ok(found)
    }

    /// All backups that can be read, oldest first, and what is wrong with the others.
    ///
    /// # Errors
    /// [`BackupError::Object`] if the place fails.
    pub fn backups(
        &self,
        group: Option<&str>,
    ) -> Result<(Vec<Manifest>, Vec<BackupError>), BackupError> {
        let ids = self.ids(group)?;
        let read = |ids: &[(String, Id)]| {
            let manifests = ids.iter().map(|(group, id)| self.manifest(group, id));
            manifests.collect::<Vec<_>>()
        };
        // From a bucket each takes its time.
        let share = ids.len().div_ceil(READERS).max(1);
        let read = std::thread::scope(|scope| {
            let readers: Vec<_> = ids
                .chunks(share)
                .map(|ids| scope.spawn(move || read(ids)))
                .collect();
            let done = readers.into_iter().map(std::thread::ScopedJoinHandle::join);
            done.collect::<Result<Vec<_>, _>>()
        });
        let read = read.map_err(|_| std::io::Error::other("a reader has failed"))?;
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for manifest in read.into_iter().flatten() {
            match manifest {
                Ok(manifest) => good.push(manifest),
                Err(error) if error.is_damage() => bad.push(error),
                Err(error) => return Err(error),
            }
        }
        good.sort_by(|a, b| (a.time_ms, a.made_ms, &a.id).cmp(&(b.time_ms, b.made_ms, &b.id)));
        Ok((good, bad))
    }

    /// The group that is meant: the one that is named, or the only one.
    ///
    /// # Errors
    /// [`BackupError::Usage`] if there are several, or none.
    pub fn group(&self, given: Option<&str>) -> Result<String, BackupError> {
        if let Some(given) = given {
            named("a group", given)?;
            return Ok(given.to_owned());
        }
        let mut groups: Vec<String> = self
            .ids(None)?
            .into_iter()
            .map(|(group, _)| group)
            .collect();
        groups.dedup();
        match groups.as_slice() {
            [group] => Ok(group.clone()),
            [] => Err(BackupError::Usage(format!(
                "there is no backup in {}",
                self.place()
            ))),
            _ => Err(BackupError::Usage(format!(
                "{} has backups of several groups ({}); say which with --group",
                self.place(),
                groups.join(", ")
            ))),
        }
    }

    /// A backup of a group.
    ///
    /// # Errors
    /// [`BackupError::Usage`] if there is none, [`BackupError::Damaged`] if it can't be believed.
    pub fn find(&self, group: &str, which: &Which) -> Result<Manifest, BackupError> {
        if let Which::Id(id) = which {
            return match self.manifest(group, id) {
                Err(BackupError::Object(ObjectError::NotFound { .. })) => {
                    Err(BackupError::Usage(format!(
                        "there is no backup {id} of group {group} in {}",
                        self.place()
                    )))
                }
                found => found,
            };
        }
        let (good, bad) = self.backups(Some(group))?;
        let fits = |manifest: &&Manifest| match which {
            Which::Time(ms) => manifest.time_ms <= *ms,
            _ => true,
        };
        let first = good.first().map(|first| first.id.clone());
        match (good.iter().rev().find(fits), bad.into_iter().next(), first) {
            // The damaged one may be the one that is meant.
            (_, Some(bad), _) => Err(bad),
            (Some(found), None, _) => Ok(found.clone()),
            (None, None, Some(first)) => Err(BackupError::Usage(format!(
                "there is no backup that old of group {group} in {}; the oldest is {first}",
                self.place()
            ))),
            (None, None, None) => Err(BackupError::Usage(format!(
                "there is no backup of group {group} in {}",
                self.place()
            ))),
        }
    }

    pub(crate) fn manifest(&self, group: &str, id: &Id) -> Result<Manifest, BackupError> {
        named("a group", group)?;
        let name = manifest_name(group, id);
        let bytes = self.objects.get(&name, MOST_MANIFEST)?;
        let manifest = manifest::read(&bytes)
            .map_err(|error| BackupError::damaged(&name, error.to_string()))?;
        if manifest.group != group || manifest.id != *id {
            return Err(BackupError::damaged(
                &name,
                format!("it is that of {} of group {}", manifest.id, manifest.group),
            ));
        }
        Ok(manifest)
    }

    pub(crate) fn commit(&self, manifest: &Manifest) -> Result<(), BackupError> {
        let name = manifest_name(&manifest.group, &manifest.id);
        let bytes = manifest::write(manifest)
            .map_err(|error| BackupError::damaged(&name, error.to_string()))?;
        Ok(self.objects.put_new(&name, bytes.into())?)
    }

    pub(crate) fn remove_manifest(&self, group: &str, id: &Id) -> Result<(), BackupError> {
        Ok(self.objects.delete(&manifest_name(group, id))?)
    }

    /// The packs of a group, or of one backup: which, and their sizes.
    pub(crate) fn packs(
        &self,
        group: &str,
        id: Option<&Id>,
    ) -> Result<Vec<SizedPack>, BackupError> {
        let folder = match id {
            Some(id) => format!("data/{group}/{id}"),
            None => format!("data/{group}"),
        };
        let found = self.objects.list(&folder, MOST_OBJECTS)?;
        let packs = found.into_iter().filter_map(|meta| {
            let rest = meta.name.strip_prefix("data/")?.strip_prefix(group)?;
            let (id, file) = rest.strip_prefix('/')?.split_once('/')?;
            let number = file.strip_suffix(".pack")?;
            let pack = (Id::new(id).ok()?, number.parse().ok()?);
            Some((pack, meta.size))
        });
        let mut packs: Vec<_> = packs.collect();
        packs.sort_unstable();
        Ok(packs)
    }

    pub(crate) fn pending(&self, group: &str) -> Result<Option<Pending>, BackupError> {
        let name = pending_name(group);
        match self.objects.get(&name, MOST_PENDING) {
            // What can't be read helps nobody to go on.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(ObjectError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn set_pending(
        &self,
        group: &str,
        pending: Option<&Pending>,
    ) -> Result<(), BackupError> {
        let name = pending_name(group);
        match pending {
            None => self.objects.delete(&name)?,
            Some(pending) => {
                let bytes = serde_json::to_vec(pending)
                    .map_err(|error| BackupError::damaged(&name, error.to_string()))?;
                self.objects.put(&name, Bytes::from(bytes))?;
            }
        }
        Ok(())
    }
}

fn named(what: &str, text: &str) -> Result<(), BackupError> {
    name::check(what, text).map_err(|error| BackupError::Usage(error.to_string()))
}

fn manifest_name(group: &str, id: &Id) -> String {
    format!("backups/{group}/{id}.json")
}

fn pending_name(group: &str) -> String {
    format!("state/{group}/pending.json")
}

/// The name of a pack.
pub(crate) fn pack_name(group: &str, id: &Id, number: u32) -> String {
    format!("data/{group}/{id}/{number:08}.pack")
}
