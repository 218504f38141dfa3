//! The directory that the log under test lies in: one per thread, in memory where the system has that, and only what differs from the
//! run before is written again.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::Files;

pub struct Place {
    dir: tempfile::TempDir,
    /// The files as they were before they were altered; empty when it is not known what they are now.
    base: *const Files,
    /// Names that differ from it.
    differs: BTreeSet<String>,
}

/// A directory of our own, in memory where the system has that: what is tried here is no matter of disks.
pub fn scratch() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("epochgate-fuzz-");
    let in_memory = builder.tempdir_in("/dev/shm");
    in_memory
        .or_else(|_| builder.tempdir())
        .expect("a directory")
}

thread_local! {
    static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) };
}

impl Place {
    /// Acts on the place of this thread.
    pub fn with(act: impl FnOnce(&mut Place)) {
        PLACE.with_borrow_mut(|place| act(place.get_or_insert_with(Self::new)));
    }

    fn new() -> Self {
        Self {
            dir: scratch(),
            base: std::ptr::null(),
            differs: BTreeSet::new(),
        }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Whatever is there now, it is not what was put there.
    pub fn changed(&mut self) {
        self.base = std::ptr::null();
    }

    /// Puts `altered`, which was made of `base`, into the directory.
    pub fn set(&mut self, base: &'static Files, altered: &Files) {
        let differs: BTreeSet<String> = base
            .keys()
            .chain(altered.keys())
            .filter(|name| base.get(*name) != altered.get(*name))
            .cloned()
            .collect();
        if std::ptr::eq(self.base, base) {
            for name in self.differs.union(&differs) {
                self.put(name, altered.get(name));
            }
        } else {
            for entry in fs::read_dir(self.dir()).expect("the directory") {
                let name = entry.expect("a file").file_name();
                let name = name.to_str().expect("a plain name");
                // The log makes the others, and they hold nothing that is looked at.
                if name.contains(".seg") && !altered.contains_key(name) {
                    self.put(name, None);
                }
            }
            for (name, bytes) in altered {
                self.put(name, Some(bytes));
            }
        }
        self.base = base;
        self.differs = differs;
    }

    fn put(&self, name: &str, bytes: Option<&Vec<u8>>) {
        let path = self.dir().join(name);
        match bytes {
            Some(bytes) => fs::write(path, bytes).expect("room for a log"),
            None => match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
                _ => {}
            },
        }
    }
}
