//! The figures of the bench as JSON, which docs/benches.md describes, and as a picture; the texts are made from the JSON.

mod texts;

use coordinator::report::Pause;
use serde_json::{Map, Value, json};

use super::ours::{PROGRESS, Run, Runs};
use super::peer::PeerRuns;
use super::slope::per_gib;
use super::{Figures, name};
use crate::bench::machine::Machine;
use crate::bench::plot::{Bar, Panel, Tone};
use crate::bench::ratio::Spread;
use crate::cli::checkpoint::CheckpointArgs;
use crate::output::{millis, percentile, spread};

pub(super) use texts::{markdown, text};

/// One part of a pause, or all of it.
type Part = fn(&Pause) -> u64;

/// The parts by their names.
const PARTS: [(&str, Part); 6] = [
    ("stop", |p| p.stop),
    ("seal", |p| p.seal),
    ("scan", |p| p.scan),
    ("copy", |p| p.copy),
    ("device_state", |p| p.device_state),
    ("resume", |p| p.resume),
];

/// All of it.
pub(super) fn summary(args: &CheckpointArgs, figures: &Figures) -> Value {
    let unprotected = median(&figures.unprotected);
    let points: Vec<Value> = figures.points.iter().map(point).collect();
    let fastest: Vec<Value> = figures.fastest.iter().map(fast).collect();
    let peers: Vec<Value> = figures
        .peers
        .iter()
        .map(|runs| peer(runs, unprotected, &points, &fastest))
        .collect();
    let seen = figures
        .points
        .iter()
        .flat_map(|runs| &runs.runs)
        .map(|run| &run.seen)
        .next_back();
    // The first of each is what the bench was asked for above all.
    let first = |list: &[Value], key: &str| list.first().map(|value| value[key].clone());
    json!({
        "memory_mib": first(&points, "memory_mib"),
        "interval_ms": first(&points, "interval_ms"),
        "pause_ms": first(&points, "pause_ms"),
        "bytes_per_epoch": first(&points, "bytes_per_epoch"),
        "max_rate_hz": first(&fastest, "max_rate_hz"),
        "pause_ms_per_gib": slopes(args, &points),
        "points": points,
        "fastest": fastest,
        "peers": peers,
        "unprotected_blocks_per_second": round(unprotected, 1),
        "filled_percent": args.filled,
        "repeats": args.repeats,
        "seconds": args.seconds,
        "qemu": seen.map(|seen| &seen.qemu),
        "dirty_tracker": seen.map(|seen| &seen.dirty_tracker),
        "machine": Machine::here(&std::env::temp_dir()),
    })
}

fn point(runs: &Runs) -> Value {
    let all = |f: fn(&Run) -> &Vec<u64>| mean(runs.runs.iter().flat_map(f).copied());
    let medians = runs.runs.iter().map(|run| {
        let mut totals: Vec<u64> = run.seen.pauses.iter().map(|pause| pause.total).collect();
        totals.sort_unstable();
        millis(percentile(&totals, 50))
    });
    json!({
        "memory_mib": runs.mib,
        "interval_ms": runs.interval_ms,
        "way": name(runs.asked),
        "device_state": runs.runs.last().and_then(|run| run.seen.device_state),
        "checkpoints": pauses(runs).count(),
        "pause_ms": pause(runs),
        "pause_p50_ms_of_runs": medians.collect::<Vec<_>>(),
        "rate_hz": round(median_of(runs, |run| run.committed), 1),
        "progress": round(median_of(runs, Run::progress), 2),
        "bytes_per_epoch": {
            "dirty": all(|run| &run.seen.dirty_bytes),
            "wire": all(|run| &run.seen.wire_bytes),
            "device": all(|run| &run.seen.device_bytes),
            "disk": all(|run| &run.seen.disk_bytes),
        },
    })
}

/// The highest rate of one guest. A rate at which the guest makes no progress is none.
fn fast(runs: &Runs) -> Value {
    let held: Vec<f64> = runs
        .runs
        .iter()
        .filter(|run| run.progress() >= PROGRESS)
        .map(|run| run.committed)
        .collect();
    let rates = held.iter().map(|rate| round(*rate, 1));
    json!({
        "memory_mib": runs.mib,
        "way": name(runs.asked),
        "interval_ms": runs.runs.last().map(|run| run.interval_ms),
        "max_rate_hz": (!held.is_empty()).then(|| round(median(&held), 1)),
        "max_rate_hz_of_runs": rates.collect::<Vec<_>>(),
        "progress": round(median_of(runs, Run::progress), 2),
        "pause_ms": pause(runs),
    })
}

fn peer(runs: &PeerRuns, unprotected: f64, points: &[Value], fastest: &[Value]) -> Value {
    let measured = runs.refused.is_none() && !runs.pauses.is_empty();
    let ours = |list: &[Value], place: &str| {
        list.iter()
            .find(|value| value["memory_mib"] == runs.mib)
            .and_then(|value| value.pointer(place)?.as_f64())
    };
    let pause = spread(runs.pauses.clone());
    let rate = median(&runs.rates);
    let ratio = |over: Option<f64>, under: Option<f64>| match (over, under) {
        (Some(over), Some(under)) if measured && under > 0.0 => Some(round(over / under, 1)),
        _ => None,
    };
    json!({
        "memory_mib": runs.mib,
        "name": name(runs.peer),
        "not_available": runs.refused,
        "saves": runs.pauses.len(),
        "pause_ms": measured.then_some(&pause),
        "max_rate_hz": measured.then(|| round(rate, 2)),
        "progress": measured.then(|| round(median(&runs.paces) / unprotected.max(f64::MIN_POSITIVE), 2)),
        "file_bytes": (!runs.bytes.is_empty()).then(|| mean(runs.bytes.iter().copied())),
        "pause_to_ours": ratio(pause["p50"].as_f64(), ours(points, "/pause_ms/p50")),
        "our_rate_to_it": ratio(ours(fastest, "/max_rate_hz"), Some(rate)),
    })
}

/// For each way and interval, if there are several sizes of RAM.
fn slopes(args: &CheckpointArgs, points: &[Value]) -> Vec<Value> {
    let mut slopes = Vec::new();
    for way in args.ways.iter().copied().map(name) {
        for interval_ms in args.intervals_ms() {
            let these = points
                .iter()
                .filter(|point| point["way"] == way && point["interval_ms"] == interval_ms);
            let pairs: Vec<_> = these
                .filter_map(|point| {
                    let gib = point["memory_mib"].as_f64()? / 1024.0;
                    Some((gib, point.pointer("/pause_ms/p50")?.as_f64()?))
                })
                .collect();
            if let Some(slope) = per_gib(&pairs) {
                slopes.push(
                    json!({ "way": way, "interval_ms": interval_ms, "p50": round(slope, 3) }),
                );
            }
        }
    }
    slopes
}

fn pauses(runs: &Runs) -> impl Iterator<Item = &Pause> {
    runs.runs.iter().flat_map(|run| &run.seen.pauses)
}

fn pause(runs: &Runs) -> Value {
    let of = |part: Part| spread(pauses(runs).map(part).collect());
    let parts: Map<String, Value> = PARTS
        .iter()
        .map(|(name, part)| ((*name).to_owned(), of(*part)))
        .collect();
    let mut pause = of(|p| p.total);
    pause["parts"] = Value::Object(parts);
    pause
}

fn median_of(runs: &Runs, of: impl Fn(&Run) -> f64) -> f64 {
    median(&runs.runs.iter().map(of).collect::<Vec<_>>())
}

fn median(values: &[f64]) -> f64 {
    Spread::of(values.iter().copied()).map_or(0.0, |spread| spread.median)
}

fn mean(values: impl Iterator<Item = u64>) -> u64 {
    let (sum, count) = values.fold((0_u64, 0_u64), |(sum, count), value| {
        (sum + value, count + 1)
    });
    sum / count.max(1)
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

/// Pauses by guest and interval, with their parts, then the peers.
pub(super) fn panels(summary: &Value) -> Vec<Panel> {
    let number = |value: &Value, place: &str| {
        let at = value.pointer(place).and_then(Value::as_f64);
        at.unwrap_or_default()
    };
    let list = |key: &str| summary[key].as_array().cloned().unwrap_or_default();
    let bar = |name: String, pause: &Value, tone| {
        let p50 = number(pause, "/p50");
        Bar::new(name, p50, tone).reaching(p50, number(pause, "/p99"))
    };
    let points = list("points");
    let mut panels = vec![Panel {
        title: "pause in ms: median, and up to p99".to_owned(),
        bars: points
            .iter()
            .map(|point| bar(texts::which(point), &point["pause_ms"], Tone::Ours))
            .collect(),
    }];
    panels.extend(points.iter().map(|point| {
        let part = |(name, _): &(&str, Part)| {
            let pause = &point["pause_ms"]["parts"][*name];
            bar((*name).to_owned(), pause, Tone::Floor)
        };
        Panel {
            title: format!(
                "{}: parts of the pause in ms (they overlap)",
                texts::which(point)
            ),
            bars: PARTS.iter().map(part).collect(),
        }
    }));
    let peers = list("peers");
    let measured = peers.iter().filter(|peer| !peer["pause_ms"].is_null());
    let bars: Vec<Bar> = measured
        .map(|peer| {
            let name = format!("{}, {} MiB", texts::word(peer, "name"), peer["memory_mib"]);
            bar(name, &peer["pause_ms"], Tone::Peer)
        })
        .collect();
    if !bars.is_empty() {
        let ours = points
            .iter()
            .map(|point| bar(texts::which(point), &point["pause_ms"], Tone::Ours));
        panels.push(Panel {
            title: "pause in ms, and that of a stock QEMU that saves the whole VM".to_owned(),
            bars: ours.chain(bars).collect(),
        });
    }
    panels
}
