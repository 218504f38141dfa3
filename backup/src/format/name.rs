//! Names of backups, groups and disks: they become parts of the names of objects and files, so they lead nowhere else.

use std::fmt;
use std::sync::Arc;

use super::{FormatError, wrong};

/// Longest name.
pub const MOST_NAME: usize = 64;

/// The name of a backup. By default it begins with its time, so that they sort.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(Arc<str>);

impl Id {
    /// Checks a name.
    ///
    /// # Errors
    /// If it can't be one.
    pub fn new(text: &str) -> Result<Self, FormatError> {
        check("a backup", text)?;
        // "latest" is the newest one, whatever its name, and a pin is named after it.
        if text == "latest" || text.len() > MOST_NAME - PIN.len() {
            return wrong(format!(
                "'{text}' can't be the name of a backup: it is taken, or too long"
            ));
        }
        Ok(Self(text.into()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of its pin at the gateway.
    pub fn pin(&self) -> String {
        format!("{PIN}{}", self.0)
    }
}

/// What the names of pins begin with.
const PIN: &str = "backup-";

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `name` can be that of `what`: as the gateway has it, without those that mean a directory.
///
/// # Errors
/// If not.
pub fn check(what: &str, name: &str) -> Result<(), FormatError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if (1..=MOST_NAME).contains(&name.len())
        && name.bytes().all(good)
        && !matches!(name, "." | "..")
    {
        return Ok(());
    }
    let shown: String = name.chars().take(MOST_NAME).collect();
    wrong(format!(
        "'{}' can't be the name of {what}: it needs 1 to {MOST_NAME} ASCII letters, digits, '-', '_' or '.'",
        shown.escape_debug()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        for good in ["a", "20261128T184500.123Z-1f3a", "..a", "-"] {
            assert!(Id::new(good).is_ok(), "{good}");
        }
        let long = "a".repeat(65);
        for bad in [
            "", ".", "..", "a/b", "/", "a\\b", "ä", "a\0", "latest", &long, "a b",
        ] {
            assert!(Id::new(bad).is_err(), "{bad}");
        }
    }
}
