//! Saving what images hold, before they are changed. One at a time; nothing of a capture counts before it is durable.
//!
//! A capture is made of *saves*, each a range of a disk with what it holds now, and of *boundaries* between them. Within a step
//! the first save of a byte counts, so to save it again costs nothing and changes nothing: whoever was interrupted begins anew.

use std::io::{self, IoSlice};
use std::sync::MutexGuard;

use super::batch::{Batch, BatchHeader, MAX_BATCH_PAYLOAD, MAX_BATCH_RECORDS};
use super::covered::Covered;
use super::format::{Boundary, Entry, MAX_ENTRY_DATA, MAX_ENTRY_HOLE, PAGE, Step, payload_sum};
use super::live::Active;
use super::payload::Payload;
use super::run::{RunFile, failed};
use super::{History, HistoryError};
use crate::Epoch;
use crate::disk::means_full;

static ZEROS: [u8; 4096] = [0; 4096];

/// The end of the run that grows, for the one that writes it.
#[derive(Debug)]
pub struct Writer {
    /// Where the next batch goes.
    pub end: u64,
    /// Where the last seal stands.
    pub sealed: u64,
    /// Checksum of the last batch; that of the run's salt before the first.
    pub previous: u64,
    /// What is saved since the newest boundary.
    pub covered: Covered,
    /// What of the payload is to be written next; empty between captures.
    pub payload: Payload,
    /// Number of the next run.
    pub next_number: u64,
    /// The run has an end, or may have one: nothing more may be written to it.
    pub closing: bool,
    /// Epochs up to this one change nothing that the newest boundary does not have. Zero if nobody said so.
    pub until: Epoch,
}

/// Sets apart what the step that has not ended has saved.
pub fn covered_by(active: &Active) -> Covered {
    let mut covered = Covered::default();
    let mut new = Vec::new();
    for entry in active.entries.iter().skip(active.settled()) {
        covered.fill(entry.disk, entry.start, entry.end(), &mut new);
        new.clear();
    }
    covered
}

/// Something that is being saved. Dropped without [`Capture::finish`], it never was.
#[derive(Debug)]
pub struct Capture<'a> {
    history: &'a History,
    writer: MutexGuard<'a, Writer>,
    /// The file as it was when the capture began.
    file: std::sync::Arc<RunFile>,
    end: u64,
    previous: u64,
    /// The newest boundary, those of this capture included.
    last: Boundary,
    /// Epochs up to this one are what the newest boundary is.
    until: Epoch,
    /// All of the capture that was written.
    steps: Vec<Step>,
    entries: Vec<Entry>,
    /// What is to be written next. Places count from the payload's beginning, plus one.
    batch: Batch,
    /// Parts of what is being saved; here so that their memory is.
    parts: Vec<(u64, u64)>,
    finished: bool,
}

impl<'a> Capture<'a> {
    pub(super) fn begin(history: &'a History, writer: MutexGuard<'a, Writer>) -> Self {
        let live = history.live();
        let (file, last) = (std::sync::Arc::clone(&live.active.file), live.active.last());
        let until = live.applied.max(last.epoch).max(writer.until);
        drop(live);
        Self {
            history,
            end: writer.end,
            previous: writer.previous,
            writer,
            file,
            last,
            until,
            steps: Vec::new(),
            entries: Vec::new(),
            batch: Batch::default(),
            parts: Vec::new(),
            finished: false,
        }
    }

    /// The newest boundary.
    pub fn last(&self) -> Boundary {
        self.last
    }

    /// Saves what of the range is not saved in this step yet. `old` fills a buffer, which holds anything before, with what the disk holds from
    /// an offset on.
    ///
    /// # Errors
    /// [`HistoryError::Old`] if `old` fails, [`HistoryError::Full`], [`HistoryError::Io`].
    pub fn save(
        &mut self,
        disk: u16,
        start: u64,
        end: u64,
        mut old: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<(), HistoryError> {
        self.new_parts(disk, start, end, MAX_ENTRY_DATA, |capture, at, next| {
            let payload = &mut capture.writer.payload;
            let (begin, len) = (payload.len(), usize::try_from(next - at).unwrap_or(0));
            let held = payload.room(len);
            old(at, held).map_err(HistoryError::Old)?;
            let (mut place, mut sum) = (0, 0);
            if !is_zero(held) {
                (place, sum) = (begin as u64 + 1, payload_sum(held, capture.file.salt));
                payload.grow(len);
            }
            capture.push(disk, at, next, place, sum)
        })
    }

    /// The same for a range that is known to hold zeros.
    ///
    /// # Errors
    /// [`HistoryError::Full`], [`HistoryError::Io`].
    pub fn save_zeros(&mut self, disk: u16, start: u64, end: u64) -> Result<(), HistoryError> {
        self.new_parts(disk, start, end, MAX_ENTRY_HOLE, |capture, at, next| {
            capture.push(disk, at, next, 0, 0)
        })
    }

    /// Visits what of the range is not saved in this step yet, in parts of at most `most` bytes.
    fn new_parts(
        &mut self,
        disk: u16,
        start: u64,
        end: u64,
        most: u64,
        mut save: impl FnMut(&mut Self, u64, u64) -> Result<(), HistoryError>,
    ) -> Result<(), HistoryError> {
        let mut parts = std::mem::take(&mut self.parts);
        parts.clear();
        self.writer.covered.fill(disk, start, end, &mut parts);
        for (from, to) in parts.iter().copied() {
            let mut at = from;
            while at < to {
                let next = to.min(at + most);
                save(self, at, next)?;
                at = next;
            }
        }
        self.parts = parts;
        Ok(())
    }

    fn push(
        &mut self,
        disk: u16,
        start: u64,
        end: u64,
        place: u64,
        sum: u64,
    ) -> Result<(), HistoryError> {
        self.batch.entries.push(Entry {
            disk,
            start,
            len: u32::try_from(end - start).unwrap_or(u32::MAX),
            place,
            sum,
        });
        let much = self.writer.payload.len() as u64 >= MAX_BATCH_PAYLOAD;
        if much || self.batch.entries.len() >= MAX_BATCH_RECORDS {
            self.write(self.batch.through)?;
        }
        Ok(())
    }

    /// Ends the step: what is saved from now on was so at `epoch`. Without anything saved since the newest boundary, that one goes on.
    ///
    /// `time_ms`: when the epoch was cut, in milliseconds since 1970. `kept`: people can go back to it.
    ///
    /// # Errors
    /// [`HistoryError::Full`], [`HistoryError::Io`].
    pub fn boundary(&mut self, epoch: Epoch, time_ms: u64, kept: bool) -> Result<(), HistoryError> {
        if !self.writer.covered.is_empty() {
            let to = Boundary {
                seq: self.last.seq + 1,
                epoch,
                // Clocks may be set back; the order of the points is that of the epochs.
                time_ms: time_ms.max(self.last.time_ms),
                kept,
            };
            let entries_end = u32::try_from(self.batch.entries.len()).unwrap_or(u32::MAX);
            self.batch.steps.push(Step {
                to,
                from_until: self.until,
                entries_end,
            });
            self.last = to;
            self.writer.covered.clear();
            if self.batch.steps.len() >= MAX_BATCH_RECORDS {
                self.write(self.batch.through)?;
            }
        }
        self.until = epoch.max(self.last.epoch);
        Ok(())
    }

    /// Makes all of it durable and visible. From then on the images may be changed: up to epoch `through`.
    ///
    /// # Errors
    /// [`HistoryError::Full`], [`HistoryError::Io`]: nothing of it counts.
    pub fn finish(mut self, through: Epoch) -> Result<(), HistoryError> {
        let nothing = self.batch.entries.is_empty() && self.batch.steps.is_empty();
        if !nothing {
            self.write(through)?;
        }
        if self.entries.is_empty() && self.steps.is_empty() {
            self.writer.until = self.until;
            self.finished = true;
            return Ok(());
        }
        let synced = self.file.file.sync();
        synced.map_err(|source| self.history.error("sync", source))?;
        self.writer.end = self.end;
        self.writer.previous = self.previous;
        self.writer.until = self.until;
        self.finished = true;
        let full = {
            let mut live = self.history.change();
            let active = &mut live.active;
            let before = u32::try_from(active.entries.len()).unwrap_or(u32::MAX);
            active.entries.append(&mut self.entries);
            active.steps.extend(self.steps.drain(..).map(|step| Step {
                entries_end: step.entries_end + before,
                ..step
            }));
            active.through = through;
            self.end >= self.history.options().run_bytes
                || active.entries.len() >= self.history.options().run_entries
                || active.steps.len() >= self.history.options().run_entries
        };
        if full && let Err(error) = self.history.roll(&mut self.writer) {
            // What was saved is saved: the run grows until it can be closed.
            tracing::warn!(%error, "a run of the history can't be closed yet");
        }
        Ok(())
    }

    /// Writes what has gathered, not durable yet.
    fn write(&mut self, through: Epoch) -> Result<(), HistoryError> {
        let batch = &mut self.batch;
        let payload = self.writer.payload.filled();
        batch.through = through;
        let head = BatchHeader::head_len(batch.steps.len(), batch.entries.len()) as u64;
        let base = self.end + head;
        for entry in batch.entries.iter_mut().filter(|entry| !entry.is_zero()) {
            entry.place = entry.place - 1 + base;
        }
        let (bytes, sum) = batch.encode(
            self.file.salt,
            self.end,
            self.previous,
            payload.len() as u64,
        );
        let len = head + payload.len() as u64;
        let padding = usize::try_from(len.next_multiple_of(PAGE) - len).unwrap_or(0);
        let mut slices = [
            IoSlice::new(&bytes),
            IoSlice::new(payload),
            IoSlice::new(ZEROS.get(..padding).unwrap_or_default()),
        ];
        let written = self.file.file.write_at(&mut slices, self.end);
        written.map_err(|source| self.history.error("write", source))?;
        let before = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.steps.extend(batch.steps.drain(..).map(|step| Step {
            entries_end: step.entries_end + before,
            ..step
        }));
        self.entries.append(&mut batch.entries);
        batch.number += 1;
        self.writer.payload.clear();
        self.previous = sum;
        self.end += len + padding as u64;
        Ok(())
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.writer.payload.clear();
            self.writer.covered = covered_by(&self.history.live().active);
        }
    }
}

impl History {
    /// An error of the file system at the run that grows.
    pub(super) fn error(&self, action: &'static str, source: io::Error) -> HistoryError {
        let dir = self.dir().path().to_owned();
        if means_full(&source) {
            return HistoryError::Full { dir, source };
        }
        failed(action, dir, source)
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(ZEROS.len())
        .all(|chunk| ZEROS.get(..chunk.len()) == Some(chunk))
}
