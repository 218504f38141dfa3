//! Looks at a log without changing it: what it holds, and whether it is whole. Needs no lock; a log that is being written
//! may look unfinished at its end, but not damaged.

use std::{path::Path, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    Damage, DiskIdentity, Epoch, Generation, LogError, LogState,
    disk::LogDir,
    format::{Position, Record},
    recovery::EpochData,
    salvage::{self, Salvage},
    scan::{Scanned, scan},
    segment,
    storage::Storage,
};

/// How often reading starts again when a gateway frees a segment meanwhile.
const ATTEMPTS: usize = 8;

/// What a log holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Name of the group.
    pub group: String,
    /// Disks of the group.
    pub disks: Vec<DiskIdentity>,
    /// Newest state.
    pub state: LogState,
    /// Whether the log was closed cleanly.
    pub clean: bool,
    /// Segments, oldest first.
    pub segments: Vec<SegmentReport>,
    /// Committed epochs that wait to be applied, in order.
    pub unapplied: Vec<EpochReport>,
    /// Epochs with data but without a commit record, in order.
    pub uncommitted: Vec<EpochReport>,
    /// Changes of the group's state that the segments still hold, oldest first.
    pub history: Vec<HistoryEntry>,
}

/// One segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentReport {
    /// Number of the segment.
    pub number: u64,
    /// Length of the file in bytes.
    pub bytes: u64,
}

/// Data of one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochReport {
    /// Number of the epoch.
    pub epoch: Epoch,
    /// Data records.
    pub records: u64,
    /// Payload in bytes, without zeroed and trimmed ranges.
    pub bytes: u64,
}

/// One change of the group's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Segment that holds the record.
    pub segment: u64,
    /// Byte in the segment.
    pub offset: u64,
    /// What changed: `commit`, `generation`, `mode`, `applied`, `void`, `opened` or `clean-stop`.
    pub kind: String,
    /// Generation afterwards.
    pub generation: Generation,
    /// Last committed epoch afterwards.
    pub committed: Epoch,
    /// Last applied epoch afterwards.
    pub applied: Epoch,
    /// Owner afterwards.
    pub owner: Option<String>,
    /// Standby that holds memory afterwards.
    pub holder: Option<String>,
    /// Why the generation was raised; empty for other changes.
    pub reason: String,
}

/// Whether a log is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Every damaged place. Empty when all that is committed and not yet applied is there.
    pub damages: Vec<Damage>,
    /// Sectors that are damaged but have a second copy; opening the log writes them again.
    pub repairable: Vec<DamagedSector>,
    /// Bytes of records at the end that were never committed. Opening the log cuts them; they are not damage.
    pub uncommitted_bytes: u64,
    /// Of a damaged log, what is left of it. None also where no segment has a readable header.
    #[serde(default)]
    pub salvage: Option<Salvage>,
}

/// A sector that has a second copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedSector {
    /// Number of the segment.
    pub segment: u64,
    /// Byte in the segment.
    pub offset: u64,
}

impl Verdict {
    /// Whether nothing is damaged.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.damages.is_empty()
    }
}

/// Reads what the log in `dir` holds.
///
/// # Errors
/// [`LogError::NotALog`], [`LogError::Damaged`], [`LogError::Version`] or [`LogError::Io`].
pub fn inspect(dir: &Path) -> Result<Report, LogError> {
    look(&directory(dir)?)
}

/// The same on any storage.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_on(storage: Arc<dyn Storage>) -> Result<Report, LogError> {
    look(&LogDir::on(storage))
}

fn look(dir: &LogDir) -> Result<Report, LogError> {
    let mut history = Vec::new();
    let scanned = read(dir, &mut history)?;
    if let Some(first) = scanned.outcome.damages.first() {
        return Err(first.clone().into());
    }
    let kept = scanned.segments.get(&scanned.outcome.state_end.segment);
    let header = kept
        .map(|segment| &segment.header)
        .ok_or_else(|| not_a_log(dir.path()))?;
    let report = |(epoch, data): (&Epoch, &EpochData)| EpochReport {
        epoch: *epoch,
        records: data.chain.records,
        bytes: data.chain.bytes,
    };
    let segments = &scanned.segments;
    Ok(Report {
        group: header.group.clone(),
        disks: header.disks.clone(),
        state: scanned.outcome.state,
        clean: scanned.outcome.clean,
        segments: segments
            .iter()
            .map(|(number, it)| SegmentReport {
                number: *number,
                bytes: it.len,
            })
            .collect(),
        unapplied: scanned.outcome.index.committed.iter().map(report).collect(),
        uncommitted: scanned.outcome.index.pending.iter().map(report).collect(),
        history,
    })
}

/// Checks the log in `dir` and names every damage.
///
/// # Errors
/// [`LogError::NotALog`], [`LogError::Version`] or [`LogError::Io`]; damage is not an error but in the verdict.
pub fn verify(dir: &Path) -> Result<Verdict, LogError> {
    check(&directory(dir)?)
}

/// The same on any storage.
///
/// # Errors
/// As [`verify`].
pub fn verify_on(storage: Arc<dyn Storage>) -> Result<Verdict, LogError> {
    check(&LogDir::on(storage))
}

fn check(dir: &LogDir) -> Result<Verdict, LogError> {
    let scanned = read(dir, &mut Vec::new())?;
    let end = scanned.outcome.state_end;
    let uncommitted = scanned
        .segments
        .iter()
        .filter(|(number, _)| **number >= end.segment);
    let uncommitted_bytes = uncommitted
        .map(|(number, it)| {
            if *number == end.segment {
                it.used.saturating_sub(end.offset)
            } else {
                it.used
            }
        })
        .sum();
    let sector = |at: Position| DamagedSector {
        segment: at.segment,
        offset: at.offset,
    };
    let salvage = match scanned.outcome.damages.is_empty() {
        true => None,
        false => salvage::report(dir).ok(),
    };
    Ok(Verdict {
        salvage,
        damages: scanned.outcome.damages,
        repairable: scanned
            .repairs
            .iter()
            .map(|repair| sector(repair.at))
            .collect(),
        uncommitted_bytes,
    })
}

fn not_a_log(dir: &Path) -> LogError {
    LogError::NotALog {
        dir: dir.to_owned(),
    }
}

fn directory(dir: &Path) -> Result<LogDir, LogError> {
    if !dir.is_dir() {
        return Err(not_a_log(dir));
    }
    LogDir::open(dir).map_err(|source| LogError::io("open", dir, source))
}

fn read(dir: &LogDir, history: &mut Vec<HistoryEntry>) -> Result<Scanned, LogError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        history.clear();
        match read_once(dir, history) {
            Err(LogError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound && attempt < ATTEMPTS => {}
            other => return other,
        }
    }
}

fn read_once(dir: &LogDir, history: &mut Vec<HistoryEntry>) -> Result<Scanned, LogError> {
    let path = dir.path();
    let listing = segment::list(dir).map_err(|source| LogError::io("list", path, source))?;
    if listing.segments.is_empty() {
        return Err(not_a_log(path));
    }
    let scanned = scan(dir, &listing.segments, false, &mut |at, record| {
        if let Record::State(record) = record {
            history.push(HistoryEntry {
                segment: at.segment,
                offset: at.offset,
                kind: record.kind.name().to_owned(),
                generation: record.state.generation,
                committed: record.state.committed,
                applied: record.state.applied,
                owner: record.state.owner.clone(),
                holder: record
                    .state
                    .mode
                    .holder()
                    .map(|holder| holder.standby.clone()),
                reason: record.reason.clone(),
            });
        }
    })?;
    // A segment that was freed meanwhile may have been written over while it was read.
    let now = segment::list(dir).map_err(|source| LogError::io("list", path, source))?;
    match listing.segments.iter().find(|n| !now.segments.contains(n)) {
        None => Ok(scanned),
        Some(freed) => Err(LogError::io(
            "read",
            path.join(segment::file_name(*freed)),
            std::io::ErrorKind::NotFound.into(),
        )),
    }
}
