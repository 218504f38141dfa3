//! Groups: all disks of one VM, whose writes are held in epochs and committed together.
//!
//! ```text
//!   NBD connection ─▶ disk_export ─▶ disk: gate, open epoch ─ seal ─▶ sealed epochs ─▶ committed epochs ─▶ image
//!                                     (overlay)                          │                 │            ▲
//!   control API ─▶ Group ─▶ barriers ─▶ effects                      committer ─▶ log   applier ────────┘
//! ```
//!
//! [`barriers`] decides, `shared` carries the decisions to the disks, the committer thread alone touches the log, the
//! applier thread alone brings epochs into the images. A write takes the lock of its disk and nothing else.
//!
//! Open and sealed epochs lie in an `arena` that outlives the process: the next one goes on with them (`resume`).

mod appender;
mod applier;
mod arena;
pub mod barriers;
mod bell;
mod budget;
mod committer;
pub mod directory;
mod disk;
mod disk_export;
mod error;
mod figures;
pub mod history;
mod image;
mod layout;
pub(crate) mod open;
pub mod overlay;
mod places;
mod recover;
mod refusal;
mod resume;
mod shared;
mod slabs;
mod status;
pub mod stepped;
mod stepping;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use epoch_log::storage::Storage;
use epoch_log::{Epoch, Generation};
use tokio::sync::{broadcast, oneshot};

use crate::control::api::Event;
use crate::export::{Cutter, Export, ExportInfo};
use barriers::{Admission, Input, Phase, SealNumber};
use disk::{Disk, Rights};
use history::{Clones, Keeper, names_a_point};
use shared::{Entry, Job, Order, Shared};

pub use disk_export::{DiskExport, Flush};
pub use error::GroupError;
pub(crate) use error::with_sources;
pub use figures::Figures;
pub use history::HistoryConfig;
pub use image::{Image, ImageError, RawImage};
pub use open::{
    DEFAULT_EPOCH_MEMORY, DiskConfig, GroupConfig, GroupMode, OpenError, Progress, valid_name,
};
pub use overlay::Clear;
pub use refusal::Refusal;
pub use shared::Answer;
pub use stepping::Next;

/// An epoch is sealed over all disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// The epoch.
    pub epoch: Epoch,
    /// Bytes of guest data in it.
    pub bytes: u64,
    /// This seal led from sync mode to async mode, so the epoch is empty.
    pub empty_first: bool,
    /// Only a higher generation can undo it.
    pub safe: bool,
}

/// A group and its two threads. Dropping it without [`Group::stop`] is like a crash of the process.
#[derive(Debug)]
pub struct Group {
    shared: Arc<Shared>,
    /// Directory of the epoch log.
    log: PathBuf,
    /// The same, to ask how it fares.
    place: Arc<dyn Storage>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Keeps the history in its bounds.
    keeper: Mutex<Option<Keeper>>,
    /// Writable copies of its past.
    clones: Clones,
}

impl Group {
    /// The group's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Names of the disks, in their order.
    pub fn disk_names(&self) -> impl Iterator<Item = &str> {
        self.shared.disks.iter().map(|disk| disk.name.as_str())
    }

    /// Makes a decision that may have to be durable, and waits until it is. For all inputs but [`Input::Seal`], see
    /// [`Group::seal`], and [`Input::Park`], see [`Group::park`].
    ///
    /// # Errors
    /// [`GroupError`]; the request may be carried out all the same if the future is dropped.
    pub async fn request(&self, input: Input) -> Result<Answer, GroupError> {
        self.send(input).await.unwrap_or(Err(GroupError::Stopping))
    }

    /// The same for threads without a runtime. Panics inside of one.
    ///
    /// # Errors
    /// [`GroupError`].
    pub fn request_blocking(&self, input: Input) -> Result<Answer, GroupError> {
        self.send(input)
            .blocking_recv()
            .unwrap_or(Err(GroupError::Stopping))
    }

    fn send(&self, input: Input) -> oneshot::Receiver<Result<Answer, GroupError>> {
        let (reply, answer) = oneshot::channel();
        self.shared.tell(Job::Request {
            input,
            reply,
            asked: Instant::now(),
        });
        answer
    }

    /// Cuts all disks: see [`Input::Seal`], with a number [`Input::SealAs`]. Waits for no disk, but in sync mode for the writes that are under
    /// way.
    ///
    /// The first epoch has to be empty: between its seal and its commit the guest's flushes may wait for nothing. So a group that holds writes
    /// in sync mode has to commit them before ([`Group::commit_held`]), and says so: [`Refusal::Unsettled`].
    ///
    /// An epoch that is not [safe](Sealed::safe) may still vanish: ask [`Group::make_safe`] before anyone relies on it.
    ///
    /// # Errors
    /// [`GroupError::Refused`]; with [`Refusal::Busy`] it can be tried again, with [`Refusal::Unsettled`] after [`Group::commit_held`].
    pub fn try_seal(
        &self,
        generation: Generation,
        number: Option<SealNumber>,
    ) -> Result<Sealed, GroupError> {
        let mut core = self.shared.core();
        core.barriers.check_seal(generation, number)?;
        let by_itself = core.barriers.commits_by_itself();
        if by_itself && self.shared.holds_writes() {
            return Err(Refusal::Unsettled.into());
        }
        let held_before = core.barriers.open().is_some() && !by_itself;
        let input = match number {
            None => Input::Seal { generation },
            Some(number) => Input::SealAs { generation, number },
        };
        self.shared.step(&mut core, input)?;
        let epoch = core.barriers.sealed();
        let bytes = core.cuts.back().map_or(0, |cut| cut.data_bytes());
        Ok(Sealed {
            epoch,
            bytes,
            empty_first: !held_before,
            safe: core.barriers.phase() != Phase::Switching,
        })
    }

    /// [`Group::seal_as`] without a number.
    ///
    /// # Errors
    /// [`GroupError`].
    pub fn seal(&self, generation: Generation) -> Result<Sealed, GroupError> {
        self.seal_as(generation, None)
    }

    /// [`Group::try_seal`], waiting while the group changes its owner or mode or commits what it holds, and until the epoch is safe. Panics
    /// inside of a runtime.
    ///
    /// # Errors
    /// [`GroupError`].
    pub fn seal_as(
        &self,
        generation: Generation,
        number: Option<SealNumber>,
    ) -> Result<Sealed, GroupError> {
        let sealed = loop {
            let ticket = self.shared.bell.ticket();
            match self.try_seal(generation, number) {
                Err(GroupError::Refused(Refusal::Busy)) if !self.shared.is_stopping() => {
                    self.shared.bell.wait_past(ticket);
                }
                Err(GroupError::Refused(Refusal::Unsettled)) => {
                    self.request_blocking(Input::SelfSeal)?;
                }
                outcome => break outcome?,
            }
        };
        if !sealed.safe {
            self.request_blocking(Input::Advance)?;
            self.check_sealed(generation, sealed.epoch)?;
        }
        Ok(Sealed {
            safe: true,
            ..sealed
        })
    }

    /// Commits what the group holds and commits by itself, and waits for it. Does nothing in all other phases.
    ///
    /// # Errors
    /// [`GroupError`]: not all of it is committed.
    pub async fn commit_held(&self) -> Result<(), GroupError> {
        self.request(Input::SelfSeal).await.map(|_| ())
    }

    /// Waits until async mode is recorded, after the seal that leads to it. A gateway that dies before starts again in
    /// sync mode, with the same owner, and gives the number of that epoch to the next seal; the same if the log has no
    /// room for the record. Nobody must have taken a checkpoint for the first one by then.
    ///
    /// # Errors
    /// [`GroupError`]: there is no such epoch.
    pub async fn make_safe(
        &self,
        generation: Generation,
        sealed: Sealed,
    ) -> Result<Sealed, GroupError> {
        if !sealed.safe {
            self.request(Input::Advance).await?;
            self.check_sealed(generation, sealed.epoch)?;
        }
        Ok(Sealed {
            safe: true,
            ..sealed
        })
    }

    fn check_sealed(&self, generation: Generation, epoch: Epoch) -> Result<(), GroupError> {
        let core = self.shared.core();
        core.barriers.check_owner(generation)?;
        let sealed = core.barriers.sealed();
        if core.barriers.phase() == Phase::Switching {
            // The log has failed: there will be no record.
            Err(Refusal::Broken.into())
        } else if epoch <= sealed {
            Ok(())
        } else {
            Err(Refusal::NotSealed { epoch, sealed }.into())
        }
    }

    /// Lets the attachments of `standby` in.
    ///
    /// # Errors
    /// [`GroupError::Refused`].
    pub fn park(&self, standby: &str) -> Result<(), GroupError> {
        let mut core = self.shared.core();
        Ok(self.shared.step(
            &mut core,
            Input::Park {
                standby: standby.to_owned(),
            },
        )?)
    }

    /// Lets writes in that wait for memory, until the next seal.
    ///
    /// # Errors
    /// [`GroupError::Refused`] if `generation` is over.
    pub fn relieve(&self, generation: Generation) -> Result<Epoch, GroupError> {
        let core = self.shared.core();
        core.barriers.check_owner(generation)?;
        self.shared.budget.relieve();
        Ok(core.barriers.committed())
    }

    /// The events from now on, if `generation` is current.
    ///
    /// # Errors
    /// [`GroupError::Refused`] if it is not.
    pub fn subscribe(
        &self,
        generation: Generation,
    ) -> Result<broadcast::Receiver<Event>, GroupError> {
        let core = self.shared.core();
        core.barriers.check_generation(generation)?;
        Ok(self.shared.events.subscribe())
    }

    /// The fencing event for an owner of `generation`, if that is over.
    pub fn fenced_since(&self, generation: Generation) -> Option<Event> {
        let core = self.shared.core();
        let current = core.barriers.generation();
        (current != generation).then(|| Event::Fenced {
            generation: current,
            owner: core.barriers.owner().map(str::to_owned),
        })
    }

    /// What a client of `disk` is told; `instance` is what follows the `@`. None: there is no such disk.
    ///
    /// # Errors
    /// [`Refusal`] if the instance is not let in.
    pub fn describe(
        &self,
        disk: &str,
        instance: Option<&str>,
    ) -> Option<Result<ExportInfo, Refusal>> {
        let mut disks = self.shared.disks.iter().enumerate();
        let (number, disk) = disks.find(|(_, other)| other.name == disk)?;
        if let Some(point) = instance.filter(|instance| names_a_point(instance)) {
            return Some(self.describe_past(number, point));
        }
        let admission = self.shared.core().barriers.admit(instance);
        Some(admission.map(|admission| self.info(disk, instance, admission)))
    }

    /// Attaches a connection to `disk` as it is, or, if the instance names a point in time, as it was, or, if it names one, to a clone. None:
    /// there is no such disk.
    ///
    /// # Errors
    /// [`Refusal`] if the instance is not let in.
    pub fn attach_any(
        &self,
        disk: &str,
        instance: Option<&str>,
        cutter: Cutter,
    ) -> Option<Result<Arc<dyn Export>, Refusal>> {
        if let Some(point) = instance.filter(|instance| names_a_point(instance)) {
            let number = self
                .shared
                .disks
                .iter()
                .position(|other| other.name == disk)?;
            return Some(self.attach_past(number, point, cutter));
        }
        let attached = self.attach(disk, instance, cutter)?;
        Some(attached.map(|export| Arc::new(export) as Arc<dyn Export>))
    }

    /// Attaches a connection to `disk` as it is. None: there is no such disk.
    ///
    /// # Errors
    /// [`Refusal`] if the instance is not let in.
    pub fn attach(
        &self,
        disk: &str,
        instance: Option<&str>,
        cutter: Cutter,
    ) -> Option<Result<DiskExport, Refusal>> {
        let disk = self.shared.disks.iter().find(|other| other.name == disk)?;
        let mut core = self.shared.core();
        let admission = match core.barriers.admit(instance) {
            Ok(admission) => admission,
            Err(refusal) => return Some(Err(refusal)),
        };
        let generation = core.barriers.generation();
        let rights = Arc::new(match admission {
            Admission::Plain { writable } => Rights::of(generation, writable),
            Admission::Source => Rights::of(generation, true),
            Admission::Parked => Rights::parked(),
        });
        let entry = Entry {
            instance: instance.map(str::to_owned),
            rights: Arc::clone(&rights),
            cutter,
            past: false,
        };
        let number = self.shared.enter(&mut core, entry);
        drop(core);
        let info = self.info(disk, instance, admission);
        Some(Ok(DiskExport::new(
            Arc::clone(&self.shared),
            Arc::clone(disk),
            rights,
            number,
            info,
        )))
    }

    fn info(&self, disk: &Disk, instance: Option<&str>, admission: Admission) -> ExportInfo {
        let what = match admission {
            Admission::Plain { writable: true } => "",
            Admission::Plain { writable: false } => {
                ", committed state, read-only while a source owns it"
            }
            Admission::Source => ", of the source",
            Admission::Parked => ", committed state until the takeover, of the standby",
        };
        let who = instance.map(|id| format!(" {id}")).unwrap_or_default();
        ExportInfo {
            // A parked attachment is writable after the takeover, on the same connection.
            read_only: disk.read_only || admission == Admission::Plain { writable: false },
            description: format!(
                "disk {} of group {}{what}{who}",
                disk.name, self.shared.name
            ),
            // QEMU holds its guest's requests meanwhile.
            reconnects: true,
            ..ExportInfo::full(disk.image.size())
        }
    }

    /// Sends all clients away, whatever they do, for a group that is about to be closed: the source and the standby as well.
    pub fn send_away(&self) {
        self.shared.send_away();
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.shared.core().entries.len()
    }

    /// Ends all waiting requests: the gateway is about to stop.
    pub fn stop_waiting(&self) {
        self.shared.stop_waiting();
    }

    /// Stops in order. A group without a source commits and applies what it holds and closes its log; what a source
    /// has not committed stays in memory for the next process, if [`GroupConfig::epoch_memory`] says where, and is lost with its source fenced
    /// otherwise.
    /// To call it again does nothing.
    pub fn stop(&self) {
        self.clones.close();
        self.end(true);
    }

    fn begin_stop(&self) {
        self.shared.stop_waiting();
        self.shared.tell(Job::Stop { orderly: true });
    }

    fn end(&self, orderly: bool) {
        self.shared.stop_waiting();
        self.shared.tell(Job::Stop { orderly });
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        drop(
            self.keeper
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        for thread in threads {
            // The committer comes first, as it waits for the applier in an orderly stop. A panic of a thread has been
            // reported by itself.
            drop(thread.join());
            let _ = self.shared.apply.send(Order::Stop);
        }
        // What is held belongs to the next process, also if there was no committer that could say so.
        self.shared.arena().leave();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// The channels of a group's threads.
type Channels<T> = (mpsc::Sender<T>, mpsc::Receiver<T>);
