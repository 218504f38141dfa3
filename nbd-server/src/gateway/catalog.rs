//! What a gateway serves right now, and every change of it: one at a time, while clients are attached. The control API and the
//! reload of a configuration file ([`super::reload`]) are its only callers; it knows nothing of HTTP or TOML.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use epoch_log::history::HistoryError;

use super::{ExportConfig, GatewayConfig, GatewayError, aliases, check_export_name};
use crate::control::api::{ErrorKind, ExportStatus, ReloadStatus};
use crate::export::Export;
use crate::group::directory::{Contents, Directory};
use crate::group::history::{CloneError, PIN_PREFIX};
use crate::group::{Group, OpenError, Refusal};
use crate::image_file::ImageError;
use crate::metrics::Kind;
use crate::raw_export::{RawExport, ResizeError};
use crate::served::Served;

/// How long the clients of an export that ends may take for what they asked before; then they are cut.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Why an export could not be added, removed or resized.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// There is no such export outside of groups.
    #[error("there is no export '{name}'; this gateway has: {names}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// Those there are.
        names: String,
    },
    /// It is a disk of a group.
    #[error(
        "'{name}' is a disk of a group: its size and place are bound to the group's epoch log; \
         change the group in the configuration file, and reload it"
    )]
    OfGroup {
        /// The name asked for.
        name: String,
    },
    /// The name is taken.
    #[error("there is an export or group '{name}' already; remove it first, or take another name")]
    Exists {
        /// The name.
        name: String,
    },
    /// Clients are attached.
    #[error(
        "{connections} connections are attached to export '{name}'; let their clients leave first, or remove it with --force"
    )]
    Attached {
        /// The export.
        name: String,
        /// How many.
        connections: usize,
    },
    /// It is gone, but its image is not free yet.
    #[error(
        "the export '{name}' is gone, but its storage still works on a request of a client that was cut; \
         the image stays locked until that ends"
    )]
    Stuck {
        /// The export.
        name: String,
    },
    /// The name can't be one.
    #[error("{0}")]
    Name(String),
    /// The image can't be served.
    #[error("{}", crate::group::with_sources(.0))]
    Image(#[source] ImageError),
    /// The image can't have that size.
    #[error("{}", crate::group::with_sources(.0))]
    Resize(#[source] ResizeError),
    /// There is no such group.
    #[error("{0}")]
    UnknownGroup(String),
    /// Its past is not kept.
    #[error("group '{group}' keeps no history; add [group.history] to its configuration")]
    NoHistory {
        /// The group.
        group: String,
    },
    /// Somebody uses the group.
    #[error("group '{group}' can't be set back: {why}; or use --force, which sends them away")]
    InUse {
        /// The group.
        group: String,
        /// Who, and what to do.
        why: String,
    },
    /// That point in time can't be had.
    #[error(transparent)]
    Past(Refusal),
    /// The history refused or failed.
    #[error("{}", crate::group::with_sources(.0))]
    History(#[from] HistoryError),
    /// The pin belongs to a clone.
    #[error(
        "the pin '{name}' is not for people: names that begin with '{PIN_PREFIX}' keep the points of clones; see epochgate clone"
    )]
    PinOfClone {
        /// The name.
        name: String,
    },
    /// A clone could not be made or removed.
    #[error("{}", crate::group::with_sources(.0))]
    Clone(#[from] CloneError),
    /// The group could not be opened.
    #[error("{}", crate::group::with_sources(.0))]
    Open(#[source] OpenError),
    /// The gateway stops.
    #[error("the gateway is stopping")]
    Stopping,
}

impl ChangeError {
    /// The kind for the control API.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown { .. } => ErrorKind::UnknownExport,
            Self::UnknownGroup(_) => ErrorKind::UnknownGroup,
            Self::NoHistory { .. } | Self::InUse { .. } | Self::Past(_) => ErrorKind::Refused,
            Self::History(HistoryError::BadPin { .. }) | Self::PinOfClone { .. } => {
                ErrorKind::BadRequest
            }
            Self::Clone(error) => error.kind(),
            Self::History(HistoryError::Io { .. } | HistoryError::Damaged { .. })
            | Self::Open(_) => ErrorKind::Io,
            Self::History(_) => ErrorKind::Refused,
            Self::OfGroup { .. } | Self::Exists { .. } | Self::Attached { .. } => {
                ErrorKind::Refused
            }
            Self::Name(_) => ErrorKind::BadRequest,
            Self::Image(_) => ErrorKind::BadImage,
            Self::Resize(error) if error.is_system() => ErrorKind::Io,
            Self::Resize(_) => ErrorKind::Refused,
            Self::Stuck { .. } => ErrorKind::Io,
            Self::Stopping => ErrorKind::Stopping,
        }
    }
}

/// Everything that is served, and the only way to change it.
pub struct Catalog {
    directory: Arc<Directory>,
    state: Mutex<State>,
    last_reload: Mutex<Option<ReloadStatus>>,
    storage: Mutex<Vec<String>>,
}

/// What the lock of all changes guards.
#[derive(Debug)]
pub(super) struct State {
    /// The exports outside of groups, by name.
    pub exports: BTreeMap<String, Known>,
    /// The configuration file, as it was applied last.
    pub file: GatewayConfig,
    /// Nothing changes any more.
    pub stopping: bool,
}

/// How an export came to be.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub config: ExportConfig,
    /// It stands in the configuration file; otherwise the control API has added it.
    pub in_file: bool,
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog").finish_non_exhaustive()
    }
}

impl Catalog {
    /// A catalog of what `config` says, opened already.
    pub(super) fn new(
        config: &GatewayConfig,
        groups: BTreeMap<String, Arc<Group>>,
        exports: BTreeMap<String, Arc<Served>>,
    ) -> Self {
        let known = config.exports.iter().map(|export| {
            let known = Known {
                config: export.clone(),
                in_file: true,
            };
            (export.name.clone(), known)
        });
        let state = State {
            exports: known.collect(),
            file: config.clone(),
            stopping: false,
        };
        let contents = Contents {
            groups,
            exports,
            aliases: aliases(&config.groups),
            set_back: BTreeSet::new(),
        };
        Self {
            directory: Arc::new(Directory::new(contents)),
            state: Mutex::new(state),
            last_reload: Mutex::default(),
            storage: Mutex::default(),
        }
    }

    /// Where clients find what is served.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// What is exported outside of groups.
    pub fn exports(&self) -> Vec<ExportStatus> {
        let contents = self.directory.look();
        let exports = contents.exports.iter();
        exports.map(|(name, served)| status(name, served)).collect()
    }

    /// Serves one more image, locked and checked as at the start. It is forgotten when the gateway ends: what shall stay
    /// belongs into the configuration file. May block.
    ///
    /// # Errors
    /// [`ChangeError`]; nothing has changed.
    pub fn add(&self, config: &ExportConfig) -> Result<ExportStatus, ChangeError> {
        check_export_name(&config.name).map_err(ChangeError::Name)?;
        let mut state = self.lock()?;
        if self.directory.look().is_taken(&config.name) {
            return Err(ChangeError::Exists {
                name: config.name.clone(),
            });
        }
        let served = open(config).map_err(ChangeError::Image)?;
        let status = status(&config.name, &served);
        let mut contents = self.directory.change();
        contents.exports.insert(config.name.clone(), served);
        drop(contents);
        let known = Known {
            config: config.clone(),
            in_file: false,
        };
        state.exports.insert(config.name.clone(), known);
        tracing::info!(export = config.name, image = %config.image.display(), "an export is added");
        Ok(status)
    }

    /// Serves an image no longer. With clients attached it is refused unless `force`: then what they have asked is answered, and
    /// they are cut. May block, for twice the grace of 5 seconds at most.
    ///
    /// # Errors
    /// [`ChangeError`]; nothing has changed, but for [`ChangeError::Stuck`].
    pub fn remove(&self, name: &str, force: bool) -> Result<(), ChangeError> {
        let mut state = self.lock()?;
        let mut contents = self.directory.change();
        let connections = contents.find(name)?.connections();
        if connections > 0 && !force {
            return Err(ChangeError::Attached {
                name: name.to_owned(),
                connections,
            });
        }
        let served = contents.exports.remove(name);
        drop(contents);
        state.exports.remove(name);
        tracing::info!(export = name, connections, "an export is removed");
        if served.is_some_and(|served| !served.send_away(GRACE)) {
            return Err(ChangeError::Stuck {
                name: name.to_owned(),
            });
        }
        Ok(())
    }

    /// Gives an image another size. Clients that are attached go on with the size that they were told; what lies beyond the end of an
    /// image that shrank fails. May block.
    ///
    /// # Errors
    /// [`ChangeError`]; nothing has changed.
    pub fn resize(&self, name: &str, size: u64, shrink: bool) -> Result<ExportStatus, ChangeError> {
        let _state = self.lock()?;
        let served = Arc::clone(self.directory.look().find(name)?);
        served
            .raw()
            .resize_to(size, shrink)
            .map_err(ChangeError::Resize)?;
        tracing::info!(export = name, size, "an export is resized");
        Ok(status(name, &served))
    }

    /// How the last reload of the configuration file went.
    pub fn last_reload(&self) -> Option<ReloadStatus> {
        self.last_reload
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Notes how a reload went, for the status.
    pub(super) fn note_reload(&self, outcome: Result<String, String>) {
        let at = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let ok = outcome.is_ok();
        let message = outcome.unwrap_or_else(|error| error);
        *self
            .last_reload
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(ReloadStatus { ok, message, at });
    }

    /// What is worth a word about the storage below, as it was at the start or the last reload.
    pub fn storage(&self) -> Vec<String> {
        let storage = self.storage.lock();
        storage.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what is worth a word about the storage below, for the status.
    pub(super) fn note_storage(&self, advice: Vec<String>) {
        *self.storage.lock().unwrap_or_else(PoisonError::into_inner) = advice;
    }

    /// No change begins after this.
    pub(super) fn stop(&self) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stopping = true;
    }

    pub(super) fn lock(&self) -> Result<MutexGuard<'_, State>, ChangeError> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.stopping {
            return Err(ChangeError::Stopping);
        }
        Ok(state)
    }
}

impl Contents {
    /// The export outside of groups that has this name.
    fn find(&self, name: &str) -> Result<&Arc<Served>, ChangeError> {
        self.exports.get(name).ok_or_else(|| {
            let name = name.to_owned();
            if name.contains('/') || self.aliases.contains_key(&name) {
                ChangeError::OfGroup { name }
            } else {
                let names = self.names();
                ChangeError::Unknown { name, names }
            }
        })
    }

    /// A group, an export or an alias has this name.
    fn is_taken(&self, name: &str) -> bool {
        self.groups.contains_key(name)
            || self.exports.contains_key(name)
            || self.aliases.contains_key(name)
    }
}

/// Opens, checks and locks an image.
pub(super) fn open(config: &ExportConfig) -> Result<Arc<Served>, ImageError> {
    let open = if config.direct {
        RawExport::open_direct
    } else {
        RawExport::open
    };
    let raw = open(&config.image, config.read_only)?;
    Ok(Served::new(raw.with_client_resize(config.client_resize)))
}

/// The same for those of a configuration.
pub(super) fn open_named(config: &ExportConfig) -> Result<Arc<Served>, GatewayError> {
    open(config).map_err(|source| GatewayError::Export {
        name: config.name.clone(),
        source,
    })
}

fn status(name: &str, served: &Served) -> ExportStatus {
    let info = served.raw().info();
    let meter = served.meter();
    let changes = [Kind::Write, Kind::Trim, Kind::WriteZeroes];
    ExportStatus {
        name: name.to_owned(),
        size: info.size,
        read_only: info.read_only,
        image: served.raw().path().to_owned(),
        connections: served.connections() as u64,
        reads: meter.requests(Kind::Read),
        writes: changes.into_iter().map(|kind| meter.requests(kind)).sum(),
        bytes_read: meter.bytes(Kind::Read),
        bytes_written: meter.bytes(Kind::Write),
    }
}
