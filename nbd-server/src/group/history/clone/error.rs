//! Why a clone can't be made, opened or removed. Each message says what is wrong and, where the user can act, what to do.

use std::io;
use std::path::{Path, PathBuf};

use epoch_log::Epoch;
use epoch_log::history::HistoryError;

use crate::control::api::ErrorKind;
use crate::group::Refusal;
use crate::image_file::ImageError;

/// Why a clone can't be made, opened or removed.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// There is no such clone.
    #[error("there is no clone '{name}'{}", listed(names))]
    Unknown {
        /// The name asked for.
        name: String,
        /// Those there are.
        names: Vec<String>,
    },
    /// The name is taken.
    #[error("there is a clone '{name}' already; remove it first, or take another name")]
    Exists {
        /// The name.
        name: String,
    },
    /// The name can't be one.
    #[error(
        "the name of a clone must have 1 to 58 ASCII letters, digits, '-', '_' or '.', no '.' at its beginning, and '{name}' has not"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// The directory for its files can't be used.
    #[error("{dir} can't be the directory of a clone: {what}")]
    BadDirectory {
        /// The directory.
        dir: PathBuf,
        /// Why, and what to do.
        what: &'static str,
    },
    /// Clients are attached.
    #[error(
        "{connections} connections are attached to clone '{name}'; let their clients leave first, or remove it with --force"
    )]
    Attached {
        /// The clone.
        name: String,
        /// How many.
        connections: usize,
    },
    /// The point in time can't be had.
    #[error(transparent)]
    Point(#[from] Refusal),
    /// Its point in time is no longer what it was, or gone.
    #[error(
        "its point in time is gone: it was made at epoch {epoch}, and the history of the group does not have that moment any more; remove the clone"
    )]
    PointGone {
        /// The epoch.
        epoch: Epoch,
    },
    /// It belongs to something else.
    #[error("{path} does not belong to this clone, or to this group", path = .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The disks of the group are others than when it was made.
    #[error("the group had other disks when the clone was made: {was}, and now has {is}")]
    OtherDisks {
        /// Then.
        was: String,
        /// Now.
        is: String,
    },
    /// What it has written can't be trusted.
    #[error(
        "the clone is damaged: {what} in {path} at byte {offset}; bring that file back from a copy, or remove the clone",
        path = .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What does not fit.
        what: &'static str,
    },
    /// The file with what was written can't be used.
    #[error(transparent)]
    Data(#[from] ImageError),
    /// The history failed.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The system failed.
    #[error("cannot {action} {path}", path = .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// File or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl CloneError {
    /// The kind for the control API.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown { .. } => ErrorKind::UnknownClone,
            Self::BadName { .. } | Self::BadDirectory { .. } => ErrorKind::BadRequest,
            Self::Exists { .. } | Self::Attached { .. } | Self::Point(_) => ErrorKind::Refused,
            Self::PointGone { .. } | Self::Foreign { .. } | Self::OtherDisks { .. } => {
                ErrorKind::Refused
            }
            Self::Damaged { .. } | Self::Data(_) | Self::History(_) | Self::Io { .. } => {
                ErrorKind::Io
            }
        }
    }
}

/// Makes an error of what the system said.
pub fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CloneError {
    let path = path.to_owned();
    move |source| CloneError::Io {
        action,
        path,
        source,
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        ": there are none".to_owned()
    } else {
        format!("; there are: {}", names.join(", "))
    }
}
