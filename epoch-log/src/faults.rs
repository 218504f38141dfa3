//! For tests: watches every change of a file, and fails one on demand.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
};

use crate::storage::StorageFile;

/// One change of a file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Create {
        name: String,
    },
    Write {
        name: String,
        offset: u64,
        bytes: Vec<u8>,
    },
    Sync {
        name: String,
    },
    Truncate {
        name: String,
        len: u64,
    },
    Rename {
        from: String,
        to: String,
    },
    Remove {
        name: String,
    },
    SyncDir,
}

#[derive(Debug, Default)]
struct Watch {
    ops: Vec<Op>,
    fail: Option<(usize, i32)>,
}

thread_local! {
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// Called before each change on this thread.
pub(crate) fn observe(op: impl FnOnce() -> Op) -> io::Result<()> {
    WATCH.with_borrow_mut(|watch| {
        let Some(watch) = watch else { return Ok(()) };
        let number = watch.ops.len();
        watch.ops.push(op());
        match watch.fail {
            Some((at, errno)) if at == number => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    })
}

/// Called before each write on this thread. One that fails writes its first half.
pub(crate) fn observe_write(
    file: &dyn StorageFile,
    name: &str,
    offset: u64,
    slices: &[IoSlice<'_>],
) -> io::Result<()> {
    let bytes: Vec<u8> = slices
        .iter()
        .flat_map(|slice| slice.iter().copied())
        .collect();
    let half = bytes[..bytes.len() / 2].to_vec();
    let observed = observe(|| Op::Write {
        name: name.to_owned(),
        offset,
        bytes,
    });
    if observed.is_err() {
        file.write_at(&mut [IoSlice::new(&half)], offset)?;
    }
    observed
}

/// Starts watching; `fail` names a change, counted from now, and the error it gets.
pub(crate) fn start(fail: Option<(usize, i32)>) {
    WATCH.set(Some(Watch {
        ops: Vec::new(),
        fail,
    }));
}

/// Stops watching and gives what was seen, the failed change included.
pub(crate) fn stop() -> Vec<Op> {
    WATCH.take().map(|watch| watch.ops).unwrap_or_default()
}

/// How many changes were seen so far.
pub(crate) fn count() -> usize {
    WATCH.with_borrow(|watch| watch.as_ref().map_or(0, |watch| watch.ops.len()))
}

thread_local! {
    static UNREADABLE: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

/// From now on the 4 KiB at `block` of every file can't be read on this thread; none with `None`.
pub(crate) fn make_unreadable(block: Option<u64>) {
    UNREADABLE.set(block);
}

/// Called before each read on this thread.
pub(crate) fn check_readable(offset: u64, len: usize) -> io::Result<()> {
    match UNREADABLE.get() {
        Some(block) if offset < block + 4096 && block < offset + len as u64 => {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
        _ => Ok(()),
    }
}
