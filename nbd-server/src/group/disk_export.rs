//! One connection to one disk of a group, as the NBD half of the crate sees it. All it decides is when to wait; what is
//! allowed is behind [`Rights`] and the disk's gate.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::barriers::{FlushRule, Gate};
use super::budget::Fill;
use super::disk::{Attempt, Change, Disk, Rights};
use super::layout;
use super::overlay::{Clear, Span};
use super::shared::{Job, Shared};
use crate::export::{BlockExtent, Export, ExportInfo, HeldExtent, IoError};
use crate::metrics::Meter;

/// One attachment.
#[derive(Debug)]
pub struct DiskExport {
    shared: Arc<Shared>,
    disk: Arc<Disk>,
    rights: Arc<Rights>,
    entry: u64,
    info: ExportInfo,
}

/// How far a FLUSH came without waiting.
#[derive(Debug)]
pub enum Flush {
    /// To its end.
    Done,
    /// The group commits for it, and answers here.
    Commits(oneshot::Receiver<Result<(), IoError>>),
    /// To be tried again when something about the group has changed.
    Waits,
}

impl DiskExport {
    pub(super) fn new(
        shared: Arc<Shared>,
        disk: Arc<Disk>,
        rights: Arc<Rights>,
        entry: u64,
        info: ExportInfo,
    ) -> Self {
        Self {
            shared,
            disk,
            rights,
            entry,
            info,
        }
    }

    /// Writes if that needs no waiting.
    fn attempt(
        &self,
        offset: u64,
        change: &Change<'_>,
        may_block: bool,
    ) -> Result<Attempt, IoError> {
        let attempt = self.disk.write(&self.rights, offset, change, may_block)?;
        let held = match attempt {
            Attempt::Held(gate) => gate,
            // A pause in writing must not hide that memory is short: whoever waits says so too.
            Attempt::OverBudget(gate) => gate,
            Attempt::Through | Attempt::Closed | Attempt::WouldBlock => return Ok(attempt),
        };
        if self.shared.budget.fill() == Fill::Pressed {
            self.shared
                .press(held != Gate::Held(FlushRule::SelfCommits));
        }
        Ok(attempt)
    }

    fn change(&self, offset: u64, change: &Change<'_>, fua: bool) -> Result<(), IoError> {
        loop {
            let ticket = self.shared.bell.ticket();
            if self.change_now(offset, change)? {
                break;
            }
            self.wait(ticket)?;
        }
        if fua { self.flush() } else { Ok(()) }
    }

    /// Changes the disk, unless it has to wait for the group; then false, and the group knows.
    fn change_now(&self, offset: u64, change: &Change<'_>) -> Result<bool, IoError> {
        match self.attempt(offset, change, true)? {
            Attempt::Through | Attempt::Held(_) => return Ok(true),
            Attempt::Closed | Attempt::WouldBlock => self.shared.tell(Job::WriteWaits),
            Attempt::OverBudget(_) => {}
        }
        Ok(false)
    }

    /// What [`Export::write`] does before it waits: false if it has to, for something about the group to change. For those who have
    /// no thread that could wait.
    ///
    /// # Errors
    /// As for [`Export::write`].
    pub fn write_now(&self, offset: u64, data: &[u8]) -> Result<bool, IoError> {
        self.change_now(offset, &Change::Data(data))
    }

    /// The same for zeros, or for a trim.
    ///
    /// # Errors
    /// As for [`Export::write_zeroes`].
    pub fn clear_now(&self, offset: u64, len: u64, clear: Clear) -> Result<bool, IoError> {
        self.change_now(offset, &cleared(len, clear))
    }

    /// What [`Export::flush`] does before it waits.
    ///
    /// # Errors
    /// As for [`Export::flush`].
    pub fn flush_now(&self) -> Result<Flush, IoError> {
        match self.disk.flush_gate(&self.rights)? {
            None | Some(Gate::Held(FlushRule::Free)) => Ok(Flush::Done),
            Some(Gate::Through) => {
                self.disk.image.sync()?;
                Ok(Flush::Done)
            }
            Some(Gate::Held(FlushRule::SelfCommits)) => {
                let (flusher, done) = oneshot::channel();
                self.shared.tell(Job::Flush(flusher));
                Ok(Flush::Commits(done))
            }
            Some(Gate::Broken) => Err(IoError::Io),
            Some(Gate::Closed | Gate::Held(FlushRule::Waits)) => {
                self.shared.tell(Job::WriteWaits);
                Ok(Flush::Waits)
            }
        }
    }

    /// Changes the disk if that needs no waiting; false if it does.
    fn try_change(&self, offset: u64, change: &Change<'_>, fua: bool) -> Result<bool, IoError> {
        if fua {
            return Ok(false);
        }
        let attempt = self.attempt(offset, change, false)?;
        Ok(matches!(attempt, Attempt::Through | Attempt::Held(_)))
    }

    /// Waits until something about the group has changed.
    fn wait(&self, ticket: u64) -> Result<(), IoError> {
        if self.shared.is_stopping() {
            return Err(IoError::Shutdown);
        }
        self.shared.bell.wait_past(ticket);
        Ok(())
    }
}

impl Export for DiskExport {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    fn meter(&self) -> Option<Arc<Meter>> {
        Some(Arc::clone(&self.disk.meter))
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, IoError> {
        self.disk.try_read(&self.rights, offset, buf)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoError> {
        self.disk.read(&self.rights, offset, buf)
    }

    fn cached_in(&self, offset: u64, len: u64) -> Option<&File> {
        self.disk.cached_in(&self.rights, offset, len)
    }

    fn try_write(&self, offset: u64, data: &[u8], fua: bool) -> Result<bool, IoError> {
        self.try_change(offset, &Change::Data(data), fua)
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), IoError> {
        self.change(offset, &Change::Data(&data), fua)
    }

    fn flush(&self) -> Result<(), IoError> {
        loop {
            let ticket = self.shared.bell.ticket();
            match self.flush_now()? {
                Flush::Done => return Ok(()),
                Flush::Commits(done) => {
                    done.blocking_recv().unwrap_or(Err(IoError::Shutdown))?;
                    // Who has lost the group meanwhile may have lost what was to be flushed.
                    return self.disk.flush_gate(&self.rights).map(|_| ());
                }
                Flush::Waits => self.wait(ticket)?,
            }
        }
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
        self.change(offset, &cleared(len, Clear::Trim), fua)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        may_trim: bool,
        fast: bool,
        fua: bool,
    ) -> Result<(), IoError> {
        // In an epoch it is fast; an image may have to be written.
        if fast && self.disk.flush_gate(&self.rights)? == Some(Gate::Through) {
            return Err(IoError::NotSup);
        }
        let clear = if may_trim { Clear::Hole } else { Clear::Zero };
        self.change(offset, &cleared(len, clear), fua)
    }

    fn block_status(
        &self,
        offset: u64,
        len: u64,
        max_extents: usize,
    ) -> Result<Vec<BlockExtent>, IoError> {
        layout::allocation(&self.disk, &self.rights, span(offset, len), max_extents)
    }

    fn held_status(
        &self,
        offset: u64,
        len: u64,
        max_extents: usize,
    ) -> Result<Vec<HeldExtent>, IoError> {
        layout::held(&self.disk, &self.rights, span(offset, len), max_extents)
    }

    fn cache(&self, offset: u64, len: u64) -> Result<(), IoError> {
        Ok(self.disk.image.cache(offset, len)?)
    }
}

fn span(offset: u64, len: u64) -> Span {
    Span {
        start: offset,
        end: offset.saturating_add(len),
    }
}

fn cleared(len: u64, clear: Clear) -> Change<'static> {
    Change::Clear { len, clear }
}

impl Drop for DiskExport {
    fn drop(&mut self) {
        self.shared.core().entries.remove(&self.entry);
    }
}
