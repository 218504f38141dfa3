//! All errors of a history. Each message says what is wrong and, where the user can act, what to do.

use std::{io, path::PathBuf};

use crate::{Epoch, LogError};

/// Why the history refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The system failed.
    #[error("cannot {action} the history {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// File or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no room.
    #[error("the disk that holds the history {} is full: free space there, or keep less history", dir.display())]
    Full {
        /// Directory of the history.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something that was saved is not what it was.
    #[error("the history is damaged: {what} in {} at byte {offset}", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where.
        offset: u64,
        /// What does not fit.
        what: &'static str,
    },
    /// The cold store failed, or has not what it should have.
    #[error("cannot {action} {object} of the history{place}")]
    Cold {
        /// What was tried.
        action: &'static str,
        /// Name of the object.
        object: String,
        /// Where that is, with the word before it; empty if nobody says.
        place: String,
        /// What the store said.
        #[source]
        source: io::Error,
    },
    /// That point in time is not kept.
    #[error("{asked} is not kept{}", neighbours(*before, *after))]
    NotKept {
        /// What was asked for.
        asked: String,
        /// The last kept epoch before it.
        before: Option<Epoch>,
        /// The first kept epoch after it.
        after: Option<Epoch>,
    },
    /// Two pins can't have one name.
    #[error(
        "there is a pin named '{name}' already, on epoch {epoch}; remove it first, or take another name"
    )]
    PinExists {
        /// The name.
        name: String,
        /// What it keeps.
        epoch: Epoch,
    },
    /// There is no such pin.
    #[error("there is no pin named '{name}'{}", listed(names))]
    NoPin {
        /// The name.
        name: String,
        /// Those there are.
        names: Vec<String>,
    },
    /// The name can't be one.
    #[error(
        "the name of a pin must have 1 to 64 ASCII letters, digits, '-', '_' or '.', and '{name}' has not"
    )]
    BadPin {
        /// The name.
        name: String,
    },
    /// There are as many pins as there can be.
    #[error("there are {most} pins already; remove some")]
    TooManyPins {
        /// How many.
        most: usize,
    },
    /// It belongs to another log.
    #[error(
        "the history {} belongs to another epoch log than the one beside it; move it away to begin a new one", dir.display()
    )]
    OtherLog {
        /// Directory of the history.
        dir: PathBuf,
    },
    /// It has seen epochs that the log does not know.
    #[error(
        "the history {} has seen epoch {through}, and the log ends at {committed}: one of them was restored or taken back; \
         move the history away to begin a new one", dir.display()
    )]
    OtherTime {
        /// Directory of the history.
        dir: PathBuf,
        /// What the history has seen.
        through: Epoch,
        /// What the log has committed.
        committed: Epoch,
    },
    /// The old content of an image could not be read.
    #[error("what an image held could not be saved")]
    Old(#[source] io::Error),
    /// The directory can't be used.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl HistoryError {
    /// Only room is missing.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

fn neighbours(before: Option<Epoch>, after: Option<Epoch>) -> String {
    match (before, after) {
        (None, None) => ": nothing is kept yet".to_owned(),
        (Some(epoch), None) | (None, Some(epoch)) => format!("; the nearest that is: {epoch}"),
        (Some(before), Some(after)) => {
            format!("; the nearest that are: {before} before it and {after} after it")
        }
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        ": there are none".to_owned()
    } else {
        format!("; there are: {}", names.join(", "))
    }
}
