//! `epochgate monitor record`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use monitor::record::{Labels, RecordError, Recorder};
use monitor::recording::{Fault, Recording};
use monitor::signals::Signal;
use monitor::{Sample, Source, Values};
use serde_json::json;

use crate::cli::monitor::{FaultAt, RecordArgs};
use crate::exit::{Usage, usage};
use crate::runtime;

pub(crate) fn run(args: &RecordArgs) -> anyhow::Result<ExitCode> {
    let labels = labels(&args.label)?;
    let watched = super::Target::of(&args.vm)?.watched();
    // One thread is enough, and what watches must not be felt.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the async runtime can't be started")?;
    let (recording, cpu) = runtime.block_on(async {
        let mut stop = runtime::stop_signals()?;
        let recorder = Recorder::start(watched, args.interval)
            .await
            .map_err(explain)?;
        if args.json {
            println!("{}", json!({"event": "recording", "file": args.to}));
        }
        let before = cpu_time();
        let progress = (!args.json).then(|| progress(args.length));
        let mut latest = recorder.latest();
        let end = async {
            match args.length {
                Some(length) => tokio::time::sleep(length).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(end);
        loop {
            tokio::select! {
                biased;
                _ = stop.changed() => break,
                () = &mut end => break,
                // An error says that the recording is full.
                changed = latest.changed() => if changed.is_err() { break },
            }
            let sample = *latest.borrow_and_update();
            if let (Some(progress), Some(sample)) = (&progress, sample) {
                progress.set_position(sample.at_ms / 1_000);
                progress.set_message(in_short(&sample));
            }
        }
        if let Some(progress) = progress {
            progress.finish_and_clear();
        }
        let cpu = cpu_time().saturating_sub(before);
        let mut recording = recorder.finish(labels).await.map_err(explain)?;
        if let Some(fault) = &args.fault {
            label_fault(&mut recording, fault).map_err(usage)?;
        }
        anyhow::Ok((recording, cpu))
    })?;
    recording.save(&args.to)?;
    tell(args, &recording, cpu);
    // A recording without a sample is none.
    Ok(match recording.samples() {
        [] => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

fn explain(error: RecordError) -> anyhow::Error {
    match error {
        RecordError::Interval(_) | RecordError::Labels(_) => usage(error),
        other => other.into(),
    }
}

fn labels(given: &[String]) -> anyhow::Result<Labels> {
    let mut labels = Labels::default();
    for label in given {
        let (key, value) = label
            .split_once('=')
            .ok_or_else(|| Usage(format!("the label \"{label}\" is not KEY=VALUE")))?;
        match key {
            "load" => labels.load = Some(value.to_owned()),
            "note" => value.clone_into(&mut labels.note),
            "seed" => {
                let seed = value
                    .parse()
                    .map_err(|_| Usage(format!("the seed \"{value}\" is no number")))?;
                labels.seed = Some(seed);
            }
            _ => drop(labels.tags.insert(key.to_owned(), value.to_owned())),
        }
    }
    Ok(labels)
}

fn label_fault(
    recording: &mut Recording,
    fault: &FaultAt,
) -> Result<(), monitor::recording::RecordingError> {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let mut header = recording.header().clone();
    header.fault = Some(Fault {
        kind: fault.kind.clone(),
        at_ms: millis(fault.from),
        until_ms: fault.until.map(millis),
    });
    recording.set_header(header)
}

fn progress(length: Option<Duration>) -> ProgressBar {
    let (bar, template) = match length {
        Some(length) => (
            ProgressBar::new(length.as_secs()),
            "{bar:30} {elapsed_precise}, {eta} left  {msg}",
        ),
        None => (
            ProgressBar::new_spinner(),
            "{spinner} {elapsed_precise}  {msg}",
        ),
    };
    bar.with_style(
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
    )
}

/// What a person wants to see go by.
fn in_short(sample: &Sample) -> String {
    let shown = |signal: Signal, digits: usize| match sample.values.get(signal) {
        Some(value) => format!("{value:.digits$}"),
        None => "-".to_owned(),
    };
    format!(
        "vCPU {}, dirty pages {}/s, disk {} + {} op/s",
        shown(Signal::VcpuRunMean, 2),
        shown(Signal::DirtyPages, 0),
        shown(Signal::BlockReadOps, 0),
        shown(Signal::BlockWriteOps, 0),
    )
}

/// Sources that gave a value in any sample, and those that gave none.
fn sources(recording: &Recording) -> (Vec<Source>, Vec<Source>) {
    let gave = |source: &Source| {
        recording
            .samples()
            .iter()
            .any(|s| Values::has(&s.values, *source))
    };
    Source::ALL.iter().copied().partition(gave)
}

fn tell(args: &RecordArgs, recording: &Recording, cpu: Duration) {
    let samples = recording.samples().len();
    let bytes = std::fs::metadata(&args.to).map_or(0, |file| file.len());
    let per_sample = cpu.as_secs_f64() * 1e3 / (samples.max(1) as f64);
    let share = per_sample / (args.interval.as_secs_f64() * 1e3);
    let (there, missing) = sources(recording);
    let names = |sources: &[Source]| {
        sources
            .iter()
            .map(|source| source.name())
            .collect::<Vec<_>>()
    };
    if args.json {
        let line = json!({
            "event": "recorded", "file": args.to, "samples": samples, "duration_ms": recording.duration_ms(), "bytes": bytes,
            "sources": names(&there), "missing": names(&missing),
            "cpu": {"ms": cpu.as_secs_f64() * 1e3, "ms_per_sample": per_sample, "share_of_a_core": share},
        });
        println!("{line}");
        return;
    }
    println!(
        "{}: {samples} samples in {:.1} s, {}; sampling took {per_sample:.2} ms of CPU each, {:.2} % of a core",
        args.to.display(),
        recording.duration_ms() as f64 / 1e3,
        crate::output::bytes(bytes),
        share * 1e2,
    );
    println!("  from: {}", names(&there).join(", "));
    if !missing.is_empty() {
        println!("  missing: {}", names(&missing).join(", "));
    }
}

/// CPU time of this process so far.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}
