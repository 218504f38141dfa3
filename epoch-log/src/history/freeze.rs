//! The mark that nothing of a history may go: whoever looks for what went wrong, and when, has it all until the mark is taken away or its time is
//! over. Knows the file of the mark and nothing of runs.

use std::io;
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};

use super::run::failed;
use super::{History, HistoryError};
use crate::disk::LogDir;

const NAME: &str = "FROZEN";
const TITLE: &str = "epochgate frozen 1";
/// Bytes that a mark has, at most.
const MOST: usize = 128;

/// Nothing is trimmed or thinned for its age or the size of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// Since then, in milliseconds since 1970.
    pub since_ms: u64,
    /// Up to then, in milliseconds since 1970. None: until somebody ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
}

impl Frozen {
    /// Its time is over.
    #[must_use]
    pub fn is_over(&self, now_ms: u64) -> bool {
        self.until_ms.is_some_and(|until| until <= now_ms)
    }
}

/// Reads the mark of a history. One that can't be understood holds until somebody ends it: what it keeps can't be had back.
pub fn load(dir: &LogDir) -> Result<Option<Frozen>, HistoryError> {
    let text = dir.read_text(NAME, MOST).map_err(|source| {
        failed(
            "read the mark of a freeze of",
            dir.path().join(NAME),
            source,
        )
    })?;
    Ok(text.map(|text| {
        parse(&text).unwrap_or(Frozen {
            since_ms: 0,
            until_ms: None,
        })
    }))
}

fn parse(text: &str) -> Option<Frozen> {
    let mut words = text.strip_prefix(TITLE)?.split_whitespace();
    let (since, until) = (words.next()?, words.next()?);
    Some(Frozen {
        since_ms: since.parse().ok()?,
        until_ms: match until {
            "-" => None,
            number => Some(number.parse().ok()?),
        },
    })
}

fn store(dir: &LogDir, frozen: Frozen) -> Result<(), HistoryError> {
    let until = frozen
        .until_ms
        .map_or("-".to_owned(), |until| until.to_string());
    let text = format!("{TITLE} {} {until}\n", frozen.since_ms);
    dir.replace(NAME, &text)
        .map_err(|source| failed("mark a freeze of", dir.path().join(NAME), source))
}

impl History {
    /// From now on, durably, nothing is trimmed or thinned for its age or for the size of the history; only for room on a disk that is full.
    /// Up to `until_ms` (milliseconds since 1970), or until [`History::thaw`]. One that there was already keeps its begin.
    ///
    /// # Errors
    /// [`HistoryError::Io`]: it is as it was.
    pub fn freeze(&self, now_ms: u64, until_ms: Option<u64>) -> Result<Frozen, HistoryError> {
        // Not while something is just being trimmed or merged.
        let _alone = self
            .maintenance
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut slot = self.frozen.lock().unwrap_or_else(PoisonError::into_inner);
        let frozen = Frozen {
            since_ms: slot
                .filter(|frozen| !frozen.is_over(now_ms))
                .map_or(now_ms, |frozen| frozen.since_ms),
            until_ms,
        };
        store(self.dir(), frozen)?;
        *slot = Some(frozen);
        Ok(frozen)
    }

    /// Ends it, durably; what is due goes soon. Returns what it was.
    ///
    /// # Errors
    /// [`HistoryError::Io`]: it may hold again after the next start.
    pub fn thaw(&self) -> Result<Option<Frozen>, HistoryError> {
        let mut slot = self.frozen.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(frozen) = *slot else {
            return Ok(None);
        };
        let dir = self.dir();
        let remove = || {
            match dir.remove(NAME) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            dir.sync()
        };
        remove().map_err(|source| failed("end a freeze of", dir.path().join(NAME), source))?;
        *slot = None;
        Ok(Some(frozen))
    }

    /// Whether it is frozen, as far as somebody has said so.
    pub fn frozen(&self) -> Option<Frozen> {
        *self.frozen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
