//! Closing a run and beginning the next one. Knows the order in which that survives a crash.

use std::io::IoSlice;
use std::sync::Arc;

use super::capture::Writer;
use super::first::FirstMap;
use super::format::{
    Boundary, Entry, Fixed, PAGE, Piece, RunHeader, Step, Table, Trailer, encode_table,
};
use super::live::Active;
use super::run::{ClosedRun, RunFile, failed, file_name};
use super::{History, HistoryError};
use crate::disk::{LogDir, LogFile};
use crate::format::LogId;

/// A random seed.
pub fn salt(dir: &LogDir) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = dir.random();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// Begins run `number` at `from`, durably. Nothing is saved in it yet.
pub fn begin(
    dir: &LogDir,
    log_id: LogId,
    number: u64,
    from: Boundary,
) -> Result<Active, HistoryError> {
    let name = file_name(number);
    let path = dir.path().join(&name);
    let header = RunHeader {
        log_id,
        salt: salt(dir),
        tier: 0,
        from,
    };
    let write = || {
        let file = dir.create_file(&name)?;
        file.write_at(&mut [IoSlice::new(&header.encode())], 0)?;
        file.sync()?;
        dir.sync()?;
        Ok(file)
    };
    let file: LogFile = write().map_err(|source| failed("begin a run of", path.clone(), source))?;
    Ok(Active {
        file: Arc::new(RunFile {
            file,
            path,
            number,
            salt: header.salt,
            away: None,
        }),
        from,
        steps: Vec::new(),
        entries: Vec::new(),
        through: from.epoch,
    })
}

/// What closes a run: written behind its tables, it makes it one that does not grow any more.
#[derive(Debug)]
pub struct End {
    trailer: Trailer,
    at: u64,
}

impl End {
    /// Writes it, and makes it durable.
    pub fn write(&self, file: &LogFile, salt: u64) -> std::io::Result<()> {
        // It is looked for at the end: what a write that failed has left there goes.
        if file.len()? > self.at {
            file.truncate(self.at)?;
        }
        file.write_at(&mut [IoSlice::new(&self.trailer.encode(salt))], self.at)?;
        file.sync()
    }
}

/// Writes the tables of a run from byte `at` on, and makes the file durable: then it can be closed.
pub fn write_tables(
    file: &LogFile,
    salt: u64,
    at: u64,
    steps: &[Step],
    entries: &[Entry],
    index: &[Piece],
    to: Boundary,
) -> std::io::Result<End> {
    let mut at = at;
    let (steps, steps_table) = table(steps, salt, &mut at);
    let (entries, entries_table) = table(entries, salt, &mut at);
    let (index, index_table) = table(index, salt, &mut at);
    let trailer = Trailer {
        to,
        steps: steps_table,
        entries: entries_table,
        index: index_table,
    };
    let mut parts = [&steps, &entries, &index].map(|bytes| IoSlice::new(bytes));
    file.write_at(&mut parts, steps_table.offset)?;
    // The trailer vouches for the tables.
    file.sync()?;
    Ok(End { trailer, at })
}

/// The bytes of a table that begins at `at`, which moves on behind it.
fn table<T: Fixed>(records: &[T], salt: u64, at: &mut u64) -> (Vec<u8>, Table) {
    let offset = *at;
    let bytes = encode_table(records, salt, offset);
    *at += bytes.len() as u64;
    let count = records.len() as u64;
    (bytes, Table { offset, count })
}

impl History {
    /// Closes the run that grows and begins the next one. After an error it can be tried again; nothing is lost. Where that error came after the
    /// run was closed, or may have been, it must be: until then nothing else is saved.
    pub(super) fn roll(&self, writer: &mut Writer) -> Result<(), HistoryError> {
        let live = self.live();
        let active = &live.active;
        let mut steps = active.steps.clone();
        let mut to = active.last();
        if !active.is_settled() {
            let from_until = to.epoch;
            to = Boundary {
                seq: to.seq + 1,
                kept: false,
                ..to
            };
            let entries_end = u32::try_from(active.entries.len()).unwrap_or(u32::MAX);
            steps.push(Step {
                to,
                from_until,
                entries_end,
            });
        }
        let index = index(&active.entries);
        let file = Arc::clone(&active.file);
        let from = active.from;
        let through = active.through;
        let end = write_tables(
            &file.file,
            file.salt,
            writer.end,
            &steps,
            &active.entries,
            &index,
            to,
        )
        .map_err(|source| self.error("close a run of", source))?;
        drop(live);
        writer.closing = true;
        end.write(&file.file, file.salt)
            .map_err(|source| self.error("close a run of", source))?;
        let header = RunHeader {
            log_id: self.log_id(),
            salt: file.salt,
            tier: 0,
            from,
        };
        let closed = ClosedRun::of(&file, &header)?
            .ok_or_else(|| file.damaged(writer.end, "what was just written is not there"))?;
        let mut active = begin(self.dir(), self.log_id(), writer.next_number, to)?;
        active.through = through;
        writer.next_number += 1;
        writer.closing = false;
        writer.end = PAGE;
        writer.sealed = PAGE;
        writer.previous = active.file.salt;
        writer.covered.clear();
        let mut live = self.change();
        live.version += 1;
        live.runs.push(Arc::new(closed));
        live.active = active;
        Ok(())
    }
}

/// The index of a run with these entries.
pub fn index(entries: &[Entry]) -> Vec<Piece> {
    let mut first = FirstMap::default();
    for (number, entry) in (0_u32..).zip(entries) {
        first.fill(entry.disk, entry.start, entry.end(), number, |_, _| {});
    }
    first.pieces().collect()
}
