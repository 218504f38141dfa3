//! Reading a configuration file: TOML, every key known, and an error that names file, line and key.

use std::path::Path;

use anyhow::Context;
use serde::de::DeserializeOwned;

use crate::exit::usage;

/// Reads and parses `path`. All errors are the user's to mend (exit code 2).
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("the configuration {} can't be read", path.display()))
        .map_err(usage)?;
    toml::from_str(&text)
        .map_err(|error| {
            anyhow::anyhow!(
                "the configuration {} is not right:\n{}",
                path.display(),
                error.to_string().trim_end()
            )
        })
        .map_err(usage)
}
