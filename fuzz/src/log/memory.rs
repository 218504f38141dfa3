//! A directory of files in memory, as fast as it can be: nothing is ever lost, and a sync has nothing to do. What it gives out as random is
//! not, so that an input does the same each time.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use epoch_log::LogError;
use epoch_log::storage::{Storage, StorageFile, StorageLock};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::Files;

const PATH: &str = "/memory";

/// The directory.
#[derive(Debug)]
pub struct Memory {
    names: Mutex<BTreeMap<String, Arc<File>>>,
    locked: Arc<AtomicBool>,
    seed: u64,
    /// How often something random was given out.
    given: AtomicU64,
}

/// The content is shared with whoever has the same until somebody writes.
#[derive(Debug, Default)]
struct File(Mutex<Arc<Vec<u8>>>);

impl File {
    fn content(&self) -> MutexGuard<'_, Arc<Vec<u8>>> {
        self.0.lock().unwrap()
    }
}

impl Memory {
    /// A directory that holds `files`. What one gives out as random no other one does that has another `seed`.
    pub fn holding(files: &Files, seed: u64) -> Self {
        let file = |(name, bytes): (&String, &Arc<Vec<u8>>)| {
            (name.clone(), Arc::new(File(Mutex::new(Arc::clone(bytes)))))
        };
        Self {
            names: Mutex::new(files.iter().map(file).collect()),
            locked: Arc::default(),
            seed,
            given: AtomicU64::new(0),
        }
    }

    fn names(&self) -> MutexGuard<'_, BTreeMap<String, Arc<File>>> {
        self.names.lock().unwrap()
    }
}

impl Storage for Memory {
    fn path(&self) -> &Path {
        Path::new(PATH)
    }

    fn prepare(&self) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self) -> Result<Box<dyn StorageLock>, LogError> {
        if self.locked.swap(true, Ordering::Relaxed) {
            let dir = PATH.into();
            return Err(LogError::InUse { dir, pid: None });
        }
        Ok(Box::new(Lock(Arc::clone(&self.locked))))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn StorageFile>> {
        let mut names = self.names();
        let file = names.entry(name.to_owned()).or_default();
        *file.content() = Arc::default();
        Ok(Box::new(Open {
            file: Arc::clone(file),
            writable: true,
        }))
    }

    fn open(&self, name: &str, writable: bool) -> io::Result<Box<dyn StorageFile>> {
        let names = self.names();
        let file = names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let file = Arc::clone(file);
        Ok(Box::new(Open { file, writable }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut names = self.names();
        let file = names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        names.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let gone = self.names().remove(name);
        gone.map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.names().keys().cloned().collect())
    }

    fn random(&self) -> [u8; 16] {
        let count = self.given.fetch_add(1, Ordering::Relaxed);
        xxh3_128_with_seed(&count.to_le_bytes(), self.seed).to_le_bytes()
    }
}

#[derive(Debug)]
struct Lock(Arc<AtomicBool>);

impl StorageLock for Lock {}

impl Drop for Lock {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// An open file.
#[derive(Debug)]
struct Open {
    file: Arc<File>,
    writable: bool,
}

impl Open {
    /// Acts on the content. Whoever has opened the file only to look at it must not.
    fn change(&self, act: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        act(Arc::make_mut(&mut self.file.content()));
        Ok(())
    }
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

impl StorageFile for Open {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.content().len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let content = self.file.content();
        let rest = content.get(place(offset)..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut at = place(offset);
        self.change(|content| {
            for slice in slices {
                let end = at + slice.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[at..end].copy_from_slice(slice);
                at = end;
            }
        })
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.change(|content| content.resize(place(len), 0))
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        // There is always room.
        Ok(())
    }
}
