//! The summary of a failover bench as a section of docs/results.md.

use std::fmt::Write;

use serde_json::Value;

use crate::cli::FailoverArgs;

/// Rows of the table: what it is, and where it stands in the summary.
const ROWS: [(&str, &str); 15] = [
    ("pause of a checkpoint", "/pause_ms"),
    ("– stop (guest I/O drained)", "/pause_parts_ms/stop"),
    ("– seal at the gateway", "/pause_parts_ms/seal"),
    ("– scan for dirty pages", "/pause_parts_ms/scan"),
    ("– copy them", "/pause_parts_ms/copy"),
    ("– device state", "/pause_parts_ms/device_state"),
    ("– resume", "/pause_parts_ms/resume"),
    ("from capture to COMMIT 1", "/commit1_ms"),
    ("from COMMIT 1 to the durable record", "/commit2_ms"),
    ("kill to suspicion", "/detect_ms"),
    ("suspicion to the guest running", "/resume_ms"),
    ("– takeover at the gateway", "/resume_parts_ms/takeover"),
    ("– merge", "/resume_parts_ms/merge"),
    ("– device state and resume", "/resume_parts_ms/device_state"),
    ("kill to the guest running", "/failover_ms"),
];

/// Heading, verdict and table.
pub(super) fn section(args: &FailoverArgs, summary: &Value) -> String {
    let number = |key: &str| summary[key].as_u64().unwrap_or_default();
    let word = |key: &str| summary[key].as_str().unwrap_or("unknown").to_owned();
    let mut text = format!(
        "## Failover: QEMU {}, dirty pages by {}\n\n\
         {} of {} runs resumed, {} good; {} blocks checked by the witness, {} mismatches; {} runs lost a committed epoch. \
         {} checkpoints of a guest with {} MiB, one every {} ms, {} KiB on the wire in the mean. Seed {}.\n\n\
         | ms | p50 | p99 | max |\n|---|---:|---:|---:|\n",
        word("qemu"),
        word("dirty_tracker"),
        number("resumed"),
        number("runs"),
        number("good"),
        number("blocks_checked"),
        number("mismatches"),
        number("committed_epochs_lost"),
        number("checkpoints"),
        args.lab.memory,
        args.lab.interval,
        summary["checkpoint_bytes"]["mean"]
            .as_u64()
            .unwrap_or_default()
            >> 10,
        number("seed"),
    );
    for (what, place) in ROWS {
        if let Some(spread) = summary.pointer(place) {
            // Writing to a String can't fail.
            let _ = writeln!(
                text,
                "| {what} | {} | {} | {} |",
                spread["p50"], spread["p99"], spread["max"]
            );
        }
    }
    text.push('\n');
    text
}
