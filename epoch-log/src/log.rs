//! The log of one group: the one place that decides what is committed.
//!
//! A commit has two syncs: first the data of the epoch, then its commit record. So a commit record on disk vouches for
//! the data before it, and data that is missing behind one is damage, never an accident of timing.

use std::path::Path;

use crate::{
    Damage, DamageKind, Epoch, Extent, Generation, LogError, LogState, Mode,
    append::pack,
    format::{Chain, Position, StateKind},
    limits::{DEFAULT_SEGMENT_BYTES, DEFAULT_SPARE_SEGMENTS, MAX_ID, MAX_REASON},
    recovery::Index,
    replay::{read_record, visit_extents},
    reserve::Reserve,
    segments::Segments,
    storage::StorageLock,
};

/// How to run a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Size in bytes at which a segment is closed and the next one begun. The directory should have room for a few.
    pub segment_bytes: u64,
    /// Most segments that are kept, when nothing in them counts any more, to be written again: see [`EpochLog::mark_applied`].
    pub spare_segments: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: DEFAULT_SEGMENT_BYTES,
            spare_segments: DEFAULT_SPARE_SEGMENTS,
        }
    }
}

/// The open log of one group.
///
/// Generations and epochs are checked here and nowhere else. All methods block on the disk. After a failed write or sync the log
/// is *poisoned*: it refuses everything that would write, as what is on disk is not known until it is opened again.
#[derive(Debug)]
pub struct EpochLog {
    pub(crate) segments: Segments,
    pub(crate) state: LogState,
    /// Number of the last state record.
    pub(crate) sequence: u64,
    /// Where the last state record ends; what follows is uncommitted.
    pub(crate) state_end: Position,
    pub(crate) index: Index,
    pub(crate) reserve: Reserve,
    pub(crate) poisoned: bool,
    pub(crate) _lock: Box<dyn StorageLock>,
}

impl EpochLog {
    /// The newest durable state.
    #[must_use]
    pub const fn state(&self) -> &LogState {
        &self.state
    }

    /// What tells this log from all others, also from one that takes its place.
    #[must_use]
    pub const fn id(&self) -> [u8; 16] {
        self.segments.identity.log_id
    }

    /// Directory of the log.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.segments.dir.path()
    }

    /// Whether an I/O error has stopped the log.
    #[must_use]
    pub const fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Appends data of `epoch`, which is not committed yet, to be committed later. May be called many times, also for several
    /// epochs at once. Later extents win over earlier ones of the same epoch. Does not sync.
    ///
    /// # Errors
    /// [`LogError::Fenced`], [`LogError::OutOfOrder`] for an epoch that is committed, [`LogError::BadExtent`],
    /// [`LogError::Full`] (nothing of this call is kept; try again later), [`LogError::Poisoned`], [`LogError::Io`].
    pub fn append(
        &mut self,
        generation: Generation,
        epoch: Epoch,
        extents: &[Extent<'_>],
    ) -> Result<(), LogError> {
        self.check_generation(generation)?;
        let expected = self.state.committed.next();
        if epoch < expected {
            return Err(LogError::OutOfOrder {
                given: epoch,
                expected,
            });
        }
        let records = pack(extents, &self.segments.identity.disks)?;
        let write = |log: &mut Self| log.write_data(epoch, &records);
        let places = match self.attempt("write data to", write) {
            Err(LogError::Full { .. }) if self.free_all_dead()? => {
                self.attempt("write data to", write)?
            }
            other => other?,
        };
        if !places.is_empty() {
            let data = self.index.pending.entry(epoch).or_default();
            for (place, header_sum) in places {
                data.add(place, header_sum);
            }
        }
        Ok(())
    }

    /// Makes everything appended so far durable, without committing it. A commit that follows has less to wait for.
    ///
    /// # Errors
    /// [`LogError::Poisoned`] or [`LogError::Io`].
    pub fn sync_data(&mut self) -> Result<(), LogError> {
        self.check_usable()?;
        let synced = self.segments.sync();
        self.checked("sync the data of", synced)
    }

    /// Commits `epoch`, which must be the one after the last committed: COMMIT 2, the commit point. Syncs its data, then writes
    /// and syncs the commit record. An epoch without data can be committed as well.
    ///
    /// `standby` is the one that has acknowledged COMMIT 1; it becomes the holder of the group's memory, and the mode async.
    ///
    /// # Errors
    /// [`LogError::Fenced`], [`LogError::OutOfOrder`], [`LogError::HolderPresent`] if a standby holds memory and `standby` is none,
    /// [`LogError::BadName`], [`LogError::Full`] (the data stays; try again later), [`LogError::Poisoned`], [`LogError::Io`]:
    /// then only opening the log again tells whether the epoch is committed.
    pub fn commit(
        &mut self,
        generation: Generation,
        epoch: Epoch,
        standby: Option<&str>,
    ) -> Result<(), LogError> {
        self.check_generation(generation)?;
        let state = self.state.committing(epoch, standby)?;
        if let Some(standby) = standby {
            check_id("the id of the standby", standby)?;
        }
        self.sync_data()?;
        let chain = self
            .index
            .pending
            .get(&epoch)
            .map(|data| data.chain)
            .unwrap_or_default();
        let at = self.record(StateKind::Commit, state, chain, "")?;
        self.index.commit(epoch, at);
        Ok(())
    }

    /// Drops everything that was appended and not committed. What is committed stays.
    ///
    /// # Errors
    /// [`LogError::Full`], [`LogError::Poisoned`], [`LogError::Io`].
    pub fn abort(&mut self) -> Result<(), LogError> {
        self.check_usable()?;
        self.drop_uncommitted()
    }

    /// Raises the generation, durably: from now on every older one is fenced. Uncommitted data is dropped, the mode stays.
    /// `reason` is kept for people, its first 80 bytes.
    ///
    /// # Errors
    /// [`LogError::BadName`] for the owner, [`LogError::Full`], [`LogError::Poisoned`], [`LogError::Io`].
    pub fn raise_generation(
        &mut self,
        owner: Option<&str>,
        reason: &str,
    ) -> Result<Generation, LogError> {
        self.check_usable()?;
        if let Some(owner) = owner {
            check_id("the id of the owner", owner)?;
        }
        let state = self.state.raising(owner);
        let reason = shorten(reason, MAX_REASON);
        self.record(StateKind::Generation, state, Chain::default(), reason)?;
        self.index.pending.clear();
        Ok(self.state.generation)
    }

    /// Records the mode, durably. Does nothing if it is already that.
    ///
    /// # Errors
    /// [`LogError::BadName`] for the holder, [`LogError::Full`], [`LogError::Poisoned`], [`LogError::Io`].
    pub fn set_mode(&mut self, mode: Mode) -> Result<(), LogError> {
        self.check_usable()?;
        if mode == self.state.mode {
            return Ok(());
        }
        if let Some(holder) = mode.holder() {
            check_id("the id of the standby", &holder.standby)?;
        }
        let state = LogState {
            mode,
            ..self.state.clone()
        };
        self.record(StateKind::Mode, state, Chain::default(), "")
            .map(|_at| ())
    }

    /// Records, durably, that the images durably hold all epochs up to `epoch`, and frees the segments that only they needed:
    /// some are kept as spares, to be written again, until the disk is full. Does nothing if that is known already.
    ///
    /// # Errors
    /// [`LogError::NotCommitted`], [`LogError::Full`], [`LogError::Poisoned`], [`LogError::Io`].
    pub fn mark_applied(&mut self, epoch: Epoch) -> Result<(), LogError> {
        self.check_usable()?;
        if epoch > self.state.committed {
            return Err(LogError::NotCommitted {
                given: epoch,
                committed: self.state.committed,
            });
        }
        if epoch <= self.state.applied {
            return Ok(());
        }
        let state = LogState {
            applied: epoch,
            ..self.state.clone()
        };
        self.record(StateKind::Applied, state, Chain::default(), "")?;
        self.index.applied(epoch);
        self.free_dead()?;
        self.restore_reserve()?;
        Ok(())
    }

    /// Visits the extents of all committed epochs that are not applied: epochs in order, extents as they were appended. Data
    /// is verified before it is visited. An extent appended as one may come in pieces.
    ///
    /// # Errors
    /// The visitor's error, or [`LogError::Damaged`] or [`LogError::Io`] turned into it.
    pub fn replay<E: From<LogError>>(
        &self,
        mut visit: impl FnMut(Epoch, Extent<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for epoch in self.index.committed.keys() {
            self.replay_epoch(*epoch, |extent| visit(*epoch, extent))?;
        }
        Ok(())
    }

    /// The same for one epoch. There is nothing in one that is applied or not committed.
    ///
    /// # Errors
    /// As for [`EpochLog::replay`].
    pub fn replay_epoch<E: From<LogError>>(
        &self,
        epoch: Epoch,
        mut visit: impl FnMut(Extent<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut payload = Vec::new();
        let data = self.index.committed.get(&epoch);
        for place in data.into_iter().flat_map(|data| &data.records) {
            let number = place.at.segment;
            let segment = self.segments.get(number).ok_or({
                LogError::Damaged(Damage {
                    segment: number,
                    offset: 0,
                    epoch: Some(epoch),
                    what: DamageKind::SegmentMissing,
                })
            })?;
            let record = read_record(
                &self.segments.dir,
                &segment.file,
                &segment.key,
                epoch,
                place,
                &mut payload,
            )?;
            visit_extents(&record, &payload, &mut visit)?;
        }
        Ok(())
    }

    /// Records a clean stop and closes the log: the caller says that no open epoch is lost.
    ///
    /// # Errors
    /// [`LogError::Uncommitted`] if data was appended and neither committed nor aborted, [`LogError::Full`],
    /// [`LogError::Poisoned`], [`LogError::Io`]. The log is closed in any case, then not cleanly.
    pub fn close_clean(mut self) -> Result<(), LogError> {
        self.check_usable()?;
        if let Some(epoch) = self.index.pending.keys().next() {
            return Err(LogError::Uncommitted { epoch: *epoch });
        }
        let state = self.state.clone();
        self.record(StateKind::CleanStop, state, Chain::default(), "")
            .map(|_at| ())
    }

    fn check_usable(&self) -> Result<(), LogError> {
        if self.poisoned {
            Err(LogError::Poisoned {
                dir: self.dir().to_owned(),
            })
        } else {
            Ok(())
        }
    }

    fn check_generation(&self, given: Generation) -> Result<(), LogError> {
        self.check_usable()?;
        let current = self.state.generation;
        if given == current {
            Ok(())
        } else {
            Err(LogError::Fenced { given, current })
        }
    }
}

fn check_id(what: &'static str, id: &str) -> Result<(), LogError> {
    if (1..=MAX_ID).contains(&id.len()) {
        return Ok(());
    }
    Err(LogError::BadName {
        what,
        text: id.to_owned(),
        max: MAX_ID,
    })
}

/// The first `max` bytes of a text, less if that would cut a character in two.
fn shorten(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
