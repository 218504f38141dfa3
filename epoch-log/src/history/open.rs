//! Opening a history: which runs belong together, where the run that grows ends, and whether all of that fits the log.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, RwLock};

use super::batch::{BATCH_HEADER_LEN, Batch, BatchHeader, is_batch};
use super::capture::{Writer, covered_by};
use super::format::{Boundary, PAGE, PAGE_LEN, RunHeader, Seal, Step};
use super::live::{Active, Live};
use super::run::{ClosedRun, RunFile, failed, file_name, number_of};
use super::{Anchor, History, HistoryError, Options, merge, pins, roll, undone};
use crate::Epoch;
use crate::disk::LogDir;
use crate::format::LogId;
use crate::storage::Storage;

/// What opening a history found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// There was none; it begins now.
    pub created: bool,
    /// What was lost to damage, for people. What is left begins behind it.
    pub lost: Vec<String>,
}

/// The files of a history, sorted out.
struct Found {
    runs: Vec<Arc<ClosedRun>>,
    active: Option<(Arc<RunFile>, RunHeader)>,
    next_number: u64,
    superfluous: Vec<u64>,
    lost: Vec<String>,
}

impl History {
    /// Opens the history in `storage` that belongs to the log at `anchor`, or begins one. The log was opened before, and nothing of it was
    /// applied since.
    ///
    /// `now_ms`: milliseconds since 1970.
    ///
    /// # Errors
    /// [`HistoryError::Log`] if the directory is in use or the history is that of another log or time; [`HistoryError::Io`],
    /// [`HistoryError::Full`], [`HistoryError::Damaged`] for the pins.
    pub fn open(
        storage: Arc<dyn Storage>,
        anchor: Anchor,
        options: Options,
        now_ms: u64,
    ) -> Result<(Arc<Self>, Opened), HistoryError> {
        let Anchor {
            log_id,
            applied,
            committed,
        } = anchor;
        let path = storage.path().to_owned();
        storage
            .prepare()
            .map_err(|e| failed("create", path.clone(), e))?;
        let lock = storage.lock()?;
        let dir = LogDir::on(Arc::clone(&storage));
        let mut found = sort_out(&dir, log_id)?;
        let pins = pins::load(&dir)?;
        let mut opened = Opened::default();
        let (active, end) = match found.active.take() {
            Some((file, header)) => {
                let (active, end) = scan(&file, &header)?;
                (Some(active), end)
            }
            None => (None, None),
        };
        if active.as_ref().is_some_and(|_| end.is_none()) {
            found.lost.push(format!(
                "{} is damaged in the middle: all that was kept is gone",
                active.as_ref().map_or_else(String::new, |active| active
                    .file
                    .path
                    .display()
                    .to_string())
            ));
            found
                .superfluous
                .extend(found.runs.iter().map(|run| run.file.number));
            found
                .superfluous
                .extend(active.as_ref().map(|active| active.file.number));
            found.runs.clear();
        }
        let grows = active.zip(end);
        let (active, writer) = match grows {
            Some((active, (end, previous))) => {
                let writer = Writer {
                    end,
                    sealed: 0,
                    previous,
                    covered: covered_by(&active),
                    next_number: found.next_number,
                    closing: false,
                    until: Epoch(0),
                };
                (active, writer)
            }
            None => {
                if let Some(last) = found.runs.last() {
                    make_durable(&last.file)?;
                }
                let from = found.runs.last().map_or(
                    Boundary {
                        // Above all that was lost: no pin may come to stand for another point.
                        seq: pins.iter().map(|pin| pin.seq).max().unwrap_or(0) + 1,
                        epoch: applied,
                        time_ms: now_ms,
                        kept: true,
                    },
                    |run| run.to(),
                );
                opened.created = found.runs.is_empty() && found.lost.is_empty();
                let active = roll::begin(&dir, log_id, found.next_number, from)?;
                let writer = Writer {
                    end: PAGE,
                    sealed: PAGE,
                    previous: active.file.salt,
                    covered: Default::default(),
                    next_number: found.next_number + 1,
                    closing: false,
                    until: Epoch(0),
                };
                (active, writer)
            }
        };
        // On its way back it may be one epoch ahead: that of the rewind itself.
        let known = match undone::load(&dir)? {
            Some(_) => committed.next(),
            None => committed,
        };
        if active.through > known || active.last().epoch > known {
            return Err(HistoryError::OtherTime {
                dir: path,
                through: active.through.max(active.last().epoch),
                committed,
            });
        }
        for number in found.superfluous {
            let name = file_name(number);
            dir.remove(&name)
                .map_err(|e| failed("remove", path.join(name), e))?;
        }
        let live = Live {
            version: 0,
            runs: found.runs,
            active,
            applied,
        };
        let oldest = live.oldest().seq;
        let (pins, gone): (Vec<_>, Vec<_>) = pins.into_iter().partition(|pin| pin.seq >= oldest);
        opened.lost = found.lost;
        opened.lost.extend(gone.iter().map(|pin| {
            format!(
                "the pin '{}' on epoch {} is gone with it",
                pin.name, pin.point.epoch
            )
        }));
        if !gone.is_empty() {
            pins::store(&dir, &pins)?;
        }
        let history = Self {
            storage,
            dir,
            log_id,
            options,
            writer: Mutex::new(writer),
            live: RwLock::new(live),
            held: Mutex::new(BTreeMap::new()),
            pins: Mutex::new(pins),
            maintenance: Mutex::new(()),
            _lock: lock,
        };
        Ok((Arc::new(history), opened))
    }
}

/// Which files there are, and which of them make up the history.
fn sort_out(dir: &LogDir, log_id: LogId) -> Result<Found, HistoryError> {
    let path = dir.path().to_owned();
    // Names, too, may be only in memory.
    dir.sync()
        .map_err(|e| failed("sync the names of", path.clone(), e))?;
    let names = dir.names().map_err(|e| failed("list", path.clone(), e))?;
    for name in names.iter().filter(|name| merge::is_unfinished(name)) {
        dir.remove(name)
            .map_err(|e| failed("remove", path.join(name), e))?;
    }
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
    numbers.sort_unstable();
    let newest = numbers.last().copied().unwrap_or(0);
    let mut found = Found {
        runs: Vec::new(),
        active: None,
        next_number: newest + 1,
        superfluous: Vec::new(),
        lost: Vec::new(),
    };
    let mut closed = Vec::new();
    let mut open = Vec::new();
    for number in numbers {
        let Some((file, header)) = RunFile::open(dir, number, true)? else {
            let name = file_name(number);
            let len = dir.file_len(&name);
            // One that was just being made has nothing else in it.
            if len.map_err(|e| failed("measure", path.join(&name), e))? > PAGE {
                found.lost.push(format!("{name} has no readable beginning"));
            }
            found.superfluous.push(number);
            continue;
        };
        if header.log_id != log_id {
            return Err(HistoryError::OtherLog { dir: path });
        }
        let file = Arc::new(file);
        match ClosedRun::of(&file, &header)? {
            Some(run) => closed.push(Arc::new(run)),
            None => open.push((file, header)),
        }
    }
    // A merged run comes before the runs that it stands for.
    closed.sort_by_key(|run| {
        (
            run.from.seq,
            Reverse(run.to().seq),
            Reverse(run.file.number),
        )
    });
    for run in closed {
        let end = found.runs.last().map(|last| last.to().seq);
        match end {
            Some(end) if run.to().seq <= end => found.superfluous.push(run.file.number),
            Some(end) if run.from.seq != end => {
                found.break_chain(run.from.epoch);
                found.runs.push(run);
            }
            _ => found.runs.push(run),
        }
    }
    open.sort_by_key(|(_, header)| Reverse(header.from.seq));
    for (file, header) in open {
        let end = found.runs.last().map(|last| last.to().seq);
        if end.is_some_and(|end| header.from.seq < end) || found.active.is_some() {
            let name = file_name(file.number);
            found
                .lost
                .push(format!("{name} does not belong to what is kept"));
            found.superfluous.push(file.number);
            continue;
        }
        if end.is_some_and(|end| header.from.seq != end) {
            found.break_chain(header.from.epoch);
        }
        found.active = Some((file, header));
    }
    if found.active.is_none() && !found.lost.is_empty() {
        // What can't be read may have been the newest run: images may have changed since the others.
        let end = found.runs.last().map_or(Epoch(0), |last| last.to().epoch);
        found.break_chain(end);
    }
    Ok(found)
}

impl Found {
    /// Something is missing before `epoch`: what lies before it can't be read any more.
    fn break_chain(&mut self, epoch: Epoch) {
        let runs = std::mem::take(&mut self.runs);
        self.superfluous
            .extend(runs.iter().map(|run| run.file.number));
        self.lost.push(format!(
            "a run before epoch {epoch} is missing: what was kept before it is gone"
        ));
    }
}

/// Where the next batch goes, and what the last one is called.
pub(super) type End = (u64, u64);

/// Reads the run that grows. No end: it is damaged in the middle.
fn scan(file: &Arc<RunFile>, header: &RunHeader) -> Result<(Active, Option<End>), HistoryError> {
    let mut active = Active {
        file: Arc::clone(file),
        from: header.from,
        steps: Vec::new(),
        entries: Vec::new(),
        through: header.from.epoch,
    };
    let (mut at, mut previous) = start_of(file);
    let len = file.len()?;
    while let Some((batch, batch_len, sum)) = read_batch(file, at, previous)? {
        let before = u32::try_from(active.entries.len()).unwrap_or(u32::MAX);
        active.steps.extend(batch.steps.iter().map(|step| Step {
            entries_end: step.entries_end.saturating_add(before),
            ..*step
        }));
        active.entries.extend(batch.entries);
        active.through = active.through.max(batch.through);
        at += batch_len;
        previous = sum;
    }
    let mut behind = at + PAGE;
    while behind < len {
        if was_written(file, behind)? {
            return Ok((active, None));
        }
        behind += PAGE;
    }
    if len > at {
        let cut = file.file.truncate(at);
        cut.map_err(|e| failed("cut the end of", file.path.clone(), e))?;
    }
    make_durable(file)?;
    Ok((active, Some((at, previous))))
}

/// A process that was killed may have left in the page cache what it had not synced. It was read, so images will change: it must last as long.
fn make_durable(file: &RunFile) -> Result<(), HistoryError> {
    let synced = file.file.sync();
    synced.map_err(|e| failed("sync", file.path.clone(), e))
}

/// Whether something that was durable once begins at `offset`: what lies before it was, too.
fn was_written(file: &RunFile, offset: u64) -> Result<bool, HistoryError> {
    let mut page = vec![0; PAGE_LEN];
    if file.fill(&mut page, offset)? && Seal::is_at(&page, file.salt, offset) {
        return Ok(true);
    }
    let head = head_at(file, offset)?;
    Ok(head.is_some_and(|(head, _)| is_batch(&head, file.salt, offset)))
}

/// Where the first batch of a run lies, and what it names as the one before.
pub(super) fn start_of(file: &RunFile) -> End {
    (PAGE, file.salt)
}

/// The head of a batch that may lie at `offset`.
fn head_at(file: &RunFile, offset: u64) -> Result<Option<(Vec<u8>, BatchHeader)>, HistoryError> {
    let mut fixed = vec![0; BATCH_HEADER_LEN];
    if !file.fill(&mut fixed, offset)? {
        return Ok(None);
    }
    let Some(header) = BatchHeader::decode(&fixed) else {
        return Ok(None);
    };
    let mut head = vec![0; header.head()];
    Ok(file.fill(&mut head, offset)?.then_some((head, header)))
}

/// The batch at `offset`, if it is whole: its length and its checksum with it.
pub(super) fn read_batch(
    file: &RunFile,
    offset: u64,
    previous: u64,
) -> Result<Option<(Batch, u64, u64)>, HistoryError> {
    let Some((head, header)) = head_at(file, offset)? else {
        return Ok(None);
    };
    let Some(batch) = Batch::decode(&head, file.salt, offset, previous) else {
        return Ok(None);
    };
    let mut payload = Vec::new();
    for entry in batch.entries.iter().filter(|entry| !entry.is_zero()) {
        match file.payload(entry, &mut payload) {
            Ok(()) => {}
            Err(HistoryError::Damaged { .. }) => return Ok(None),
            Err(other) => return Err(other),
        }
    }
    Ok(Some((batch, header.len(), header.sum())))
}

/// A page is never shorter than the head of the smallest batch.
const _: () = assert!(PAGE_LEN > BATCH_HEADER_LEN);
