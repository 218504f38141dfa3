//! The planned move of the VM of a chain, asked for as an operator does.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use coordinator::report::{Report, Stamped, now_us};

use super::{Chain, LIMIT, files};
use crate::lab::lan::HOSTS;
use crate::lab::process::die_with_parent;
use crate::lab::site::{VM, heed_interruption};
use crate::role::commands::Answer;

impl Chain {
    /// Moves the VM to its standby, and waits until its old host is rid of it and it goes on at the new one. Returns when it was asked for,
    /// in microseconds since 1970, and what the standby said.
    pub(crate) fn switch_over(&mut self) -> anyhow::Result<(u64, Stamped)> {
        self.drain();
        let from = self.running.as_ref().context("no VM was started")?.host;
        let at = now_us();
        let epoch = match self.ask_to_move(from)? {
            Answer::Moved { epoch, .. } => epoch,
            Answer::Refused { reason } => bail!("the VM is not moved: {reason}"),
        };
        self.until_ended()?;
        let resumed = self.resumed()?;
        match &resumed.report {
            // Nothing at all is rolled back.
            Report::Resumed { epoch: there, .. } if *there == epoch => Ok((at, resumed)),
            other => bail!("the VM was moved at epoch {epoch}, and then: {other:?}"),
        }
    }

    /// `epochgate switchover`, on that host.
    fn ask_to_move(&self, from: usize) -> anyhow::Result<Answer> {
        let me = std::env::current_exe().context("this program's own path is not known")?;
        let mut command = Command::new(me);
        command
            .args(["switchover", VM, "--json", "--runtime-dir"])
            .arg(files::runtime_dir(self.path(), HOSTS[from].0))
            .stdin(Stdio::null());
        die_with_parent(&mut command);
        self.places[from].enter(&mut command);
        let asked = command.output().context("the VM can't be moved")?;
        serde_json::from_slice(&asked.stdout).with_context(|| {
            let said = String::from_utf8_lossy(&asked.stderr);
            format!("the VM is not moved: {}", said.trim())
        })
    }

    /// Waits until the source has ended by itself, as planned.
    fn until_ended(&mut self) -> anyhow::Result<()> {
        let mut role = self.running.take().context("no VM was started")?;
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            heed_interruption()?;
            if let Some(status) = role.process.ended() {
                break status;
            }
            if Instant::now() > deadline {
                bail!(
                    "{} goes on although its VM was moved:\n{}",
                    role.name(),
                    self.log_tail(role.name())
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        ensure!(
            status.success(),
            "{} ended with {status} after its VM was moved:\n{}",
            role.name(),
            self.log_tail(role.name())
        );
        // Its last words, to the end.
        for (_, event) in &role.events {
            self.checkpoints.note(&event.report);
        }
        Ok(())
    }
}
