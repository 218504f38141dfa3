//! QMP as a user of stock QEMU would speak it, one command at a time: for what our checkpoints are compared with.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::site::heed_interruption;

/// QEMU may take so long for anything: a migration of a large guest to a file, say.
const LIMIT: Duration = Duration::from_secs(120);
const TICK: Duration = Duration::from_millis(100);

/// Something that QEMU said by itself.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub name: String,
    pub data: Value,
    /// When, by QEMU, in microseconds since 1970.
    pub at_us: u64,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Qmp {
    socket: BufReader<UnixStream>,
    line: Vec<u8>,
    events: VecDeque<Event>,
}

impl Qmp {
    /// Connects to a QEMU that may still be starting.
    pub(crate) fn connect(path: &Path) -> anyhow::Result<Self> {
        let deadline = Instant::now() + LIMIT;
        let socket = loop {
            heed_interruption()?;
            match UnixStream::connect(path) {
                Ok(socket) => break socket,
                Err(error) if Instant::now() > deadline => {
                    return Err(error).context("QEMU does not listen for QMP");
                }
                Err(_) => std::thread::sleep(TICK / 5),
            }
        };
        socket.set_read_timeout(Some(TICK))?;
        let mut qmp = Self {
            socket: BufReader::new(socket),
            line: Vec::new(),
            events: VecDeque::new(),
        };
        while qmp.read()?.get("QMP").is_none() {}
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Carries out a command. An error is what QEMU says against it.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.socket.get_mut(), "{request}")?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                bail!("{}", error["desc"].as_str().unwrap_or("QEMU refused"));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            self.note(answer);
        }
    }

    /// Waits for an event; those before it are forgotten.
    pub(crate) fn wait(&mut self, wanted: impl Fn(&Event) -> bool) -> anyhow::Result<Event> {
        loop {
            while let Some(event) = self.events.pop_front() {
                if wanted(&event) {
                    return Ok(event);
                }
            }
            let said = self.read()?;
            self.note(said);
        }
    }

    /// Forgets the events so far.
    pub(crate) fn forget(&mut self) {
        self.events.clear();
    }

    fn note(&mut self, said: Value) {
        let number = |key: &str| said["timestamp"][key].as_u64().unwrap_or_default();
        if let Some(name) = said["event"].as_str() {
            self.events.push_back(Event {
                name: name.to_owned(),
                at_us: number("seconds") * 1_000_000 + number("microseconds"),
                data: said["data"].clone(),
            });
        }
    }

    /// The next object that QEMU sends.
    fn read(&mut self) -> anyhow::Result<Value> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.socket.read_until(b'\n', &mut self.line) {
                Ok(0) => bail!("QEMU ended"),
                Ok(_) if self.line.ends_with(b"\n") => {
                    let value = serde_json::from_slice(&self.line);
                    self.line.clear();
                    return value.context("QEMU speaks no JSON");
                }
                // A part of a line, then the end of what there is.
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error).context("QEMU can't be heard"),
            }
            heed_interruption()?;
            if Instant::now() > deadline {
                bail!("QEMU said nothing for {} s", LIMIT.as_secs());
            }
        }
    }
}
