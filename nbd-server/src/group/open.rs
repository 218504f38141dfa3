//! Opening a group: images, log, recovery, threads.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use epoch_log::history::{HistoryError, Options as HistoryOptions};
use epoch_log::storage::Storage;
use epoch_log::{DiskIdentity, Epoch, EpochLog, LogError, LogOptions};
use serde::{Deserialize, Serialize};

use super::applier::Applier;
use super::arena::ArenaError;
use super::bell::Bell;
use super::committer::Committer;
use super::disk::Disk;
use super::error::with_sources;
use super::history::{Clones, HistoryConfig, Keeper, RewindError};
use super::image::{Image, ImageError};
use super::places::{open_images, open_log};
use super::recover::recover;
use super::resume;
use super::shared::{Core, Shared};
use super::{Channels, Group};

/// Smallest memory budget, in MiB. A write that finds it below its limit is let in whole, so even this one works.
const MIN_BUDGET_MIB: u64 = 1;

/// What a group does when no source owns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupMode {
    /// Writes go through to the images.
    #[default]
    Sync,
    /// Writes are held in epochs; it commits by itself, at every FLUSH and every `epoch_interval_ms`.
    Async,
}

/// One disk of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Its name: the export is `group/name`.
    pub name: String,
    /// The raw image: a file, a block device, or the URL of a server (`nfs://server/export/disk.raw`, `nbd://host:port/export`,
    /// `nbd+unix:///export?socket=/path`).
    pub image: PathBuf,
    /// Refuse all writes.
    #[serde(default)]
    pub read_only: bool,
    /// A second export name beside `group/name`, for clients that want a plain one; the empty name is the default export.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<String>,
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    /// Its name.
    pub name: String,
    /// Directory of its epoch log, a path or `nfs://server/export/directory`; created if missing.
    pub log: PathBuf,
    /// What it does when no source owns it.
    #[serde(default)]
    pub mode: GroupMode,
    /// Memory that its epochs may hold, in MiB. At half of it the source is asked for a checkpoint, at all of it writes
    /// wait.
    #[serde(default = "default_budget")]
    pub memory_budget_mib: u64,
    /// Directory for the memory of held epochs, which outlives this process but not the machine: a tmpfs. Empty: they go with the process.
    #[serde(default = "default_epoch_memory")]
    pub epoch_memory: PathBuf,
    /// How often it commits by itself where it does, in milliseconds.
    #[serde(default = "default_interval")]
    pub epoch_interval_ms: u64,
    /// How much of its past is kept; none: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<HistoryConfig>,
    /// Its disks.
    #[serde(rename = "disk")]
    pub disks: Vec<DiskConfig>,
}

fn default_budget() -> u64 {
    256
}

/// Where a gateway keeps held epochs unless its configuration says otherwise.
pub const DEFAULT_EPOCH_MEMORY: &str = "/dev/shm";

fn default_epoch_memory() -> PathBuf {
    DEFAULT_EPOCH_MEMORY.into()
}

fn default_interval() -> u64 {
    100
}

impl GroupConfig {
    /// A group with defaults for all that is not given, whose held epochs go with the process.
    pub fn new(name: impl Into<String>, log: impl Into<PathBuf>, disks: Vec<DiskConfig>) -> Self {
        Self {
            name: name.into(),
            log: log.into(),
            mode: GroupMode::default(),
            memory_budget_mib: default_budget(),
            epoch_memory: PathBuf::new(),
            epoch_interval_ms: default_interval(),
            history: None,
            disks,
        }
    }

    /// Makes the log belong to the images of this configuration, where they were copied or restored on purpose.
    ///
    /// # Errors
    /// [`OpenError`]; the log is as it was.
    pub fn rebind(&self) -> Result<(), OpenError> {
        check(self)?;
        let identities = identities(self, &open_images(self)?);
        open_log(self).and_then(|storage| {
            EpochLog::rebind_on(storage, &self.name, &identities).map_err(|source| OpenError::Log {
                group: self.name.clone(),
                source,
            })
        })
    }
}

/// Why a group can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration is wrong.
    #[error("group '{group}': {what}")]
    Config {
        /// The group.
        group: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// An image can't be used.
    #[error("group '{group}', disk '{disk}'")]
    Image {
        /// The group.
        group: String,
        /// The disk.
        disk: String,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// The log can't be used.
    #[error("group '{group}'")]
    Log {
        /// The group.
        group: String,
        /// Why.
        #[source]
        source: LogError,
    },
    /// Committed epochs could not be brought into an image.
    #[error(
        "group '{group}': committed epochs can't be applied to the images; make them writable and start again"
    )]
    Apply {
        /// The group.
        group: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The memory for held epochs can't be had.
    #[error("group '{group}'")]
    Memory {
        /// The group.
        group: String,
        /// Why.
        #[source]
        source: ArenaError,
    },
    /// The history can't be used.
    #[error("group '{group}'")]
    History {
        /// The group.
        group: String,
        /// Why.
        #[source]
        source: HistoryError,
    },
    /// The images could not be set back to an earlier point.
    #[error(
        "group '{group}' is on its way back to epoch {to}, and can't get there; mend what is wrong and start again"
    )]
    Rewind {
        /// The group.
        group: String,
        /// The epoch.
        to: Epoch,
        /// Why.
        #[source]
        source: RewindError,
    },
    /// There is a history, and nobody says that it is to be kept on.
    #[error(
        "group '{group}' has a history in {dir}, and its configuration does not say that it is kept: what is written without it would \
         make it wrong. Put [group.history] back, or move that directory away to give it up"
    )]
    HistoryLeft {
        /// The group.
        group: String,
        /// Directory of the history.
        dir: PathBuf,
    },
    /// The state after recovery could not be recorded.
    #[error("group '{group}': {what}")]
    Start {
        /// The group.
        group: String,
        /// Why.
        what: String,
    },
}

/// How far recovery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The group.
    pub group: &'a str,
    /// Committed epochs brought into the images so far.
    pub applied: u64,
    /// Committed epochs to bring into the images.
    pub total: u64,
}

/// Where the log is, and how it and its history are written.
#[derive(Debug, Clone)]
pub struct LogPlace {
    /// The log's directory.
    pub storage: Arc<dyn Storage>,
    /// Of the log.
    pub options: LogOptions,
    /// Of the history, if one is kept.
    pub history: HistoryOptions,
}

/// A group that is open, and what its two threads do.
pub(super) struct Parts {
    pub group: Group,
    pub committer: Committer,
    pub applier: Applier,
}

impl Parts {
    /// Recovers a group, and takes over what an earlier process has left in memory.
    pub fn open(
        config: &GroupConfig,
        images: Vec<Image>,
        log: LogPlace,
        progress: &mut dyn FnMut(Progress<'_>),
        now: Instant,
    ) -> Result<Self, OpenError> {
        let bell: Arc<Bell> = Arc::default();
        let place = Arc::clone(&log.storage);
        let (log, clean, history) = recover(config, &images, log, progress)?;
        let sizes = images.iter().map(Image::size).collect();
        let start = resume::start(config, &log, clean, sizes, &bell)?;
        let disks = images
            .into_iter()
            .zip(&config.disks)
            .zip(start.held)
            .map(|((image, disk), held)| {
                Arc::new(Disk::new(
                    disk.name.clone(),
                    image,
                    disk.read_only,
                    &start.budget,
                    held,
                ))
            })
            .collect();
        let (jobs, job_queue): Channels<_> = mpsc::channel();
        let (apply, apply_queue): Channels<_> = mpsc::channel();
        let shared = Shared::new(
            config.name.clone(),
            disks,
            start.budget,
            bell,
            Core::new(start.barriers, start.cuts),
            jobs,
            apply,
        );
        let shared = Arc::new(shared.with_history(history));
        let interval = Duration::from_millis(config.epoch_interval_ms);
        let mut committer = Committer::new(Arc::clone(&shared), log, job_queue, interval, now);
        committer.start().map_err(|e| start_error(config, &e))?;
        let applier = Applier::new(Arc::clone(&shared), apply_queue);
        let group = Group {
            shared,
            log: config.log.clone(),
            place,
            threads: Mutex::default(),
            keeper: Mutex::default(),
            clones: Clones::default(),
        };
        Ok(Self {
            group,
            committer,
            applier,
        })
    }
}

impl Group {
    /// Opens the group: applies what is committed, and lets nobody go on who may have lost writes.
    ///
    /// # Errors
    /// [`OpenError`], naming group and disk.
    pub fn open(
        config: &GroupConfig,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, OpenError> {
        check(config)?;
        let images = open_images(config)?;
        let log = LogPlace {
            storage: open_log(config)?,
            options: log_options(config),
            history: HistoryOptions::default(),
        };
        let parts = Parts::open(config, images, log, progress, Instant::now())?;
        let (group, committer, applier) = (parts.group, parts.committer, parts.applier);
        group.spawn(config, "commit", move || committer.run())?;
        group.spawn(config, "apply", move || applier.run())?;
        group.open_clones();
        if let Some(history) = &group.shared.history {
            let keeper = Keeper::start(&config.name, history.clone());
            let keeper = keeper.map_err(|e| start_error(config, &e))?;
            *group.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
        }
        Ok(group)
    }

    fn spawn(
        &self,
        config: &GroupConfig,
        what: &str,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), OpenError> {
        let thread = std::thread::Builder::new()
            .name(format!("{what} {}", config.name))
            .spawn(run)
            .map_err(|e| start_error(config, &e))?;
        self.threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(thread);
        Ok(())
    }
}

fn start_error(config: &GroupConfig, error: &dyn std::error::Error) -> OpenError {
    OpenError::Start {
        group: config.name.clone(),
        what: with_sources(error),
    }
}

pub(crate) fn check(config: &GroupConfig) -> Result<(), OpenError> {
    let fail = |what: String| {
        Err(OpenError::Config {
            group: config.name.clone(),
            what,
        })
    };
    if !valid_name(&config.name) {
        return fail(format!("the name {}", NAME_RULE));
    }
    if config.memory_budget_mib < MIN_BUDGET_MIB {
        return fail(format!(
            "memory_budget_mib must be at least {MIN_BUDGET_MIB}"
        ));
    }
    if let Some(history) = &config.history {
        history.check().or_else(&fail)?;
    }
    if config.epoch_interval_ms == 0 {
        return fail("epoch_interval_ms must be at least 1".to_owned());
    }
    if config.disks.is_empty() {
        return fail("it has no disks; add a [[group.disk]] with name and image".to_owned());
    }
    let mut names = BTreeSet::new();
    for disk in &config.disks {
        if !valid_name(&disk.name) {
            return fail(format!("the disk name '{}' {NAME_RULE}", disk.name));
        }
        if !names.insert(&disk.name) {
            return fail(format!(
                "two disks are named '{}'; give each a name of its own",
                disk.name
            ));
        }
    }
    Ok(())
}

const NAME_RULE: &str = "must have 1 to 64 ASCII letters, digits, '-', '_' or '.'";

/// Whether `name` can name a group or a disk: it becomes part of export names (`group/disk@id`), URLs and the log.
pub fn valid_name(name: &str) -> bool {
    (1..=epoch_log::limits::MAX_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// By what the log recognises its disks.
pub(super) fn identities(config: &GroupConfig, images: &[Image]) -> Vec<DiskIdentity> {
    images
        .iter()
        .zip(&config.disks)
        .map(|(image, disk)| DiskIdentity {
            name: disk.name.clone(),
            size: image.size(),
            file_id: image.identity().1,
        })
        .collect()
}

/// The log holds about as much as memory does until the images have it: so many segments are worth keeping for the next epochs.
pub(super) fn log_options(config: &GroupConfig) -> LogOptions {
    let options = LogOptions::default();
    let budget = config.memory_budget_mib.saturating_mul(1 << 20);
    let segments = budget.div_ceil(options.segment_bytes).saturating_add(1);
    LogOptions {
        spare_segments: usize::try_from(segments).unwrap_or(usize::MAX),
        ..options
    }
}
