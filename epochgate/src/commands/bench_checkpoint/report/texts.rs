//! The same figures for the terminal and for docs/results.md.

use std::fmt::Write;

use serde_json::Value;

use super::PARTS;
use crate::output::bytes;

/// How each peer saves the VM.
const PEERS: &str = "Stock QEMU saves the same guest over and over, all its files in memory (/dev/shm): `stopped` is stop, migrate to a file, cont; \
     `live` is migrate to a file while the guest runs (no limit of bandwidth, `downtime-limit` 10 ms), then cont; `savevm` goes into \
     a qcow2 image; `background-snapshot` is the capability of that name.";

pub(super) fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(summary: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    summary[key].as_array().into_iter().flatten()
}

/// Guest, interval and way of a point.
pub(super) fn which(point: &Value) -> String {
    let way = match word(point, "way") {
        "auto" => String::new(),
        way => format!(", {way}"),
    };
    format!(
        "{} MiB, {} ms{way}",
        point["memory_mib"], point["interval_ms"]
    )
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        value => value.to_string(),
    }
}

fn sizes(point: &Value) -> String {
    let of = |key: &str| bytes(point["bytes_per_epoch"][key].as_u64().unwrap_or_default());
    format!(
        "{} dirty, {} on the wire, {} of device state, {} written to disks",
        of("dirty"),
        of("wire"),
        of("device"),
        of("disk")
    )
}

/// For the terminal. Writing to a String can't fail.
pub(in super::super) fn text(summary: &Value) -> String {
    let mut text = format!(
        "QEMU {}, dirty pages by {}; guests use {} % of their RAM\n",
        word(summary, "qemu"),
        word(summary, "dirty_tracker"),
        summary["filled_percent"]
    );
    for point in list(summary, "points") {
        let _ = writeln!(
            text,
            "\n{}: {} checkpoints, {}/s held, {}; the guest has {} of its pace",
            which(point),
            point["checkpoints"],
            point["rate_hz"],
            sizes(point),
            point["progress"]
        );
        let pause = &point["pause_ms"];
        let parts = PARTS
            .iter()
            .map(|(name, _)| (*name, &pause["parts"][*name]));
        for (name, part) in std::iter::once(("pause", pause)).chain(parts) {
            let _ = writeln!(
                text,
                "{name:>14}  p50 {:>7} ms  p99 {:>7} ms  max {:>7} ms",
                shown(&part["p50"]),
                shown(&part["p99"]),
                shown(&part["max"])
            );
        }
    }
    for fast in list(summary, "fastest") {
        let _ = writeln!(
            text,
            "\n{} MiB, {}, as fast as possible: {} checkpoints/s committed, the guest has {} of its pace",
            fast["memory_mib"],
            word(fast, "way"),
            shown(&fast["max_rate_hz"]),
            fast["progress"]
        );
    }
    for slope in list(summary, "pause_ms_per_gib") {
        let _ = writeln!(
            text,
            "\n{}, {} ms: the median pause grows by {} ms per GiB of RAM",
            word(slope, "way"),
            slope["interval_ms"],
            slope["p50"]
        );
    }
    for peer in list(summary, "peers") {
        let _ = match peer["not_available"].as_str() {
            Some(why) => writeln!(
                text,
                "\nstock QEMU, {} MiB, {}: not available here: {why}",
                peer["memory_mib"],
                word(peer, "name")
            ),
            None => writeln!(
                text,
                "\nstock QEMU, {} MiB, {}: pause p50 {} ms (ours × {}), p99 {} ms; {}/s (ours is × {}); the guest has {} of its pace",
                peer["memory_mib"],
                word(peer, "name"),
                shown(&peer["pause_ms"]["p50"]),
                shown(&peer["pause_to_ours"]),
                shown(&peer["pause_ms"]["p99"]),
                shown(&peer["max_rate_hz"]),
                shown(&peer["our_rate_to_it"]),
                shown(&peer["progress"])
            ),
        };
    }
    text
}

/// As a section of docs/results.md.
pub(in super::super) fn markdown(summary: &Value) -> String {
    let machine = &summary["machine"];
    let mut text = format!(
        "## The pause: QEMU {}, dirty pages by {}\n\n\
         A guest whose witness works without pause and that uses {} % of its RAM; {} repetitions of {} s, all of them taking turns. {} cores ({}), Linux {}. \
         Pace is what the witness writes, as a part of what it writes unprotected.\n\n\
         | RAM and interval | | p50, ms | p99, ms | max, ms |\n|---|---|---:|---:|---:|\n",
        word(summary, "qemu"),
        word(summary, "dirty_tracker"),
        summary["filled_percent"],
        summary["repeats"],
        summary["seconds"],
        machine["cores"],
        word(machine, "cpu"),
        word(machine, "kernel"),
    );
    for point in list(summary, "points") {
        let pause = &point["pause_ms"];
        let parts = PARTS
            .iter()
            .map(|(name, _)| (name.replace('_', " "), &pause["parts"][*name]));
        let all = std::iter::once((String::from("**pause**"), pause)).chain(parts);
        for (at, (name, part)) in all.enumerate() {
            let _ = writeln!(
                text,
                "| {} | {name} | {} | {} | {} |",
                if at == 0 { which(point) } else { String::new() },
                shown(&part["p50"]),
                shown(&part["p99"]),
                shown(&part["max"])
            );
        }
    }
    text.push_str("\n| RAM and interval | checkpoints | held per second | pace | per epoch |\n|---|---:|---:|---:|---|\n");
    for point in list(summary, "points") {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            which(point),
            point["checkpoints"],
            point["rate_hz"],
            point["progress"],
            sizes(point)
        );
    }
    for slope in list(summary, "pause_ms_per_gib") {
        let _ = writeln!(
            text,
            "\nThe median pause at {} ms ({}) grows by {} ms per GiB of RAM.",
            slope["interval_ms"],
            word(slope, "way"),
            slope["p50"]
        );
    }
    if list(summary, "fastest").next().is_some() {
        text.push_str("\nAs fast as possible (an interval of 1 ms, or the next longer one at which the guest has a quarter of its pace):\n\n\
             | RAM | way | checkpoints/s committed | pace |\n|---|---|---:|---:|\n");
        for fast in list(summary, "fastest") {
            let _ = writeln!(
                text,
                "| {} MiB | {} | {} | {} |",
                fast["memory_mib"],
                word(fast, "way"),
                shown(&fast["max_rate_hz"]),
                fast["progress"]
            );
        }
    }
    if list(summary, "peers").next().is_some() {
        let _ = write!(
            text,
            "\n{PEERS}\n\n| RAM | stock QEMU | pause p50, ms | p99 | pause, ours = 1 | saves/s | ours / it | pace |\n|---|---|---:|---:|---:|---:|---:|---:|\n"
        );
        for peer in list(summary, "peers") {
            let _ = match peer["not_available"].as_str() {
                Some(why) => writeln!(
                    text,
                    "| {} MiB | {} | not available here: {} | | | | | |",
                    peer["memory_mib"],
                    word(peer, "name"),
                    why.replace(['\n', '|'], " ")
                ),
                None => writeln!(
                    text,
                    "| {} MiB | {} | {} | {} | {} | {} | {} | {} |",
                    peer["memory_mib"],
                    word(peer, "name"),
                    shown(&peer["pause_ms"]["p50"]),
                    shown(&peer["pause_ms"]["p99"]),
                    shown(&peer["pause_to_ours"]),
                    shown(&peer["max_rate_hz"]),
                    shown(&peer["our_rate_to_it"]),
                    shown(&peer["progress"])
                ),
            };
        }
        let _ = writeln!(text, "| | no protection | 0 | 0 | | 0 | | 1 |");
    }
    text.push('\n');
    text
}
