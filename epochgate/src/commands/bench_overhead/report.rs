//! The figures of the bench in all forms. JSON is made first, and the others from it: docs/benches.md says what its fields mean.

use std::fmt::Write;

use serde_json::{Value, json};

use super::case::Case;
use super::stretch::{Pair, Sample};
use crate::bench::machine::Machine;
use crate::bench::plot::{Bar, Panel, Tone};
use crate::bench::ratio::Spread;
use crate::cli::overhead::OverheadArgs;
use crate::output::spread;

/// What protection is compared with.
pub(super) const UNPROTECTED: &str = "the same guest, QEMU, coordinator and gateway without a standby: no checkpoints, disks in sync mode \
     (a FLUSH waits for the storage, which a protected guest's does not), packets not held";
/// Whose CPU time is counted, in the order of [`Sample::cpu`].
const PARTS: [&str; 4] = ["qemu", "coordinator", "gateway", "standby"];

/// All of it.
pub(super) fn summary(args: &OverheadArgs, measured: &[(Case, Vec<Pair>)], qemu: &str) -> Value {
    let results: Vec<Value> = measured
        .iter()
        .flat_map(|(case, pairs)| pairs.iter().map(|pair| result(case, pair)))
        .collect();
    json!({
        "memory_mib": args.lab.memory,
        "working_set_mib": args.working_set,
        "seconds": args.seconds,
        "repeats": args.repeats,
        "qemu": qemu,
        "machine": Machine::here(&std::env::temp_dir()),
        "unprotected": UNPROTECTED,
        "results": results,
    })
}

fn result(case: &Case, pair: &Pair) -> Value {
    let paces = |samples: &[Sample]| samples.iter().map(|sample| sample.pace).collect::<Vec<_>>();
    let (with, without) = (paces(&pair.protected), paces(&pair.unprotected));
    let ratio = Spread::of_ratios(&with, &without).map(digits);
    let mean = |f: fn(&Sample) -> f64| mean(pair.protected.iter().map(f));
    let trips = |samples: &[Sample]| {
        let all: Vec<u64> = samples.iter().flat_map(|s| s.trips.clone()).collect();
        (!all.is_empty()).then(|| spread(all))
    };
    json!({
        "compares": if case.compares_gates { "gates" } else { "rates" },
        "interval_ms": case.interval_ms,
        "rhythm": case.rhythm.name(),
        "output": case.output.name(),
        "protection": case.name(),
        "workload": pair.workload.name(),
        "unit": pair.workload.unit(),
        "pace": { "protected": Spread::of(with).map(digits), "unprotected": Spread::of(without).map(digits) },
        "ratio": ratio,
        "slow_down_percent": ratio.map(|ratio| round((1.0 - ratio.median) * 100.0, 1)),
        "round_trip_ms": { "protected": trips(&pair.protected), "unprotected": trips(&pair.unprotected) },
        "epochs_per_second": round(mean(|sample| sample.checkpoints), 1),
        "paused_percent": round(mean(|sample| sample.paused) * 100.0, 2),
        "dirty_bytes": pair.protected.last().map_or(0, |sample| sample.dirty),
        "wire_bytes": pair.protected.last().map_or(0, |sample| sample.wire),
        "cpu": { "protected": cpu(&pair.protected), "unprotected": cpu(&pair.unprotected) },
    })
}

/// CPU seconds per second.
fn cpu(samples: &[Sample]) -> Value {
    let parts = PARTS.iter().enumerate().map(|(at, part)| {
        let spent = mean(samples.iter().map(|sample| sample.cpu[at]));
        ((*part).to_owned(), json!(round(spent, 3)))
    });
    Value::Object(parts.collect())
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    if count > 0.0 { sum / count } else { 0.0 }
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

fn digits(spread: Spread) -> Spread {
    Spread {
        median: round(spread.median, 3),
        min: round(spread.min, 3),
        max: round(spread.max, 3),
    }
}

/// Median (smallest–largest).
fn shown(spread: &Value, digits: usize) -> String {
    let number = |key: &str| spread[key].as_f64().unwrap_or_default();
    format!(
        "{:.digits$} ({:.digits$}–{:.digits$})",
        number("median"),
        number("min"),
        number("max")
    )
}

fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn results(summary: &Value) -> impl Iterator<Item = &Value> {
    summary["results"].as_array().into_iter().flatten()
}

/// CPU time in one cell: without protection, then with it.
fn cpu_shown(result: &Value) -> String {
    let part = |part: &str| {
        let spent = |side: &str| result["cpu"][side][part].as_f64().unwrap_or_default();
        format!("{:.2}→{:.2}", spent("unprotected"), spent("protected"))
    };
    PARTS.map(part).join(" ")
}

fn trips_shown(result: &Value) -> String {
    let side = |side: &str| {
        let trips = &result["round_trip_ms"][side];
        match trips.is_null() {
            true => String::new(),
            false => format!("{}/{}", trips["p50"], trips["p99"]),
        }
    };
    match (side("unprotected"), side("protected")) {
        (without, with) if without.is_empty() && with.is_empty() => String::new(),
        (without, with) => format!("{without}→{with}"),
    }
}

/// For the terminal.
pub(super) fn text(summary: &Value) -> String {
    let mut text = format!(
        "unprotected: {UNPROTECTED}\nCPU seconds per second, without and with protection: {}; round trips p50/p99 in ms\n\n",
        PARTS.join(", ")
    );
    for result in results(summary) {
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "{:>18}  {:>10}  {:>26} → {:>26} {:<9}  ratio {}  {:>5.1} epochs/s, paused {:>5.2} %  CPU {}  {}",
            word(result, "protection"),
            word(result, "workload"),
            shown(&result["pace"]["unprotected"], 1),
            shown(&result["pace"]["protected"], 1),
            word(result, "unit"),
            shown(&result["ratio"], 2),
            result["epochs_per_second"].as_f64().unwrap_or_default(),
            result["paused_percent"].as_f64().unwrap_or_default(),
            cpu_shown(result),
            trips_shown(result),
        );
    }
    text
}

/// As a section of docs/results.md.
pub(super) fn markdown(summary: &Value) -> String {
    let machine = &summary["machine"];
    let mut text = format!(
        "## What protection costs the guest: QEMU {}\n\n\
         Stretches of {} s with and without protection took turns in one guest of {} MiB, {} times each. Unprotected is {UNPROTECTED}. \
         {} cores ({}), Linux {}. Paces are medians; a ratio is taken between neighbours and shown as median (smallest–largest); CPU seconds per \
         second without → with protection, of {}.\n",
        word(summary, "qemu"),
        summary["seconds"],
        summary["memory_mib"],
        summary["repeats"],
        machine["cores"],
        word(machine, "cpu"),
        word(machine, "kernel"),
        PARTS.join(", "),
    );
    for (compares, heading) in [("rates", "By rate"), ("gates", "By gate")] {
        let mut rows = results(summary)
            .filter(|result| word(result, "compares") == compares)
            .peekable();
        if rows.peek().is_none() {
            continue;
        }
        let _ = write!(
            text,
            "\n### {heading}\n\n| protection | workload | unprotected | protected | ratio | round trip p50/p99, ms | epochs/s | paused | KiB dirty | KiB on the wire | CPU |\n\
             |---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|\n"
        );
        for result in rows {
            let median = |side: &str| result["pace"][side]["median"].as_f64().unwrap_or_default();
            let kib = |key: &str| result[key].as_u64().unwrap_or_default() >> 10;
            let _ = writeln!(
                text,
                "| {} | {} | {:.1} {unit} | {:.1} {unit} | {} | {} | {} | {} % | {} | {} | {} |",
                word(result, "protection"),
                word(result, "workload"),
                median("unprotected"),
                median("protected"),
                shown(&result["ratio"], 2),
                trips_shown(result),
                result["epochs_per_second"],
                result["paused_percent"],
                kib("dirty_bytes"),
                kib("wire_bytes"),
                cpu_shown(result),
                unit = word(result, "unit"),
            );
        }
    }
    text.push('\n');
    text
}

/// A panel for each workload: the ratio by rate, and by gate.
pub(super) fn panels(summary: &Value) -> Vec<Panel> {
    let mut panels: Vec<Panel> = Vec::new();
    for result in results(summary) {
        let compares = word(result, "compares");
        let title = format!(
            "{}: pace with protection, as a part of that without ({compares})",
            word(result, "workload")
        );
        let number = |key: &str| result["ratio"][key].as_f64().unwrap_or_default();
        let bar = Bar::new(word(result, "protection"), number("median"), Tone::Ours)
            .reaching(number("min"), number("max"));
        match panels.iter_mut().find(|panel| panel.title == title) {
            Some(panel) => panel.bars.push(bar),
            None => panels.push(Panel {
                title,
                // What no protection would be.
                bars: vec![Bar::new("unprotected", 1.0, Tone::Floor), bar],
            }),
        }
    }
    panels
}
