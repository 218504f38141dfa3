//! Why there is no model.

use std::io;
use std::path::{Path, PathBuf};

/// Why a model can't be read, written or put together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file is not what it should be.
    #[error("{}: this model can't be used", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<ModelError>,
    },
    /// The system said no.
    #[error("can't {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something else.
    #[error("this is no model: it does not begin as one")]
    NotAModel,
    /// Of another version of Epochgate.
    #[error(
        "it is of {what} version {found}, and this Epochgate needs version {known}: train it anew"
    )]
    Version {
        /// Of what.
        what: &'static str,
        /// The version.
        found: u32,
        /// The one that is known.
        known: u32,
    },
    /// It ends too early.
    #[error("it is cut off")]
    CutOff,
    /// The checksum does not fit.
    #[error("it is damaged: its checksum is wrong")]
    Checksum,
    /// It needs what there is not.
    #[error("it needs the feature \"{0}\", which there is not")]
    Feature(String),
    /// It contradicts itself, in spite of a right checksum.
    #[error("it is not valid: {0}")]
    Invalid(String),
    /// It is larger than any model.
    #[error("it is too large: {what} may be at most {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How many.
        limit: usize,
    },
}

impl ModelError {
    /// Makes errors of the system about `path`.
    pub(super) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// The same, about this file.
    pub(super) fn of(self, path: &Path) -> Self {
        Self::File {
            path: path.to_owned(),
            source: Box::new(self),
        }
    }
}
