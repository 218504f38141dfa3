//! Finds exports by name: `group/disk`, `group/disk@instance`, and the plain names of exports outside of groups. What there is to
//! find can change while clients are attached; who may change it is decided by [`crate::gateway`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Group, Refusal};
use crate::export::{
    ChangedContext, Cutter, Export, ExportDirectory, ExportInfo, ExportListing, OpenRefused,
};
use crate::served::Served;

/// All exports of a gateway. Looked into when a client attaches, never by a request.
#[derive(Debug, Default)]
pub struct Directory {
    contents: RwLock<Contents>,
}

/// What there is to find.
#[derive(Debug, Default)]
pub struct Contents {
    /// The groups, by name.
    pub groups: BTreeMap<String, Arc<Group>>,
    /// What is exported outside of groups, by name.
    pub exports: BTreeMap<String, Arc<Served>>,
    /// Second names: from the alias to `group/disk`.
    pub aliases: BTreeMap<String, String>,
    /// Groups that are not among the others for a moment, as they are set back.
    pub set_back: BTreeSet<String>,
}

/// The name of an export, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Name<'a> {
    group: &'a str,
    disk: &'a str,
    instance: Option<&'a str>,
}

impl<'a> Name<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let (group, rest) = name.split_once('/')?;
        let (disk, instance) = match rest.split_once('@') {
            Some((disk, instance)) => (disk, Some(instance)),
            None => (rest, None),
        };
        Some(Self {
            group,
            disk,
            instance,
        })
    }
}

/// The export name of a disk for an instance.
pub fn export_name(group: &str, disk: &str, instance: &str) -> String {
    format!("{group}/{disk}@{instance}")
}

impl Directory {
    /// A directory of these groups, exports and second names.
    pub fn new(contents: Contents) -> Self {
        Self {
            contents: RwLock::new(contents),
        }
    }

    /// What there is now. Nobody attaches while [`Directory::change`] is held, and the other way round, so keep neither for long.
    pub fn look(&self) -> RwLockReadGuard<'_, Contents> {
        self.contents.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, to change it.
    pub fn change(&self) -> RwLockWriteGuard<'_, Contents> {
        self.contents
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the group of a disk about it, without holding up those who attach or change what there is: it may take a while. None: there is
    /// no such group, or none any more when it has answered.
    fn ask_group<T>(
        &self,
        name: &str,
        ask: impl FnOnce(&Group, &str, Option<&str>) -> T,
    ) -> Option<T> {
        let contents = self.look();
        let name = contents.resolve(name).to_owned();
        let name = Name::parse(&name)?;
        let group = contents.groups.get(name.group).map(Arc::clone)?;
        drop(contents);
        let answer = ask(&group, name.disk, name.instance);
        // Who takes a group out of the directory sends away all that are attached then; what came too late for that must go by itself.
        let contents = self.look();
        let there = contents.groups.get(name.group);
        there
            .is_some_and(|there| Arc::ptr_eq(there, &group))
            .then_some(answer)
    }

    /// The group of that name; or why there is none, for people.
    pub fn group(&self, name: &str) -> Result<Arc<Group>, String> {
        let contents = self.look();
        let group = contents.groups.get(name).cloned();
        group.ok_or_else(|| contents.no_group(name))
    }

    /// All groups, by name.
    pub fn groups(&self) -> Vec<Arc<Group>> {
        self.look().groups.values().cloned().collect()
    }
}

impl Contents {
    /// The name that is meant: an alias stands for a disk of a group.
    fn resolve<'a>(&'a self, name: &'a str) -> &'a str {
        self.aliases.get(name).map_or(name, String::as_str)
    }

    fn listings(&self) -> Vec<ExportListing> {
        let aliases = self.aliases.iter().map(|(alias, name)| ExportListing {
            name: alias.clone(),
            description: format!("the same as {name}"),
        });
        let disks = self.groups.values().flat_map(|group| {
            group.disk_names().map(|disk| ExportListing {
                name: format!("{}/{disk}", group.name()),
                description: format!("disk {disk} of group {}", group.name()),
            })
        });
        let exports = self.exports.iter().map(|(name, export)| ExportListing {
            name: name.clone(),
            description: export.raw().info().description,
        });
        disks.chain(exports).chain(aliases).collect()
    }

    fn no_group(&self, name: &str) -> String {
        if self.set_back.contains(name) {
            return format!(
                "group '{name}' is being set back to an earlier epoch: try again in a moment"
            );
        }
        let names: Vec<_> = self.groups.keys().map(String::as_str).collect();
        format!(
            "there is no group '{name}'; this gateway has: {}",
            names.join(", ")
        )
    }

    /// The names of all exports, for people.
    pub fn names(&self) -> String {
        let names: Vec<_> = self
            .listings()
            .into_iter()
            .map(|listing| listing.name)
            .collect();
        names.join(", ")
    }

    fn in_group<T>(
        &self,
        name: &str,
        ask: impl FnOnce(&Group, &str, Option<&str>) -> Option<Result<T, Refusal>>,
    ) -> Result<T, OpenRefused> {
        let parsed = Name::parse(name);
        if let Some(Name { group, .. }) = &parsed
            && self.set_back.contains(*group)
        {
            return Err(OpenRefused::Unknown(self.no_group(group)));
        }
        parsed
            .and_then(|name| {
                let group = self.groups.get(name.group)?;
                ask(group, name.disk, name.instance)
            })
            .ok_or_else(|| {
                OpenRefused::Unknown(format!(
                    "there is no export '{name}'; this gateway has: {}",
                    self.names()
                ))
            })?
            .map_err(|refusal| OpenRefused::Policy(refusal.to_string()))
    }
}

impl ExportDirectory for Directory {
    fn names(&self, name: &str) -> Vec<String> {
        let contents = self.look();
        let disk = if contents.exports.contains_key(name) {
            name
        } else {
            let name = contents.resolve(name);
            name.split_once('@').map_or(name, |(disk, _)| disk)
        };
        let aliases = contents.aliases.iter();
        let aliases = aliases.filter(|(_, of)| of.as_str() == disk);
        let aliases = aliases.map(|(alias, _)| alias.clone());
        aliases.chain([disk.to_owned()]).collect()
    }

    fn list(&self) -> Vec<ExportListing> {
        self.look().listings()
    }

    fn describe(&self, name: &str) -> Result<ExportInfo, OpenRefused> {
        let contents = self.look();
        match contents.exports.get(name) {
            Some(export) => Ok(export.raw().info()),
            None => contents.in_group(contents.resolve(name), |group, disk, instance| {
                group.describe(disk, instance)
            }),
        }
    }

    fn changed_contexts(
        &self,
        name: &str,
        queries: &[String],
        cutter: &Cutter,
    ) -> Vec<ChangedContext> {
        self.ask_group(name, |group, disk, instance| {
            group.changed_contexts(disk, instance, queries, cutter)
        })
        .unwrap_or_default()
    }

    fn list_contexts(&self, name: &str, queries: &[String]) -> Vec<String> {
        self.ask_group(name, |group, _, instance| {
            group.list_contexts(instance, queries)
        })
        .unwrap_or_default()
    }

    fn open(&self, name: &str, cutter: Cutter) -> Result<Arc<dyn Export>, OpenRefused> {
        // Under the lock: what is taken out of the directory has no further attachments.
        let contents = self.look();
        if let Some(export) = contents.exports.get(name) {
            return Ok(Arc::new(export.attach(cutter)));
        }
        contents.in_group(contents.resolve(name), |group, disk, instance| {
            group.attach_any(disk, instance, cutter)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_come_apart_at_the_first_slash_and_at() {
        let name = Name {
            group: "vm",
            disk: "root",
            instance: None,
        };
        assert_eq!(Name::parse("vm/root"), Some(name));
        let name = Name {
            group: "vm",
            disk: "root",
            instance: Some("a@b"),
        };
        assert_eq!(Name::parse("vm/root@a@b"), Some(name));
        assert_eq!(Name::parse("vm"), None);
        assert_eq!(export_name("vm", "root", "a"), "vm/root@a");
    }

    #[test]
    fn a_group_that_is_set_back_is_not_taken_for_unknown() {
        let directory = Directory::new(Contents {
            set_back: BTreeSet::from(["vm".to_owned()]),
            ..Contents::default()
        });
        let again = "'vm' is being set back to an earlier epoch: try again in a moment";
        assert!(directory.group("vm").unwrap_err().contains(again));
        let OpenRefused::Unknown(message) = directory.describe("vm/root").unwrap_err() else {
            panic!("it is a group of the gateway");
        };
        assert!(message.contains(again), "{message}");
        let other = directory.group("vn").unwrap_err();
        assert!(other.contains("there is no group 'vn'"), "{other}");
    }
}
