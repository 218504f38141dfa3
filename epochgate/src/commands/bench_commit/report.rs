//! The figures of a commit bench, for people and for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{Series, Turn};
use crate::bench::machine::Machine;
use crate::bench::ratio::Spread;
use crate::cli::bench::CommitArgs;

fn spread(series: &Series, figure: fn(&Turn) -> f64) -> Spread {
    Spread::of(series.turns.iter().map(figure)).unwrap_or_default()
}

#[allow(clippy::cast_precision_loss, reason = "shown with two digits")]
fn amplification(turn: &Turn) -> f64 {
    turn.written_bytes as f64 / turn.guest_bytes.max(1) as f64
}

#[allow(clippy::cast_precision_loss, reason = "shown with two digits")]
fn kept(turn: &Turn) -> f64 {
    turn.epoch_bytes as f64 / turn.guest_bytes.max(1) as f64
}

/// fio's time over ours: above 1, the commit is faster.
fn speed(turn: &Turn) -> f64 {
    turn.fio_s / turn.commit_s.max(1e-9)
}

fn seal_ms(turn: &Turn) -> f64 {
    turn.seal_s * 1000.0
}

pub(super) fn json(args: &CommitArgs, machine: &Machine, all: &[Series]) -> Value {
    let patterns: Vec<Value> = all
        .iter()
        .map(|series| {
            json!({
                "pattern": series.pattern,
                "commit_s": spread(series, |t| t.commit_s),
                "fio_s": spread(series, |t| t.fio_s),
                "speed_against_fio": spread(series, speed),
                "seal_ms": spread(series, seal_ms),
                "epoch_bytes_per_guest_byte": spread(series, kept),
                "written_bytes_per_guest_byte": spread(series, amplification),
                "turns": series.turns,
            })
        })
        .collect();
    json!({ "machine": machine, "size": args.size, "repeats": args.repeats, "patterns": patterns })
}

fn remark(args: &CommitArgs, machine: &Machine) -> String {
    format!(
        "An epoch of {} MiB, as the guest wrote it, on {} ({} cores, Linux {}); {} turns, gateway and fio alternating. COMMIT 2 is \
         the time from the request to seal until the commit record is durable, all log writes included; fio (psync) writes the same \
         bytes in the same pattern to a file that exists, and one fdatasync. Speed is fio's time over COMMIT 2's, within a turn, as \
         median (smallest–largest). Written is what the gateway caused to be written to log and image until the epoch was applied \
         (write_bytes of /proc/PID/io), per byte the guest wrote; overwrite writes each block of a quarter of the bytes four times in \
         the mean.",
        args.size >> 20,
        machine.file_system,
        machine.cores,
        machine.kernel,
        args.repeats
    )
}

const HEADS: [&str; 7] = [
    "pattern",
    "COMMIT 2 s",
    "fio s",
    "speed × fio",
    "seal ms",
    "epoch / guest bytes",
    "written / guest bytes",
];

fn cells(series: &Series) -> [String; 7] {
    [
        series.pattern.to_owned(),
        spread(series, |t| t.commit_s).to_string(),
        spread(series, |t| t.fio_s).to_string(),
        spread(series, speed).to_string(),
        spread(series, seal_ms).to_string(),
        spread(series, kept).to_string(),
        spread(series, amplification).to_string(),
    ]
}

pub(super) fn markdown(args: &CommitArgs, machine: &Machine, all: &[Series]) -> String {
    let mut out = format!(
        "## COMMIT 2 of a large epoch\n\n{}\n\n| {} |\n|---|{}\n",
        remark(args, machine),
        HEADS.join(" | "),
        "---:|".repeat(HEADS.len() - 1)
    );
    for series in all {
        // Writing to a String can't fail.
        let _ = writeln!(out, "| {} |", cells(series).join(" | "));
    }
    out.push('\n');
    out
}

pub(super) fn text(args: &CommitArgs, machine: &Machine, all: &[Series]) -> String {
    let mut out = remark(args, machine);
    out.push('\n');
    for series in all {
        out.push('\n');
        for (head, cell) in HEADS.iter().zip(cells(series)) {
            let _ = writeln!(out, "{head:>22}  {cell}");
        }
    }
    out
}
