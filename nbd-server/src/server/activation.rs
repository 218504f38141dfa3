//! Sockets that a service manager has opened and handed over (sd_listen_fds(3)): file descriptors from 3 on, told by LISTEN_PID and
//! LISTEN_FDS. It knows nothing of what is served on them.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use rustix::io::fcntl_dupfd_cloexec;

/// The first descriptor that is handed over (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// Numbers of the sockets that are taken: each is one listener's.
static TAKEN: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

/// How many sockets were handed over to this very process.
pub fn inherited_sockets() -> usize {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    let mine = number("LISTEN_PID") == Some(std::process::id());
    number("LISTEN_FDS")
        .filter(|_| mine)
        .map_or(0, |count| count as usize)
}

/// Takes the socket of this number, counted from 0.
///
/// # Errors
/// `NotFound` if there is none, `AddrInUse` if it is taken already, or what the system says about it.
pub(super) fn take(number: usize) -> io::Result<OwnedFd> {
    if number >= inherited_sockets() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "no such socket was handed over; LISTEN_FDS and LISTEN_PID say how many there are",
        ));
    }
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if !taken.insert(number) {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    let fd = FIRST + RawFd::try_from(number).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the service manager has opened this descriptor for this process (LISTEN_PID is our own), it says, and nothing here closes
    // it; it is only borrowed to be duplicated, and a descriptor that is not open gives EBADF.
    let inherited = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(fcntl_dupfd_cloexec(inherited, 0)?)
}
