//! Taking a damaged log back to an earlier epoch, by explicit command only: what is lost then was committed, and somebody may have seen it.
//!
//! All that is kept is written into one new segment behind the others: the epochs that the images don't hold yet, and a state with a
//! higher generation, in sync mode, so that no memory of a standby can be resumed any more. Then the old segments get other names, and
//! stay. The order makes it safe to interrupt: the new segment's header has a number of state records that no old segment accounts for, so
//! as long as any of those is there the log is damaged, as before, and refuses to open. Then the same command finishes the work.

use std::{io::IoSlice, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    Epoch, Generation, LogError, LogState, Mode,
    disk::{LogDir, LogFile, means_full},
    format::{
        Chain, DataFields, SegmentHeader, SegmentKey, StateKind, StateRecord, encode_data,
        encode_state,
    },
    limits::SECTOR,
    recovery::EpochData,
    replay::read_record,
    salvage::{Gathered, Salvage, gather},
    segment,
};

/// What old segments are called afterwards: no reader looks at them.
const ASIDE_SUFFIX: &str = ".damaged";
const NEW_SUFFIX: &str = ".new";

/// A sector of them.
static ZEROS: [u8; 512] = [0; 512];

/// What taking a log back comes to, or came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// What the log holds before.
    pub found: Salvage,
    /// The epoch that it is taken back to.
    pub to: Epoch,
    /// How many committed epochs are lost.
    pub lost: u64,
    /// The generation afterwards: all attachments and standbys of before are fenced.
    pub generation: Generation,
    /// Names that the old segments have afterwards.
    pub set_aside: Vec<String>,
}

/// Why a log is not taken back.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// Nothing is damaged.
    #[error(
        "the epoch log is whole: there is nothing to recover, and nothing that is committed can be taken back"
    )]
    Whole,
    /// The images hold later epochs.
    #[error(
        "the images already hold epoch {applied}, so the log can't go back to {to}: disks would show what the log does not know; {applied} is the earliest epoch"
    )]
    Applied {
        /// The epoch that was asked for.
        to: Epoch,
        /// What the images hold.
        applied: Epoch,
    },
    /// The epoch can't be had any more.
    #[error(
        "epoch {to} is not whole in the log: {last} is the last epoch that it can be recovered to"
    )]
    NotThere {
        /// The epoch that was asked for.
        to: Epoch,
        /// The last that is whole.
        last: Epoch,
    },
    /// The numbers in the log leave no room for further ones.
    #[error("the numbers in this log are at their end, so it can't be recovered; make a new log")]
    Numbers,
    /// The log could not be read or written.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Says what taking the log in `dir` back to epoch `to` would come to, without changing anything. The log may be in use.
///
/// # Errors
/// [`RollbackError`]: it would be refused.
pub fn plan(dir: &Path, to: Epoch) -> Result<Rollback, RollbackError> {
    let log_dir = open_dir(dir)?;
    Plan::new(gather(&log_dir)?, to).map(|plan| plan.rollback)
}

/// Takes the log in `dir` back to epoch `to`. If it is interrupted, the log stays damaged until the same is called again.
///
/// # Errors
/// [`RollbackError`]; but for [`LogError::Io`] nothing was changed.
pub fn recover(dir: &Path, to: Epoch) -> Result<Rollback, RollbackError> {
    let log_dir = open_dir(dir)?;
    // Before the lock leaves a file in a directory that is none of ours.
    let listing = segment::list(&log_dir).map_err(|source| LogError::io("list", dir, source))?;
    if listing.segments.is_empty() {
        let dir = dir.to_owned();
        return Err(LogError::NotALog { dir }.into());
    }
    let _lock = log_dir.lock()?;
    let plan = Plan::new(gather(&log_dir)?, to)?;
    plan.write(&log_dir)?;
    plan.set_aside(&log_dir)?;
    tracing::warn!(
        dir = %dir.display(),
        to = to.0,
        lost = plan.rollback.lost,
        generation = plan.rollback.generation.0,
        "the epoch log was taken back"
    );
    Ok(plan.rollback)
}

fn open_dir(dir: &Path) -> Result<LogDir, LogError> {
    if !dir.is_dir() {
        let dir = dir.to_owned();
        return Err(LogError::NotALog { dir });
    }
    LogDir::open(dir).map_err(|source| LogError::io("open", dir, source))
}

struct Plan {
    rollback: Rollback,
    gathered: Gathered,
    /// Number of the new segment.
    number: u64,
    /// Number of state records that its header claims to come before it.
    sequence: u64,
}

impl Plan {
    fn new(gathered: Gathered, to: Epoch) -> Result<Self, RollbackError> {
        let found = &gathered.salvage;
        if gathered.damages.is_empty() {
            return Err(RollbackError::Whole);
        }
        if to < found.applied {
            let applied = found.applied;
            return Err(RollbackError::Applied { to, applied });
        }
        if to > found.last {
            let last = found.last;
            return Err(RollbackError::NotThere { to, last });
        }
        // One for each state record that may be missing, and two for this.
        let ahead = |number: u64| {
            let number = number.checked_add(gathered.missing)?.checked_add(2)?;
            (number < u64::MAX / 2).then_some(number)
        };
        let newest = gathered.numbers.last().copied();
        let numbers = (
            newest.and_then(|newest| newest.checked_add(1)),
            ahead(gathered.sequence),
            ahead(found.generation.0),
        );
        let (Some(number), Some(sequence), Some(generation)) = numbers else {
            return Err(RollbackError::Numbers);
        };
        let aside = |number: &u64| segment::file_name(*number) + ASIDE_SUFFIX;
        Ok(Self {
            rollback: Rollback {
                found: found.clone(),
                to,
                lost: found.lost(to),
                generation: Generation(generation),
                set_aside: gathered.numbers.iter().map(aside).collect(),
            },
            gathered,
            number,
            sequence,
        })
    }

    /// Writes the new segment; it appears under its name when all of it is durable.
    fn write(&self, dir: &LogDir) -> Result<(), LogError> {
        let name = segment::file_name(self.number);
        let path = dir.path().join(&name);
        let unfinished = format!("{name}{NEW_SUFFIX}");
        let written = dir
            .create_file(&unfinished)
            .map_err(|source| LogError::io("create", &path, source))
            .and_then(|mut file| {
                self.fill(dir, &file)?;
                file.sync()
                    .and_then(|()| dir.rename(&mut file, &name))
                    .and_then(|()| dir.sync())
                    .map_err(|source| LogError::io("write", &path, source))
            });
        written.map_err(|error| {
            // What it leaves behind is never read.
            let _still_there = dir.remove(&unfinished);
            match error {
                LogError::Io { source, .. } if means_full(&source) => LogError::Full {
                    dir: dir.path().to_owned(),
                    source,
                },
                other => other,
            }
        })
    }

    fn fill(&self, dir: &LogDir, file: &LogFile) -> Result<(), LogError> {
        let applied = self.gathered.salvage.applied;
        let before = Generation(self.rollback.generation.0 - 1);
        let (salt, _) = uuid::Uuid::new_v4().as_u64_pair();
        let header = SegmentHeader {
            key: SegmentKey {
                log_id: self.gathered.log_id,
                salt,
                segment: self.number,
            },
            group: self.gathered.salvage.group.clone(),
            disks: self.gathered.disks.clone(),
            sequence: self.sequence,
            state: LogState {
                generation: before,
                owner: None,
                mode: Mode::Sync,
                committed: applied,
                applied,
            },
        };
        let mut writer = Writer {
            dir,
            file,
            key: header.key,
            at: 0,
            sequence: self.sequence,
            state: header.state.clone(),
        };
        writer.put(&[&header.encode()])?;
        writer.state.generation = self.rollback.generation;
        let reason = format!("recovered to epoch {}", self.rollback.to);
        writer.state_record(StateKind::Generation, Chain::default(), &reason)?;
        for (epoch, data) in &self.gathered.whole {
            if *epoch <= self.rollback.to {
                self.epoch(&mut writer, *epoch, data)?;
            }
        }
        Ok(())
    }

    /// Writes an epoch once more, data and commit record.
    fn epoch(
        &self,
        writer: &mut Writer<'_>,
        epoch: Epoch,
        data: &EpochData,
    ) -> Result<(), LogError> {
        let mut chain = Chain::default();
        let mut payload = Vec::new();
        for place in &data.records {
            let segments = &self.gathered.scanned.segments;
            let Some(segment) = segments.get(&place.at.segment) else {
                continue;
            };
            let (file, key) = (&segment.file, &segment.header.key);
            let record = read_record(writer.dir, file, key, epoch, place, &mut payload)?;
            let fields = DataFields {
                generation: writer.state.generation,
                epoch,
                sequence: writer.sequence,
                payload_len: record.payload_len,
                payload_sum: xxhash_rust::xxh3::xxh3_64_with_seed(&payload, writer.key.salt),
            };
            let (header, sum) = encode_data(&writer.key, writer.at, &fields, &record.extents);
            chain.add(sum, record.payload_len);
            writer.put(&[&header, &payload])?;
        }
        writer.state.committed = epoch;
        writer.state_record(StateKind::Commit, chain, "")
    }

    /// Gives the old segments other names.
    fn set_aside(&self, dir: &LogDir) -> Result<(), LogError> {
        for number in &self.gathered.numbers {
            let name = segment::file_name(*number);
            let aside = format!("{name}{ASIDE_SUFFIX}");
            dir.open_file(&name)
                .and_then(|mut file| dir.rename(&mut file, &aside))
                .map_err(|source| LogError::io("set aside", dir.path().join(&name), source))?;
        }
        let synced = dir.sync();
        synced.map_err(|source| LogError::io("sync", dir.path(), source))
    }
}

/// The new segment while it is written.
struct Writer<'a> {
    dir: &'a LogDir,
    file: &'a LogFile,
    key: SegmentKey,
    /// Where the next record goes.
    at: u64,
    /// Number of the last state record.
    sequence: u64,
    state: LogState,
}

impl Writer<'_> {
    fn state_record(
        &mut self,
        kind: StateKind,
        chain: Chain,
        reason: &str,
    ) -> Result<(), LogError> {
        self.sequence += 1;
        let record = StateRecord {
            kind,
            sequence: self.sequence,
            state: self.state.clone(),
            chain,
            reason: reason.to_owned(),
        };
        let bytes = encode_state(&self.key, self.at, &record);
        self.put(&[&bytes])
    }

    /// Writes `parts`, filled up to whole sectors.
    fn put(&mut self, parts: &[&[u8]]) -> Result<(), LogError> {
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let rest = usize::try_from(len.next_multiple_of(SECTOR) - len).unwrap_or_default();
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        slices.push(IoSlice::new(ZEROS.get(..rest).unwrap_or_default()));
        let written = self.file.write_at(&mut slices, self.at);
        written.map_err(|source| {
            LogError::io("write", self.dir.path().join(self.file.name()), source)
        })?;
        self.at += len + rest as u64;
        Ok(())
    }
}
