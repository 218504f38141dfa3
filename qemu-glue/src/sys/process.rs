//! Starts child processes that die with this process. Knows no QEMU.
//!
//! `PR_SET_PDEATHSIG` is bound to the *thread* that forks: the signal comes when that thread ends. All children are
//! therefore forked by one thread that lives as long as the process.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{OnceLock, mpsc};

type Job = (Command, mpsc::Sender<io::Result<Child>>);

static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();

/// Starts `command` so that the kernel kills it when this process ends, however it ends. The child inherits `inherited`
/// under the same numbers; they are closed here.
pub(crate) fn spawn_bound(mut command: Command, inherited: Vec<OwnedFd>) -> io::Result<Child> {
    let parent = std::process::id();
    let prepare = move || {
        // SAFETY: prctl with PR_SET_PDEATHSIG takes one integer and touches no memory of ours.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // The parent may have ended before prctl; then no signal would ever come.
        if std::os::unix::process::parent_id() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        for fd in &inherited {
            // SAFETY: fcntl with F_SETFD takes integers; the descriptor is open because `inherited` owns it.
            if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec and only makes async-signal-safe system calls; building an
    // io::Error from a number does not allocate.
    unsafe { command.pre_exec(prepare) };
    let (answer, result) = mpsc::channel();
    let gone = || io::Error::other("the thread that starts processes is gone");
    spawner().send((command, answer)).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}

fn spawner() -> &'static mpsc::Sender<Job> {
    SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in jobs {
                // Whoever asked may be gone; the child must not stay then.
                if let Err(mpsc::SendError(Ok(mut orphan))) = answer.send(command.spawn()) {
                    let _ = orphan.kill();
                    let _ = orphan.wait();
                }
            }
        });
        sender
    })
}
