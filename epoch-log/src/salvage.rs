//! What a damaged log still holds: up to which epoch everything is there, what is lost beyond it, and what the images have already.
//! Changes nothing; `rollback.rs` acts on it.
//!
//! Recovery (`recovery.rs`) refuses a log as a whole as soon as anything that counts is damaged. Here each record is taken for itself. An
//! epoch is *whole* if its commit record is there, its chain matches the data records before it, and every payload has its checksum. What
//! the images hold is what the highest *applied* anywhere in the log says: of it, nothing can be taken back.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    Damage, DamageKind, DiskIdentity, Epoch, ExtentKind, Generation, LogError, LogState,
    disk::LogDir,
    format::{DataRecord, LogId, Position, Record, STATE_RECORD_BYTES, StateKind, StateRecord},
    recovery::{EpochData, RecordPlace},
    replay::read_record,
    scan::{Scanned, scan},
    segment,
};

/// What a damaged log still holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Salvage {
    /// Name of the group.
    pub group: String,
    /// The newest epoch that anything readable calls committed.
    pub committed: Epoch,
    /// The newest epoch that the images durably hold. The log can't be taken back behind it.
    pub applied: Epoch,
    /// The highest generation that anything readable speaks of.
    pub generation: Generation,
    /// Up to this epoch all that the images do not hold is there: the log can be recovered to it.
    pub last: Epoch,
    /// The damage may also hide the commit record of an epoch after `committed`.
    pub may_hide_more: bool,
    /// Committed epochs that are not in the images, in order, as far as anything of them is there.
    pub epochs: Vec<EpochLeft>,
    /// When `last` was still the newest epoch, at the latest, in seconds since 1970: from the times of the segment files. None where they
    /// can't tell.
    pub last_known_at: Option<u64>,
    /// When the newest segment file was last written, in seconds since 1970.
    pub written_at: Option<u64>,
}

/// What is left of one committed epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochLeft {
    /// Its number.
    pub epoch: Epoch,
    /// All of it is there and has its checksums.
    pub whole: bool,
    /// What its readable records say that it changes.
    pub disks: Vec<DiskChange>,
}

/// What an epoch changes on one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskChange {
    /// Name of the disk.
    pub disk: String,
    /// Bytes that are written.
    pub written: u64,
    /// Bytes that are zeroed or trimmed.
    pub cleared: u64,
}

impl Salvage {
    /// How many committed epochs are lost if the log is recovered to `to`.
    #[must_use]
    pub const fn lost(&self, to: Epoch) -> u64 {
        self.committed.0.saturating_sub(to.0)
    }
}

/// A salvage with all that is needed to act on it.
pub(crate) struct Gathered {
    pub salvage: Salvage,
    pub damages: Vec<Damage>,
    pub scanned: Scanned,
    /// Data of the whole epochs that the images don't hold.
    pub whole: BTreeMap<Epoch, EpochData>,
    /// All segment files, readable or not.
    pub numbers: Vec<u64>,
    pub log_id: LogId,
    pub disks: Vec<DiskIdentity>,
    /// The highest number of a state record that anything speaks of.
    pub sequence: u64,
    /// State records that may be missing: each of them may have raised the generation.
    pub missing: u64,
}

/// Reads all that is left of the log in `dir`.
///
/// # Errors
/// [`LogError::NotALog`] also where no segment has a readable header, [`LogError::Version`] or [`LogError::Io`].
pub(crate) fn gather(dir: &LogDir) -> Result<Gathered, LogError> {
    let path = dir.path().to_owned();
    let not_a_log = || LogError::NotALog { dir: path.clone() };
    let listing = segment::list(dir).map_err(|source| LogError::io("list", &path, source))?;
    if listing.segments.is_empty() {
        return Err(not_a_log());
    }
    let mut fold = Fold::default();
    let mut scanned = scan(dir, &listing.segments, false, &mut |at, record| {
        fold.record(at, record);
    })?;
    let damages = std::mem::take(&mut scanned.outcome.damages);
    for segment in scanned.segments.values() {
        fold.state(&segment.header.state, segment.header.sequence);
    }
    let header = scanned.segments.values().next_back().map(|s| &s.header);
    let header = header.ok_or_else(not_a_log)?;
    let first = scanned.segments.values().next().map(|s| s.header.sequence);
    let between = fold.sequence.saturating_sub(first.unwrap_or_default());
    let hidden = hidden(dir, &listing.segments, &scanned, &damages);
    let (log_id, group, disks) = (
        header.key.log_id,
        header.group.clone(),
        header.disks.clone(),
    );
    let mut gathered = Gathered {
        salvage: Salvage {
            group,
            committed: fold.committed,
            applied: fold.applied,
            generation: fold.generation,
            last: fold.applied,
            may_hide_more: damages.iter().any(may_hide_more),
            epochs: Vec::new(),
            last_known_at: None,
            written_at: None,
        },
        damages,
        scanned,
        whole: BTreeMap::new(),
        numbers: listing.segments,
        log_id,
        disks,
        sequence: fold.sequence,
        missing: between
            .saturating_sub(fold.state_records)
            .saturating_add(hidden),
    };
    gathered.epochs(dir, fold.epochs)?;
    gathered.times(dir);
    Ok(gathered)
}

/// Reads all that is left of the log in `dir`, as a report.
pub(crate) fn report(dir: &LogDir) -> Result<Salvage, LogError> {
    gather(dir).map(|gathered| gathered.salvage)
}

/// Whether a commit record may have been in the place of a damage.
const fn may_hide_more(damage: &Damage) -> bool {
    match damage.what {
        DamageKind::DataMissing | DamageKind::DataChecksum => false,
        DamageKind::SegmentHeader
        | DamageKind::SegmentMissing
        | DamageKind::SegmentForeign
        | DamageKind::Unreadable
        | DamageKind::StateMissing => true,
    }
}

/// State records that may lie where nothing could be read, beyond those whose numbers are missing.
fn hidden(dir: &LogDir, numbers: &[u64], scanned: &Scanned, damages: &[Damage]) -> u64 {
    let unreadable = |number: &&u64| {
        let damage =
            |damage: &Damage| damage.segment == **number && damage.what == DamageKind::Unreadable;
        !scanned.segments.contains_key(number) || damages.iter().any(damage)
    };
    let files = numbers
        .iter()
        .filter(unreadable)
        .map(|number| dir.file_len(&segment::file_name(*number)).unwrap_or(0));
    files.map(|len| len / STATE_RECORD_BYTES + 1).sum()
}

impl Gathered {
    /// Judges the epochs that the images don't hold.
    fn epochs(&mut self, dir: &LogDir, mut found: BTreeMap<Epoch, Found>) -> Result<(), LogError> {
        let salvage = &mut self.salvage;
        let found = found.split_off(&salvage.applied.next());
        for (epoch, found) in found {
            let whole = found.matches && self.scanned.has_payloads(dir, epoch, &found.data)?;
            salvage.epochs.push(EpochLeft {
                epoch,
                whole,
                disks: found.changes(&self.disks),
            });
            if whole && epoch == salvage.last.next() {
                salvage.last = epoch;
                self.whole.insert(epoch, found.data);
            }
        }
        Ok(())
    }

    /// What the times of the files say.
    fn times(&mut self, dir: &LogDir) {
        let modified = |number: &u64| seconds(dir.modified(&segment::file_name(*number)).ok()?);
        self.salvage.written_at = self.numbers.last().and_then(modified);
        // A segment that was finished before the next one began holds nothing newer than its time.
        let commit = self.whole.values().next_back().and_then(|data| data.commit);
        let begin = commit.map_or_else(
            || self.damages.iter().map(|damage| damage.segment).min(),
            |commit| Some(commit.segment),
        );
        let before = |number: &&u64| begin.is_some_and(|begin| **number < begin);
        let earlier = self.numbers.iter().rfind(before);
        self.salvage.last_known_at = earlier.and_then(modified);
    }
}

fn seconds(time: SystemTime) -> Option<u64> {
    time.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs())
}

impl Scanned {
    /// Whether all data of an epoch has its checksums.
    fn has_payloads(&self, dir: &LogDir, epoch: Epoch, data: &EpochData) -> Result<bool, LogError> {
        let mut payload = Vec::new();
        for place in &data.records {
            let Some(segment) = self.segments.get(&place.at.segment) else {
                return Ok(false);
            };
            let (file, key) = (&segment.file, &segment.header.key);
            match read_record(dir, file, key, epoch, place, &mut payload) {
                Ok(_) => {}
                Err(LogError::Damaged(_)) => return Ok(false),
                Err(other) => return Err(other),
            }
        }
        Ok(true)
    }
}

/// One epoch as its records tell of it.
#[derive(Default)]
struct Found {
    data: EpochData,
    /// There is a commit record, and its chain is that of the data records.
    matches: bool,
    /// Bytes written and cleared, by disk.
    bytes: BTreeMap<u16, (u64, u64)>,
}

impl Found {
    fn add(&mut self, at: Position, record: &DataRecord) {
        let place = RecordPlace {
            at,
            header_len: record.header_len,
            payload_len: record.payload_len,
        };
        self.data.add(place, record.header_sum);
        for extent in &record.extents {
            let (written, cleared) = self.bytes.entry(extent.disk).or_default();
            let sum = match extent.kind {
                ExtentKind::Data => written,
                ExtentKind::Zero | ExtentKind::Hole | ExtentKind::Trim => cleared,
            };
            *sum = sum.saturating_add(extent.len);
        }
    }

    fn changes(&self, disks: &[DiskIdentity]) -> Vec<DiskChange> {
        let change = |(number, (written, cleared)): (&u16, &(u64, u64))| DiskChange {
            disk: disks
                .get(usize::from(*number))
                .map_or_else(|| format!("number {number}"), |disk| disk.name.clone()),
            written: *written,
            cleared: *cleared,
        };
        self.bytes.iter().map(change).collect()
    }
}

/// Takes every record for itself.
#[derive(Default)]
struct Fold {
    pending: BTreeMap<Epoch, Found>,
    epochs: BTreeMap<Epoch, Found>,
    committed: Epoch,
    applied: Epoch,
    generation: Generation,
    sequence: u64,
    state_records: u64,
}

impl Fold {
    fn record(&mut self, at: Position, record: &Record) {
        match record {
            Record::Data(data) => {
                self.sequence = self.sequence.max(data.sequence);
                self.generation = self.generation.max(data.generation);
                self.pending.entry(data.epoch).or_default().add(at, data);
            }
            Record::State(state) => self.state_record(at, state),
        }
    }

    fn state_record(&mut self, at: Position, record: &StateRecord) {
        self.state_records += 1;
        self.state(&record.state, record.sequence);
        match record.kind {
            StateKind::Commit => {
                let epoch = record.state.committed;
                let mut found = self.pending.remove(&epoch).unwrap_or_default();
                found.matches = found.data.chain == record.chain;
                found.data.commit = Some(at);
                self.epochs.insert(epoch, found);
            }
            StateKind::Generation | StateKind::Void => self.pending.clear(),
            StateKind::Applied | StateKind::Mode | StateKind::Opened | StateKind::CleanStop => {}
        }
    }

    fn state(&mut self, state: &LogState, sequence: u64) {
        self.committed = self.committed.max(state.committed);
        self.applied = self.applied.max(state.applied);
        self.generation = self.generation.max(state.generation);
        self.sequence = self.sequence.max(sequence);
    }
}
