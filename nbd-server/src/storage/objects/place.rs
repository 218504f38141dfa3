//! Where objects lie, as people write it: a directory, or a bucket of an S3-compatible store. Pure.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::super::place::unescape;

/// Longest prefix in a bucket: a key has at most 1024 bytes, and names come after it.
const MOST_PREFIX: usize = 512;

/// Where objects lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A directory of this machine.
    Directory(PathBuf),
    /// Keys of a bucket.
    S3 {
        /// The bucket.
        bucket: String,
        /// What all keys begin with, without a slash at its ends; may be empty.
        prefix: String,
    },
}

/// What is wrong with what somebody wrote for a place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\": {what}")]
pub struct PlaceError {
    text: String,
    what: String,
}

const FORMS: &str = "write a directory, file:///DIRECTORY, or s3://BUCKET/PREFIX";

impl Place {
    /// Reads `DIRECTORY`, `file:///DIRECTORY` or `s3://BUCKET/PREFIX`. What has no scheme is a directory.
    ///
    /// # Errors
    /// [`PlaceError`]
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        let fail = |what: String| PlaceError {
            text: text.to_owned(),
            what,
        };
        if text.is_empty() {
            return Err(fail(format!("the place is missing; {FORMS}")));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Directory(PathBuf::from(text)));
        };
        match scheme {
            "file" => {
                let path = unescape(rest).map_err(fail)?;
                if !path.starts_with('/') {
                    return Err(fail(
                        "a file URL names a directory of this machine from its root: file:///DIRECTORY"
                            .to_owned(),
                    ));
                }
                Ok(Self::Directory(PathBuf::from(path)))
            }
            "s3" | "s3a" => s3(rest).map_err(fail),
            // A directory may have such a name.
            _ if scheme.contains('/') => Ok(Self::Directory(PathBuf::from(text))),
            _ => Err(fail(format!(
                "places of the kind {scheme}:// are not known; {FORMS}"
            ))),
        }
    }

    /// The place for what belongs to `name` in this one.
    ///
    /// # Errors
    /// [`PlaceError`] if `name` is no plain name.
    pub fn join(&self, name: &str) -> Result<Self, PlaceError> {
        if !plain(name) {
            return Err(PlaceError {
                text: name.to_owned(),
                what: "that is no plain name".to_owned(),
            });
        }
        Ok(match self {
            Self::Directory(path) => Self::Directory(path.join(name)),
            Self::S3 { bucket, prefix } if prefix.is_empty() => Self::S3 {
                bucket: bucket.clone(),
                prefix: name.to_owned(),
            },
            Self::S3 { bucket, prefix } => Self::S3 {
                bucket: bucket.clone(),
                prefix: format!("{prefix}/{name}"),
            },
        })
    }

    /// The directory, if it is one.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Directory(path) => Some(path),
            Self::S3 { .. } => None,
        }
    }
}

/// Whether a part of a path is one that names nothing else anywhere.
fn plain(part: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-+=@".contains(c);
    !part.is_empty() && part != "." && part != ".." && part.chars().all(fine)
}

fn s3(rest: &str) -> Result<Place, String> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !(3..=255).contains(&bucket.len()) || !bucket.chars().all(fine) {
        return Err(format!(
            "'{bucket}' is no name of a bucket; write s3://BUCKET/PREFIX"
        ));
    }
    let prefix = prefix.trim_matches('/');
    if !prefix.is_empty() && !prefix.split('/').all(plain) {
        return Err(
            "a prefix is made of letters, digits and ._-+=@, in parts with a slash between them"
                .to_owned(),
        );
    }
    if prefix.len() > MOST_PREFIX {
        return Err(format!("a prefix has at most {MOST_PREFIX} bytes"));
    }
    Ok(Place::S3 {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
    })
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        Self::parse(text)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn s3(bucket: &str, prefix: &str) -> Place {
        Place::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        }
    }

    #[test]
    fn places_come_apart() {
        for (text, place) in [
            ("/srv/b", Place::Directory("/srv/b".into())),
            ("b/c", Place::Directory("b/c".into())),
            ("a/b://c", Place::Directory("a/b://c".into())),
            ("file:///srv/a%20b", Place::Directory("/srv/a b".into())),
            ("s3://bucket", s3("bucket", "")),
            ("s3://bucket/", s3("bucket", "")),
            ("s3://bucket/a/b.c/", s3("bucket", "a/b.c")),
        ] {
            assert_eq!(Place::parse(text).unwrap(), place, "{text}");
        }
        assert_eq!(
            Place::parse("s3://bucket/a/").unwrap().to_string(),
            "s3://bucket/a"
        );
        assert_eq!(s3("bucket", "").join("vm").unwrap(), s3("bucket", "vm"));
        assert_eq!(s3("bucket", "a").join("vm").unwrap(), s3("bucket", "a/vm"));
        assert!(s3("bucket", "a").join("../vm").is_err());
    }

    #[test]
    fn what_can_not_be_is_refused() {
        let long = format!("s3://bucket/{}", "a".repeat(600));
        for text in [
            "",
            "file://host/dir",
            "file:dir://",
            "s3://",
            "s3://b",
            "s3:///key",
            "s3://user:secret@bucket/a",
            "s3://bucket/a//b",
            "s3://bucket/../b",
            "s3://bucket/a?x=1",
            "https://host/bucket",
            &long,
        ] {
            assert!(Place::parse(text).is_err(), "{text}");
        }
    }
}
