//! Why there is no recording.

use std::io;
use std::path::{Path, PathBuf};

/// Why a recording can't be read, written or gone on with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// The file is not what it should be.
    #[error("{}: it can't be used", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<RecordingError>,
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
    #[error("this is no recording: it does not begin as one")]
    NotARecording,
    /// Of another version of Epochgate.
    #[error("it is of {what} version {found}; this Epochgate reads versions 1 to {known}")]
    Version {
        /// Of what.
        what: &'static str,
        /// The version.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// It ends too early.
    #[error("it is cut off")]
    CutOff,
    /// The checksum does not fit.
    #[error("it is damaged: its checksum is wrong")]
    Checksum,
    /// It contradicts itself, in spite of a right checksum.
    #[error("it is not valid: {0}")]
    Invalid(String),
    /// The header is beyond its bounds.
    #[error("its header has {0}")]
    Header(String),
    /// It is larger than any recording.
    #[error("it is too large: {what} may be at most {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How many.
        limit: usize,
    },
    /// No more samples.
    #[error("the recording is full: it has as many samples as one may have")]
    Full,
    /// Time runs forwards.
    #[error("a sample of {at_ms} ms can't follow one of {last} ms")]
    Order {
        /// Of the new sample.
        at_ms: u64,
        /// Of the last one.
        last: u64,
    },
    /// Of the compressor.
    #[error("it can't be compressed")]
    Compress(#[source] io::Error),
}

impl RecordingError {
    /// Makes errors of the system about `path`.
    pub(super) fn at(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
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
