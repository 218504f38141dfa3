//! Reloading the configuration: what differs is brought about while everything else goes on. Either all of it happens or none.
//!
//! Images and logs are locked while they are served, so what takes over the image of something that goes has to be opened after
//! it, and everything else before: a mistake in the new configuration is then met while nothing has changed yet.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::catalog::{Catalog, GRACE, Known, State, open_named};
use super::{ExportConfig, GatewayConfig, GatewayError, aliases, check};
use crate::group::{Group, GroupConfig};
use crate::image_file;
use crate::served::Served;
use crate::storage::Place;

/// What a reload has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Names of exports and groups that are new.
    pub added: Vec<String>,
    /// Names of those that are gone.
    pub removed: Vec<String>,
    /// Names of those that are served in another way now.
    pub changed: Vec<String>,
    /// Keys whose new meaning holds for connections that come from now on; the files of `[tls]` count as that key.
    pub for_new_connections: Vec<&'static str>,
    /// Keys that differ and take effect at the next start only.
    pub at_restart: Vec<&'static str>,
}

impl std::fmt::Display for Reloaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        for (what, names) in [
            ("added", &self.added),
            ("removed", &self.removed),
            ("changed", &self.changed),
        ] {
            if !names.is_empty() {
                parts.push(format!("{what}: {}", names.join(", ")));
            }
        }
        for (when, keys) in [
            ("for new connections", &self.for_new_connections),
            ("only at the next start", &self.at_restart),
        ] {
            if !keys.is_empty() {
                parts.push(format!("{when}: {}", keys.join(", ")));
            }
        }
        if parts.is_empty() {
            parts.push("nothing has changed".to_owned());
        }
        f.write_str(&parts.join("; "))
    }
}

/// What differs between what is served and a configuration.
#[derive(Debug, Default)]
struct Plan {
    /// To be opened: new ones and changed ones.
    exports: Vec<ExportConfig>,
    groups: Vec<GroupConfig>,
    /// To be closed: removed ones and changed ones, as they are now.
    old_exports: Vec<Known>,
    old_groups: Vec<GroupConfig>,
}

/// What has been opened.
#[derive(Default)]
struct Opened {
    exports: BTreeMap<String, Arc<Served>>,
    groups: BTreeMap<String, Arc<Group>>,
}

impl Opened {
    fn open<'a>(
        &mut self,
        exports: impl IntoIterator<Item = &'a ExportConfig>,
        groups: impl IntoIterator<Item = &'a GroupConfig>,
    ) -> Result<(), GatewayError> {
        for export in exports {
            self.exports
                .insert(export.name.clone(), open_named(export)?);
        }
        for group in groups {
            let opened = Group::open(group, &mut |_| {})?;
            self.groups.insert(group.name.clone(), Arc::new(opened));
        }
        Ok(())
    }

    /// Ends in order what was opened in vain.
    fn close(self) {
        for group in self.groups.values() {
            group.stop();
        }
    }
}

impl Catalog {
    /// Makes what is served what `config` says. Clients of exports that are removed or changed are sent away, what they have asked
    /// is answered. Exports that the control API has added stay. May block.
    ///
    /// # Errors
    /// [`GatewayError`]; everything is as it was.
    pub fn reload(&self, config: &GatewayConfig) -> Result<Reloaded, GatewayError> {
        check(config)?;
        let mut state = self
            .lock()
            .map_err(|error| GatewayError::Config(error.to_string()))?;
        let plan = Plan::new(&state, config);
        let reloaded = self.carry_out(&plan, &mut state, config)?;
        state.file = config.clone();
        Ok(reloaded)
    }

    fn carry_out(
        &self,
        plan: &Plan,
        state: &mut State,
        config: &GatewayConfig,
    ) -> Result<Reloaded, GatewayError> {
        let names = names_of_groups(&config.groups);
        if let Some(name) = state
            .exports
            .iter()
            .filter(|(_, known)| !known.in_file)
            .map(|(name, _)| name)
            .find(|name| names.contains(name.as_str()))
        {
            return Err(GatewayError::Config(format!(
                "the name '{name}' belongs to an export that was added while the gateway ran; remove that first"
            )));
        }
        let leaving = plan.leaving_images();
        let late_export = |export: &&ExportConfig| is_among(&leaving, &export.image);
        let late_group = |group: &&GroupConfig| {
            plan.old_groups.iter().any(|old| old.log == group.log)
                || group
                    .disks
                    .iter()
                    .any(|disk| is_among(&leaving, &disk.image))
        };
        let old_groups = self.take_groups(plan)?;
        let put_back = || self.put_groups(&old_groups, &state.file.groups);
        let mut opened = Opened::default();
        if let Err(error) = opened.open(
            plan.exports.iter().filter(|export| !late_export(export)),
            plan.groups.iter().filter(|group| !late_group(group)),
        ) {
            opened.close();
            put_back();
            return Err(error);
        }
        self.close_old(plan, &old_groups);
        drop(old_groups);
        if let Err(error) = opened.open(
            plan.exports.iter().filter(late_export),
            plan.groups.iter().filter(late_group),
        ) {
            opened.close();
            self.reopen_old(plan, &state.file);
            return Err(error);
        }
        let reloaded = plan.summary(&state.file, config);
        let mut contents = self.directory().change();
        contents.exports.append(&mut opened.exports);
        contents.groups.append(&mut opened.groups);
        contents.aliases = aliases(&config.groups);
        drop(contents);
        state.exports.retain(|_, known| !known.in_file);
        for export in &config.exports {
            let known = Known {
                config: export.clone(),
                in_file: true,
            };
            state.exports.insert(export.name.clone(), known);
        }
        Ok(reloaded)
    }

    /// Takes the groups that go out of the directory, if nobody uses any of them.
    fn take_groups(&self, plan: &Plan) -> Result<Vec<Arc<Group>>, GatewayError> {
        let mut contents = self.directory().change();
        for config in &plan.old_groups {
            if let Some(why) = contents.groups.get(&config.name).and_then(|g| in_use(g)) {
                return Err(GatewayError::Config(format!(
                    "the group '{}' can't be removed or changed: {why}",
                    config.name
                )));
            }
        }
        let names = names_of_groups(&plan.old_groups);
        contents
            .aliases
            .retain(|alias, _| !names.contains(alias.as_str()));
        let old = plan.old_groups.iter();
        Ok(old
            .filter_map(|config| contents.groups.remove(&config.name))
            .collect())
    }

    fn put_groups(&self, groups: &[Arc<Group>], configs: &[GroupConfig]) {
        let mut contents = self.directory().change();
        for group in groups {
            contents
                .groups
                .insert(group.name().to_owned(), Arc::clone(group));
        }
        contents.aliases = aliases(configs);
    }

    fn close_old(&self, plan: &Plan, groups: &[Arc<Group>]) {
        let mut contents = self.directory().change();
        let leaving = plan.old_exports.iter();
        let leaving: Vec<_> = leaving
            .filter_map(|known| {
                let name = &known.config.name;
                Some((name, contents.exports.remove(name)?))
            })
            .collect();
        drop(contents);
        for (name, served) in leaving {
            if !served.send_away(GRACE) {
                tracing::warn!(
                    export = name,
                    "the storage still works on a request of a client that was cut; the image stays locked until that ends"
                );
            }
        }
        for group in groups {
            group.stop();
        }
    }

    /// After a reload that failed at the last step.
    fn reopen_old(&self, plan: &Plan, file: &GatewayConfig) {
        let mut contents = Opened::default();
        for known in &plan.old_exports {
            if let Err(error) = contents.open([&known.config], []) {
                tracing::error!(
                    export = known.config.name,
                    "the export can't be served again: {}",
                    crate::group::with_sources(&error)
                );
            }
        }
        for group in &plan.old_groups {
            if let Err(error) = contents.open([], [group]) {
                tracing::error!(
                    group = group.name,
                    "the group can't be opened again: {}",
                    crate::group::with_sources(&error)
                );
            }
        }
        let mut directory = self.directory().change();
        directory.exports.append(&mut contents.exports);
        directory.groups.append(&mut contents.groups);
        directory.aliases = aliases(&file.groups);
    }
}

impl Plan {
    fn new(state: &State, config: &GatewayConfig) -> Self {
        let mut plan = Self::default();
        for export in &config.exports {
            match state.exports.get(&export.name) {
                Some(known) if known.config == *export => {}
                known => {
                    plan.exports.push(export.clone());
                    plan.old_exports.extend(known.cloned());
                }
            }
        }
        let gone = state.exports.values().filter(|known| {
            let name = &known.config.name;
            known.in_file && !config.exports.iter().any(|export| export.name == *name)
        });
        plan.old_exports.extend(gone.cloned());
        let of_name = |groups: &'_ [GroupConfig], name: &str| {
            groups.iter().find(|group| group.name == name).cloned()
        };
        for group in &config.groups {
            match of_name(&state.file.groups, &group.name) {
                Some(known) if known == *group => {}
                known => {
                    plan.groups.push(group.clone());
                    plan.old_groups.extend(known);
                }
            }
        }
        let gone = state.file.groups.iter();
        plan.old_groups.extend(
            gone.filter(|group| of_name(&config.groups, &group.name).is_none())
                .cloned(),
        );
        plan
    }

    /// Images that are locked until what goes has gone.
    fn leaving_images(&self) -> BTreeSet<(u64, u64)> {
        let exports = self.old_exports.iter().map(|known| &known.config.image);
        let disks = self.old_groups.iter().flat_map(|group| &group.disks);
        exports
            .chain(disks.map(|disk| &disk.image))
            .filter_map(|image| identity(image))
            .collect()
    }

    fn summary(&self, old: &GatewayConfig, new: &GatewayConfig) -> Reloaded {
        let name_of_export = |known: &Known| known.config.name.clone();
        let name_of_group = |group: &GroupConfig| group.name.clone();
        let closed: BTreeSet<String> = (self.old_exports.iter().map(name_of_export))
            .chain(self.old_groups.iter().map(name_of_group))
            .collect();
        let opened: BTreeSet<String> = (self.exports.iter().map(|export| export.name.clone()))
            .chain(self.groups.iter().map(name_of_group))
            .collect();
        let fixed = [
            ("listen", old.listen == new.listen),
            ("control", old.control == new.control),
            ("metrics", old.metrics == new.metrics),
            ("insecure", old.insecure == new.insecure),
            ("limits", old.limits == new.limits),
        ];
        Reloaded {
            added: opened.difference(&closed).cloned().collect(),
            removed: closed.difference(&opened).cloned().collect(),
            changed: opened.intersection(&closed).cloned().collect(),
            // What the catalog does not know of.
            for_new_connections: Vec::new(),
            at_restart: fixed
                .into_iter()
                .filter(|(_, same)| !same)
                .map(|(key, _)| key)
                .collect(),
        }
    }
}

/// Names that groups take: their own, and the aliases of their disks.
fn names_of_groups(groups: &[GroupConfig]) -> BTreeSet<&str> {
    let own = groups.iter().map(|group| group.name.as_str());
    let disks = groups.iter().flat_map(|group| &group.disks);
    own.chain(disks.filter_map(|disk| disk.export.as_deref()))
        .collect()
}

/// Who uses the group, and what to do.
pub(super) fn in_use(group: &Group) -> Option<String> {
    let status = group.status();
    if let Some(owner) = status.owner {
        return Some(format!("the source '{owner}' owns it; end its VM first"));
    }
    if let Some(holder) = status.holder {
        return Some(format!(
            "the standby '{holder}' holds the memory of its VM and may take over; stop it first"
        ));
    }
    let connections: u32 = status.attachments.iter().map(|a| a.connections).sum();
    (connections > 0).then(|| {
        format!("{connections} connections are attached to it; let their clients leave first")
    })
}

/// What tells the file at `path` from all others on the machine. None: there is none.
fn identity(path: &Path) -> Option<(u64, u64)> {
    if let Some(named) = Place::parse(path).ok()?.server() {
        return Some(named);
    }
    let metadata = std::fs::metadata(path).ok()?;
    Some(image_file::identity(&metadata))
}

fn is_among(images: &BTreeSet<(u64, u64)>, image: &Path) -> bool {
    identity(image).is_some_and(|identity| images.contains(&identity))
}
