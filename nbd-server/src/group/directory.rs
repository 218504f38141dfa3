//! Finds exports by name: `group/disk`, `group/disk@instance`, and the plain names of exports outside of groups.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Group, Refusal};
use crate::control::api::ExportStatus;
use crate::export::{Cutter, Export, ExportDirectory, ExportInfo, ExportListing, OpenRefused};
use crate::raw_export::RawExport;

/// All exports of a gateway.
#[derive(Debug, Default)]
pub struct Directory {
    groups: BTreeMap<String, Arc<Group>>,
    exports: BTreeMap<String, Arc<RawExport>>,
    /// Second names: from the alias to `group/disk`.
    aliases: BTreeMap<String, String>,
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
    /// A directory of these groups and exports, each by its name, and of second names for disks of groups.
    pub fn new(
        groups: BTreeMap<String, Arc<Group>>,
        exports: BTreeMap<String, Arc<RawExport>>,
        aliases: BTreeMap<String, String>,
    ) -> Self {
        Self {
            groups,
            exports,
            aliases,
        }
    }

    /// The name that is meant: an alias stands for a disk of a group.
    fn resolve<'a>(&'a self, name: &'a str) -> &'a str {
        self.aliases.get(name).map_or(name, String::as_str)
    }

    /// The group of that name.
    pub fn group(&self, name: &str) -> Option<&Arc<Group>> {
        self.groups.get(name)
    }

    /// All groups, by name.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.groups.values()
    }

    /// What is exported outside of groups.
    pub fn export_status(&self) -> Vec<ExportStatus> {
        let status = |(name, export): (&String, &Arc<RawExport>)| {
            let info = export.info();
            ExportStatus {
                name: name.clone(),
                size: info.size,
                read_only: info.read_only,
            }
        };
        self.exports.iter().map(status).collect()
    }

    fn unknown(&self, name: &str) -> OpenRefused {
        let names: Vec<_> = self
            .list()
            .into_iter()
            .map(|listing| listing.name)
            .collect();
        let exports = names.join(", ");
        OpenRefused::Unknown(format!(
            "there is no export '{name}'; this gateway has: {exports}"
        ))
    }

    fn in_group<T>(
        &self,
        name: &str,
        ask: impl FnOnce(&Group, &str, Option<&str>) -> Option<Result<T, Refusal>>,
    ) -> Result<T, OpenRefused> {
        Name::parse(name)
            .and_then(|name| {
                let group = self.groups.get(name.group)?;
                ask(group, name.disk, name.instance)
            })
            .ok_or_else(|| self.unknown(name))?
            .map_err(|refusal| OpenRefused::Policy(refusal.to_string()))
    }
}

impl ExportDirectory for Directory {
    fn list(&self) -> Vec<ExportListing> {
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
            description: export.info().description,
        });
        disks.chain(exports).chain(aliases).collect()
    }

    fn describe(&self, name: &str) -> Result<ExportInfo, OpenRefused> {
        match self.exports.get(name) {
            Some(export) => Ok(export.info()),
            None => self.in_group(self.resolve(name), |group, disk, instance| {
                group.describe(disk, instance)
            }),
        }
    }

    fn open(&self, name: &str, cutter: Cutter) -> Result<Arc<dyn Export>, OpenRefused> {
        if let Some(export) = self.exports.get(name) {
            return Ok(Arc::clone(export) as Arc<dyn Export>);
        }
        let export = self.in_group(self.resolve(name), |group, disk, instance| {
            group.attach(disk, instance, cutter)
        })?;
        Ok(Arc::new(export))
    }
}

#[cfg(test)]
mod tests {
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
}
