//! Directories of the disk, as a log or a history wants one. Each makes its own names durable.

use std::io;
use std::path::Path;
use std::sync::Arc;

use epoch_log::LogError;
use epoch_log::forgetful::{Change, NameChange};
use epoch_log::storage::{Storage, StorageFile, StorageLock};
use rand::Rng;

use super::{File, Op, SimDisk, SimFile, State};
use crate::planted::Planted;

impl Storage for SimDisk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn prepare(&self) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self) -> Result<Box<dyn StorageLock>, LogError> {
        if !self.state().locked.insert(self.path.clone()) {
            let dir = self.path.clone();
            return Err(LogError::InUse { dir, pid: None });
        }
        Ok(Box::new(Lock))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn StorageFile>> {
        let name = self.full(name);
        let mut state = self.state();
        state.check(None, true)?;
        let there = state.names.get(&name).copied();
        let id = if let Some(id) = there {
            state.change(id, Change::Truncate { len: 0 });
            id
        } else {
            state.files.push(File::default());
            let id = state.files.len() - 1;
            state.rename_by(NameChange::Create(name, id));
            id
        };
        let disk = self.clone();
        Ok(Box::new(SimFile { disk, id }))
    }

    fn open(&self, name: &str, _writable: bool) -> io::Result<Box<dyn StorageFile>> {
        let mut state = self.state();
        state.check(None, false)?;
        let id = state.names.get(&self.full(name)).copied();
        let id = id.ok_or(io::ErrorKind::NotFound)?;
        let disk = self.clone();
        Ok(Box::new(SimFile { disk, id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.check(None, true)?;
        state.rename_by(NameChange::Rename(self.full(from), self.full(to)));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let name = self.full(name);
        let mut state = self.state();
        state.check(None, true)?;
        if !state.names.contains_key(&name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.rename_by(NameChange::Remove(name));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        state.check(Some(Op::SyncNames), true)?;
        if state.lies(Planted::SkipDirSync) {
            return Ok(());
        }
        let State {
            names,
            durable_names,
            unsynced_names,
            ..
        } = &mut *state;
        durable_names.retain(|name, _| self.own(name).is_none());
        let own = names.iter().filter(|(name, _)| self.own(name).is_some());
        durable_names.extend(own.map(|(name, id)| (name.clone(), *id)));
        unsynced_names.retain(|change| match change {
            NameChange::Create(name, _)
            | NameChange::Rename(name, _)
            | NameChange::Remove(name) => self.own(name).is_none(),
        });
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        let own = state.names.keys().filter_map(|name| self.own(name));
        Ok(own.map(str::to_owned).collect())
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        Ok(Arc::new(Self {
            state: Arc::clone(&self.state),
            path: self.path.join(name),
            prefix: format!("{}{name}/", self.prefix),
        }))
    }

    fn random(&self) -> [u8; 16] {
        self.state().random.random()
    }
}

impl State {
    fn rename_by(&mut self, change: NameChange<usize>) {
        change.act(&mut self.names);
        self.unsynced_names.push(change);
    }
}

/// The lock of a directory: it ends with the process, see [`SimDisk::process_ends`].
#[derive(Debug)]
struct Lock;

impl StorageLock for Lock {}
