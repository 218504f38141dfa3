//! Makes a recording of a running VM: a task takes the samples, whoever started it makes marks meanwhile.
//!
//! ```no_run
//! # async fn example(vm: &qemu_glue::SourceVm) -> Result<(), Box<dyn std::error::Error>> {
//! use monitor::record::{Labels, Recorder};
//! let mut watched = monitor::Watched::qemu(vm.watch_socket(), vm.pid());
//! watched.dirty = Some(vm.watch_dirty_pages()?);
//! let recorder = Recorder::start(watched, std::time::Duration::from_secs(1)).await?;
//! recorder.mark_phase("load");
//! recorder.mark_fault("kernel_panic");
//! let labels = Labels { load: Some("compile".into()), ..Labels::default() };
//! recorder.finish(labels).await?.save("panic.egrec".as_ref())?;
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::recording::{Fault, Header, Host, INTERVAL, Phase, Recording, RecordingError, VmSize};
use crate::sample::{Sample, Sampler, WatchError, Watched};

/// Why there is no recording.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The interval can't be.
    #[error("an interval of {0:?} can't be: 100 ms to 10 s are allowed")]
    Interval(Duration),
    /// The VM can't be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// A label can't be kept.
    #[error("the recording can't be labelled")]
    Labels(#[source] RecordingError),
    /// The sampling task failed.
    #[error("the sampler ended by itself")]
    Ended,
}

/// What is said of a recording at its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// As in [`Header`].
    pub load: Option<String>,
    /// As in [`Header`].
    pub seed: Option<u64>,
    /// As in [`Header`].
    pub tags: BTreeMap<String, String>,
    /// As in [`Header`].
    pub note: String,
}

/// A recording that is being made. Dropped without [`Recorder::finish`], it is gone.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    marks: Arc<Mutex<Marks>>,
    stop: watch::Sender<bool>,
    latest: watch::Receiver<Option<Sample>>,
    task: JoinHandle<Recording>,
}

#[derive(Debug, Default)]
struct Marks {
    fault: Option<Fault>,
    phases: Vec<Phase>,
}

impl Recorder {
    /// Starts sampling. The first sample is taken one `interval` from now: until then there is nothing to compare counters with.
    ///
    /// # Errors
    /// The VM is not there; the interval can't be.
    pub async fn start(watched: Watched, interval: Duration) -> Result<Self, RecordError> {
        if !INTERVAL.contains(&interval) {
            return Err(RecordError::Interval(interval));
        }
        let sampler = Sampler::start(watched).await?;
        let facts = sampler.facts();
        let header = Header {
            vm: VmSize {
                vcpus: facts.vcpus,
                memory_mib: facts.ram_bytes >> 20,
                disks: facts.disks,
            },
            host: Host {
                qemu: facts.version.clone(),
                accelerator: if facts.kvm { "kvm" } else { "tcg" }.to_owned(),
                cores: std::thread::available_parallelism()
                    .ok()
                    .and_then(|cores| u32::try_from(cores.get()).ok())
                    .unwrap_or(0),
            },
            load: None,
            fault: None,
            phases: Vec::new(),
            seed: None,
            interval_ms: u32::try_from(interval.as_millis()).unwrap_or(u32::MAX),
            started_ms: sampler.started_ms(),
            tags: BTreeMap::new(),
            note: String::new(),
        };
        let recording = Recording::new(header).map_err(RecordError::Labels)?;
        let (stop, stopped) = watch::channel(false);
        let (tell, latest) = watch::channel(None);
        Ok(Self {
            began: sampler.began(),
            marks: Arc::default(),
            stop,
            latest,
            task: tokio::spawn(take(sampler, recording, interval, stopped, tell)),
        })
    }

    /// Milliseconds since the start, as marks and samples have them.
    pub fn at_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Something begins now.
    pub fn mark_phase(&self, name: impl Into<String>) {
        let phase = Phase {
            name: name.into(),
            at_ms: self.at_ms(),
        };
        self.marks().phases.push(phase);
    }

    /// A fault of this kind begins now. There is one in a recording: the first counts.
    pub fn mark_fault(&self, kind: impl Into<String>) {
        let fault = Fault {
            kind: kind.into(),
            at_ms: self.at_ms(),
            until_ms: None,
        };
        self.marks().fault.get_or_insert(fault);
    }

    /// The fault is over now.
    pub fn mark_fault_over(&self) {
        let now = self.at_ms();
        if let Some(fault) = &mut self.marks().fault {
            fault.until_ms.get_or_insert(now);
        }
    }

    /// The newest sample, and each one after it.
    pub fn latest(&self) -> watch::Receiver<Option<Sample>> {
        self.latest.clone()
    }

    /// Whether no more samples are taken: the recording is full.
    pub fn is_full(&self) -> bool {
        self.task.is_finished()
    }

    /// Takes no more samples, and gives the recording.
    ///
    /// # Errors
    /// A label or mark is beyond the bounds of a header.
    pub async fn finish(self, labels: Labels) -> Result<Recording, RecordError> {
        // A task that has ended needs no telling.
        let _ = self.stop.send(true);
        let mut recording = self.task.await.map_err(|_| RecordError::Ended)?;
        let marks = std::mem::take(&mut *lock(&self.marks));
        let header = Header {
            load: labels.load,
            seed: labels.seed,
            tags: labels.tags,
            note: labels.note,
            fault: marks.fault,
            phases: marks.phases,
            ..recording.header().clone()
        };
        recording.set_header(header).map_err(RecordError::Labels)?;
        Ok(recording)
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        lock(&self.marks)
    }
}

fn lock(marks: &Mutex<Marks>) -> MutexGuard<'_, Marks> {
    marks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Samples until it is told to stop, or the recording is full.
async fn take(
    mut sampler: Sampler,
    mut recording: Recording,
    interval: Duration,
    mut stop: watch::Receiver<bool>,
    tell: watch::Sender<Option<Sample>>,
) -> Recording {
    // For its counters only.
    sampler.sample().await;
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
    // A sample that took too long is not made up for: rates are of the time that has really passed.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            // An error says that the recorder is gone.
            _ = stop.wait_for(|stop| *stop) => return recording,
            _ = ticks.tick() => {}
        }
        let sample = sampler.sample().await;
        if let Err(error) = recording.push(sample.at_ms, &sample.values) {
            tracing::warn!(%error, "no more samples are recorded");
            return recording;
        }
        tell.send_replace(Some(sample));
    }
}
