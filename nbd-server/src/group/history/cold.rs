//! `[group.history.cold]`: where old parts of a history go. The store of objects as `epoch_log` wants it. Decides nothing about what goes there.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use epoch_log::history::{ColdStore, Cooling};
use serde::{Deserialize, Serialize};

use super::config::{HistoryConfig, Size, Span};
use crate::storage::objects::{ObjectError, Objects, Place};

/// Of `size`, so many eighths may be full of runs before the oldest go cold, unless the configuration says otherwise.
const EIGHTHS: u64 = 7;

/// Where old history goes, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColdConfig {
    /// `s3://bucket/prefix`, or a directory.
    pub to: String,
    /// What is older goes there, such as "1d".
    #[serde(default = "default_after")]
    pub after: Span,
    /// The oldest goes there, whatever its age, while the history takes more than this on its own disk, such as "100GiB". Without: seven
    /// eighths of `size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_above: Option<Size>,
}

fn default_after() -> Span {
    Span(24 * 60 * 60 * 1000)
}

impl ColdConfig {
    /// The first thing that is wrong with it, in words.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self, history: &HistoryConfig) -> Result<(), String> {
        self.to
            .parse::<Place>()
            .map_err(|error| format!("history.cold.to = {error}"))?;
        if self.after >= history.age {
            return Err(format!(
                "history.cold.after is \"{}\", and nothing is kept for longer than history.age = \"{}\": nothing would go there",
                self.after, history.age
            ));
        }
        let late = history.thin.iter().find(|thin| thin.after > self.after);
        if let Some(thin) = late {
            return Err(format!(
                "history.thin has an entry after = \"{}\", later than history.cold.after = \"{}\": what is in cold storage is not thinned any more",
                thin.after, self.after
            ));
        }
        Ok(())
    }

    /// When what goes there.
    pub fn cooling(&self, history: &HistoryConfig) -> Cooling {
        let size = history.size.0;
        Cooling {
            after_ms: self.after.0,
            above: self.when_above.map_or(size / 8 * EIGHTHS, |above| above.0),
        }
    }
}

/// The cold store of a group, and what it said last.
#[derive(Debug)]
pub struct ColdSide {
    /// The store.
    pub store: Arc<ColdObjects>,
    /// What goes there.
    pub cooling: Cooling,
    trouble: Mutex<Option<String>>,
}

impl ColdSide {
    /// The store of this configuration, which is not asked yet: none if it names no place.
    pub fn of(history: &HistoryConfig) -> Option<Arc<Self>> {
        let cold = history.cold.as_ref()?;
        // The configuration was checked.
        let place = cold.to.parse().ok()?;
        Some(Arc::new(Self {
            store: Arc::new(ColdObjects::new(place)),
            cooling: cold.cooling(history),
            trouble: Mutex::default(),
        }))
    }

    /// Why nothing can be moved there now, for people.
    pub fn trouble(&self) -> Option<String> {
        let slot = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        slot.clone()
    }

    /// Notes why nothing can be moved, or that it can. Returns what was noted before.
    pub fn note(&self, trouble: Option<String>) -> Option<String> {
        let mut slot = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *slot, trouble)
    }
}

/// Objects of a place, which need not be there when the gateway starts: it is opened when something is asked of it.
#[derive(Debug)]
pub struct ColdObjects {
    place: Place,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    NotYet,
    Open(Objects),
    Closed,
}

impl ColdObjects {
    /// The objects of `place`.
    pub fn new(place: Place) -> Self {
        Self {
            place,
            state: Mutex::new(State::NotYet),
        }
    }

    /// Gives up all that is asked of it, now and later.
    pub fn close(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Open(objects) = std::mem::replace(&mut *state, State::Closed) {
            objects.close();
        }
    }

    fn objects(&self) -> io::Result<Objects> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Open(objects) => Ok(objects.clone()),
            State::Closed => Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the group is being closed",
            )),
            State::NotYet => {
                let objects = Objects::open(&self.place).map_err(system)?;
                *state = State::Open(objects.clone());
                Ok(objects)
            }
        }
    }
}

impl ColdStore for ColdObjects {
    fn place(&self) -> String {
        self.place.to_string()
    }

    fn put(&self, name: &str, content: Vec<u8>) -> io::Result<()> {
        // It would be made anew, and what is to be mounted there would cover it.
        if let Some(directory) = self.place.directory()
            && !directory.is_dir()
        {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let put = self.objects()?.put(name, Bytes::from(content));
        put.map_err(system)
    }

    fn size(&self, name: &str) -> io::Result<Option<u64>> {
        let found = self.objects()?.head(name).map_err(system)?;
        Ok(found.map(|meta| meta.size))
    }

    fn read(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(buffer.len() as u64);
        let range = self.objects()?.get_range(name, offset..end);
        let bytes = range.map_err(system)?;
        if bytes.len() != buffer.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.copy_from_slice(&bytes);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.objects()?.delete(name).map_err(system)
    }
}

/// The same as an error of the system, of a kind that the history knows.
fn system(error: ObjectError) -> io::Error {
    let kind = match &error {
        ObjectError::NotFound { .. } => io::ErrorKind::NotFound,
        ObjectError::Full { .. } => io::ErrorKind::StorageFull,
        ObjectError::Denied { .. } => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
