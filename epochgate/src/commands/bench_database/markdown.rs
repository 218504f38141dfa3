//! The summary of a database bench as a section of docs/results.md.

use std::fmt::Write;

use serde_json::Value;

use crate::cli::database::DatabaseBenchArgs;

/// Rows of the table: what it is, and where it stands in the summary.
const ROWS: [(&str, &str); 7] = [
    (
        "longest stall of any connection, per failover",
        "/failovers/stall_ms",
    ),
    ("kill to the guest running", "/failovers/running_ms"),
    (
        "longest stall of any connection, per switchover",
        "/switchovers/stall_ms",
    ),
    (
        "`epochgate switchover` to the guest running",
        "/switchovers/running_ms",
    ),
    ("a transaction, unprotected", "/transaction_ms/unprotected"),
    ("a transaction, protected", "/transaction_ms/protected"),
    ("pause of a checkpoint", "/pause_ms"),
];

/// Heading, verdict and table.
pub(super) fn section(args: &DatabaseBenchArgs, summary: &Value) -> String {
    let lab = &args.database.lab;
    let rate = &summary["transactions_per_second"];
    let mut text = format!(
        "## Database: {connections} connections, output = \"{output}\", rhythm = \"{rhythm}\"\n\n\
         {moves} between two hosts, each in a network namespace of its own: {acknowledged} transactions acknowledged on {connections} \
         connections, **{lost} lost, {resets} connections broken**, {wrong} wrong answers; {by_kind}{audited} rows audited: all that were promised at the end of the load, and once more \
         after all hosts were killed and the VM had booted from its disks. Transactions per second: {protected} protected, {unprotected} unprotected. \
         {checkpoints} checkpoints in the protected stretch, {wire} bytes on the wire for each dirty byte of memory. Guest with {memory} MiB, \
         interval {interval} ms, seed {seed}.\n\n\
         | ms | p50 | p99 | max |\n|---|---:|---:|---:|\n",
        output = args.database.output.name(),
        rhythm = args.database.rhythm.name(),
        moves = moves(args),
        by_kind = by_kind(summary),
        acknowledged = summary["acknowledged"],
        connections = summary["connections"],
        lost = summary["lost"],
        resets = summary["resets"],
        wrong = summary["wrong"],
        audited = summary["audited"],
        protected = rate["protected"],
        unprotected = rate["unprotected"],
        checkpoints = summary["checkpoints"],
        wire = summary["wire_bytes_per_dirty_byte"],
        memory = lab.memory,
        interval = lab.interval,
        seed = summary["seed"],
    );
    for (what, place) in ROWS {
        // There is none of what was not done.
        if let Some(spread) = summary.pointer(place).filter(|spread| spread["max"] != 0.0) {
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

fn moves(args: &DatabaseBenchArgs) -> String {
    let late = if args.late {
        ", each late in an epoch,"
    } else {
        ""
    };
    match args.switchovers {
        0 => format!("{} failovers{late}", args.failovers),
        switchovers => format!(
            "{} failovers{late}, then {switchovers} switchovers",
            args.failovers
        ),
    }
}

/// What was noticed of moves of each kind, where there are two.
fn by_kind(summary: &Value) -> String {
    if summary["switchovers"]["count"] == 0 {
        return String::new();
    }
    let of = |kind: &str| {
        let moves = &summary[kind];
        format!(
            "{} lost, {} broken, {} wrong of {} with the {kind}",
            moves["lost"], moves["resets"], moves["wrong"], moves["acknowledged"]
        )
    };
    format!("{}; {}; ", of("failovers"), of("switchovers"))
}
