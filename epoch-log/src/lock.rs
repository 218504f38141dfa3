//! One process per log: the lock file. Knows nothing else of the log.

use std::{
    fs::{File, TryLockError},
    io::{Read, Seek, Write},
    path::Path,
};

use crate::LogError;

/// Name of the lock file.
const NAME: &str = "LOCK";

/// The lock of a log; the system lifts it when this is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the log in `dir` and leaves the id of this process in it.
    pub fn take(dir: &Path) -> Result<Self, LogError> {
        let path = dir.join(NAME);
        let fail = |action| {
            let path = path.clone();
            move |source| LogError::io(action, path, source)
        };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(fail("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let read = file.read_to_string(&mut pid);
                let pid = read.ok().and_then(|_| pid.trim().parse().ok());
                return Err(LogError::InUse {
                    dir: dir.to_owned(),
                    pid,
                });
            }
            Err(TryLockError::Error(source)) => return Err(fail("lock")(source)),
        }
        // The id only informs: on a full disk the lock holds without it.
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = written {
            tracing::debug!(%error, path = %path.display(), "can't leave the process id in the lock file");
        }
        Ok(Self { _file: file })
    }
}
