//! Opening a log: lock, read, judge, then, only if nothing is damaged, tidy up what a crash has left.
//! Knows the order of these steps; what the records come to is decided in `recovery.rs`.

use std::{collections::BTreeMap, io::IoSlice, path::Path, sync::Arc};

use crate::{
    DiskIdentity, DiskMismatch, Epoch, EpochLog, LogError, LogOptions, LogState, Mode,
    disk::{LogDir, means_full},
    format::{Chain, StateKind},
    limits::{MAX_DISKS, MAX_NAME},
    recovery::Index,
    reserve::Reserve,
    scan::{Repair, Scanned, scan},
    segment::{self, Segment},
    segments::{Identity, Segments},
    storage::{Directory, Storage, StorageLock},
};

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
    /// Sectors that were damaged and have been written again from their second copy. More than a few speak of a failing disk;
    /// one or two also come from a crash in the middle of a commit.
    pub repaired_sectors: usize,
    /// The log was closed with [`EpochLog::close_clean`], or is new: no open epoch can have been lost.
    pub clean: bool,
}

impl EpochLog {
    /// Opens the log of `group` in `dir`, or makes a new one there. Whatever was never committed is dropped; opening a second
    /// time changes nothing more.
    ///
    /// On return all that was recovered is durable, also if it had only been in the page cache of a process that died.
    ///
    /// # Errors
    /// [`LogError::InUse`]; [`LogError::OtherGroup`] and [`LogError::OtherDisks`] if the log belongs to something else;
    /// [`LogError::Damaged`], and nothing was changed; [`LogError::BadName`], [`LogError::BadDisks`]; [`LogError::Version`];
    /// [`LogError::Full`], [`LogError::Io`].
    pub fn open_or_create(
        dir: &Path,
        group: &str,
        disks: &[DiskIdentity],
        options: LogOptions,
    ) -> Result<(Self, Recovered), LogError> {
        Self::open_or_create_on(Arc::new(Directory::at(dir)), group, disks, options)
    }

    /// The same on any storage.
    ///
    /// # Errors
    /// As [`EpochLog::open_or_create`].
    pub fn open_or_create_on(
        storage: Arc<dyn Storage>,
        group: &str,
        disks: &[DiskIdentity],
        options: LogOptions,
    ) -> Result<(Self, Recovered), LogError> {
        open(storage, group, disks, &options, Binding::Same)
    }

    /// Makes the log in `dir` belong to the images `disks`, where they were copied, restored, resized or exchanged on purpose.
    ///
    /// The generation is raised, and the group is in sync mode afterwards: memory that a standby may hold does not belong to
    /// these images.
    ///
    /// # Errors
    /// [`LogError::NotALog`]; [`LogError::Unapplied`] while committed epochs wait for the old images; else as
    /// [`EpochLog::open_or_create`].
    pub fn rebind(dir: &Path, group: &str, disks: &[DiskIdentity]) -> Result<(), LogError> {
        Self::rebind_on(Arc::new(Directory::at(dir)), group, disks)
    }

    /// The same on any storage.
    ///
    /// # Errors
    /// As [`EpochLog::rebind`].
    pub fn rebind_on(
        storage: Arc<dyn Storage>,
        group: &str,
        disks: &[DiskIdentity],
    ) -> Result<(), LogError> {
        let dir = LogDir::on(Arc::clone(&storage));
        if !segment::list(&dir).is_ok_and(|there| !there.segments.is_empty()) {
            return Err(LogError::NotALog {
                dir: storage.path().to_owned(),
            });
        }
        let (mut log, recovered) =
            open(storage, group, disks, &LogOptions::default(), Binding::New)?;
        if !recovered.unapplied.is_empty() {
            return Err(LogError::Unapplied {
                count: recovered.unapplied.len() as u64,
            });
        }
        log.segments.identity.disks = disks.to_vec();
        log.begin_segment()?;
        log.raise_generation(None, "rebound to other images")?;
        log.set_mode(Mode::Sync)?;
        log.free_dead()?;
        Ok(())
    }
}

impl EpochLog {
    fn use_spares(&mut self, found: &[String], options: &LogOptions) -> Result<(), LogError> {
        let used = self.segments.use_spares(found, options.spare_segments);
        self.checked("tidy up the spare segments of", used)
    }
}

/// Whether the images must be those that the log knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Binding {
    Same,
    New,
}

fn open(
    storage: Arc<dyn Storage>,
    group: &str,
    disks: &[DiskIdentity],
    options: &LogOptions,
    binding: Binding,
) -> Result<(EpochLog, Recovered), LogError> {
    check_names(group, disks)?;
    let dir = LogDir::on(Arc::clone(&storage));
    let path = storage.path();
    storage
        .prepare()
        .map_err(|source| LogError::io("create", path, source))?;
    let lock = storage.lock()?;
    let listing = segment::list(&dir).map_err(|source| LogError::io("list", path, source))?;
    if listing.segments.is_empty() {
        let identity = Identity::new(dir.random(), group, disks);
        let (mut log, recovered) = create(dir, lock, identity, options)?;
        log.use_spares(&listing.spares, options)?;
        return Ok((log, recovered));
    }
    let scanned = scan(&dir, &listing.segments, true, &mut |_, _| {})?;
    if let Some(last) = scanned
        .segments
        .values()
        .next_back()
        .filter(|last| last.header.group != group)
    {
        let (wanted, found) = (group.to_owned(), last.header.group.clone());
        return Err(LogError::OtherGroup {
            dir: path.to_owned(),
            wanted,
            found,
        });
    }
    if let Some(first) = scanned.outcome.damages.first() {
        return Err(first.clone().into());
    }
    for name in &listing.unfinished {
        dir.remove(name)
            .map_err(|source| LogError::io("remove", path.join(name), source))?;
    }
    let (mut log, recovered) = resume(dir, lock, scanned, disks, options, binding)?;
    log.use_spares(&listing.spares, options)?;
    Ok((log, recovered))
}

fn create(
    dir: LogDir,
    lock: Box<dyn StorageLock>,
    identity: Identity,
    options: &LogOptions,
) -> Result<(EpochLog, Recovered), LogError> {
    let path = dir.path().to_owned();
    let reserve = Reserve::take(&dir);
    let state = LogState::new();
    let segments =
        Segments::create(dir, identity, options.segment_bytes, &state).map_err(|source| {
            if means_full(&source) {
                return LogError::Full {
                    dir: path.clone(),
                    source,
                };
            }
            LogError::io("create the first segment in", path, source)
        })?;
    let state_end = segments.end();
    let index = Index::default();
    let log = EpochLog {
        segments,
        state,
        sequence: 0,
        state_end,
        index,
        reserve,
        poisoned: false,
        _lock: lock,
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

/// Goes on with a log in which nothing is damaged.
fn resume(
    dir: LogDir,
    lock: Box<dyn StorageLock>,
    scanned: Scanned,
    disks: &[DiskIdentity],
    options: &LogOptions,
    binding: Binding,
) -> Result<(EpochLog, Recovered), LogError> {
    let path = dir.path().to_owned();
    let Scanned {
        segments,
        outcome,
        repairs,
        dropped,
    } = scanned;
    let nothing = || LogError::NotALog { dir: path.clone() };
    let header = segments
        .get(&outcome.state_end.segment)
        .map(|segment| &segment.header)
        .ok_or_else(nothing)?;
    if binding == Binding::Same {
        compare_disks(&header.disks, disks).map_err(|difference| LogError::OtherDisks {
            dir: path.clone(),
            difference,
        })?;
    }
    let identity = Identity {
        log_id: header.key.log_id,
        group: header.group.clone(),
        disks: header.disks.clone(),
    };
    let open: BTreeMap<u64, Segment> = segments
        .into_iter()
        .map(|(number, found)| {
            let (key, file) = (found.header.key, found.file);
            // What an earlier process wrote may still be in the page cache only.
            (
                number,
                Segment {
                    key,
                    file,
                    records_start: found.records_start,
                    end: found.used,
                    remains: 0,
                    dirty: true,
                },
            )
        })
        .collect();
    let unapplied = outcome.index.committed.keys().copied().collect();
    let reserve = Reserve::take(&dir);
    let segments =
        Segments::resume(dir, identity, options.segment_bytes, open).ok_or_else(nothing)?;
    let mut log = EpochLog {
        segments,
        state: outcome.state,
        sequence: outcome.sequence,
        state_end: outcome.state_end,
        index: outcome.index,
        reserve,
        poisoned: false,
        _lock: lock,
    };
    repair(&mut log, &repairs)?;
    let cut_bytes = log.recover_tail()?;
    if outcome.clean {
        // From now on an open epoch can be lost again.
        let state = log.state.clone();
        log.record(StateKind::Opened, state, Chain::default(), "")?;
    }
    let recovered = Recovered {
        created: false,
        cut_bytes,
        dropped_epochs: dropped,
        unapplied,
        repaired_sectors: repairs.len(),
        clean: outcome.clean,
    };
    Ok((log, recovered))
}

/// Writes damaged sectors again and makes everything durable that was read.
fn repair(log: &mut EpochLog, repairs: &[Repair]) -> Result<(), LogError> {
    for repair in repairs {
        let Some(segment) = log.segments.get(repair.at.segment) else {
            continue;
        };
        let written = segment
            .file
            .write_at(&mut [IoSlice::new(&repair.bytes)], repair.at.offset);
        log.checked("repair", written)?;
        tracing::warn!(
            segment = repair.at.segment,
            offset = repair.at.offset,
            "wrote a sector of the epoch log again from its second copy"
        );
    }
    let synced = log.segments.sync().and_then(|()| log.segments.dir.sync());
    log.checked("sync", synced)
}

fn check_names(group: &str, disks: &[DiskIdentity]) -> Result<(), LogError> {
    let check = |what, text: &str| {
        if (1..=MAX_NAME).contains(&text.len()) {
            return Ok(());
        }
        Err(LogError::BadName {
            what,
            text: text.to_owned(),
            max: MAX_NAME,
        })
    };
    check("the name of the group", group)?;
    for disk in disks {
        check("the name of the disk", &disk.name)?;
    }
    let mut names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if names.len() != disks.len() || !(1..=MAX_DISKS).contains(&disks.len()) {
        return Err(LogError::BadDisks { max: MAX_DISKS });
    }
    Ok(())
}

/// Compares the disks of the log with those given, the worst difference first.
fn compare_disks(log: &[DiskIdentity], given: &[DiskIdentity]) -> Result<(), DiskMismatch> {
    let find = |disks: &[DiskIdentity], name: &str| disks.iter().any(|disk| disk.name == name);
    if let Some(disk) = log.iter().find(|disk| !find(given, &disk.name)) {
        return Err(DiskMismatch::Missing {
            name: disk.name.clone(),
        });
    }
    if let Some(disk) = given.iter().find(|disk| !find(log, &disk.name)) {
        return Err(DiskMismatch::Unknown {
            name: disk.name.clone(),
        });
    }
    for (place, (log, image)) in log.iter().zip(given).enumerate() {
        let name = log.name.clone();
        if log.name != image.name {
            return Err(DiskMismatch::Order {
                name,
                place: place + 1,
            });
        }
        if log.size != image.size {
            return Err(DiskMismatch::Size {
                name,
                log: log.size,
                image: image.size,
            });
        }
        if log.file_id != image.file_id {
            return Err(DiskMismatch::FileId {
                name,
                log: log.file_id,
                image: image.file_id,
            });
        }
    }
    Ok(())
}
