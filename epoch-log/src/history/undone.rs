//! The mark that the images are on their way back to an earlier point: while it is there, they are no epoch at all, and whoever opens the
//! group goes on with that before anything else. Knows the file of the mark and nothing of images.

use super::run::failed;
use super::{History, HistoryError};
use crate::Epoch;
use crate::disk::LogDir;

const NAME: &str = "REWIND";
const TITLE: &str = "epochgate rewind 1";
/// Bytes that a mark has, at most.
const MOST: usize = 128;

/// The epoch that the images are on their way back to.
pub fn load(dir: &LogDir) -> Result<Option<Epoch>, HistoryError> {
    let path = dir.path().join(NAME);
    let text = dir
        .read_text(NAME, MOST)
        .map_err(|source| failed("read the mark of a rewind of", path.clone(), source))?;
    let Some(text) = text else {
        return Ok(None);
    };
    let epoch = text
        .strip_prefix(TITLE)
        .and_then(|rest| rest.trim().parse().ok());
    epoch
        .map(|epoch| Some(Epoch(epoch)))
        .ok_or(HistoryError::Damaged {
            file: path,
            offset: 0,
            what: "a mark of a rewind that names no epoch",
        })
}

impl History {
    /// Marks, durably, that the images are on their way back to `epoch`, which has to be kept.
    ///
    /// # Errors
    /// [`HistoryError::NotKept`], [`HistoryError::Io`].
    pub fn begin_rewind(&self, epoch: Epoch) -> Result<(), HistoryError> {
        self.live().resolve(epoch)?;
        let dir = self.dir();
        dir.replace(NAME, &format!("{TITLE} {epoch}\n"))
            .map_err(|source| failed("mark a rewind of", dir.path().join(NAME), source))
    }

    /// The epoch that the images are on their way back to.
    ///
    /// # Errors
    /// [`HistoryError::Damaged`], [`HistoryError::Io`].
    pub fn rewinding(&self) -> Result<Option<Epoch>, HistoryError> {
        load(self.dir())
    }

    /// The images are there. Durable on return.
    ///
    /// # Errors
    /// [`HistoryError::Io`].
    pub fn end_rewind(&self) -> Result<(), HistoryError> {
        let dir = self.dir();
        let remove = || {
            dir.remove(NAME)?;
            dir.sync()
        };
        remove().map_err(|source| failed("end a rewind of", dir.path().join(NAME), source))
    }
}
