//! What can go wrong with objects, in kinds that a caller can act on. Secrets are in none of it: requests are signed in headers, and
//! those are not shown.

use std::error::Error;
use std::io;

use super::place::Place;

/// Why something with an object did not work.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// There is no such object.
    #[error("there is no {name} in {place}")]
    NotFound {
        /// The object.
        name: String,
        /// Where it should be.
        place: Place,
    },
    /// There is such an object already.
    #[error("there is a {name} in {place} already")]
    AlreadyThere {
        /// The object.
        name: String,
        /// Where it is.
        place: Place,
    },
    /// The place is full.
    #[error("{place} is full; make room there, or take another place")]
    Full {
        /// The place.
        place: Place,
    },
    /// The place does not let us.
    #[error(
        "{place} does not allow to {action} {name}; {}: {why}",
        match place {
            Place::Directory(_) => "look at the owner and the mode of the directory",
            Place::S3 { .. } => "look at AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and at what they may do with this bucket",
        }
    )]
    Denied {
        /// What was tried.
        action: &'static str,
        /// The object.
        name: String,
        /// The place.
        place: Place,
        /// What the place said.
        why: String,
    },
    /// It is larger than whoever asked is prepared for.
    #[error(
        "{name} in {place} has {size} bytes, where at most {most} can be; it is damaged, or not what it should be"
    )]
    TooLarge {
        /// The object.
        name: String,
        /// The place.
        place: Place,
        /// Its size in bytes.
        size: u64,
        /// What was asked for at most, in bytes.
        most: u64,
    },
    /// A name that can't be one of an object.
    #[error("'{name}' can't be the name of an object")]
    Name {
        /// The name.
        name: String,
    },
    /// The place can't be used as it is named.
    #[error("{place} can't be used: {why}")]
    Unusable {
        /// The place.
        place: Place,
        /// Why, and what to do.
        why: String,
    },
    /// Anything else, after all tries.
    #[error("{place} does not {action} {name}: {why}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// The object.
        name: String,
        /// The place.
        place: Place,
        /// What was said.
        why: String,
    },
}

impl ObjectError {
    /// Whether the object is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether the object was there already.
    pub fn is_already_there(&self) -> bool {
        matches!(self, Self::AlreadyThere { .. })
    }

    pub(super) fn new(
        error: &object_store::Error,
        action: &'static str,
        name: &str,
        place: &Place,
    ) -> Self {
        use object_store::Error as E;
        let (name, place) = (name.to_owned(), place.clone());
        match error {
            E::NotFound { .. } if bucket_is_missing(error) => Self::Unusable {
                place,
                why: "there is no such bucket at this endpoint; make it, or look at AWS_ENDPOINT_URL and AWS_REGION".to_owned(),
            },
            E::NotFound { .. } => Self::NotFound { name, place },
            E::AlreadyExists { .. } | E::Precondition { .. } => Self::AlreadyThere { name, place },
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => Self::Denied {
                action,
                name,
                place,
                why: said(error),
            },
            E::InvalidPath { .. } => Self::Name { name },
            _ => match system(error) {
                Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                    Self::Full { place }
                }
                Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
                    Self::Denied {
                        action,
                        name,
                        place,
                        why: said(error),
                    }
                }
                _ => Self::Failed {
                    action,
                    name,
                    place,
                    why: said(error),
                },
            },
        }
    }
}

/// A store says 404 for a missing bucket as well; only its text tells.
fn bucket_is_missing(error: &object_store::Error) -> bool {
    error.to_string().contains("NoSuchBucket")
}

/// The system's error below, if there is one.
fn system(error: &object_store::Error) -> Option<io::ErrorKind> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        cause = error.source();
    }
    None
}

/// The innermost cause, which is what helps; the layers above repeat it.
fn said(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
        cause = error.source();
    }
    // Servers answer in XML of many lines.
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
