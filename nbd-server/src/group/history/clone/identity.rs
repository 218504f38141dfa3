//! What a clone is of: the file `CLONE` in its directory. A clone is never put over another log, another point in time or other disks.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::str::SplitWhitespace;

use epoch_log::Epoch;
use xxhash_rust::xxh3::xxh3_64;

use super::error::{CloneError, failed};

/// Name of the file.
pub const NAME: &str = "CLONE";
/// Its name before it is whole.
pub const NEW_NAME: &str = "CLONE.new";
/// First line of the file.
const TITLE: &str = "epochgate clone 1";
/// Longest file that is read, in bytes.
const MOST: u64 = 16 << 20;

/// What a clone is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its own id.
    pub id: [u8; 16],
    /// Id of the group's log.
    pub log: [u8; 16],
    /// The epoch that it was made at.
    pub epoch: Epoch,
    /// When that was cut, in milliseconds since 1970: two epochs of one number can be told apart.
    pub time_ms: u64,
    /// When the clone was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// The disks, in their order: name and size in bytes.
    pub disks: Vec<(String, u64)>,
}

impl Identity {
    /// Reads that of the clone in `dir`.
    ///
    /// # Errors
    /// [`CloneError::Io`], [`CloneError::Damaged`].
    pub fn read(dir: &Path) -> Result<Self, CloneError> {
        let path = dir.join(NAME);
        let read = || {
            let mut text = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(File::open(&path)?, MOST), &mut text)?;
            Ok(text)
        };
        let text = read().map_err(failed("read", &path))?;
        let text = String::from_utf8_lossy(&text);
        parse(&text).ok_or(CloneError::Damaged {
            path,
            offset: 0,
            what: "something that is no description of a clone, or was changed,",
        })
    }

    /// Writes it, durably and at once: it is there or not.
    ///
    /// # Errors
    /// [`CloneError::Io`].
    pub fn write(&self, dir: &Path) -> Result<(), CloneError> {
        let path = dir.join(NEW_NAME);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(self.text().as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&path, dir.join(NAME))?;
            sync_directory(dir)
        };
        write().map_err(failed("write", &path))
    }

    fn text(&self) -> String {
        let Self {
            id,
            log,
            epoch,
            time_ms,
            created_ms,
            disks,
        } = self;
        let (id, log) = (u128::from_be_bytes(*id), u128::from_be_bytes(*log));
        let mut text = format!(
            "{TITLE}\nid {id:032x}\nlog {log:032x}\nepoch {epoch}\ntime_ms {time_ms}\ncreated_ms {created_ms}\n"
        );
        for (name, size) in disks {
            text.push_str(&format!("disk {size} {name}\n"));
        }
        let sum = xxh3_64(text.as_bytes());
        text.push_str(&format!("sum {sum:016x}\n"));
        text
    }
}

/// Makes names in a directory durable.
pub fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn parse(text: &str) -> Option<Identity> {
    let (summed, sum) = text.split_at_checked(text.rfind("sum ")?)?;
    if sum != format!("sum {:016x}\n", xxh3_64(summed.as_bytes())) {
        return None;
    }
    let mut lines = summed.lines();
    if lines.next()? != TITLE {
        return None;
    }
    let mut after = |key: &str| {
        let mut words: SplitWhitespace<'_> = lines.next()?.split_whitespace();
        (words.next()? == key).then(|| words.next())?
    };
    let id = |word| Some(u128::from_str_radix(word, 16).ok()?.to_be_bytes());
    let identity = Identity {
        id: id(after("id")?)?,
        log: id(after("log")?)?,
        epoch: Epoch(after("epoch")?.parse().ok()?),
        time_ms: after("time_ms")?.parse().ok()?,
        created_ms: after("created_ms")?.parse().ok()?,
        disks: Vec::new(),
    };
    let disks = lines.map(|line| {
        let (size, name) = line.strip_prefix("disk ")?.split_once(' ')?;
        Some((name.to_owned(), size.parse().ok()?))
    });
    Some(Identity {
        disks: disks.collect::<Option<_>>()?,
        ..identity
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_description_comes_back_as_it_was_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity {
            id: [1; 16],
            log: [0xf2; 16],
            epoch: Epoch(77),
            time_ms: 1_795_342_500_000,
            created_ms: 1_795_342_500_001,
            disks: vec![("root".to_owned(), 1 << 20), ("data.1".to_owned(), 4097)],
        };
        identity.write(dir.path()).unwrap();
        assert_eq!(Identity::read(dir.path()).unwrap(), identity);
        let path = dir.path().join(NAME);
        let text = std::fs::read(&path).unwrap();
        for at in 0..text.len() {
            let mut damaged = text.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            Identity::read(dir.path()).unwrap_err();
            std::fs::write(&path, &text[..at]).unwrap();
            Identity::read(dir.path()).unwrap_err();
        }
    }
}
