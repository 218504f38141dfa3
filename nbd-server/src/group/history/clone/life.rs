//! Making, opening and removing clones. In which order things are done, so that what a crash leaves is a whole clone, or something that the next
//! opening takes away:
//!
//! ```text
//!   make:     pin  ─▶  files  ─▶  CLONE  ─▶  link, if it has another directory
//!   remove:   link, or CLONE  ─▶  files  ─▶  pin
//! ```

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use epoch_log::history::{HistoryError, Kept};

use super::Entry;
use super::error::{CloneError, failed};
use super::identity::{self, Identity, sync_directory};
use super::opened::{self, Around, OpenClone, PIN_PREFIX, pin_name};
use crate::control::api::CloneStatus;
use crate::group::error::with_sources;
use crate::group::history::{GroupHistory, Point};
use crate::group::{Group, valid_name};

/// Directory of clones, beside the segments of the log.
const DIRECTORY: &str = "history-clones";
/// How long the clients of a clone that is removed may take for what they asked before; then they are cut.
const GRACE: Duration = Duration::from_secs(5);

/// Whether the name of a clone can be that of a directory and, with what comes before it, of a pin.
fn check_name(name: &str) -> Result<(), CloneError> {
    if valid_name(&pin_name(name)) && !name.is_empty() && !name.starts_with('.') {
        return Ok(());
    }
    Err(CloneError::BadName {
        name: name.to_owned(),
    })
}

impl Group {
    fn around<'a>(&'a self, history: &'a GroupHistory) -> Around<'a> {
        Around {
            group: self.name(),
            history,
            disks: &self.shared.disks,
        }
    }

    fn clones_directory(&self) -> PathBuf {
        self.log.join(DIRECTORY)
    }

    /// Opens all clones that there are, and takes away what was not made to its end. One that can't be opened can't be attached; all else
    /// goes on.
    pub(in crate::group) fn open_clones(&self) {
        let Some(history) = self.history() else {
            return;
        };
        let root = self.clones_directory();
        let names = match names(&root) {
            Ok(names) => names,
            Err(error) => {
                tracing::error!(
                    group = self.name(),
                    "no clone can be opened: {}",
                    with_sources(&error)
                );
                return;
            }
        };
        for name in names {
            let path = root.join(&name);
            if is_unfinished(&path) {
                tracing::info!(group = self.name(), clone = name, "half a clone is removed");
                self.delete(&path, &path);
                continue;
            }
            let entry = self.open_clone(history, &name, &path);
            if let Err(error) = &entry.clone {
                tracing::error!(
                    group = self.name(),
                    clone = name,
                    "the clone can't be opened: {error}"
                );
            }
            self.clones.all().insert(name, entry);
        }
        for pin in history.past.pins() {
            let of = pin.name.strip_prefix(PIN_PREFIX);
            if of.is_some_and(|name| !self.clones.all().contains_key(name))
                && let Err(error) = history.past.unpin(&pin.name)
            {
                tracing::warn!(group = self.name(), "{}", with_sources(&error));
            }
        }
    }

    fn open_clone(&self, history: &GroupHistory, name: &str, path: &Path) -> Entry {
        let opened = OpenClone::open(&self.around(history), name, path);
        Entry {
            dir: std::fs::read_link(path).unwrap_or_else(|_| path.to_owned()),
            identity: Identity::read(path).ok(),
            clone: opened.map(Arc::new).map_err(|error| with_sources(&error)),
        }
    }

    /// Makes a clone of the disks at a point in time, or now: at the newest committed epoch. Its files go to `dir`, which is empty or not there
    /// yet, or to a place beside the log. A point that is on its way to the images is waited for, so this may block.
    ///
    /// # Errors
    /// [`CloneError`]; there is no clone then.
    pub fn add_clone(
        &self,
        name: &str,
        at: Option<&Point>,
        dir: Option<&Path>,
    ) -> Result<CloneStatus, CloneError> {
        check_name(name)?;
        let _changing = self
            .clones
            .changing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let root = self.clones_directory();
        let path = root.join(name);
        if self.clones.all().contains_key(name) || path.symlink_metadata().is_ok() {
            return Err(CloneError::Exists {
                name: name.to_owned(),
            });
        }
        let newest = || Point::Epoch(self.shared.core().barriers.committed());
        let view = self.view(&at.cloned().unwrap_or_else(newest))?;
        let Some(history) = self.history() else {
            // There was no view without.
            return Err(CloneError::PointGone {
                epoch: view.point().epoch,
            });
        };
        let dir = dir.map(std::path::absolute).transpose();
        let dir = dir.map_err(failed("find", &path))?;
        let made = self.make(history, name, view.point(), dir.as_deref());
        let entry = match made {
            Ok(()) => self.open_clone(history, name, &path),
            Err(error) => {
                self.forget_pin(history, name);
                return Err(error);
            }
        };
        tracing::info!(group = self.name(), clone = name, dir = %entry.dir.display(), "a clone is made");
        let status = self.clone_status(name, &entry);
        self.clones.all().insert(name.to_owned(), entry);
        Ok(status)
    }

    /// Pin, files, link. An error leaves the pin at most.
    fn make(
        &self,
        history: &GroupHistory,
        name: &str,
        point: Kept,
        dir: Option<&Path>,
    ) -> Result<(), CloneError> {
        let root = self.clones_directory();
        let path = root.join(name);
        std::fs::create_dir_all(&root).map_err(failed("create", &root))?;
        sync_directory(&self.log).map_err(failed("sync", &self.log))?;
        let of_its_own = dir.unwrap_or(&path);
        prepare(of_its_own)?;
        let made = self.pin_clone(history, name, point).and_then(|()| {
            opened::create(&self.around(history), point, of_its_own)?;
            if let Some(dir) = dir {
                symlink(dir, &path).map_err(failed("create", &path))?;
            }
            sync_directory(&root).map_err(failed("sync", &root))
        });
        if made.is_err() {
            self.delete(&path, of_its_own);
        }
        made
    }

    /// A pin that is there already belongs to no clone.
    fn pin_clone(&self, history: &GroupHistory, name: &str, point: Kept) -> Result<(), CloneError> {
        let pin = pin_name(name);
        match history.past.pin(&pin, point.epoch) {
            Err(HistoryError::PinExists { .. }) => {
                history.past.unpin(&pin)?;
                history.past.pin(&pin, point.epoch)?;
            }
            other => drop(other?),
        }
        Ok(())
    }

    /// Removes a clone, with all that was written to it. With clients attached it is refused unless `force`: then what they have asked is
    /// answered, and they are cut. May block, for twice the grace of 5 seconds at most.
    ///
    /// # Errors
    /// [`CloneError`]; with [`CloneError::Unknown`] and [`CloneError::Attached`] nothing has changed.
    pub fn remove_clone(&self, name: &str, force: bool) -> Result<(), CloneError> {
        let _changing = self
            .clones
            .changing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let entry = {
            let mut all = self.clones.all();
            let Some(entry) = all.get(name) else {
                return Err(CloneError::Unknown {
                    name: name.to_owned(),
                    names: all.keys().cloned().collect(),
                });
            };
            let open = entry.clone.as_ref();
            let connections = open.map_or(0, |clone| clone.clients().count());
            if connections > 0 && !force {
                return Err(CloneError::Attached {
                    name: name.to_owned(),
                    connections,
                });
            }
            all.remove(name)
        };
        if let Some(Entry {
            clone: Ok(clone), ..
        }) = &entry
            && !clone.clients().send_away(GRACE)
        {
            tracing::warn!(
                clone = name,
                "the storage still works on a request of a client that was cut"
            );
        }
        let path = self.clones_directory().join(name);
        let dir = std::fs::read_link(&path).unwrap_or_else(|_| path.clone());
        // A link to something that is not this group's is only unlinked.
        let ours = entry
            .and_then(|entry| entry.identity)
            .is_some_and(|identity| {
                let log = self.history().map(|history| history.past.id());
                log == Some(identity.log)
            });
        if ours || dir == path {
            self.delete(&path, &dir);
        } else {
            unlink(&path);
        }
        if path.symlink_metadata().is_ok() {
            return Err(failed("remove", &path)(io::Error::other(
                "something is left there",
            )));
        }
        if let Some(history) = self.history() {
            self.forget_pin(history, name);
        }
        tracing::info!(group = self.name(), clone = name, "a clone is removed");
        Ok(())
    }

    /// Takes the files of a clone away, as far as that can be done, and its link first.
    fn delete(&self, path: &Path, dir: &Path) {
        if dir != path {
            unlink(path);
        }
        let of_clone = Identity::read(dir).map(|identity| identity.disks);
        let of_clone: Vec<_> = of_clone
            .unwrap_or_default()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let disks = self.disk_names().chain(of_clone.iter().map(String::as_str));
        if let Err(error) = opened::delete(dir, disks) {
            tracing::warn!("a clone is removed in part: {}", with_sources(&error));
        }
    }

    fn forget_pin(&self, history: &GroupHistory, name: &str) {
        match history.past.unpin(&pin_name(name)) {
            Ok(_) | Err(HistoryError::NoPin { .. }) => {}
            // The next opening tries again.
            Err(error) => tracing::warn!(group = self.name(), "{}", with_sources(&error)),
        }
    }
}

/// Makes the directory for a clone's files, or finds it empty.
fn prepare(dir: &Path) -> Result<(), CloneError> {
    let bad = |what| CloneError::BadDirectory {
        dir: dir.to_owned(),
        what,
    };
    match std::fs::create_dir(dir) {
        Ok(()) => {
            let parent = dir.parent().unwrap_or(Path::new("/"));
            return sync_directory(parent).map_err(failed("sync", parent));
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(bad(
                "the directory that it is to be in does not exist; make that first",
            ));
        }
        Err(error) => return Err(failed("create", dir)(error)),
    }
    let mut content = std::fs::read_dir(dir).map_err(failed("list", dir))?;
    match content.next() {
        None => Ok(()),
        Some(_) => Err(bad(
            "there is something in it; give one that is empty, or not there yet",
        )),
    }
}

fn unlink(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot be removed");
    }
}

/// Names of the clones in `root`, half-made ones too.
fn names(root: &Path) -> Result<Vec<String>, CloneError> {
    let entries = match std::fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed("list", root))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed("list", root))?.file_name();
        names.extend(
            name.to_str()
                .filter(|name| check_name(name).is_ok())
                .map(str::to_owned),
        );
    }
    names.sort_unstable();
    Ok(names)
}

/// A directory beside the log in which no clone is: one that was being made or removed. Behind a link there was one, and may be again, when
/// a file system is mounted there.
fn is_unfinished(path: &Path) -> bool {
    let is_directory = path
        .symlink_metadata()
        .is_ok_and(|metadata| metadata.is_dir());
    is_directory
        && matches!(std::fs::metadata(path.join(identity::NAME)), Err(error) if error.kind() == io::ErrorKind::NotFound)
}
