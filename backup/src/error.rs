//! Why a backup, or something with one, did not work.

use std::io;
use std::path::PathBuf;

use nbd_server::control::client::ControlError;
use nbd_server::storage::objects::{ObjectError, PlaceError};

/// Why it did not work, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The place.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// What was written for a place is none.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The gateway's control API.
    #[error(transparent)]
    Gateway(#[from] ControlError),
    /// The gateway's NBD server.
    #[error("the disk {export} can't be read: {why}")]
    Disk {
        /// The export.
        export: String,
        /// Why.
        why: String,
    },
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Something in the place is not what it was when it was written.
    #[error("{name} is damaged: {why}")]
    Damaged {
        /// The object.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// Another one has the lock.
    #[error("{0}")]
    Locked(String),
    /// A file that is restored to.
    #[error("{path} can't be {action}: {source}", path = .path.display())]
    File {
        /// `written`, say.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was told to stop.
    #[error("stopped")]
    Stopped,
    /// The system.
    #[error("{0}")]
    System(#[from] io::Error),
}

impl BackupError {
    pub(crate) fn damaged(name: &str, why: impl Into<String>) -> Self {
        Self::Damaged {
            name: name.to_owned(),
            why: why.into(),
        }
    }

    /// The place is at fault, and not what asked for it: an object is gone or is no longer what it was.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Damaged { .. }
                | Self::Object(ObjectError::NotFound { .. } | ObjectError::TooLarge { .. })
        )
    }

    /// Whether it is the user's to mend: wrong usage.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Usage(_)
                | Self::Place(_)
                | Self::Object(ObjectError::Unusable { .. } | ObjectError::Name { .. })
        )
    }
}
