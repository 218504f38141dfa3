//! The reference model: what a group's log must hold after any sequence of calls, written as plainly as possible.

use std::{collections::BTreeMap, path::Path};

use proptest::prelude::*;

use crate::{
    Content, DiskIdentity, Epoch, EpochLog, Extent, Holder, LogError, LogOptions, LogState, Mode,
    Recovered,
};

/// Sizes of the disks: small, as extents are.
const DISK_BYTES: u64 = 1 << 20;
/// Tiny, so that a history crosses many segments, and some records are larger than one.
pub const SEGMENT_BYTES: u64 = 24 << 10;

/// One call of the log.
#[derive(Clone, Debug)]
pub enum Call {
    Append { ahead: u64, extents: Vec<Owned> },
    SyncData,
    Commit { standby: Option<u8> },
    Abort,
    Raise { owner: Option<u8> },
    SetMode { asynchronous: bool },
    Applied { behind: u64 },
    Reopen,
    CleanStop,
}

/// An extent with its own bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    pub disk: u16,
    pub offset: u64,
    pub len: u64,
    pub content: OwnedContent,
}

#[derive(Clone, PartialEq, Eq)]
pub enum OwnedContent {
    Data(Vec<u8>),
    Zero,
    Hole,
    Trim,
}

impl std::fmt::Debug for OwnedContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Data(data) => write!(f, "Data({:x})", xxhash_rust::xxh3::xxh3_64(data)),
            Self::Zero => f.write_str("Zero"),
            Self::Hole => f.write_str("Hole"),
            Self::Trim => f.write_str("Trim"),
        }
    }
}

impl Owned {
    pub fn borrow(&self) -> Extent<'_> {
        let content = match &self.content {
            OwnedContent::Data(data) => Content::Data(data),
            OwnedContent::Zero => Content::Zero,
            OwnedContent::Hole => Content::Hole,
            OwnedContent::Trim => Content::Trim,
        };
        Extent {
            disk: self.disk,
            offset: self.offset,
            len: self.len,
            content,
        }
    }

    fn from(extent: &Extent<'_>) -> Self {
        let content = match extent.content {
            Content::Data(data) => OwnedContent::Data(data.to_vec()),
            Content::Zero => OwnedContent::Zero,
            Content::Hole => OwnedContent::Hole,
            Content::Trim => OwnedContent::Trim,
        };
        Self {
            disk: extent.disk,
            offset: extent.offset,
            len: extent.len,
            content,
        }
    }
}

pub type Epochs = BTreeMap<Epoch, Vec<Owned>>;

/// What must be durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durable {
    pub state: LogState,
    /// Committed and not applied; epochs without data are there, but empty.
    pub epochs: Epochs,
}

#[derive(Clone, Debug)]
pub struct Model {
    pub durable: Durable,
    pub pending: Epochs,
}

impl Model {
    pub fn new() -> Self {
        Self {
            durable: Durable {
                state: LogState::new(),
                epochs: Epochs::new(),
            },
            pending: Epochs::new(),
        }
    }

    /// Does what the log must do; false when the log must refuse.
    pub fn call(&mut self, call: &Call) -> bool {
        let Durable { state, epochs } = &mut self.durable;
        match call {
            Call::Append { ahead, extents } => {
                let epoch = Epoch(state.committed.0 + 1 + ahead);
                if !extents.is_empty() {
                    self.pending
                        .entry(epoch)
                        .or_default()
                        .extend(extents.iter().cloned());
                }
            }
            Call::Commit { standby } => {
                let epoch = state.committed.next();
                if standby.is_none() && state.mode.holder().is_some() {
                    return false;
                }
                if let Some(standby) = standby.map(id)
                    && state
                        .mode
                        .holder()
                        .is_none_or(|holder| holder.standby != standby)
                {
                    state.mode = Mode::Async {
                        holder: Some(Holder {
                            standby,
                            since: epoch,
                        }),
                    };
                }
                state.committed = epoch;
                epochs.insert(epoch, self.pending.remove(&epoch).unwrap_or_default());
            }
            Call::Abort | Call::Reopen => self.pending.clear(),
            Call::Raise { owner } => {
                state.generation = state.generation.next();
                state.owner = owner.map(id);
                self.pending.clear();
            }
            Call::SetMode { asynchronous } => {
                state.mode = if *asynchronous {
                    Mode::Async { holder: None }
                } else {
                    Mode::Sync
                };
            }
            Call::Applied { behind } => {
                let epoch = Epoch(state.committed.0.saturating_sub(*behind));
                if epoch > state.applied {
                    state.applied = epoch;
                    epochs.retain(|other, _| *other > epoch);
                }
            }
            Call::SyncData => {}
            Call::CleanStop => {
                let clean = self.pending.is_empty();
                self.pending.clear();
                return clean;
            }
        }
        true
    }
}

pub fn id(number: u8) -> String {
    format!("host-{number}")
}

pub fn disks() -> Vec<DiskIdentity> {
    ["root", "data"]
        .iter()
        .zip(10..)
        .map(|(name, file_id)| DiskIdentity {
            name: (*name).to_owned(),
            size: DISK_BYTES,
            file_id,
        })
        .collect()
}

pub fn open(dir: &Path) -> Result<(EpochLog, Recovered), LogError> {
    EpochLog::open_or_create(
        dir,
        "vm",
        &disks(),
        LogOptions {
            segment_bytes: SEGMENT_BYTES,
            spare_segments: 2,
        },
    )
}

/// Runs `call` on a log that may be closed and opened again by it.
pub fn run(slot: &mut Option<EpochLog>, dir: &Path, call: &Call) -> Result<(), LogError> {
    let log = slot.as_mut().unwrap();
    let LogState {
        generation,
        committed,
        ..
    } = *log.state();
    match call {
        Call::Append { ahead, extents } => {
            let extents: Vec<Extent<'_>> = extents.iter().map(Owned::borrow).collect();
            log.append(generation, Epoch(committed.0 + 1 + ahead), &extents)
        }
        Call::SyncData => log.sync_data(),
        Call::Commit { standby } => {
            log.commit(generation, committed.next(), standby.map(id).as_deref())
        }
        Call::Abort => log.abort(),
        Call::Raise { owner } => log
            .raise_generation(owner.map(id).as_deref(), "test")
            .map(|_| ()),
        Call::SetMode { asynchronous } => log.set_mode(if *asynchronous {
            Mode::Async { holder: None }
        } else {
            Mode::Sync
        }),
        Call::Applied { behind } => log.mark_applied(Epoch(committed.0.saturating_sub(*behind))),
        Call::Reopen => {
            *slot = None;
            *slot = Some(open(dir)?.0);
            Ok(())
        }
        Call::CleanStop => {
            let stopped = slot.take().unwrap().close_clean();
            let (log, recovered) = open(dir)?;
            *slot = Some(log);
            // A stop that failed may still have reached the disk.
            assert!(recovered.clean || stopped.is_err());
            stopped
        }
    }
}

/// What a log holds, as the model sees it.
pub fn durable(log: &EpochLog) -> Durable {
    let state = log.state().clone();
    let mut epochs: Epochs = (state.applied.0 + 1..=state.committed.0)
        .map(|epoch| (Epoch(epoch), Vec::new()))
        .collect();
    log.replay(|epoch, extent| -> Result<(), LogError> {
        epochs.get_mut(&epoch).unwrap().push(Owned::from(&extent));
        Ok(())
    })
    .unwrap();
    Durable { state, epochs }
}

pub fn extent() -> impl Strategy<Value = Owned> {
    let content = prop_oneof![
        4 => (prop_oneof![5 => 1_usize..5000, 1 => 20_000_usize..40_000], any::<u8>())
            .prop_map(|(len, fill)| OwnedContent::Data(pattern(len, fill))),
        1 => Just(OwnedContent::Zero),
        1 => Just(OwnedContent::Hole),
        1 => Just(OwnedContent::Trim),
    ];
    (0_u16..2, 0_u64..DISK_BYTES / 2, 1_u64..9000, content).prop_map(
        |(disk, offset, len, content)| {
            let len = if let OwnedContent::Data(data) = &content {
                data.len() as u64
            } else {
                len
            };
            Owned {
                disk,
                offset,
                len,
                content,
            }
        },
    )
}

/// Bytes that differ from place to place, so that a shift is seen.
pub fn pattern(len: usize, fill: u8) -> Vec<u8> {
    (0_u8..251)
        .cycle()
        .map(|place| place ^ fill)
        .take(len)
        .collect()
}

pub fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        10 => (prop_oneof![4 => Just(0_u64), 1 => Just(1), 1 => Just(2)], prop::collection::vec(extent(), 0..4))
            .prop_map(|(ahead, extents)| Call::Append { ahead, extents }),
        2 => Just(Call::SyncData),
        8 => prop::option::of(0_u8..2).prop_map(|standby| Call::Commit { standby }),
        1 => Just(Call::Abort),
        2 => prop::option::of(0_u8..3).prop_map(|owner| Call::Raise { owner }),
        2 => any::<bool>().prop_map(|asynchronous| Call::SetMode { asynchronous }),
        4 => (0_u64..3).prop_map(|behind| Call::Applied { behind }),
        2 => Just(Call::Reopen),
        1 => Just(Call::CleanStop),
    ]
}

/// All files of a log with their content, but for the lock.
pub fn snapshot(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name != "LOCK" {
            files.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
    files
}

/// A directory for one test, in memory where the system has that: what reaches the disk is played, so no disk need be waited for.
pub fn scratch() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("epochgate-test-");
    let in_memory = builder.tempdir_in("/dev/shm");
    in_memory.or_else(|_| builder.tempdir()).unwrap()
}

/// Puts files into a directory of their own.
pub fn restore(files: &BTreeMap<String, Vec<u8>>) -> tempfile::TempDir {
    let dir = scratch();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}
