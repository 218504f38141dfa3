//! What lies in a directory, to assert that something changed nothing there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// All files below `dir` with their contents' checksums; sockets and logs of the tests' own processes are left out.
pub fn of(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut files = BTreeMap::new();
    add(dir, &mut files);
    files
}

fn add(dir: &Path, files: &mut BTreeMap<PathBuf, u64>) {
    for entry in std::fs::read_dir(dir).expect("a directory can be read") {
        let entry = entry.expect("a directory can be read");
        let (path, kind) = (entry.path(), entry.file_type().expect("a file has a type"));
        if kind.is_dir() {
            files.insert(path.clone(), 0);
            add(&path, files);
        } else if kind.is_file()
            && path.extension().is_none_or(|ext| ext != "log")
            // Carries the id of the process that has the log open.
            && path.file_name().is_none_or(|name| name != "LOCK")
        {
            let bytes = std::fs::read(&path).expect("a file can be read");
            files.insert(path, xxhash_rust::xxh3::xxh3_64(&bytes));
        }
    }
}
