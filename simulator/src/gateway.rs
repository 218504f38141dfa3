//! The storage host and the gateway's process on it: the real group and the real log, in turns, over the simulated disk. What a group
//! does is not decided here, only when its turns come.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use epoch_log::LogOptions;
use epoch_log::history::{Options as HistoryOptions, Retention, Tier};
use nbd_server::group::stepped::{LogPlace, Stepped};
use nbd_server::group::{
    DiskConfig, GroupConfig, GroupMode, HistoryConfig, Image, Next, OpenError,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use crate::Options;
use crate::blocks::{DISKS, PLACES, Stamp, UNIT, UNITS, position, stamps};
use crate::storage::{SimDisk, SimFile};

/// Virtual time, in microseconds since the start.
pub type Micros = u64;

/// The group's name.
pub const GROUP: &str = "vm";

/// Virtual time for code that wants an [`Instant`]: only differences count.
pub fn instant(now: Micros) -> Instant {
    static BASE: OnceLock<Instant> = OnceLock::new();
    *BASE.get_or_init(Instant::now) + Duration::from_micros(now)
}

/// What survives the gateway's process.
#[derive(Debug)]
pub struct StorageHost {
    /// Log and images.
    pub disk: SimDisk,
    images: Vec<Arc<SimFile>>,
    config: GroupConfig,
    /// What outlives the gateway's process, and not the power.
    memory: Option<TempDir>,
    options: LogOptions,
    history: HistoryOptions,
    /// How much of the history is kept.
    pub retention: Retention,
}

impl StorageHost {
    /// A host with an empty group.
    pub fn new(random: &mut StdRng, seed: u64, mode: GroupMode, options: &Options) -> Self {
        let disk = SimDisk::new(random.random(), options.planted);
        let images = (0..DISKS).map(|_| disk.image(UNITS * UNIT)).collect();
        let disks = (0..DISKS).map(|number| DiskConfig {
            name: format!("disk{number}"),
            image: "/image".into(),
            read_only: false,
            export: None,
        });
        let mut config = GroupConfig::new(GROUP, "/log", disks.collect());
        config.mode = mode;
        config.memory_budget_mib = 1;
        config.epoch_interval_ms = random.random_range(2..60);
        let mut memory = None;
        let mut history = HistoryOptions::default();
        let mut retention = Retention::unlimited();
        if options.history {
            config.history = Some(HistoryConfig::default());
            // Of a stream of its own: a seed without history stays the same.
            let mut random = StdRng::seed_from_u64(!seed);
            if random.random_ratio(1, 2) {
                history.run_bytes = random.random_range(8..64) << 10;
                history.run_entries = random.random_range(8..200);
            }
            if random.random_ratio(1, 4) {
                retention.bytes = random.random_range(16..256) << 10;
            }
            if random.random_ratio(1, 4) {
                retention.tiers.push(Tier {
                    older_than_ms: 60_000,
                    one_in_ms: 3_600_000,
                });
            }
            if random.random_ratio(3, 4) {
                let dir = TempDir::with_prefix_in("epochgate-sim-", "/dev/shm");
                config.epoch_memory = dir
                    .as_ref()
                    .map(|dir| dir.path().to_owned())
                    .unwrap_or_default();
                memory = dir.ok();
            }
        }
        let options = LogOptions {
            segment_bytes: random.random_range(16..80) << 10,
            spare_segments: random.random_range(0..3),
        };
        Self {
            disk,
            images,
            config,
            memory,
            options,
            history,
            retention,
        }
    }

    /// The next gateway has this mode in its configuration.
    pub fn set_mode(&mut self, mode: GroupMode) {
        self.config.mode = mode;
    }

    /// Whether the group holds writes in sync mode.
    pub fn keeps_history(&self) -> bool {
        self.config.keeps_history()
    }

    /// Whether a gateway that is killed leaves to the next one what it held.
    pub fn keeps_memory(&self) -> bool {
        self.memory.is_some()
    }

    /// The power goes: with it what is not synced, and all memory.
    pub fn power_loss(&self) {
        self.disk.power_loss();
        let files = self
            .memory
            .iter()
            .filter_map(|dir| dir.path().read_dir().ok());
        for file in files.flatten().flatten() {
            std::fs::remove_file(file.path()).unwrap();
        }
    }

    /// Starts the gateway.
    ///
    /// # Errors
    /// What opening the group said.
    pub fn start(&self, now: Micros) -> Result<Gateway, OpenError> {
        let images = self.images.iter().zip(1..).map(|(image, number)| {
            let name = format!("image{number}");
            Image::raw(
                &name,
                number,
                (UNITS * UNIT) as u64,
                Arc::clone(image) as Arc<_>,
            )
        });
        let log = LogPlace {
            storage: Arc::new(self.disk.clone()),
            options: self.options.clone(),
            history: self.history,
        };
        let stepped = Stepped::open(&self.config, images.collect(), log, instant(now))?;
        Ok(Gateway {
            stepped,
            commit_at: Some(now),
            apply_at: Some(now),
        })
    }

    /// What each sector of the images shows.
    pub fn image_stamps(&self) -> Vec<[Option<Stamp>; 2]> {
        let mut found = Vec::with_capacity(PLACES);
        for (disk, image) in self.images.iter().enumerate() {
            image.look(|bytes| {
                let units = bytes.chunks_exact(UNIT).enumerate();
                found.extend(units.map(|(unit, bytes)| stamps(disk * UNITS + unit, bytes)));
            });
        }
        found
    }

    /// Fills `buffer` with what an image shows from `offset` on.
    pub fn image_bytes(&self, disk: usize, offset: u64, buffer: &mut [u8]) {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        self.images[disk].look(|bytes| buffer.copy_from_slice(&bytes[from..from + buffer.len()]));
    }

    /// Durably repairs a unit that a power loss has torn.
    pub fn repair(&self, place: usize, bytes: &[u8]) {
        let (disk, offset) = position(place);
        self.images[disk].repair(offset, bytes);
    }

    /// Writes a unit into an image, past the group: a planted mistake.
    pub fn scribble(&self, place: usize, bytes: &[u8]) {
        let (disk, offset) = position(place);
        self.images[disk].scribble(offset, bytes);
    }
}

/// The gateway's process.
#[derive(Debug)]
pub struct Gateway {
    /// The group.
    pub stepped: Stepped,
    commit_at: Option<Micros>,
    apply_at: Option<Micros>,
}

impl Gateway {
    /// Something was asked of the group, or told to it: its threads look soon.
    pub fn poke(&mut self, now: Micros, random: &mut StdRng) {
        let soon = now + random.random_range(1..150);
        let sooner = |at: Option<Micros>| Some(at.map_or(soon, |at| at.min(soon)));
        self.commit_at = sooner(self.commit_at);
        self.apply_at = sooner(self.apply_at);
    }

    /// When the next turn comes.
    pub fn due(&self) -> Option<Micros> {
        match (self.commit_at, self.apply_at) {
            (Some(commit), Some(apply)) => Some(commit.min(apply)),
            (commit, apply) => commit.or(apply),
        }
    }

    /// Takes the turn that is due. True if it was the committer's.
    pub fn turn(&mut self, now: Micros, random: &mut StdRng) -> bool {
        let commits = self.commit_at.is_some_and(|at| at <= now);
        let next = if commits {
            self.stepped.commit_turn(instant(now))
        } else {
            self.stepped.apply_turn(instant(now))
        };
        let at = match next {
            // Now and then the disk is slow.
            Next::Turn if random.random_ratio(1, 40) => {
                Some(now + random.random_range(1_000..20_000))
            }
            Next::Turn => Some(now + random.random_range(5..200)),
            Next::Wait(Some(until)) | Next::Pause(until) => {
                let wait = until.saturating_duration_since(instant(now));
                Some(now + u64::try_from(wait.as_micros()).unwrap_or(u64::MAX) + 1)
            }
            Next::Wait(None) | Next::Over => None,
        };
        if commits {
            self.commit_at = at;
        } else {
            self.apply_at = at;
        }
        // What one has done may be work for the other.
        if next == Next::Turn {
            self.poke(now, random);
        }
        commits
    }

    /// Whether the committer has ended.
    pub fn is_over(&self) -> bool {
        self.stepped.is_over()
    }
}
