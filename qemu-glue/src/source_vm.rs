//! A VM that runs its guest, and its checkpoints: stop, save, resume. Knows no epochs and no gateway.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qapi::qmp;
use qapi::qmp::RunState;
use tokio::sync::broadcast;

use crate::description::{DiskAttachment, Role, RuntimePlace, VmDescription};
use crate::device_state::{DeviceState, DeviceStateKind, DeviceStream, SaveStream};
use crate::dirty_pages::TrackerKind;
use crate::dirty_watch::DirtyWatch;
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::gate::{self, OutputGate};
use crate::guest_ram::GuestRam;
use crate::launch::{Launched, Start};
use crate::page_set::PageSet;
use crate::pause::{PauseParts, micros};
use crate::qmp::{Batch, VmEvent};
use crate::tracker_thread::{BaseCursor, ScanTimes, Scanning, TrackerThread};

/// A VM whose guest runs, or is stopped for a moment. Its QEMU is killed when this is dropped.
#[derive(Debug)]
pub struct SourceVm {
    launched: Launched,
    device_state: SaveStream,
    tracker: Option<TrackerThread>,
    /// A save that was begun but not finished: its [`Stopped`] was dropped.
    begun: Option<<SaveStream as DeviceState>::Begun>,
    /// The look for dirty pages that began when the guest stood still.
    scanning: Option<Scanning>,
    /// For the pages of the next scan: room that is there already.
    spare: PageSet,
}

/// A stopped VM in the middle of a checkpoint. When this is dropped without [`Stopped::resume`], the VM stays stopped;
/// QEMU takes the next checkpoint only after a [`SourceVm::resume`].
#[derive(Debug)]
pub struct Stopped<'a> {
    vm: &'a mut SourceVm,
    began: Instant,
    parts: PauseParts,
}

impl SourceVm {
    /// Starts QEMU with a new RAM file. ([`GuestRam::remove_stale`] first gives back what killed processes left.) The guest does not run yet: call [`SourceVm::resume`].
    ///
    /// # Errors
    /// A description that can't be protected, no space for the RAM file, or QEMU's own reason why it doesn't start.
    pub async fn launch(
        description: &VmDescription,
        place: &RuntimePlace,
        disks: &[DiskAttachment],
    ) -> Result<Self> {
        description.validate(disks)?;
        let bytes = description.memory_bytes();
        let ram = GuestRam::create(&description.ram_dir, &description.name, place.role, bytes)?;
        let launched =
            Launched::start(description, place, disks, Arc::new(ram), Start::Paused).await?;
        let mut vm = Self::from_launched(launched).await?;
        let learned = vm.device_state.learn(vm.launched.qmp()).await;
        vm.launched.explained(learned).await?;
        Ok(vm)
    }

    pub(crate) async fn from_launched(launched: Launched) -> Result<Self> {
        let prepared = SaveStream::prepare(&launched).await;
        let device_state = launched.explained(prepared).await?;
        Ok(SourceVm {
            launched,
            device_state,
            tracker: None,
            begun: None,
            scanning: None,
            spare: PageSet::default(),
        })
    }

    /// Name of the VM.
    pub fn name(&self) -> &str {
        self.launched.name()
    }

    /// The role under which its QEMU was started: a VM that was taken over keeps [`Role::Standby`].
    pub fn role(&self) -> Role {
        self.launched.role()
    }

    /// Process id of QEMU.
    pub fn pid(&self) -> u32 {
        self.launched.pid()
    }

    /// Where somebody who watches the VM may connect and speak QMP ([`Observer`](crate::Observer)), beside the connection that drives it.
    pub fn watch_socket(&self) -> &Path {
        self.launched.watch_socket()
    }

    /// Watches what the guest writes, without copying it. The VM can't be protected any more then: there is one tracker.
    ///
    /// # Errors
    /// Tracking by pagemap does not work here, or is already in use.
    pub fn watch_dirty_pages(&self) -> Result<DirtyWatch> {
        DirtyWatch::start(self.launched.choose_tracker()?, self.ram().len())
    }

    /// The guest's memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        self.launched.ram()
    }

    /// What the standby must be like to continue this VM.
    pub fn fingerprint(&self) -> &Fingerprint {
        self.launched.fingerprint()
    }

    /// Events of QEMU from now on. A reader that lags behind by more than 1024 events loses the oldest.
    pub fn subscribe(&self) -> broadcast::Receiver<VmEvent> {
        self.launched.qmp().subscribe()
    }

    /// Lets the guest run; of no effect if it already does. Finishes a save that was left in the middle.
    ///
    /// # Errors
    /// [`Error::GuestEnded`] if it shut down or crashed; QEMU is gone.
    pub async fn resume(&mut self) -> Result<()> {
        self.abandon_begun().await;
        let resumed = self.launched.cont().await;
        self.launched.explained(resumed).await
    }

    /// Stops the guest without a checkpoint: it was fenced, or the policy says so. [`SourceVm::resume`] undoes it.
    ///
    /// # Errors
    /// QEMU is gone.
    pub async fn freeze(&mut self) -> Result<()> {
        let stopped = self.launched.qmp().execute(&qmp::stop {}).await;
        self.launched.explained(stopped).await.map(drop)
    }

    /// Puts an output gate in front of these network backends ([`VmDescription::gated_netdevs`]). It passes everything
    /// until it is told to hold, and holds at most `limit` bytes of each. The guest may run.
    ///
    /// # Errors
    /// QEMU refuses it; QEMU is gone.
    pub async fn attach_gate(&self, netdevs: &[String], limit: u64) -> Result<OutputGate> {
        let path = |name: &str| self.launched.socket_path(name);
        let attached = gate::attach(self.launched.qmp(), netdevs, path, limit).await;
        self.launched.explained(attached).await
    }

    /// How long [`SourceVm::announce`] goes on: 20, 80, 140 and 200 ms between its five rounds, and room for a busy host.
    pub const ANNOUNCING: Duration = Duration::from_millis(700);

    /// Tells the network where the guest is now, as switches remember where it was: five times within half a second. To be
    /// called before a gate is attached, which it would not get through.
    ///
    /// # Errors
    /// QEMU is gone.
    pub async fn announce(&self) -> Result<()> {
        let announce = qmp::announce_self(qmp::AnnounceParameters {
            initial: 20,
            max: 200,
            rounds: 5,
            step: 60,
            id: None,
            interfaces: None,
        });
        let announced = self.launched.qmp().execute(&announce).await;
        self.launched.explained(announced).await.map(drop)
    }

    /// Whether the guest runs.
    ///
    /// # Errors
    /// QEMU is gone.
    pub async fn is_running(&self) -> Result<bool> {
        let status = self.launched.qmp().execute(&qmp::query_status {}).await;
        Ok(self.launched.explained(status).await?.status == RunState::running)
    }

    /// Kills QEMU and waits until it is gone. A guest that should end by itself is asked by [`SourceVm::power_down`].
    pub async fn kill(self) {
        let SourceVm {
            launched, tracker, ..
        } = self;
        drop(tracker);
        launched.kill().await;
    }

    /// Presses the guest's power button. Whether and when the guest obeys, [`VmEvent::Shutdown`] says.
    ///
    /// # Errors
    /// QEMU is gone.
    pub async fn power_down(&self) -> Result<()> {
        let asked = self.launched.qmp().execute(&qmp::system_powerdown {}).await;
        self.launched.explained(asked).await.map(drop)
    }

    /// Chooses a dirty-page tracker (once) and counts everything as clean from now on. To be followed by a base copy to a
    /// standby whose memory is all zero. The guest may run.
    ///
    /// # Errors
    /// The tracker that was asked for doesn't work here.
    pub async fn start_tracking(&mut self) -> Result<TrackerKind> {
        let tracker = match self.tracker.take() {
            Some(tracker) => tracker,
            None => TrackerThread::new(self.launched.choose_tracker()?, Arc::clone(self.ram())),
        };
        tracker.start().await?;
        let kind = tracker.kind();
        self.tracker = Some(tracker);
        Ok(kind)
    }

    /// How the device state of checkpoints is taken. Of a VM that was taken over it is known for certain only after its first
    /// checkpoint: it can become [`DeviceStateKind::Migrate`], and never goes back from there.
    pub fn device_state(&self) -> DeviceStateKind {
        self.device_state.kind()
    }

    /// The tracker in use; None before [`SourceVm::start_tracking`].
    pub fn tracker(&self) -> Option<TrackerKind> {
        self.tracker.as_ref().map(TrackerThread::kind)
    }

    /// One step of the base copy, beside the running guest: fills `pages` (cleared first) with the next chunk's pages that
    /// are not zero. Pages that the guest writes meanwhile may be torn; the first checkpoint holds them again.
    /// Returns whether there is more to come; `pages` may be empty although there is.
    ///
    /// # Errors
    /// [`Error::NotTracking`].
    pub async fn copy_base(
        &mut self,
        cursor: &mut BaseCursor,
        pages: &mut PageSet,
    ) -> Result<bool> {
        pages.clear();
        self.tracker
            .as_ref()
            .ok_or(Error::NotTracking)?
            .copy_base(cursor, pages)
            .await?;
        Ok(cursor.position() < self.ram().len())
    }

    /// Stops the guest: the cut. Returns when all of its disk requests are answered; QEMU already saves the device state
    /// then.
    ///
    /// # Errors
    /// [`Error::GuestEnded`] if it shut down or crashed; QEMU is gone; a tracker was not started.
    pub async fn stop(&mut self) -> Result<Stopped<'_>> {
        if self.tracker.is_none() {
            return Err(Error::NotTracking);
        }
        self.abandon_begun().await;
        let began = Instant::now();
        let stopped = self.send_stop().await;
        self.launched.explained(stopped).await?;
        let parts = PauseParts {
            stop: micros(began.elapsed()),
            ..PauseParts::default()
        };
        Ok(Stopped {
            vm: self,
            began,
            parts,
        })
    }

    /// `stop` and the save of the devices, one right behind the other; returns with the answer to `stop`.
    async fn send_stop(&mut self) -> Result<()> {
        let qmp = self.launched.qmp();
        let mut batch = Batch::default();
        let mut stop = batch.add(&qmp::stop {})?;
        let begun = self.device_state.begin(qmp, &mut batch)?;
        batch.spell_next(&qmp::cont {})?;
        self.begun = Some(begun);
        let stops = qmp.stops();
        qmp.send(batch).await?;
        // The guest stands still before QEMU has waited for its disks.
        let answered = tokio::select! {
            biased;
            answer = stop.answer() => {
                answer?;
                true
            }
            () = qmp.stopped_after(stops) => false,
        };
        if let Some(begun) = &mut self.begun {
            self.device_state.stopping(begun).await?;
        }
        self.scanning = match &self.tracker {
            Some(tracker) if tracker.rescan_is_cheap() => {
                let mut pages = std::mem::take(&mut self.spare);
                pages.clear();
                Some(tracker.begin_scan(pages)?)
            }
            _ => None,
        };
        if !answered {
            stop.answer().await?;
        }
        match qmp.guest_end() {
            Some(state) => Err(Error::GuestEnded {
                vm: self.name().into(),
                state,
            }),
            None => Ok(()),
        }
    }

    /// Ends a save that was left in the middle, so that QEMU takes the next command.
    async fn abandon_begun(&mut self) {
        if let Some(begun) = self.begun.take() {
            self.device_state.abandon(self.launched.qmp(), begun).await;
        }
    }
}

impl Stopped<'_> {
    /// Copies all pages that were written since the last saved checkpoint to `pages` (cleared first) and returns the device
    /// state. Both describe the instant of the stop. Run the seal of the disks beside this.
    ///
    /// If it fails, or is dropped before its end, the pages are part of the next checkpoint again.
    ///
    /// # Errors
    /// QEMU is gone or can't save a device; the tracker failed.
    pub async fn save(&mut self, pages: &mut PageSet) -> Result<DeviceStream> {
        let saved = self.save_parts(pages).await;
        self.vm.launched.explained(saved).await
    }

    async fn save_parts(&mut self, pages: &mut PageSet) -> Result<DeviceStream> {
        pages.clear();
        let SourceVm {
            launched,
            device_state,
            tracker,
            begun,
            scanning,
            spare,
        } = &mut *self.vm;
        let tracker = tracker.as_ref().ok_or(Error::NotTracking)?;
        let in_progress = begun.as_mut().ok_or_else(|| Error::DeviceState {
            problem: "it was already saved".into(),
        })?;
        let saving = Instant::now();
        let device_state = async {
            let stream = device_state.finish(launched.qmp(), in_progress).await;
            (stream, micros(saving.elapsed()))
        };
        // Pages are looked for from the moment that the processors stand still, and once more for what QEMU wrote after that, for a
        // disk request or to save, if it can have done so.
        let early = async {
            match scanning.take() {
                Some(scanning) => scanning.end().await.map(Some),
                None => Ok(None),
            }
        };
        let (early, (stream, took)) = tokio::join!(early, device_state);
        *begun = None;
        let (early, stream) = (early?, stream?);
        let (early, writes) = match early {
            Some((found, times, writes)) => {
                *spare = std::mem::replace(pages, found);
                (times, writes)
            }
            None => (ScanTimes::default(), None),
        };
        let late = if writes.is_some() && writes == tracker.writes() {
            ScanTimes::default()
        } else {
            tracker.scan(pages).await?
        };
        tracker.saved();
        self.parts.device_state = took;
        self.parts.scan = micros(early.scan + late.scan);
        self.parts.copy = micros(early.copy + late.copy);
        Ok(stream)
    }

    /// The stopped VM.
    pub fn vm(&self) -> &SourceVm {
        self.vm
    }

    /// What was measured so far.
    pub fn parts(&self) -> PauseParts {
        self.parts
    }

    /// Lets the guest run on. The pause ends here.
    ///
    /// # Errors
    /// [`Error::GuestEnded`] if it had shut down or crashed before the stop; QEMU is gone.
    pub async fn resume(mut self) -> Result<PauseParts> {
        let resuming = Instant::now();
        self.vm.resume().await?;
        self.parts.resume = micros(resuming.elapsed());
        self.parts.total = micros(self.began.elapsed());
        // Most likely a checkpoint is next. A connection that is closed shows there.
        let mut batch = Batch::default();
        batch.spell_next(&qmp::stop {})?;
        let _ = self.vm.launched.qmp().send(batch).await;
        self.vm.device_state.get_ready().await;
        Ok(self.parts)
    }
}
