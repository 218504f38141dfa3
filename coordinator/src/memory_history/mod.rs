//! The memory of a VM at earlier epochs, kept by its standby: with the disks of the same epoch, which the gateway's history has, the whole
//! VM goes back in time. A RAM image is one more disk here, and so the same log and the same history serve.
//!
//! ```text
//!   merge of epoch E ends ─▶ every so often: begin a point (`tracked`) ─▶ thread (`keeper`): pin E at the gateway (`pins`)
//!     ─▶ changed pages and devices into the log, commit ─▶ save what they change ─▶ images (`store`) ─▶ trim
//! ```
//!
//! Merging never waits for any of this, and nothing that fails here matters to protection.

mod config;
mod export;
mod head;
mod keeper;
mod pages;
mod pins;
mod service;
mod store;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
mod tests;
mod tracked;

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nbd_server::group::history::now_ms;
use nbd_server::{Epoch, Generation};
use qemu_glue::{Fingerprint, GuestRam};

use crate::report::{Report, Reporter, emit};
use keeper::{Keeper, Order, Shared};
use pins::Pins;

pub use config::MemoryHistoryConfig;
pub use head::MemoryPoint;
pub use service::{AskError, export, list};
pub use store::StoreError;
pub use tracked::GivenUp;
pub(crate) use tracked::Watch;

/// The memory history of a standby's VM, for as long as the standby runs.
pub(crate) struct MemoryHistory {
    config: MemoryHistoryConfig,
    orders: Sender<Order>,
    shared: Arc<Shared>,
    reporter: Reporter,
    last: Mutex<Option<Instant>>,
}

/// An instant of a VM, beside its memory.
#[derive(Debug)]
pub(crate) struct Moment<'a> {
    pub epoch: Epoch,
    pub generation: Generation,
    pub devices: &'a [u8],
    pub machine: &'a Fingerprint,
}

impl MemoryHistory {
    /// Begins to keep points of the VM `group`, which has so much memory; the gateway with the control socket `gateway` has its disks.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub(crate) fn start(
        config: &MemoryHistoryConfig,
        gateway: PathBuf,
        group: &str,
        ram_bytes: u64,
        reporter: Reporter,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (orders, receiver) = mpsc::channel::<Order>();
        let keeps = (config.clone(), group.to_owned(), Arc::clone(&reporter));
        let for_keeper = Arc::clone(&shared);
        let run = move || {
            let (config, group, reporter) = keeps;
            // Its runtime must not be dropped where another one runs.
            let pins = match Pins::new(gateway, group) {
                Ok(pins) => pins,
                Err(error) => {
                    tracing::error!(%error, "the memory history can't ask the gateway");
                    return;
                }
            };
            let for_service = Arc::clone(&for_keeper);
            let mut keeper = Keeper {
                retention: config.retention(),
                dir: config.dir,
                ram_bytes,
                pins,
                reporter,
                shared: for_keeper,
                store: None,
                untidy: false,
            };
            let mut served = false;
            let mut serve = |keeper: &mut Keeper| {
                if !served && keeper.store.is_some() {
                    served = true;
                    if let Err(error) = service::serve(&keeper.dir, &for_service) {
                        tracing::warn!(%error, "memory points can be read only when this standby has ended");
                    }
                }
            };
            if let Err(error) = keeper.open() {
                let reason = crate::link::chain(&error);
                tracing::error!(reason, "the memory history can't be opened");
            }
            serve(&mut keeper);
            for order in receiver {
                keeper.carry_out(&order);
                serve(&mut keeper);
            }
        };
        std::thread::Builder::new()
            .name("memory history".into())
            .spawn(run)?;
        Ok(Self {
            config: config.clone(),
            orders,
            shared,
            reporter,
            last: Mutex::default(),
        })
    }

    /// Watches the memory of a source that has just come.
    pub(crate) fn watch(&self, ram: Arc<GuestRam>) -> Watch {
        Watch(Arc::new(tracked::Tracked::new(ram)))
    }

    /// Memory holds exactly this instant now: it is kept if it is time for that. Returns at once.
    pub(crate) fn merged(&self, memory: &Watch, moment: &Moment<'_>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let not_before = self.shared.not_before.lock();
        let not_before = *not_before.unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| now >= last + self.config.every.duration());
        if !due || not_before.is_some_and(|then| now < then) {
            return;
        }
        *last = Some(now);
        if self.shared.busy.swap(true, Ordering::Acquire) {
            let reason = "the one before it is still being kept".to_owned();
            tracing::warn!(epoch = %moment.epoch, reason, "memory is not kept");
            let epoch = moment.epoch;
            emit(&self.reporter, Report::MemorySkipped { epoch, reason });
            return;
        }
        let order = Order {
            compare: memory.0.begin(),
            memory: Arc::clone(&memory.0),
            epoch: moment.epoch,
            generation: moment.generation,
            time_ms: now_ms(),
            devices: moment.devices.to_vec(),
            machine: moment.machine.clone(),
        };
        if self.orders.send(order).is_err() {
            tracing::error!("the thread of the memory history is gone: nothing is kept any more");
        }
    }
}
