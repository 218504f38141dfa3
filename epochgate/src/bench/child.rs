//! A server under test as a process: started with its output in a file, known by its pid, ended by it.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal};

use crate::lab::process::die_with_parent;

/// How long a server may take until it listens.
const START: Duration = Duration::from_secs(20);
/// How long a server may take to end: the gateway applies what it holds first.
const END: Duration = Duration::from_secs(60);

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    child: Option<Child>,
    pid: u32,
    log: PathBuf,
}

impl Server {
    /// Starts `command`, and waits until `socket` accepts connections.
    pub(crate) fn start(mut command: Command, socket: &Path, log: &Path) -> anyhow::Result<Self> {
        prepare(&mut command, log)?;
        die_with_parent(&mut command);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .spawn()
            .with_context(|| format!("{program} can't be started"))?;
        let mut server = Self {
            pid: child.id(),
            child: Some(child),
            log: log.to_owned(),
        };
        server.wait_for(socket, &program)?;
        Ok(server)
    }

    /// The same for a server that goes into the background by itself and writes its pid into `pid_file`.
    pub(crate) fn start_daemon(
        mut command: Command,
        socket: &Path,
        log: &Path,
        pid_file: &Path,
    ) -> anyhow::Result<Self> {
        prepare(&mut command, log)?;
        let program = command.get_program().to_string_lossy().into_owned();
        let status = command
            .status()
            .with_context(|| format!("{program} can't be started"))?;
        let deadline = Instant::now() + START;
        let pid = loop {
            let text = std::fs::read_to_string(pid_file).unwrap_or_default();
            if let Ok(pid) = text.trim().parse() {
                break pid;
            }
            if !status.success() || Instant::now() > deadline {
                bail!("{program} did not start ({status}): {}", tail(log));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut server = Self {
            child: None,
            pid,
            log: log.to_owned(),
        };
        server.wait_for(socket, &program)?;
        Ok(server)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// An error with the last words of a server that has ended by itself.
    pub(crate) fn alive(&mut self) -> anyhow::Result<()> {
        if self.ended() {
            bail!("the server has ended: {}", tail(&self.log));
        }
        Ok(())
    }

    fn wait_for(&mut self, socket: &Path, program: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            if self.ended() || Instant::now() > deadline {
                bail!(
                    "{program} does not listen on {}: {}",
                    socket.display(),
                    tail(&self.log)
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn ended(&mut self) -> bool {
        match &mut self.child {
            Some(child) => !matches!(child.try_wait(), Ok(None)),
            None => !Path::new(&format!("/proc/{}", self.pid)).exists(),
        }
    }

    /// SIGTERM, and SIGKILL for a server that does not end in time.
    pub(crate) fn stop(&mut self) {
        for (signal, patience) in [(Signal::TERM, END), (Signal::KILL, END)] {
            if self.ended() {
                return;
            }
            if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
                // It may have ended meanwhile.
                let _ = rustix::process::kill_process(pid, signal);
            }
            let deadline = Instant::now() + patience;
            while !self.ended() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn prepare(command: &mut Command, log: &Path) -> anyhow::Result<()> {
    let out = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("{} can't be written", log.display()))?;
    command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        // A Ctrl-C is for the bench, which then stops its servers in order.
        .process_group(0);
    Ok(())
}

/// The last lines of a log, in one.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    match lines.get(lines.len().saturating_sub(3)..) {
        Some(last) if !last.is_empty() => last.join(" / "),
        _ => "it said nothing".to_owned(),
    }
}
