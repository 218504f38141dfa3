//! A clock of one's own for a part of the site, which can be stepped while it runs: libfaketime, preloaded, reads the offset
//! from a file. Only the time of day is moved; the clock that can't be set (CLOCK_MONOTONIC) can't be stepped either.

use std::path::{Path, PathBuf};

use super::Who;
use super::process::is_alive;

/// The library, if it is installed.
pub(crate) fn library() -> Result<PathBuf, String> {
    ["x86_64-linux-gnu", "aarch64-linux-gnu"]
        .iter()
        .map(|arch| PathBuf::from(format!("/usr/lib/{arch}/faketime/libfaketimeMT.so.1")))
        .find(|path| path.is_file())
        .ok_or_else(|| "needs libfaketime (Debian's package libfaketime)".to_owned())
}

/// What gives a part a clock that follows `file`.
pub(crate) fn environment(who: Who, library: &Path, file: &Path) -> Vec<(Who, String, String)> {
    [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]
    .into_iter()
    .map(|(key, value)| (who, key.to_owned(), value))
    .collect()
}

/// Removes what the library leaves in shared memory for each process that was killed with it: a segment and a semaphore with its number.
pub(crate) fn clean() {
    let Ok(entries) = std::fs::read_dir("/dev/shm") else {
        return;
    };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let number = path.file_name().and_then(|name| {
            let name = name.to_str()?;
            let number = name.strip_prefix("faketime_shm_");
            number.or_else(|| name.strip_prefix("sem.faketime_sem_"))
        });
        if let Some(pid) = number.and_then(|number| number.parse().ok())
            && !is_alive(pid)
        {
            // Another user's can't be removed, and need not.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Steps it by so many seconds from the machine's time.
pub(crate) fn step(file: &Path, seconds: i32) -> std::io::Result<()> {
    // Whole at once: it may be read at any moment.
    let new = file.with_extension("new");
    std::fs::write(&new, format!("{seconds:+}\n"))?;
    std::fs::rename(new, file)
}
