//! A data set: a folder of recordings, with a `DATASHEET.md` beside them that says what it is and what it can't tell.

use std::fs;
use std::path::{Path, PathBuf};

use super::bounds::MAX_RECORDINGS;
use super::{EXTENSION, Recording, RecordingError};

/// Recordings that belong together, in the order of their file names.
#[derive(Debug, Default)]
pub struct DataSet {
    /// The recordings.
    pub entries: Vec<Entry>,
}

/// One of them.
#[derive(Debug)]
pub struct Entry {
    /// Name of the file, without its extension.
    pub name: String,
    /// What is in it.
    pub recording: Recording,
}

impl DataSet {
    /// Reads all recordings in `folder`, and none below it.
    ///
    /// # Errors
    /// The first file that can't be read or used: a data set with a hole would be another one.
    pub fn load(folder: &Path) -> Result<Self, RecordingError> {
        let failed = RecordingError::at("read the folder", folder);
        let mut paths: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(folder).map_err(&failed)? {
            let path = entry.map_err(&failed)?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == EXTENSION)
            {
                paths.push(path);
            }
        }
        if paths.len() > MAX_RECORDINGS {
            let limit = MAX_RECORDINGS;
            return Err(RecordingError::TooLarge {
                what: "its recordings",
                limit,
            }
            .of(folder));
        }
        paths.sort();
        let entries = paths.iter().map(|path| {
            Ok(Entry {
                name: path
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                recording: Recording::load(path)?,
            })
        });
        Ok(Self {
            entries: entries.collect::<Result<_, RecordingError>>()?,
        })
    }
}
