//! The memory points of one VM on disk: an epoch log with two images, `ram.img` and `devices.img`, and a history beside it. Knows no
//! guest and no gateway.
//!
//! ```text
//!   DIR/ram.img  DIR/devices.img     the newest point
//!   DIR/log/                         each point goes through it: all of it is there, or nothing
//!   DIR/history/                     what earlier points held where the newer ones differ
//! ```
//!
//! A point is an epoch of this log, with numbers of its own; the head of `devices.img` says which epoch of the group it belongs to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use epoch_log::history::{Anchor, History, HistoryError, Options, Retention};
use epoch_log::{Content, DiskIdentity, Epoch, EpochLog, Extent, LogError, LogOptions};
use nbd_server::group::history::{GroupHistory, save_epoch};
use nbd_server::group::{Image, ImageError};

use super::head::{DEVICE_BYTES, HEAD, HEAD_BYTES, Head, MemoryPoint};
use super::tracked::{GivenUp, PAGE};

/// The images, in the order of the log: their numbers.
pub(super) const RAM: u16 = 0;
pub(super) const DEVICES: u16 = 1;
const RAM_NAME: &str = "ram.img";
const DEVICES_NAME: &str = "devices.img";
/// Most points: each is a pin at the gateway, which has a bound of its own.
const MOST_POINTS: usize = 2000;

/// Why points can't be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is nothing there.
    #[error("there is no memory history in {}", .0.display())]
    Nothing(PathBuf),
    /// A file or directory.
    #[error("can't {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An image.
    #[error("an image of the memory history can't be opened")]
    Image(#[from] ImageError),
    /// It is that of a VM with more or less memory.
    #[error(
        "{} has the memory of a VM with {found} bytes, and this one has {wanted}: move the directory away, or name another one", path.display()
    )]
    OtherSize {
        /// The image.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The VM's.
        wanted: u64,
    },
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The history.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// Reading or writing an image.
    #[error("an image of the memory history can't be read or written")]
    Io(#[from] io::Error),
    /// The point was given up on its way.
    #[error(transparent)]
    GivenUp(#[from] GivenUp),
    /// Too much for its place.
    #[error("the devices of this VM are too large to keep: {bytes} bytes of at most {most}")]
    Devices {
        /// Their size.
        bytes: u64,
        /// What there is room for.
        most: u64,
    },
    /// The machine's description does not fit.
    #[error("the description of this VM is too long to keep with its memory")]
    Description,
    /// It is not among those that are kept.
    #[error("there is no memory point of epoch {epoch}{}", said(*oldest, *newest))]
    NoPoint {
        /// The epoch.
        epoch: Epoch,
        /// Of the oldest point.
        oldest: Option<Epoch>,
        /// Of the newest.
        newest: Option<Epoch>,
    },
    /// What was read is not what was kept.
    #[error("the memory point of epoch {0} is damaged: its devices have another checksum")]
    Damaged(Epoch),
}

impl StoreError {
    /// There is no room on the disk.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Log(error) => matches!(error, LogError::Full { .. }),
            Self::History(error) => error.is_full(),
            _ => false,
        }
    }
}

fn said(oldest: Option<Epoch>, newest: Option<Epoch>) -> String {
    match (oldest, newest) {
        (Some(oldest), Some(newest)) => format!("; there are some from epoch {oldest} to {newest}"),
        _ => "; there is none at all yet".to_owned(),
    }
}

/// What can be read while points are added.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) history: Arc<History>,
    pub(super) images: [Image; 2],
    /// The points, by their epochs in the log here. All of them are in the images or in the history.
    points: Mutex<BTreeMap<Epoch, Head>>,
}

impl Shelf {
    /// All points, oldest first.
    pub(super) fn points(&self) -> Vec<MemoryPoint> {
        self.heads()
            .values()
            .map(|head| head.point.clone())
            .collect()
    }

    /// The point that belongs to an epoch of the group, with its own number. Of several, the newest.
    pub(super) fn find(&self, epoch: Epoch) -> Result<(Epoch, Head), StoreError> {
        let heads = self.heads();
        let found = heads
            .iter()
            .rev()
            .find(|(_, head)| head.point.epoch == epoch);
        found
            .map(|(own, head)| (*own, head.clone()))
            .ok_or_else(|| StoreError::NoPoint {
                epoch,
                oldest: heads.values().next().map(|head| head.point.epoch),
                newest: heads.values().next_back().map(|head| head.point.epoch),
            })
    }

    fn heads(&self) -> MutexGuard<'_, BTreeMap<Epoch, Head>> {
        self.points.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn image(&self, disk: u16) -> Result<&Image, StoreError> {
        let image = self.images.get(usize::from(disk));
        image.ok_or_else(|| StoreError::Io(io::ErrorKind::NotFound.into()))
    }
}

/// What a point is made of, beside its memory.
#[derive(Debug)]
pub(super) struct Devices<'a> {
    pub(super) head: &'a Head,
    pub(super) state: &'a [u8],
}

/// The points on disk, for the one that adds to them.
#[derive(Debug)]
pub(super) struct Store {
    log: EpochLog,
    kept: GroupHistory,
    shelf: Arc<Shelf>,
}

impl Store {
    /// Opens the points in `dir`, and finishes what was interrupted. With `ram_bytes`, the size of the VM's memory, they are begun if there
    /// are none.
    pub(super) fn open(
        dir: &Path,
        ram_bytes: Option<u64>,
        retention: Retention,
        now_ms: u64,
    ) -> Result<Self, StoreError> {
        let ram = dir.join(RAM_NAME);
        match ram_bytes {
            None if !ram.is_file() => return Err(StoreError::Nothing(dir.to_owned())),
            None => {}
            Some(bytes) => {
                let mut private = DirBuilder::new();
                let made = private.recursive(true).mode(0o700).create(dir);
                made.map_err(failed("make", dir))?;
                // The log and the history hold guest memory, too.
                let closed = fs::set_permissions(dir, Permissions::from_mode(0o700));
                closed.map_err(failed("close to others", dir))?;
                make_image(&ram, bytes)?;
                make_image(&dir.join(DEVICES_NAME), HEAD_BYTES + DEVICE_BYTES)?;
            }
        }
        let images = [
            Image::open(&ram, false)?,
            Image::open(&dir.join(DEVICES_NAME), false)?,
        ];
        if let Some(wanted) = ram_bytes.filter(|wanted| *wanted != images[0].size()) {
            return Err(StoreError::OtherSize {
                path: ram,
                found: images[0].size(),
                wanted,
            });
        }
        let disks: Vec<_> = ["ram", "devices"]
            .iter()
            .zip(&images)
            .map(|(name, image)| DiskIdentity {
                name: (*name).to_owned(),
                size: image.size(),
                file_id: image.identity().1,
            })
            .collect();
        let (log, recovered) =
            EpochLog::open_or_create(&dir.join("log"), "memory", &disks, LogOptions::default())?;
        let history = epoch_log::storage::directory(&dir.join("history"));
        let anchor = Anchor::from(&log);
        let (past, opened) = History::open(history, anchor, Options::default(), now_ms)?;
        for lost in &opened.lost {
            tracing::error!(dir = %dir.display(), "the memory history is damaged: {lost}");
        }
        let mut store = Self {
            log,
            kept: GroupHistory {
                cold: None,
                past: Arc::clone(&past),
                retention,
            },
            shelf: Arc::new(Shelf {
                history: past,
                images,
                points: Mutex::default(),
            }),
        };
        for own in recovered.unapplied {
            store.apply(own)?;
        }
        store.read_heads()?;
        Ok(store)
    }

    /// For those who only read.
    pub(super) fn shelf(&self) -> &Arc<Shelf> {
        &self.shelf
    }

    /// What tells these points from those of another standby.
    pub(super) fn id(&self) -> u32 {
        let [a, b, c, d, ..] = self.log.id();
        u32::from_be_bytes([a, b, c, d])
    }

    /// Keeps a point. `next` gives its memory: offsets with what is there, until there is none. With `compare` only what differs from the
    /// newest point is stored.
    ///
    /// # Errors
    /// [`StoreError`]. After [`StoreError::GivenUp`] all is as before; else the store is to be opened anew.
    pub(super) fn keep(
        &mut self,
        devices: &Devices<'_>,
        compare: bool,
        next: impl FnMut(&mut Vec<u8>) -> Result<Option<u64>, GivenUp>,
    ) -> Result<u64, StoreError> {
        let (own, bytes) = self.write(devices, compare, next)?;
        self.finish(own, devices.head)?;
        Ok(bytes)
    }

    /// Brings a point that is in the log to the images. It can be read then.
    pub(super) fn finish(&mut self, own: Epoch, head: &Head) -> Result<(), StoreError> {
        self.apply(own)?;
        self.shelf.heads().insert(own, head.clone());
        Ok(())
    }

    /// Makes a point durable in the log, and says how many bytes that took. From then on it is kept, whatever happens.
    pub(super) fn write(
        &mut self,
        devices: &Devices<'_>,
        compare: bool,
        mut next: impl FnMut(&mut Vec<u8>) -> Result<Option<u64>, GivenUp>,
    ) -> Result<(Epoch, u64), StoreError> {
        let own = self.log.state().committed.next();
        let generation = self.log.state().generation;
        let head = devices.head.encode().ok_or(StoreError::Description)?;
        let (mut piece, mut held, mut bytes) = (Vec::new(), Vec::new(), 0);
        loop {
            let offset = match next(&mut piece) {
                Ok(Some(offset)) => offset,
                Ok(None) => break,
                Err(why) => {
                    self.log.abort()?;
                    return Err(why.into());
                }
            };
            if compare {
                held.resize(piece.len(), 0);
                self.shelf.image(RAM)?.read(offset, &mut held)?;
            }
            let extents = extents(offset, &piece, compare.then_some(held.as_slice()));
            bytes += data_bytes(&extents);
            if !extents.is_empty() {
                self.log.append(generation, own, &extents)?;
            }
        }
        let of_devices = |offset, data| Extent {
            disk: DEVICES,
            offset,
            len: <[u8]>::len(data) as u64,
            content: Content::Data(data),
        };
        let mut extents = vec![of_devices(0, head.as_slice())];
        if !devices.state.is_empty() {
            extents.push(of_devices(HEAD_BYTES, devices.state));
        }
        bytes += data_bytes(&extents);
        self.log.append(generation, own, &extents)?;
        self.log.commit(generation, own, None)?;
        Ok((own, bytes))
    }

    /// Saves what a point that is in the log will change in the images. What was saved before costs nothing.
    pub(super) fn save(&self, own: Epoch) -> Result<(), StoreError> {
        loop {
            match save_epoch(&self.kept, &self.shelf.images, &self.log, own) {
                Err(error) if error.is_full() && self.kept.past.trim_for_space()? => {}
                saved => return Ok(saved?),
            }
        }
    }

    fn apply(&mut self, own: Epoch) -> Result<(), StoreError> {
        self.save(own)?;
        self.log.replay_epoch(own, |extent| {
            Ok::<(), StoreError>(self.shelf.image(extent.disk)?.apply(&extent)?)
        })?;
        for image in &self.shelf.images {
            image.sync()?;
        }
        self.log.mark_applied(own)?;
        self.kept.past.applied(own);
        Ok(())
    }

    /// Brings the first few extents of a point to the images and goes no further, as a crash would.
    #[cfg(test)]
    pub(super) fn apply_a_part(&self, own: Epoch, extents: usize) -> Result<(), StoreError> {
        let mut left = extents;
        self.log.replay_epoch(own, |extent| {
            if left > 0 {
                left -= 1;
                self.shelf.image(extent.disk)?.apply(&extent)?;
            }
            Ok::<(), StoreError>(())
        })
    }

    /// Removes the points that are too old or too many. Returns those that are gone.
    pub(super) fn trim(&mut self, now_ms: u64) -> Result<Vec<MemoryPoint>, StoreError> {
        let past = &self.kept.past;
        let mut changed = false;
        while !past.maintain(now_ms, &self.kept.retention)?.is_nothing() {
            changed = true;
        }
        let kept = |past: &History| -> Result<BTreeSet<Epoch>, StoreError> {
            let mut kept = BTreeSet::new();
            past.visit_points(past.status().oldest, |point| {
                kept.insert(point.epoch);
            })?;
            Ok(kept)
        };
        let mut heads = self.shelf.heads();
        let many = heads.len() > MOST_POINTS;
        if many {
            changed |= past.trim_for_space()?;
        }
        if !changed {
            return Ok(Vec::new());
        }
        let kept = kept(past)?;
        let all = std::mem::take(&mut *heads);
        let (stay, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.into_iter().partition(|(own, _)| kept.contains(own));
        *heads = stay;
        Ok(gone.into_values().map(|head| head.point).collect())
    }

    /// Frees space at once. False: there is nothing to give up.
    pub(super) fn make_room(&self) -> Result<bool, StoreError> {
        Ok(self.kept.past.trim_for_space()?)
    }

    fn read_heads(&mut self) -> Result<(), StoreError> {
        let past = &self.kept.past;
        let mut kept = Vec::new();
        past.visit_points(past.status().oldest, |point| kept.push(point.epoch))?;
        let mut heads = BTreeMap::new();
        let mut bytes = vec![0; HEAD];
        for own in kept {
            let view = past.view(own)?;
            let image = self.shelf.image(DEVICES)?;
            view.read(DEVICES, 0, &mut bytes, |at, part| image.read(at, part))?;
            // Before the first point there is none.
            if let Some(head) = Head::decode(&bytes) {
                heads.insert(own, head);
            }
        }
        *self.shelf.heads() = heads;
        Ok(())
    }
}

fn data_bytes(extents: &[Extent<'_>]) -> u64 {
    let data = |extent: &&Extent<'_>| matches!(extent.content, Content::Data(_));
    extents.iter().filter(data).map(|extent| extent.len).sum()
}

/// Memory as extents: pages of zeros become holes, and of `held`, what is there already, nothing is repeated.
fn extents<'a>(offset: u64, piece: &'a [u8], held: Option<&[u8]>) -> Vec<Extent<'a>> {
    #[derive(PartialEq, Clone, Copy)]
    enum Kind {
        Same,
        Zero,
        Data,
    }
    let page = PAGE;
    let kind = |at: usize| {
        let now = piece
            .get(at..(at + page).min(piece.len()))
            .unwrap_or_default();
        let before = held.and_then(|held| held.get(at..at + now.len()));
        if before == Some(now) {
            Kind::Same
        } else if now.iter().all(|byte| *byte == 0) {
            Kind::Zero
        } else {
            Kind::Data
        }
    };
    let mut extents = Vec::new();
    let mut start = 0;
    while start < piece.len() {
        let this = kind(start);
        let mut end = start + page;
        while end < piece.len() && kind(end) == this {
            end += page;
        }
        let data = piece.get(start..end.min(piece.len())).unwrap_or_default();
        let content = match this {
            Kind::Same => None,
            Kind::Zero => Some(Content::Hole),
            Kind::Data => Some(Content::Data(data)),
        };
        extents.extend(content.map(|content| Extent {
            disk: RAM,
            offset: offset + start as u64,
            len: data.len() as u64,
            content,
        }));
        start = end;
    }
    extents
}

/// Makes an image of this size, of zeros, unless there is one. An empty one was just being made.
fn make_image(path: &Path, bytes: u64) -> Result<(), StoreError> {
    let make = || {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false);
        let file = file.mode(0o600).open(path)?;
        if file.metadata()?.len() == 0 {
            file.set_len(bytes)?;
        }
        Ok(())
    };
    make().map_err(failed("make", path))
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::File {
        action,
        path: path.to_owned(),
        source,
    }
}
