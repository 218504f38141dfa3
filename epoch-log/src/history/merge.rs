//! Merging runs into one with fewer points: of each byte only the first of what was saved between two points that stay is kept.
//! Knows which boundaries stay; who decides that is `maintain.rs`.

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::sync::Arc;

use super::HistoryError;
use super::first::FirstMap;
use super::format::{Entry, PAGE, RunHeader, Step, payload_sum};
use super::roll::{index, salt, write_tables};
use super::run::{ClosedRun, RunFile, failed, file_name};
use crate::disk::{LogDir, LogFile};
use crate::format::LogId;

const NEW_SUFFIX: &str = ".new";
/// Written at once, in bytes.
const WRITE: usize = 1 << 20;

/// Whether a file is what an interrupted merge has left.
pub fn is_unfinished(name: &str) -> bool {
    name.ends_with(".run.new")
}

/// What a merge comes to.
#[derive(Debug)]
pub struct Merge<'a> {
    /// Consecutive runs, oldest first.
    pub runs: &'a [Arc<ClosedRun>],
    /// Boundaries inside of them that stay.
    pub stay: &'a BTreeSet<u64>,
    /// How thin it will be.
    pub tier: u32,
}

struct Output<'a> {
    file: &'a LogFile,
    salt: u64,
    at: u64,
    buffer: Vec<u8>,
}

impl Output<'_> {
    fn put(&mut self, payload: &[u8]) -> std::io::Result<u64> {
        let place = self.at + self.buffer.len() as u64;
        self.buffer.extend_from_slice(payload);
        if self.buffer.len() >= WRITE {
            self.flush()?;
        }
        Ok(place)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file
            .write_at(&mut [IoSlice::new(&self.buffer)], self.at)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Merge<'_> {
    /// Writes the merged run as number `number`. It is durable on return, under its name, and means what the runs mean.
    pub fn write(
        &self,
        dir: &LogDir,
        log_id: LogId,
        number: u64,
    ) -> Result<Option<ClosedRun>, HistoryError> {
        let (Some(first), Some(last)) = (self.runs.first(), self.runs.last()) else {
            return Ok(None);
        };
        let name = file_name(number);
        let path = dir.path().join(&name);
        let fail = |action| {
            let path = path.clone();
            move |source| failed(action, path, source)
        };
        let mut file = dir
            .create_file(&format!("{name}{NEW_SUFFIX}"))
            .map_err(fail("begin to merge"))?;
        let header = RunHeader {
            log_id,
            salt: salt(dir),
            tier: self.tier,
            from: first.from,
        };
        let written = file.write_at(&mut [IoSlice::new(&header.encode())], 0);
        written.map_err(fail("write"))?;
        let mut output = Output {
            file: &file,
            salt: header.salt,
            at: PAGE,
            buffer: Vec::new(),
        };
        let (steps, entries) = self.copy(&mut output)?;
        output.flush().map_err(fail("write"))?;
        let at = output.at.next_multiple_of(PAGE);
        write_tables(
            &file,
            header.salt,
            at,
            &steps,
            &entries,
            &index(&entries),
            last.to(),
        )
        .and_then(|end| end.write(&file, header.salt))
        .map_err(fail("write"))?;
        dir.rename(&mut file, &name).map_err(fail("name"))?;
        dir.sync().map_err(fail("sync"))?;
        let file = Arc::new(RunFile {
            file,
            path: path.clone(),
            number,
            salt: header.salt,
            away: None,
        });
        ClosedRun::of(&file, &header)
    }

    fn copy(&self, output: &mut Output<'_>) -> Result<(Vec<Step>, Vec<Entry>), HistoryError> {
        let end = self.runs.last().map_or(0, |run| run.to().seq);
        let (mut steps, mut entries) = (Vec::new(), Vec::new());
        let mut gathered: Vec<(usize, Entry)> = Vec::new();
        let mut first = FirstMap::default();
        let mut from_until = None;
        for (number, run) in self.runs.iter().enumerate() {
            let all = run.entries(0, run.entries_count())?;
            let mut begin = 0;
            for step in run.steps()? {
                from_until.get_or_insert(step.from_until);
                let until = step.entries_end as usize;
                for entry in all.get(begin..until).unwrap_or_default() {
                    let at = u32::try_from(gathered.len()).unwrap_or(u32::MAX);
                    first.fill(entry.disk, entry.start, entry.end(), at, |_, _| {});
                    gathered.push((number, *entry));
                }
                begin = until;
                if step.to.seq == end || self.stay.contains(&step.to.seq) {
                    self.put_step(&first, &gathered, output, &mut entries)?;
                    steps.push(Step {
                        to: step.to,
                        from_until: from_until.take().unwrap_or(step.from_until),
                        entries_end: u32::try_from(entries.len()).unwrap_or(u32::MAX),
                    });
                    first.clear();
                    gathered.clear();
                }
            }
        }
        Ok((steps, entries))
    }

    fn put_step(
        &self,
        first: &FirstMap,
        gathered: &[(usize, Entry)],
        output: &mut Output<'_>,
        entries: &mut Vec<Entry>,
    ) -> Result<(), HistoryError> {
        let mut payload = Vec::new();
        let mut loaded = None;
        for piece in first.pieces() {
            let Some((run, entry)) = gathered.get(piece.entry as usize) else {
                continue;
            };
            let mut new = Entry {
                disk: piece.disk,
                start: piece.start,
                len: piece.len,
                place: 0,
                sum: 0,
            };
            let file = self.runs.get(*run).map(|run| &run.file);
            if let Some(file) = file.filter(|_| !entry.is_zero()) {
                if loaded != Some(piece.entry) {
                    file.payload(entry, &mut payload)?;
                    loaded = Some(piece.entry);
                }
                let from = usize::try_from(piece.start - entry.start).unwrap_or(usize::MAX);
                let part = payload
                    .get(from..)
                    .and_then(|rest| rest.get(..piece.len as usize));
                let part = part.unwrap_or_default();
                new.sum = payload_sum(part, output.salt);
                new.place = output
                    .put(part)
                    .map_err(|source| failed("merge", file.path.clone(), source))?;
            }
            entries.push(new);
        }
        Ok(())
    }
}
