//! Opening a history: which runs belong together, where the run that grows ends, and whether all of that fits the log.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, RwLock};

use super::batch::{BATCH_HEADER_LEN, Batch, BatchHeader, begins_capture};
use super::capture::{Writer, covered_by};
use super::cold::{self, Cold, Remains, State, Stub};
use super::format::{Boundary, PAGE, PAGE_LEN, RunHeader, Seal, Step};
use super::live::{Active, Live};
use super::run::{ClosedRun, RunFile, failed, file_name, number_of};
use super::{Anchor, History, HistoryError, Options, freeze, merge, pins, roll, undone};
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
    superfluous: Vec<Superfluous>,
    remains: Remains,
    lost: Vec<String>,
}

/// What is no part of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Superfluous {
    /// The file of a run.
    Run(u64),
    /// The stub of one that is cold.
    Stub(u64),
}

impl From<&Arc<ClosedRun>> for Superfluous {
    fn from(run: &Arc<ClosedRun>) -> Self {
        if run.is_cold() {
            Self::Stub(run.file.number)
        } else {
            Self::Run(run.file.number)
        }
    }
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
        let cold = Arc::new(Cold::new(log_id));
        let mut found = sort_out(&dir, log_id, &cold)?;
        let pins = pins::load(&dir)?;
        let frozen = freeze::load(&dir)?;
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
                .extend(found.runs.iter().map(Superfluous::from));
            found.superfluous.extend(
                active
                    .as_ref()
                    .map(|active| Superfluous::Run(active.file.number)),
            );
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
                    payload: Default::default(),
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
                    payload: Default::default(),
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
        let mut remains = found.remains;
        for superfluous in found.superfluous {
            match superfluous {
                Superfluous::Run(number) => {
                    let name = file_name(number);
                    dir.remove(&name)
                        .map_err(|e| failed("remove", path.join(name), e))?;
                }
                Superfluous::Stub(number) => {
                    if cold::let_go(&dir, number, State::Whole)? {
                        remains.gone.insert(number);
                    }
                }
            }
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
            frozen: Mutex::new(frozen),
            maintenance: Mutex::new(()),
            cold,
            cooling: Mutex::new(()),
            remains: Mutex::new(remains),
            _lock: lock,
        };
        Ok((Arc::new(history), opened))
    }
}

/// Which files there are, and which of them make up the history.
fn sort_out(dir: &LogDir, log_id: LogId, cold: &Arc<Cold>) -> Result<Found, HistoryError> {
    let path = dir.path().to_owned();
    // Names, too, may be only in memory.
    dir.sync()
        .map_err(|e| failed("sync the names of", path.clone(), e))?;
    let names = dir.names().map_err(|e| failed("list", path.clone(), e))?;
    for name in names.iter().filter(|name| merge::is_unfinished(name)) {
        dir.remove(name)
            .map_err(|e| failed("remove", path.join(name), e))?;
    }
    let numbers: BTreeSet<u64> = names.iter().filter_map(|name| number_of(name)).collect();
    let stubs: BTreeSet<_> = names
        .iter()
        .filter_map(|name| cold::number_of(name))
        .collect();
    let of_state = |state: State| {
        let fit = stubs.iter().filter(move |(_, other)| *other == state);
        fit.map(|(number, _)| *number)
    };
    let all = stubs.iter().map(|(number, _)| number).chain(&numbers);
    let mut found = Found {
        runs: Vec::new(),
        active: None,
        // Names of what is still to be removed are not given out again, either.
        next_number: all.max().map_or(1, |newest| newest + 1),
        superfluous: Vec::new(),
        remains: Remains {
            begun: of_state(State::Begun).collect(),
            gone: of_state(State::Gone).collect(),
        },
        lost: Vec::new(),
    };
    let mut closed = Vec::new();
    let mut open = Vec::new();
    let mut cold_ones = BTreeSet::new();
    for number in of_state(State::Whole) {
        match cold_run(dir, number, log_id, cold)? {
            Some(run) => {
                closed.push(Arc::new(run));
                cold_ones.insert(number);
            }
            None => {
                if !numbers.contains(&number) {
                    let name = format!("the stub of the cold run {number}");
                    found.lost.push(format!("{name} can't be read"));
                }
                found.superfluous.push(Superfluous::Stub(number));
            }
        }
    }
    for number in numbers {
        // Its stub got its name, so all of it is in the store.
        if cold_ones.contains(&number) {
            found.superfluous.push(Superfluous::Run(number));
            continue;
        }
        let Some((file, header)) = RunFile::open(dir, number, true)? else {
            let name = file_name(number);
            let len = dir.file_len(&name);
            // One that was just being made has nothing else in it.
            if len.map_err(|e| failed("measure", path.join(&name), e))? > PAGE {
                found.lost.push(format!("{name} has no readable beginning"));
            }
            found.superfluous.push(Superfluous::Run(number));
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
            Some(end) if run.to().seq <= end => {
                found.superfluous.push(Superfluous::from(&run));
            }
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
            found.superfluous.push(Superfluous::Run(file.number));
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

/// The cold run that a stub stands for. None: the stub is damaged.
fn cold_run(
    dir: &LogDir,
    number: u64,
    log_id: LogId,
    cold: &Arc<Cold>,
) -> Result<Option<ClosedRun>, HistoryError> {
    let Some(stub) = Stub::open(dir, number, State::Whole)? else {
        return Ok(None);
    };
    let header = stub.header;
    if header.log_id != log_id {
        let dir = dir.path().to_owned();
        return Err(HistoryError::OtherLog { dir });
    }
    ClosedRun::of(&Arc::new(RunFile::cold(dir, stub, cold)), &header)
}

impl Found {
    /// Something is missing before `epoch`: what lies before it can't be read any more.
    fn break_chain(&mut self, epoch: Epoch) {
        let runs = std::mem::take(&mut self.runs);
        self.superfluous.extend(runs.iter().map(Superfluous::from));
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

/// Whether something begins at `offset` before which all was durable once: a capture, or a seal. A later batch of a capture says nothing: the
/// power may have gone while the capture was written, and the disk does not keep the order.
fn was_written(file: &RunFile, offset: u64) -> Result<bool, HistoryError> {
    let mut page = vec![0; PAGE_LEN];
    if file.fill(&mut page, offset)? && Seal::is_at(&page, file.salt, offset) {
        return Ok(true);
    }
    let head = head_at(file, offset)?;
    Ok(head.is_some_and(|(head, _)| begins_capture(&head, file.salt, offset)))
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
