//! Why a request to a group failed.

use std::sync::Arc;

use epoch_log::LogError;

use super::refusal::Refusal;
use crate::control::api::ErrorKind;

/// A part of a group that can fail and recover by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The epoch log.
    Log,
    /// An image.
    Image,
}

/// Why a request to a group failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GroupError {
    /// It is against the rules.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The log could not do it.
    #[error("{}", with_sources(.0.as_ref()))]
    Log(Arc<LogError>),
    /// An image could not be flushed.
    #[error("{0}")]
    Image(String),
    /// The gateway stops.
    #[error("the gateway is stopping")]
    Stopping,
}

impl From<LogError> for GroupError {
    fn from(error: LogError) -> Self {
        Self::Log(Arc::new(error))
    }
}

impl GroupError {
    /// The kind for the control API.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(refusal) => match refusal {
                Refusal::Fenced { .. } => ErrorKind::Fenced,
                Refusal::OtherHolder { .. } => ErrorKind::OtherHolder,
                Refusal::MemoryStale { .. } => ErrorKind::MemoryStale,
                Refusal::NoCheckpoint => ErrorKind::NoCheckpoint,
                Refusal::BadId { .. } => ErrorKind::BadRequest,
                Refusal::Broken => ErrorKind::Io,
                _ => ErrorKind::Refused,
            },
            Self::Log(error) => match error.as_ref() {
                LogError::Full { .. } => ErrorKind::LogFull,
                _ => ErrorKind::Io,
            },
            Self::Image(_) => ErrorKind::Io,
            Self::Stopping => ErrorKind::Stopping,
        }
    }
}

/// The message of an error and of everything behind it: the control API carries one sentence, not a chain.
pub fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
