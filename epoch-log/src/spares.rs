//! Segment files that hold nothing that counts any more and wait to be written again. To write over blocks that a file has
//! costs the file system much less than to give it new ones: no allocation, and no journal commit in each sync.
//! Knows files and names, not why a segment is free.
//!
//! What a spare still holds is never taken for anything: records carry the random salt of their segment, and one that is
//! made from a spare has a new one.

use std::io;

use crate::{
    disk::{LogDir, LogFile},
    segment,
};

/// The spares of a log.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    names: Vec<String>,
    most: usize,
}

impl Spares {
    /// Takes over the spares `names` of `dir`, at most `most`; removes what is too many.
    pub fn keep(dir: &LogDir, names: &[String], most: usize) -> io::Result<Self> {
        let (kept, surplus) = names.split_at(names.len().min(most));
        for name in surplus {
            dir.remove(name)?;
        }
        Ok(Self {
            names: kept.to_vec(),
            most,
        })
    }

    /// A spare to be written again. It keeps its name until it is given another.
    pub fn take(&mut self, dir: &LogDir) -> Option<LogFile> {
        let name = self.names.pop()?;
        // One that can't be opened is in nobody's way: a new file does as well.
        dir.open_file(&name).ok()
    }

    /// Retires the file of a segment, durably: keeps it under a name that no reader looks at, or removes it if there are enough.
    ///
    /// It becomes a spare only when its new name is durable: one that is written over under its old name would be a damaged
    /// segment after a crash. After an error it can be retired again.
    pub fn retire(&mut self, dir: &LogDir, file: &mut LogFile) -> io::Result<()> {
        let renamed = segment::is_spare(file.name());
        if !renamed && self.names.len() >= self.most {
            match dir.remove(file.name()) {
                // It was removed the last time, and only that could not be made durable.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
            return dir.sync();
        }
        if !renamed {
            dir.rename(file, &segment::spare_name(file.name()))?;
        }
        dir.sync()?;
        self.names.push(file.name().to_owned());
        Ok(())
    }

    /// Gives the space of all spares back to the file system. True if there was any.
    pub fn give_back(&mut self, dir: &LogDir) -> io::Result<bool> {
        let any = !self.names.is_empty();
        while let Some(name) = self.names.pop() {
            dir.remove(&name)?;
        }
        if any {
            dir.sync()?;
        }
        Ok(any)
    }
}
