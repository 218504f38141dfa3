//! A child process of the lab: its events are read line by line, its stderr goes to a file, and it ends with the lab.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::Context;
use coordinator::report::Stamped;
use rustix::process::{Pid, Signal};

use super::Who;
use super::namespaces::Place;

/// A running part of the site.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Process {
    /// Starts this binary with `args`. Events go to `events`, stderr to `stderr`.
    pub(crate) fn start(
        who: Who,
        args: &[&str],
        env: &[(String, String)],
        stderr: &Path,
        events: Sender<(Who, Stamped)>,
        place: &Place,
    ) -> anyhow::Result<Self> {
        let me = std::env::current_exe().context("this program's own path is not known")?;
        let log = File::options().create(true).append(true).open(stderr)?;
        let mut command = Command::new(me);
        command
            .args(args)
            .envs(env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            // A Ctrl-C is for the lab, which then stops its parts in order.
            .process_group(0);
        die_with_parent(&mut command);
        place.enter(&mut command);
        let mut child = command
            .spawn()
            .context("a part of the site can't be started")?;
        let stdout = child.stdout.take();
        let reader = stdout.map(|stdout| {
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    match serde_json::from_str(&line) {
                        Ok(event) => {
                            if events.send((who, event)).is_err() {
                                return;
                            }
                        }
                        Err(_) => tracing::debug!(?who, line, "not an event"),
                    }
                }
            })
        });
        Ok(Self { child, reader })
    }

    /// Whether it has ended by itself.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// SIGKILL, as when its host dies. Returns after it is gone and its last events are read.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }

    /// SIGTERM twice, as the lab's guest never powers off when it is asked to; then SIGKILL for one that does not listen.
    pub(crate) fn stop(&mut self) {
        for patience in [Duration::from_millis(200), Duration::from_secs(5)] {
            self.signal(Signal::TERM);
            let deadline = Instant::now() + patience;
            while self.ended().is_none() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.kill();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        signal_pid(self.child.id(), signal);
    }
}

/// Sends a signal to a process of the site that may be gone already.
pub(crate) fn signal_pid(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// The state letter of a process as in ps(1); None if it is gone.
pub(crate) fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

/// Whether a process runs or could; one that ended and was not waited for does not.
pub(crate) fn is_alive(pid: u32) -> bool {
    !matches!(state(pid), None | Some('Z' | 'X'))
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.stop();
        }
    }
}

/// A lab that is killed leaves nothing behind: its parts die with the thread that started them.
#[allow(unsafe_code)]
pub(crate) fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl(2) is async-signal-safe and touches nothing of the parent's memory.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            Ok(())
        });
    }
}
