//! A running part of a site: its events are collected from stdout, its stderr goes to a file, and it ends with the test.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::die_with_parent::die_with_parent;
use crate::paths;
use crate::waiting::{PATIENCE, wait_until};

#[derive(Debug, Default)]
struct Heard {
    events: Vec<Value>,
    at_end: bool,
}

/// A running part of a site.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    heard: Arc<(Mutex<Heard>, Condvar)>,
    reader: Option<JoinHandle<()>>,
    /// Events up to here have been looked at.
    seen: usize,
}

impl Process {
    /// Starts the binary under test. Its stderr is appended to `{name}.log` in `dir`.
    pub fn epochgate<S: AsRef<OsStr>>(
        name: &str,
        dir: &Path,
        args: impl IntoIterator<Item = S>,
        env: &[(&str, &str)],
    ) -> Self {
        let mut command = Command::new(paths::epochgate());
        command.args(args).envs(env.iter().copied());
        Self::start(name, dir, command)
    }

    /// The same for any command.
    pub fn start(name: &str, dir: &Path, mut command: Command) -> Self {
        let log = dir.join(format!("{name}.log"));
        let stderr = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("a log file can be made");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr);
        die_with_parent(&mut command);
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!(
                "{} can't be started: {error}",
                command.get_program().display()
            )
        });
        let heard = Arc::new((Mutex::new(Heard::default()), Condvar::new()));
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let for_reader = Arc::clone(&heard);
        let reader = std::thread::spawn(move || {
            let (heard, bell) = &*for_reader;
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Ok(event) = serde_json::from_str(&line) {
                    heard.lock().unwrap().events.push(event);
                    bell.notify_all();
                }
            }
            heard.lock().unwrap().at_end = true;
            bell.notify_all();
        });
        Self {
            name: name.to_owned(),
            child,
            log,
            heard,
            reader: Some(reader),
            seen: 0,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the next event with one of these names, and returns it. Panics if the process ends without one.
    #[track_caller]
    pub fn event(&mut self, names: &[&str]) -> Value {
        self.event_where(&names.join(" or "), |event| {
            names.iter().any(|name| event["event"] == *name)
        })
    }

    /// Waits for the next event that is wanted.
    #[track_caller]
    pub fn event_where(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let (heard, bell) = &*self.heard;
        let mut heard = heard.lock().unwrap();
        loop {
            while let Some(event) = heard.events.get(self.seen) {
                self.seen += 1;
                if wanted(event) {
                    return event.clone();
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if heard.at_end || left.is_zero() {
                let last: Vec<Value> = heard.events.iter().rev().take(3).cloned().collect();
                let how = if heard.at_end { "ended" } else { "goes on" };
                // The reader must not find the lock poisoned.
                drop(heard);
                panic!(
                    "{} {how} without the event {what}; last events: {last:#?}\nlog:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            heard = bell.wait_timeout(heard, left).unwrap().0;
        }
    }

    /// All events so far.
    pub fn events(&self) -> Vec<Value> {
        self.heard.0.lock().unwrap().events.clone()
    }

    /// The last event so far.
    pub fn last_event(&self) -> Value {
        self.events().pop().unwrap_or_default()
    }

    /// The epoch of the last event of this name so far.
    pub fn last_epoch(&self, name: &str) -> Option<u64> {
        let events = self.events();
        let last = events.iter().rev().find(|event| event["event"] == name)?;
        last["epoch"].as_u64()
    }

    /// Whether it has ended by itself.
    pub fn ended(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("a child can be waited for")
            .is_some()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        signal_pid(self.pid(), signal);
    }

    /// SIGKILL, as when its host dies. Returns after it is gone and its last events are read.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.wait();
    }

    /// Waits until it has ended by itself and its last events are read. Panics if it does not end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let log = &self.log;
        let status = wait_until(
            &format!("{} to end", self.name),
            || child.try_wait().expect("a child can be waited for"),
            || tail(log),
        );
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader of events does not panic");
        }
        status
    }

    /// SIGTERM; asserts that it ends by itself, with exit code 0.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert!(
            status.success(),
            "{} ended with {status} after SIGTERM:\n{}",
            self.name,
            self.log_tail()
        );
    }

    /// Waits until it has killed itself at a failpoint.
    #[track_caller]
    pub fn wait_for_crash(&mut self) {
        let status = self.wait();
        assert_eq!(
            status.signal(),
            Some(Signal::KILL.as_raw()),
            "{} ended with {status} instead of crashing:\n{}",
            self.name,
            self.log_tail()
        );
    }

    /// All of its stderr.
    pub fn log(&self) -> String {
        read(&self.log)
    }

    /// The end of its stderr.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "---- {} (pid {}):\n{}",
                self.name,
                self.pid(),
                self.log_tail()
            );
        }
        if !self.ended() {
            // Frozen ones would not hear anything else.
            self.signal(Signal::CONT);
            self.signal(Signal::TERM);
            let deadline = Instant::now() + std::time::Duration::from_secs(5);
            while !self.ended() && Instant::now() < deadline {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process that is no child of the test, such as a QEMU. One that is gone is left alone.
pub fn signal_pid(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether a process runs; one that ended and was not yet waited for does not.
pub fn is_alive(pid: u32) -> bool {
    !matches!(state(pid), None | Some('Z' | 'X'))
}

/// Whether a process was stopped by SIGSTOP.
pub fn is_stopped(pid: u32) -> bool {
    state(pid) == Some('T')
}

/// Its letter in /proc (man 5 proc_pid_stat); none if there is no such process.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

fn read(log: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
}

fn tail(log: &Path) -> String {
    let text = read(log);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
