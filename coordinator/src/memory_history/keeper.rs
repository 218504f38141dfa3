//! The thread that keeps memory points: takes one point at a time out of a standby's memory, pins its disks at the gateway, stores it,
//! and removes what is too old. Whatever goes wrong here is reported and tried again later; protection knows nothing of it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use epoch_log::history::Retention;
use nbd_server::group::history::now_ms;
use nbd_server::{Epoch, Generation};
use qemu_glue::Fingerprint;
use xxhash_rust::xxh3::xxh3_64;

use super::head::{DEVICE_BYTES, Head, MemoryPoint};
use super::pins::{self, Pins};
use super::store::{Devices, Shelf, Store, StoreError};
use super::tracked::Tracked;
use crate::link::chain;
use crate::report::{Report, Reporter, emit, micros};

/// After something went wrong nothing is kept for so long.
const PAUSE: Duration = Duration::from_secs(5);

/// An instant that is to be kept. Its memory is begun already.
#[derive(Debug)]
pub(super) struct Order {
    pub memory: Arc<Tracked>,
    /// To be compared with what is kept.
    pub compare: bool,
    pub epoch: Epoch,
    pub generation: Generation,
    pub time_ms: u64,
    pub devices: Vec<u8>,
    pub machine: Fingerprint,
}

/// What the thread shares with others.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// A point is being kept.
    pub busy: AtomicBool,
    /// Nothing is begun before.
    pub not_before: Mutex<Option<Instant>>,
    /// What can be read, once it is open.
    pub shelf: Mutex<Option<Arc<Shelf>>>,
}

/// The thread's own.
pub(super) struct Keeper {
    pub dir: PathBuf,
    pub ram_bytes: u64,
    pub retention: Retention,
    pub pins: Pins,
    pub reporter: Reporter,
    pub shared: Arc<Shared>,
    pub store: Option<Store>,
    /// Pins of points that are gone may be left.
    pub untidy: bool,
}

/// Why a point is not kept.
#[derive(Debug, thiserror::Error)]
enum NotKept {
    #[error("the gateway does not keep the disks of this epoch")]
    Pin(#[source] nbd_server::control::client::ControlError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Keeper {
    /// Opens what is kept already, so that it can be read.
    pub(super) fn open(&mut self) -> Result<(), StoreError> {
        if self.store.is_some() {
            return Ok(());
        }
        let retention = self.retention.clone();
        let store = Store::open(&self.dir, Some(self.ram_bytes), retention, now_ms())?;
        *self.shelf() = Some(Arc::clone(store.shelf()));
        self.store = Some(store);
        self.untidy = true;
        Ok(())
    }

    /// Keeps one instant, or says why not.
    pub(super) fn carry_out(&mut self, order: &Order) {
        let began = Instant::now();
        let epoch = order.epoch;
        match self.keep(order) {
            Ok(bytes) => {
                order.memory.kept();
                let took_us = micros(began.elapsed());
                tracing::debug!(%epoch, bytes, took_us, "memory is kept");
                emit(
                    &self.reporter,
                    Report::MemoryKept {
                        epoch,
                        bytes,
                        took_us,
                    },
                );
            }
            Err(why) => {
                let unsure = matches!(&why, NotKept::Store(error) if !matches!(error, StoreError::GivenUp(_)));
                order.memory.not_kept(order.compare, unsure);
                self.untidy = true;
                if unsure {
                    // Only opening it anew tells what is kept.
                    self.store = None;
                }
                let given_up = matches!(why, NotKept::Store(StoreError::GivenUp(_)));
                if !given_up {
                    let later = Instant::now() + PAUSE;
                    let slot = self.shared.not_before.lock();
                    *slot.unwrap_or_else(PoisonError::into_inner) = Some(later);
                }
                self.skipped(epoch, &why);
            }
        }
        if let Err(error) = self.tidy_up() {
            tracing::warn!(reason = chain(&error), "old memory points stay for now");
        }
        self.shared.busy.store(false, Ordering::Release);
    }

    fn keep(&mut self, order: &Order) -> Result<u64, NotKept> {
        let bytes = order.devices.len() as u64;
        if bytes > DEVICE_BYTES {
            let most = DEVICE_BYTES;
            return Err(StoreError::Devices { bytes, most }.into());
        }
        let opened = self.store.is_some();
        self.open()?;
        let Some(store) = self.store.as_mut() else {
            return Err(StoreError::Nothing(self.dir.clone()).into());
        };
        let pin = pins::name(store.id(), order.epoch);
        let pinned = self.pins.pin(&pin, order.epoch);
        pinned.map_err(NotKept::Pin)?;
        let head = Head {
            point: MemoryPoint {
                epoch: order.epoch,
                generation: order.generation,
                time_ms: order.time_ms,
                ram_bytes: self.ram_bytes,
                device_bytes: bytes,
                pin,
            },
            device_sum: xxh3_64(&order.devices),
            machine: order.machine.clone(),
        };
        let devices = Devices {
            head: &head,
            state: &order.devices,
        };
        let compare = order.compare || !opened;
        let kept = store.keep(&devices, compare, |piece| order.memory.next(piece));
        if kept.as_ref().is_err_and(StoreError::is_full) && store.make_room()? {
            tracing::warn!(dir = %self.dir.display(), "the disk is full: the oldest memory points go before their time");
        }
        Ok(kept?)
    }

    /// Removes points that are too old, and pins of points that are gone.
    fn tidy_up(&mut self) -> Result<(), NotKept> {
        let Some(store) = self.store.as_mut() else {
            return Ok(());
        };
        self.untidy |= !store.trim(now_ms())?.is_empty();
        if !self.untidy {
            return Ok(());
        }
        let points = store.shelf().points();
        let wanted: BTreeSet<String> = points.into_iter().map(|point| point.pin).collect();
        let tidied = self.pins.only(store.id(), &wanted);
        tidied.map_err(NotKept::Pin)?;
        self.untidy = false;
        Ok(())
    }

    fn skipped(&self, epoch: Epoch, why: &NotKept) {
        let reason = chain(why);
        tracing::warn!(%epoch, reason, "memory is not kept");
        emit(&self.reporter, Report::MemorySkipped { epoch, reason });
    }

    fn shelf(&self) -> std::sync::MutexGuard<'_, Option<Arc<Shelf>>> {
        let shelf = self.shared.shelf.lock();
        shelf.unwrap_or_else(PoisonError::into_inner)
    }
}
