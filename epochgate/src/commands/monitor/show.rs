//! `epochgate monitor show`.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use monitor::recording::Recording;
use monitor::signals::Signal;
use nbd_server::group::history::rfc3339;
use serde_json::json;

use crate::cli::monitor::ShowArgs;

pub(crate) fn run(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let recording = Recording::load(&args.file)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let written = match (args.json, args.csv) {
        (true, _) => writeln!(out, "{}", summary(&recording)),
        (_, true) => csv(&recording, &mut out),
        _ => text(&recording, &mut out),
    };
    match written.and_then(|()| out.flush()) {
        // Whoever read has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        other => other?,
    }
    Ok(ExitCode::SUCCESS)
}

/// How one signal was.
#[derive(Debug, Clone, Copy)]
struct Range {
    signal: Signal,
    min: f32,
    mean: f64,
    max: f32,
    missing: usize,
}

/// Of all signals that have a value in any sample.
fn ranges(recording: &Recording) -> Vec<Range> {
    let samples = recording.samples();
    let range = |signal: &Signal| {
        let values: Vec<f32> = samples
            .iter()
            .filter_map(|sample| sample.values.get(*signal))
            .collect();
        let sum: f64 = values.iter().map(|value| f64::from(*value)).sum();
        Some(Range {
            signal: *signal,
            min: values.iter().copied().reduce(f32::min)?,
            max: values.iter().copied().reduce(f32::max)?,
            mean: sum / values.len() as f64,
            missing: samples.len() - values.len(),
        })
    };
    Signal::ALL.iter().filter_map(range).collect()
}

fn summary(recording: &Recording) -> serde_json::Value {
    let signals: serde_json::Map<String, serde_json::Value> = ranges(recording)
        .iter()
        .map(|r| {
            let value = json!({"min": r.min, "mean": r.mean, "max": r.max, "missing": r.missing});
            (r.signal.name().to_owned(), value)
        })
        .collect();
    json!({
        "run": recording.header(),
        "samples": recording.samples().len(),
        "duration_ms": recording.duration_ms(),
        "signals": signals,
    })
}

fn csv(recording: &Recording, out: &mut impl Write) -> io::Result<()> {
    let there: Vec<Signal> = ranges(recording).iter().map(|range| range.signal).collect();
    let names: Vec<&str> = there.iter().map(|signal| signal.name()).collect();
    writeln!(out, "at_ms,wall_ms,{}", names.join(","))?;
    for sample in recording.samples() {
        write!(out, "{},{}", sample.at_ms, sample.wall_ms)?;
        for signal in &there {
            match sample.values.get(*signal) {
                Some(value) => write!(out, ",{value}")?,
                None => write!(out, ",")?,
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

fn text(recording: &Recording, out: &mut impl Write) -> io::Result<()> {
    let header = recording.header();
    let (vm, host) = (&header.vm, &header.host);
    writeln!(
        out,
        "VM        {} vCPUs, {} MiB, {} disks; QEMU {} ({}) on {} cores",
        vm.vcpus, vm.memory_mib, vm.disks, host.qemu, host.accelerator, host.cores
    )?;
    writeln!(
        out,
        "time      {}, {:.1} s, {} samples, one every {} ms",
        rfc3339(header.started_ms),
        recording.duration_ms() as f64 / 1e3,
        recording.samples().len(),
        header.interval_ms
    )?;
    writeln!(
        out,
        "load      {}",
        header.load.as_deref().unwrap_or("not said")
    )?;
    match &header.fault {
        None => writeln!(out, "fault     none")?,
        Some(fault) => {
            let until = match fault.until_ms {
                Some(until) => format!("until {:.1} s", until as f64 / 1e3),
                None => "to the end".to_owned(),
            };
            writeln!(
                out,
                "fault     {} from {:.1} s {until}",
                fault.kind,
                fault.at_ms as f64 / 1e3
            )?;
        }
    }
    for phase in &header.phases {
        writeln!(
            out,
            "phase     {} at {:.1} s",
            phase.name,
            phase.at_ms as f64 / 1e3
        )?;
    }
    for (key, value) in &header.tags {
        writeln!(out, "tag       {key}={value}")?;
    }
    if !header.note.is_empty() {
        writeln!(out, "note      {}", header.note)?;
    }
    writeln!(
        out,
        "\n{:<28} {:>14} {:>14} {:>14}  unit",
        "signal", "min", "mean", "max"
    )?;
    for r in ranges(recording) {
        write!(
            out,
            "{:<28} {:>14.3} {:>14.3} {:>14.3}  {}",
            r.signal.name(),
            r.min,
            r.mean,
            r.max,
            r.signal.unit()
        )?;
        match r.missing {
            0 => writeln!(out)?,
            missing => writeln!(out, "  ({missing} missing)")?,
        }
    }
    Ok(())
}
