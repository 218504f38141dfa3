//! Takes samples of one VM: asks all sources there are, and puts their answers together.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use qemu_glue::{DirtyWatch, OutputGate};

use super::block::Block;
use super::dirty::Dirty;
use super::gateway::{Gateway, GatewayGroup};
use super::growth::{Growth, per};
use super::host::Host;
use super::kvm::Kvm;
use super::network::Network;
use super::process::{Known, Process};
use super::protected::{Output, Status};
use super::qemu::{EVENT_SIGNALS, Facts, Qemu};
use super::{Sample, Values};
use crate::signals::Signal;

/// How long one source may take. What comes later is missing: a sampler that waits for a VM that hangs does not see it hang.
const LIMIT: Duration = Duration::from_secs(1);

/// The VM to be watched, and who can tell of it.
#[derive(Debug)]
pub struct Watched {
    /// Its QEMU.
    pub vm: Place,
    /// The gateway that serves its disks.
    pub gateway: Option<GatewayGroup>,
    /// What it writes in memory, if nobody protects it.
    pub dirty: Option<DirtyWatch>,
    /// Its output gate, if that is in this process.
    pub gate: Option<OutputGate>,
}

/// Where a QEMU is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// By a QMP socket that nobody else uses, and its process id.
    Qemu {
        /// The socket.
        socket: PathBuf,
        /// Process id of QEMU.
        pid: u32,
    },
    /// By the status socket of the process that protects it (`RUNTIME_DIR/source-VM.sock`), whichever QEMU that has.
    Protected {
        /// The socket.
        status: PathBuf,
    },
}

/// Why a VM can't be watched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// Nobody protects it here.
    #[error("no VM answers at {}; is `epochgate protect` running?", .0.display())]
    NoStatus(PathBuf),
    /// It has no QEMU now.
    #[error("the VM at {} does not run here", .0.display())]
    NotRunning(PathBuf),
    /// QEMU does not answer.
    #[error("QEMU can't be asked")]
    Qemu(#[source] qemu_glue::Error),
}

impl Watched {
    /// A QEMU by itself.
    pub fn qemu(socket: impl Into<PathBuf>, pid: u32) -> Self {
        let socket = socket.into();
        Self::at(Place::Qemu { socket, pid })
    }

    /// A VM that is protected on this host.
    pub fn protected(runtime_dir: &Path, vm: &str) -> Self {
        let status = runtime_dir.join(format!("source-{vm}.sock"));
        Self::at(Place::Protected { status })
    }

    fn at(vm: Place) -> Self {
        Self {
            vm,
            gateway: None,
            dirty: None,
            gate: None,
        }
    }

    /// The same VM, with a gateway that serves its disks as `group`.
    pub fn with_gateway(self, control: impl Into<PathBuf>, group: impl Into<String>) -> Self {
        let (control, group) = (control.into(), group.into());
        Self {
            gateway: Some(GatewayGroup { control, group }),
            ..self
        }
    }
}

/// Takes the samples.
#[derive(Debug)]
pub struct Sampler {
    place: Place,
    watch: Option<DirtyWatch>,
    gate: Option<OutputGate>,
    facts: Facts,
    began: Instant,
    started_ms: u64,
    /// When the last sample was taken.
    last: Option<Instant>,
    pid: Option<u32>,
    /// The process that the last sample is of.
    seen: Option<u32>,
    qemu: Qemu,
    process: Process,
    block: Block,
    kvm: Kvm,
    network: Network,
    gateway: Option<Gateway>,
    dirty: Dirty,
    output: Output,
    gate_counters: Growth<2>,
    host: Host,
}

impl Sampler {
    /// Connects to the VM. What is missing beside QEMU itself is missing in the samples, for as long as it is.
    ///
    /// # Errors
    /// The VM is not there.
    pub async fn start(watched: Watched) -> Result<Self, WatchError> {
        let Watched {
            vm,
            gateway,
            dirty,
            gate,
        } = watched;
        let mut qemu = Qemu::default();
        let (socket, pid) = match &vm {
            Place::Qemu { socket, pid } => (socket.clone(), *pid),
            Place::Protected { status: at } => {
                let status = Status::ask(at, LIMIT)
                    .await
                    .ok_or_else(|| WatchError::NoStatus(at.clone()))?;
                status
                    .watch_socket
                    .zip(status.qemu_pid)
                    .ok_or_else(|| WatchError::NotRunning(at.clone()))?
            }
        };
        qemu.connect(&socket).await.map_err(WatchError::Qemu)?;
        let facts = qemu.facts().ok_or(WatchError::NotRunning(socket))?.clone();
        Ok(Self {
            place: vm,
            watch: dirty,
            gate,
            facts,
            began: Instant::now(),
            started_ms: since_1970(),
            last: None,
            pid: Some(pid),
            seen: Some(pid),
            qemu,
            process: Process::default(),
            block: Block::default(),
            kvm: Kvm::default(),
            network: Network::default(),
            gateway: gateway.map(Gateway::new),
            dirty: Dirty::default(),
            output: Output::default(),
            gate_counters: Growth::default(),
            host: Host::default(),
        })
    }

    /// What the VM is.
    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Milliseconds since 1970 when it was started.
    pub(crate) fn started_ms(&self) -> u64 {
        self.started_ms
    }

    /// The QEMU that the last sample is of. None: it has ended, or whoever protects it does not tell where it is.
    pub fn sampled_pid(&self) -> Option<u32> {
        self.seen
    }

    /// The QMP socket that is in use, so that nobody else can connect there.
    pub fn socket(&self) -> Option<&Path> {
        self.qemu.socket()
    }

    /// Milliseconds since it was started.
    pub fn at_ms(&self) -> u64 {
        millis(self.began.elapsed())
    }

    /// When it was started.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Takes a sample. Rates are of the time since the last one; the first one has none. Takes no longer than a few seconds, whatever hangs.
    pub async fn sample(&mut self) -> Sample {
        let now = Instant::now();
        let since = self.last.replace(now).map(|last| now - last);
        // The first sample has no rates: nothing has a counter to compare with.
        let elapsed = since.unwrap_or(LIMIT).as_secs_f64().max(1e-3);
        let mut values = Values::MISSING;
        let status = self.find().await;
        // First what is there at once: its time must not depend on who answers late.
        let mut is_there = false;
        if let Some(pid) = self.pid {
            let known = Known {
                pid,
                vcpus: self.qemu.vcpus(),
                ram_bytes: Some(self.facts.ram_bytes),
            };
            is_there = self.process.sample(known, elapsed, &mut values);
            self.network.sample(pid, elapsed, &mut values);
            if self
                .qemu
                .vcpus()
                .is_some_and(|vcpus| self.process.misses(vcpus))
            {
                self.qemu.ask_for_vcpus();
            }
        }
        self.seen = self.pid.filter(|_| is_there);
        let activity = status.as_ref().and_then(|status| status.activity.as_ref());
        let watched = self.watch.as_ref().and_then(DirtyWatch::latest);
        let window = watched.or(activity.map(|activity| activity.dirty));
        // A process that has ended writes nothing, and that says nothing.
        self.dirty
            .sample(window.filter(|_| is_there), now, &mut values);
        self.output.sample(activity, &mut values);
        self.own_gate(elapsed, &mut values);
        self.host.sample(elapsed, &mut values);
        let checkpoints = status.as_ref().is_some_and(Status::takes_checkpoints);
        self.ask_qemu(checkpoints, elapsed, &mut values).await;
        if let Some(gateway) = &mut self.gateway {
            gateway.sample(elapsed, LIMIT, &mut values).await;
        }
        let at_ms = millis(now - self.began);
        Sample {
            at_ms,
            wall_ms: self.started_ms.saturating_add(at_ms),
            values,
        }
    }

    /// Finds QEMU, which may be another one than before, and says what its protector says.
    async fn find(&mut self) -> Option<Status> {
        let (socket, status) = match &self.place {
            Place::Qemu { socket, .. } => (Some(socket.clone()), None),
            Place::Protected { status } => {
                let status = Status::ask(status, LIMIT).await;
                self.pid = status.as_ref().and_then(|status| status.qemu_pid);
                (
                    status
                        .as_ref()
                        .and_then(|status| status.watch_socket.clone()),
                    status,
                )
            }
        };
        if let Some(socket) = socket {
            let connected = tokio::time::timeout(LIMIT, self.qemu.connect(&socket)).await;
            if let Ok(Err(error)) = connected {
                tracing::debug!(%error, "QEMU can't be asked now");
            }
        }
        status
    }

    async fn ask_qemu(&mut self, checkpoints: bool, elapsed: f64, values: &mut Values) {
        let said = self.qemu.ask(LIMIT, checkpoints).await;
        values.set(
            Signal::Running,
            said.running.map(|running| f32::from(u8::from(running))),
        );
        values.set(Signal::Answer, said.answer_ms);
        match said.blocks {
            Some(blocks) => self.block.sample(&blocks, elapsed, values),
            None => self.block.forget(),
        }
        match said.kvm {
            Some(figures) => self.kvm.sample(figures, elapsed, values),
            None => self.kvm.forget(),
        }
        for (signal, count) in EVENT_SIGNALS.iter().zip(said.events.into_iter().flatten()) {
            if checkpoints && matches!(signal, Signal::EventStop | Signal::EventResume) {
                continue;
            }
            values.set(*signal, count as f32);
        }
    }

    fn own_gate(&mut self, elapsed: f64, values: &mut Values) {
        let Some(gate) = &self.gate else { return };
        let counts = gate.counts();
        if let Some([packets, bytes]) = self.gate_counters.step([counts.packets, counts.bytes]) {
            values.set(Signal::GatePackets, per(packets, elapsed));
            values.set(Signal::GateBytes, per(bytes, elapsed));
        }
        values.set(Signal::GateHeld, counts.held_bytes as f32);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn since_1970() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, millis)
}
