//! The log of one group: the one place that decides what is committed.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    Content, DiskIdentity, Epoch, Extent, Generation, Holder, LogError, LogState, Mode, limits,
};

/// How to run a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Size in bytes at which a segment is closed and the next one begun.
    pub segment_bytes: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: limits::DEFAULT_SEGMENT_BYTES,
        }
    }
}

/// What opening a log found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// There was no log; a new one was made.
    pub created: bool,
    /// Bytes cut from the end, as they belonged to no committed epoch.
    pub cut_bytes: u64,
    /// Epochs of which data was found but no commit record; it was dropped.
    pub dropped_epochs: Vec<Epoch>,
    /// Committed epochs that are not yet applied, in order: [`EpochLog::replay`] visits them.
    pub unapplied: Vec<Epoch>,
    /// The log was closed with [`EpochLog::close_clean`], or is new: no open epoch can have been lost.
    pub clean: bool,
}

/// One extent that the log keeps.
#[derive(Debug)]
struct Kept {
    disk: u16,
    offset: u64,
    len: u64,
    content: KeptContent,
}

#[derive(Debug)]
enum KeptContent {
    Data(Vec<u8>),
    Zero,
    Trim,
}

/// The open log of one group.
#[derive(Debug)]
pub struct EpochLog {
    dir: PathBuf,
    state: LogState,
    epochs: BTreeMap<Epoch, Vec<Kept>>,
}

impl EpochLog {
    /// Opens the log in `dir`, or makes a new one there.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn open_or_create(
        dir: &Path,
        _group: &str,
        _disks: &[DiskIdentity],
        _options: LogOptions,
    ) -> Result<(Self, Recovered), LogError> {
        std::fs::create_dir_all(dir).map_err(|e| LogError::io("create", dir, e))?;
        let log = Self {
            dir: dir.to_owned(),
            state: LogState::new(),
            epochs: BTreeMap::new(),
        };
        Ok((
            log,
            Recovered {
                created: true,
                clean: true,
                ..Recovered::default()
            },
        ))
    }

    /// The newest durable state.
    #[must_use]
    pub const fn state(&self) -> &LogState {
        &self.state
    }

    /// Directory of the log.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn check_generation(&self, given: Generation) -> Result<(), LogError> {
        let current = self.state.generation;
        if given == current {
            Ok(())
        } else {
            Err(LogError::Fenced { given, current })
        }
    }

    /// Appends data of an epoch that is not committed yet. Does not sync.
    ///
    /// # Errors
    /// See [`LogError`].
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
        let kept = extents.iter().map(|extent| Kept {
            disk: extent.disk,
            offset: extent.offset,
            len: extent.len,
            content: match extent.content {
                Content::Data(data) => KeptContent::Data(data.to_vec()),
                Content::Zero => KeptContent::Zero,
                Content::Trim => KeptContent::Trim,
            },
        });
        self.epochs.entry(epoch).or_default().extend(kept);
        Ok(())
    }

    /// Makes everything appended so far durable, without committing it.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn sync_data(&mut self) -> Result<(), LogError> {
        Ok(())
    }

    /// Commits the next epoch: COMMIT 2, the commit point.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn commit(
        &mut self,
        generation: Generation,
        epoch: Epoch,
        standby: Option<&str>,
    ) -> Result<(), LogError> {
        self.check_generation(generation)?;
        let expected = self.state.committed.next();
        if epoch != expected {
            return Err(LogError::OutOfOrder {
                given: epoch,
                expected,
            });
        }
        match (standby, self.state.mode.holder()) {
            (None, Some(holder)) => {
                return Err(LogError::HolderPresent {
                    standby: holder.standby.clone(),
                });
            }
            (None, None) => {}
            (Some(standby), Some(holder)) if holder.standby == standby => {}
            (Some(standby), _) => {
                let holder = Holder {
                    standby: standby.to_owned(),
                    since: epoch,
                };
                self.state.mode = Mode::Async {
                    holder: Some(holder),
                };
            }
        }
        self.epochs.entry(epoch).or_default();
        self.state.committed = epoch;
        Ok(())
    }

    /// Drops everything that was appended and not committed.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn abort(&mut self) -> Result<(), LogError> {
        self.epochs
            .retain(|epoch, _| *epoch <= self.state.committed);
        Ok(())
    }

    /// Raises the generation, durably: every older one is fenced, uncommitted data is dropped.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn raise_generation(
        &mut self,
        owner: Option<&str>,
        _reason: &str,
    ) -> Result<Generation, LogError> {
        self.abort()?;
        self.state.generation = self.state.generation.next();
        self.state.owner = owner.map(str::to_owned);
        Ok(self.state.generation)
    }

    /// Records the mode, durably.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn set_mode(&mut self, mode: Mode) -> Result<(), LogError> {
        self.state.mode = mode;
        Ok(())
    }

    /// Records that the images durably hold all epochs up to `epoch`, and frees segments.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn mark_applied(&mut self, epoch: Epoch) -> Result<(), LogError> {
        if epoch > self.state.committed {
            return Err(LogError::NotCommitted {
                given: epoch,
                committed: self.state.committed,
            });
        }
        self.state.applied = self.state.applied.max(epoch);
        self.epochs.retain(|epoch, _| *epoch > self.state.applied);
        Ok(())
    }

    /// Visits the extents of all committed epochs that are not applied, in order.
    ///
    /// # Errors
    /// The visitor's error, or a [`LogError`] turned into it.
    pub fn replay<E: From<LogError>>(
        &self,
        mut visit: impl FnMut(Epoch, Extent<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for (epoch, kept) in self.epochs.range(..=self.state.committed) {
            for kept in kept {
                let content = match &kept.content {
                    KeptContent::Data(data) => Content::Data(data),
                    KeptContent::Zero => Content::Zero,
                    KeptContent::Trim => Content::Trim,
                };
                visit(
                    *epoch,
                    Extent {
                        disk: kept.disk,
                        offset: kept.offset,
                        len: kept.len,
                        content,
                    },
                )?;
            }
        }
        Ok(())
    }

    /// Records a clean stop and closes the log.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn close_clean(self) -> Result<(), LogError> {
        Ok(())
    }
}
