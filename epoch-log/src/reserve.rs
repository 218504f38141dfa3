//! A little space held back, so that a log on a full disk can still fence an owner and free its own segments.
//! Knows nothing of why space is needed.

use crate::{
    disk::{LogDir, LogFile},
    limits::RESERVE_BYTES,
};

const NAME: &str = "RESERVE";
/// Tests inside this crate open tens of thousands of logs, and what the reserve is good for they do not see.
const BYTES: u64 = if cfg!(test) { 4096 } else { RESERVE_BYTES };

/// The reserve of a log. It is help, not a promise: without it the log works until the disk is full.
#[derive(Debug)]
pub(crate) struct Reserve {
    file: Option<LogFile>,
    whole: bool,
}

impl Reserve {
    /// Takes the reserve of the log in `dir`, or sets it up.
    pub fn take(dir: &LogDir) -> Self {
        let file = dir.open_file(NAME).or_else(|_| dir.create_file(NAME));
        let mut reserve = Self {
            file: file.ok(),
            whole: false,
        };
        reserve.restore();
        reserve
    }

    /// Whether the space is held.
    pub const fn is_whole(&self) -> bool {
        self.whole
    }

    /// Gives the space back to the file system. False if there was none.
    pub fn spend(&mut self) -> bool {
        let had = self.whole;
        self.whole = false;
        had && self
            .file
            .as_ref()
            .is_some_and(|file| file.truncate(0).is_ok())
    }

    /// Takes the space again if it was spent and there is room.
    pub fn restore(&mut self) {
        if self.whole {
            return;
        }
        let Some(file) = &self.file else { return };
        match file.allocate(BYTES) {
            Ok(()) => self.whole = true,
            Err(error) => tracing::warn!(%error, "no room for the reserve of the epoch log"),
        }
    }
}
