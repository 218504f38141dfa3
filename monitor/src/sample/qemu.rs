//! The connection to QEMU: its answers within a bounded time, its events as counts, and a new connection when it is another QEMU.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use qemu_glue::{BlockCounters, KvmFigure, Observer, VmEvent};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;

use super::kvm::FIGURES;
use crate::signals::Signal;

/// Samples between two questions for the threads of the vCPUs, if none is missed: a processor may be plugged in.
const VCPUS_EVERY: u32 = 30;

/// A QMP connection that is there or not.
#[derive(Debug, Default)]
pub(crate) struct Qemu {
    link: Option<Link>,
}

/// What QEMU is, which does not change while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) version: String,
    pub(crate) kvm: bool,
    pub(crate) ram_bytes: u64,
    pub(crate) vcpus: u32,
    pub(crate) disks: u32,
}

/// What QEMU said for one sample. None: it did not.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) running: Option<bool>,
    /// Of the answer to the first question; the limit, if there was none.
    pub(crate) answer_ms: Option<f32>,
    pub(crate) blocks: Option<Vec<BlockCounters>>,
    pub(crate) kvm: Option<Vec<Vec<KvmFigure>>>,
    /// How often each kind of event has come since the last sample; None for the first one.
    pub(crate) events: Option<[u64; EVENTS]>,
}

#[derive(Debug)]
struct Link {
    socket: PathBuf,
    observer: Observer,
    facts: Facts,
    vcpus: Vec<u32>,
    /// Samples since the vCPUs were asked for.
    age: u32,
    kvm: bool,
    counts: Arc<Counts>,
    last: Option<[u64; EVENTS]>,
    counter: JoinHandle<()>,
}

/// Kinds of events that are counted.
pub(crate) const EVENTS: usize = 8;

/// The signal of each kind.
pub(crate) const EVENT_SIGNALS: [Signal; EVENTS] = [
    Signal::EventPanic,
    Signal::EventReset,
    Signal::EventWatchdog,
    Signal::EventIoError,
    Signal::EventShutdown,
    Signal::EventMemoryFailure,
    Signal::EventStop,
    Signal::EventResume,
];

#[derive(Debug, Default)]
struct Counts {
    of: [AtomicU64; EVENTS],
    closed: std::sync::atomic::AtomicBool,
}

fn signal_of(event: &VmEvent) -> Option<Signal> {
    Some(match event {
        VmEvent::GuestPanicked | VmEvent::GuestCrashLoaded => Signal::EventPanic,
        VmEvent::Reset { .. } => Signal::EventReset,
        VmEvent::Watchdog => Signal::EventWatchdog,
        VmEvent::BlockIoError { .. } => Signal::EventIoError,
        VmEvent::Shutdown { .. } | VmEvent::PowerDown => Signal::EventShutdown,
        VmEvent::MemoryFailure => Signal::EventMemoryFailure,
        VmEvent::Stopped => Signal::EventStop,
        VmEvent::Resumed => Signal::EventResume,
        _ => return None,
    })
}

impl Qemu {
    /// Connects to `socket`, if that is not the present connection.
    pub(crate) async fn connect(&mut self, socket: &Path) -> qemu_glue::Result<()> {
        let is_there =
            |link: &Link| link.socket == socket && !link.counts.closed.load(Ordering::Acquire);
        if !self.link.as_ref().is_some_and(is_there) {
            self.link = None;
            self.link = Some(Link::new(socket).await?);
        }
        Ok(())
    }

    pub(crate) fn socket(&self) -> Option<&Path> {
        self.link.as_ref().map(|link| link.socket.as_path())
    }

    pub(crate) fn facts(&self) -> Option<&Facts> {
        self.link.as_ref().map(|link| &link.facts)
    }

    /// The threads of the virtual processors, as they were when they were asked for last.
    pub(crate) fn vcpus(&self) -> Option<&[u32]> {
        self.link.as_ref().map(|link| link.vcpus.as_slice())
    }

    /// The threads of the virtual processors have changed.
    pub(crate) fn ask_for_vcpus(&mut self) {
        if let Some(link) = &mut self.link {
            link.age = VCPUS_EVERY;
        }
    }

    /// Asks all, for at most `limit`. `checkpoints`: the VM is stopped for a moment again and again, which is not to be told.
    pub(crate) async fn ask(&mut self, limit: Duration, checkpoints: bool) -> Said {
        let mut said = Said::default();
        let Some(link) = &mut self.link else {
            return said;
        };
        said.events = link.events();
        let began = Instant::now();
        // What has been answered by then counts.
        let finished = tokio::time::timeout(limit, link.ask(&mut said, checkpoints)).await;
        if finished.is_err() && said.answer_ms.is_none() {
            said.answer_ms = Some(began.elapsed().as_secs_f32() * 1e3);
        }
        said
    }
}

impl Link {
    async fn new(socket: &Path) -> qemu_glue::Result<Self> {
        let observer = Observer::connect(socket).await?;
        let counts = Arc::<Counts>::default();
        let counter = tokio::spawn(count(observer.subscribe(), Arc::clone(&counts)));
        let vcpus = observer.vcpus().await?;
        let facts = Facts {
            version: observer.version().to_owned(),
            kvm: observer.is_kvm().await?,
            ram_bytes: observer.memory_bytes().await?,
            vcpus: u32::try_from(vcpus.len()).unwrap_or(u32::MAX),
            disks: u32::try_from(observer.blocks().await?.len()).unwrap_or(u32::MAX),
        };
        Ok(Self {
            socket: socket.to_owned(),
            observer,
            kvm: facts.kvm,
            facts,
            vcpus: threads(&vcpus),
            age: 0,
            counts,
            last: None,
            counter,
        })
    }

    fn events(&mut self) -> Option<[u64; EVENTS]> {
        let now = std::array::from_fn(|at| {
            self.counts
                .of
                .get(at)
                .map_or(0, |count| count.load(Ordering::Relaxed))
        });
        let last = self.last.replace(now)?;
        Some(std::array::from_fn(|at| now[at] - last[at]))
    }

    async fn ask(&mut self, said: &mut Said, checkpoints: bool) {
        let began = Instant::now();
        let Ok(running) = self.observer.is_running().await else {
            return;
        };
        said.answer_ms = Some(began.elapsed().as_secs_f32() * 1e3);
        said.running = Some(running || (checkpoints && self.runs_between_checkpoints().await));
        said.blocks = self.observer.blocks().await.ok();
        if self.age >= VCPUS_EVERY {
            if let Ok(vcpus) = self.observer.vcpus().await {
                self.vcpus = threads(&vcpus);
                self.age = 0;
            }
        } else {
            self.age += 1;
        }
        if self.kvm {
            match self.observer.kvm(FIGURES).await {
                Ok(figures) => said.kvm = Some(figures),
                Err(error) => {
                    tracing::warn!(%error, "QEMU gives no statistics of KVM; they are missing from now on");
                    self.kvm = false;
                }
            }
        }
    }

    /// A pause for a checkpoint takes milliseconds: a VM that does not run now runs soon.
    async fn runs_between_checkpoints(&self) -> bool {
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(15)).await;
            if self.observer.is_running().await.unwrap_or(false) {
                return true;
            }
        }
        false
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.counter.abort();
    }
}

fn threads(vcpus: &[qemu_glue::Vcpu]) -> Vec<u32> {
    let mut threads: Vec<u32> = vcpus.iter().map(|vcpu| vcpu.thread).collect();
    threads.sort_unstable();
    // All vCPUs of a TCG without threads share one.
    threads.dedup();
    threads
}

/// Counts events until QEMU is gone. In a task of its own: checkpoints make more of them in a long interval than QMP keeps.
async fn count(mut events: tokio::sync::broadcast::Receiver<VmEvent>, counts: Arc<Counts>) {
    loop {
        match events.recv().await {
            Ok(VmEvent::Closed) | Err(RecvError::Closed) => break,
            Ok(event) => {
                let place = signal_of(&event)
                    .and_then(|signal| EVENT_SIGNALS.iter().position(|s| *s == signal));
                if let Some(count) = place.and_then(|place| counts.of.get(place)) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(RecvError::Lagged(lost)) => tracing::warn!(lost, "events of QEMU were lost"),
        }
    }
    counts.closed.store(true, Ordering::Release);
}
