//! Recordings: what one VM looked like for a while, and what was the matter with it. Data sets are folders of them.
//!
//! | file | |
//! |---|---|
//! | `header` | what is known of the run: the VM, the load, the fault and its instant |
//! | `format` | the bytes, drawn at its head |
//! | `bounds` | what a file may not exceed, and why |
//! | `data_set` | a folder of recordings |

mod bounds;
mod data_set;
mod error;
mod format;
mod header;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

pub use bounds::{INTERVAL, MAX_FILE_BYTES, MAX_SAMPLES};
pub use data_set::{DataSet, Entry};
pub use error::RecordingError;
pub use header::{Fault, Header, Host, Phase, VmSize};

use crate::sample::{Sample, Values};

/// The tag with the loads that were in a run beside that of its label, by name, with commas.
pub const ALSO_TAG: &str = "also";

/// The extension of the files.
pub const EXTENSION: &str = "egrec";

/// A recording, whole in memory. Its samples are in the order of time.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    header: Header,
    samples: Vec<Sample>,
}

impl Recording {
    /// An empty one.
    ///
    /// # Errors
    /// Something in the header is beyond its bounds.
    pub fn new(header: Header) -> Result<Self, RecordingError> {
        header.check()?;
        Ok(Self {
            header,
            samples: Vec::new(),
        })
    }

    /// What is known of the run.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Says something else of the run: labels that are known at its end only.
    ///
    /// # Errors
    /// Something in it is beyond its bounds; then nothing has changed.
    pub fn set_header(&mut self, header: Header) -> Result<(), RecordingError> {
        header.check()?;
        self.header = header;
        Ok(())
    }

    /// The samples.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Adds a sample. Its values are rounded to the 12 bits that a file holds, so that what is recorded and what is read
    /// again are the same; its wall time is that of the header's start.
    ///
    /// # Errors
    /// The recording is full, or the sample is older than the last one.
    pub fn push(&mut self, at_ms: u64, values: &Values) -> Result<(), RecordingError> {
        if self.samples.len() >= MAX_SAMPLES {
            return Err(RecordingError::Full);
        }
        let last = self.samples.last().map_or(0, |sample| sample.at_ms);
        if at_ms < last || u32::try_from(at_ms - last).is_err() {
            return Err(RecordingError::Order { at_ms, last });
        }
        let mut kept = Values::MISSING;
        for (signal, value) in values.iter() {
            kept.set(signal, value.map(format::keep));
        }
        self.samples.push(Sample {
            at_ms,
            wall_ms: self.header.started_ms.saturating_add(at_ms),
            values: kept,
        });
        Ok(())
    }

    /// From the first to the last sample, in milliseconds.
    pub fn duration_ms(&self) -> u64 {
        match (self.samples.first(), self.samples.last()) {
            (Some(first), Some(last)) => last.at_ms - first.at_ms,
            _ => 0,
        }
    }

    /// As the bytes of a file.
    ///
    /// # Errors
    /// Only of the compressor.
    pub fn to_bytes(&self) -> Result<Vec<u8>, RecordingError> {
        format::encode(self)
    }

    /// From the bytes of a file. Takes no more memory than [`MAX_SAMPLES`] need, whatever the bytes say.
    ///
    /// # Errors
    /// They are damaged, cut off, of another version, or beyond the bounds.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordingError> {
        format::decode(bytes)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// As [`Recording::from_bytes`], and those of the system.
    pub fn load(path: &Path) -> Result<Self, RecordingError> {
        let failed = RecordingError::at("read", path);
        let mut file = fs::File::open(path).map_err(&failed)?;
        let mut bytes = Vec::new();
        // One more than is allowed, to tell.
        let limit = MAX_FILE_BYTES as u64 + 1;
        (&mut file)
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(&failed)?;
        Self::from_bytes(&bytes).map_err(|error| error.of(path))
    }

    /// Writes a file: under another name first, so that there never is half of one.
    ///
    /// # Errors
    /// Those of the system.
    pub fn save(&self, path: &Path) -> Result<(), RecordingError> {
        let failed = RecordingError::at("write", path);
        let bytes = self.to_bytes()?;
        let unfinished = path.with_extension(format!("{EXTENSION}.part"));
        let written = fs::File::create(&unfinished)
            .and_then(|mut file| {
                file.write_all(&bytes)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&unfinished, path));
        written.map_err(|error| {
            // What is left of it is of no use.
            let _ = fs::remove_file(&unfinished);
            failed(error)
        })
    }
}

#[cfg(test)]
mod tests;
