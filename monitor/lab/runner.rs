//! Carries a plan out: so many VMs at a time, each run into files of its own. What is there already is kept, so that a data set that was
//! interrupted goes on where it was; a run that fails is tried once more, then noted in `failed.tsv` and left out.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use monitor::Recording;
use monitor::record::{Labels, Recorder};
use monitor::recording::{ALSO_TAG, EXTENSION};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::clients::Counts;
use crate::probe::{self, Answer};
use crate::spec::{Spec, Way};
use crate::stand::Stand;
use crate::vm::Tools;

/// How often a run is tried.
const ATTEMPTS: u32 = 2;

/// Where and how the plan is carried out.
#[derive(Debug, Clone)]
pub struct Job {
    /// The data set.
    pub folder: PathBuf,
    /// VMs at the same time.
    pub parallel: usize,
    /// Distance of two samples.
    pub interval: Duration,
    /// The seed of the plan, for its tags.
    pub seed: u64,
}

/// Carries out what is missing of the plan. Returns how many runs failed.
pub async fn run(tools: &Tools, job: &Job, plan: &[Spec]) -> anyhow::Result<usize> {
    fs::create_dir_all(&job.folder)
        .with_context(|| format!("{} can't be made", job.folder.display()))?;
    let missing: Vec<&Spec> = plan
        .iter()
        .filter(|spec| !file(job, spec).is_file())
        .collect();
    eprintln!(
        "{} runs, {} of them are there",
        plan.len(),
        plan.len() - missing.len()
    );
    let mut queue = missing.into_iter();
    let mut slots: Vec<u32> = (1..).take(job.parallel.clamp(1, 200)).collect();
    let mut tasks = JoinSet::new();
    let mut failed = 0;
    let mut terminated = signal(SignalKind::terminate())?;
    loop {
        while let Some(slot) = slots.pop() {
            let Some(spec) = queue.next() else {
                break;
            };
            let (tools, job, spec) = (tools.clone(), job.clone(), spec.clone());
            tasks.spawn(async move {
                let begun = Instant::now();
                let mut outcome = attempt(&tools, &job, &spec, slot).await;
                for _ in 1..ATTEMPTS {
                    if let Err(error) = &outcome {
                        eprintln!("{}: {error:#}; once more", spec.id);
                        outcome = attempt(&tools, &job, &spec, slot).await;
                    }
                }
                (slot, spec, begun.elapsed(), outcome)
            });
        }
        let ended = tokio::select! {
            ended = tasks.join_next() => ended,
            stopped = tokio::signal::ctrl_c() => {
                stopped?;
                return Err(stop().into());
            }
            _ = terminated.recv() => return Err(stop().into()),
        };
        let Some(ended) = ended else {
            return Ok(failed);
        };
        let (slot, spec, took, outcome) = ended?;
        slots.push(slot);
        match outcome {
            Ok(said) => eprintln!("{}: {said}, {} s", spec.id, took.as_secs()),
            Err(error) => {
                failed += 1;
                eprintln!("{}: FAILED: {error:#}", spec.id);
                let mut list = fs::File::options()
                    .create(true)
                    .append(true)
                    .open(job.folder.join("failed.tsv"))?;
                writeln!(
                    list,
                    "{}\t{}",
                    spec.id,
                    format!("{error:#}").replace(['\n', '\t'], " ")
                )?;
            }
        }
    }
}

/// What runs is dropped with its VMs, and done anew the next time.
fn stop() -> std::io::Error {
    std::io::Error::other("stopped; run it again to go on")
}

fn file(job: &Job, spec: &Spec) -> PathBuf {
    job.folder.join(format!("{}.{EXTENSION}", spec.id))
}

async fn attempt(tools: &Tools, job: &Job, spec: &Spec, slot: u32) -> anyhow::Result<String> {
    let mut stand = Stand::start(tools, spec, slot).await?;
    let recorded = record(job, spec, &mut stand).await;
    let answers = stand.probe.answers();
    stand.vm.stop().await;
    let (recording, begun) = recorded?;
    let path = file(job, spec);
    // The recording is last: it says that the run is complete.
    write(
        &path.with_extension("probe.tsv"),
        &probe::to_tsv(&answers, begun),
    )?;
    write(
        &path.with_extension("json"),
        &serde_json::to_string_pretty(spec)?,
    )?;
    let samples = recording.samples().len();
    tokio::task::spawn_blocking(move || recording.save(&path)).await??;
    Ok(format!("{samples} samples"))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("{} can't be written", path.display()))
}

/// Records one run from the begin of its load to its end. Returns the recording, and when it began.
async fn record(job: &Job, spec: &Spec, stand: &mut Stand) -> anyhow::Result<(Recording, Instant)> {
    let mut labels = labels(job, spec);
    let recorder = Recorder::start(stand.vm.watched()?, job.interval).await?;
    let begun = Instant::now() - Duration::from_millis(recorder.at_ms());
    recorder.mark_phase("load");
    for change in &spec.changes {
        sleep_until(begun + Duration::from_secs(change.at_s)).await;
        recorder.mark_phase("change");
        stand.change(change, spec).await?;
    }
    sleep_until(begun + Duration::from_secs(spec.normal_s)).await;
    let mut injected = None;
    if let Some(fault) = &spec.fault {
        // A busy guest hears it later than it was said; the fault is there when it has heard.
        let at = stand.inject(&fault.way).await?;
        recorder.mark_fault(&fault.kind);
        recorder.mark_phase("fault");
        injected = Some(at);
        sleep_until(at + Duration::from_secs(spec.faulty_s)).await;
    }
    // A VM that was given up meanwhile is not what the plan says.
    if !stand.vm.is_as_planned().await {
        bail!("the VM is not protected any more");
    }
    let counts = &stand.clients.counts;
    reference(&mut labels, &stand.probe.answers(), injected);
    for (key, count) in [
        (
            "clients.good",
            (|counts| &counts.good) as fn(&Counts) -> &AtomicU64,
        ),
        ("clients.bad", |counts| &counts.bad),
    ] {
        let of = |counts: &Counts| count(counts).load(Ordering::Relaxed);
        let later = stand.later.iter().map(|later| of(&later.counts));
        let sum = of(counts) + later.sum::<u64>();
        labels.tags.insert(key.into(), sum.to_string());
    }
    Ok((recorder.finish(labels).await?, begun))
}

fn labels(job: &Job, spec: &Spec) -> Labels {
    let mut labels = Labels {
        load: Some(spec.load.clone()),
        seed: Some(spec.seed),
        note: all_lines(spec).join("; "),
        ..Labels::default()
    };
    let mut tag = |key: &str, value: String| labels.tags.insert(key.into(), value);
    tag("lab.plan", job.seed.to_string());
    tag("lab.parallel", job.parallel.to_string());
    tag("swap", if spec.swap { "on" } else { "off" }.into());
    tag("host.load.begin", host_load());
    let way = spec.fault.as_ref().map(|fault| match &fault.way {
        Way::Guest { line } => line.clone(),
        other => format!("{other:?}"),
    });
    if let Some(way) = way {
        tag("fault.way", way);
    }
    if !spec.also.is_empty() {
        tag(ALSO_TAG, spec.also.join(","));
    }
    if let Some(interval_ms) = spec.protected_ms {
        tag("protected.interval_ms", interval_ms.to_string());
    }
    labels
}

fn all_lines(spec: &Spec) -> Vec<&str> {
    let change = spec.changes.iter().flat_map(|change| &change.lines);
    spec.lines
        .iter()
        .chain(change)
        .map(String::as_str)
        .collect()
}

/// How many tasks wanted to run on the host, as the mean of a minute.
fn host_load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .filter(|word| !word.is_empty())
        .unwrap_or("unknown")
        .to_owned()
}

/// What the probe saw, as tags: of its questions before and after the fault, those that were answered.
fn reference(labels: &mut Labels, answers: &[Answer], injected: Option<Instant>) {
    let (before, after): (Vec<&Answer>, Vec<&Answer>) = answers
        .iter()
        .partition(|answer| injected.is_none_or(|at| answer.at < at));
    let share = |of: &[&Answer], good: fn(&Answer) -> bool| match of.len() {
        0 => "none".to_owned(),
        all => format!(
            "{:.3}",
            of.iter().filter(|answer| good(answer)).count() as f64 / all as f64
        ),
    };
    for (when, of) in [("before", &before), ("after", &after)] {
        labels.tags.insert(
            format!("probe.beat.{when}"),
            share(of, |a| a.beat_ms.is_some()),
        );
        labels.tags.insert(
            format!("probe.app.{when}"),
            share(of, |a| a.app_ms.is_some()),
        );
    }
    labels.tags.insert("host.load.end".into(), host_load());
}

/// Writes the datasheet of what is in the folder.
pub fn datasheet(job: &Job) -> anyhow::Result<()> {
    let text = crate::datasheet::of(&job.folder)?;
    write(&job.folder.join("DATASHEET.md"), &text)
}
