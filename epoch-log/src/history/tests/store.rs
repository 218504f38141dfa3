//! A store of objects in memory, which remembers what was done to it and when, and fails when it is told to.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::ColdStore;
use crate::faults;

/// Objects by name.
pub type Objects = BTreeMap<String, Vec<u8>>;

/// What was done: after how many changes of files, to which object, and what it holds since; nothing: it was removed.
pub type Event = (usize, String, Option<Vec<u8>>);

#[derive(Debug, Default)]
pub struct Store {
    pub objects: Mutex<Objects>,
    pub events: Mutex<Vec<Event>>,
    /// Calls until it is away, and from then on.
    pub calls_left: AtomicU64,
    pub calls: AtomicU64,
}

impl Store {
    pub fn holding(objects: Objects) -> Self {
        let store = Self::default();
        *store.objects.lock().unwrap() = objects;
        store.answers(u64::MAX);
        store
    }

    /// From now on it answers `calls` times.
    pub fn answers(&self, calls: u64) {
        self.calls_left.store(calls, Ordering::Relaxed);
    }

    pub fn names(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }

    fn call(&self) -> io::Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let left = self.calls_left.load(Ordering::Relaxed);
        if left == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.calls_left.store(left - 1, Ordering::Relaxed);
        Ok(())
    }

    fn note(&self, name: &str, content: Option<Vec<u8>>) {
        let event = (faults::count(), name.to_owned(), content);
        self.events.lock().unwrap().push(event);
    }
}

impl ColdStore for Store {
    fn place(&self) -> String {
        "memory".to_owned()
    }

    fn put(&self, name: &str, content: Vec<u8>) -> io::Result<()> {
        self.call()?;
        self.note(name, Some(content.clone()));
        self.objects
            .lock()
            .unwrap()
            .insert(name.to_owned(), content);
        Ok(())
    }

    fn size(&self, name: &str) -> io::Result<Option<u64>> {
        self.call()?;
        let objects = self.objects.lock().unwrap();
        Ok(objects.get(name).map(|content| content.len() as u64))
    }

    fn read(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.call()?;
        let objects = self.objects.lock().unwrap();
        let content = objects.get(name).ok_or(io::ErrorKind::NotFound)?;
        let part = content.get(offset as usize..).unwrap_or_default();
        let part = part.get(..buffer.len());
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.call()?;
        self.note(name, None);
        self.objects.lock().unwrap().remove(name);
        Ok(())
    }
}
