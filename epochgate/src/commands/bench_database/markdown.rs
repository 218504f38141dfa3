//! The summary of a database bench as a section of docs/results.md.

use std::fmt::Write;

use serde_json::Value;

use crate::cli::database::DatabaseBenchArgs;

/// Rows of the table: what it is, and where it stands in the summary.
const ROWS: [(&str, &str); 5] = [
    ("longest stall of any connection, per failover", "/stall_ms"),
    ("kill to the guest running", "/failover_ms"),
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
         {failovers} failovers from host to host{late}: {acknowledged} transactions acknowledged on {connections} connections, **{lost} lost, \
         {resets} connections broken**, {wrong} wrong answers; {audited} rows audited: all that were promised at the end of the load, and once more \
         after all hosts were killed and the VM had booted from its disks. Transactions per second: {protected} protected, {unprotected} unprotected. \
         {checkpoints} checkpoints in the protected stretch, {wire} bytes on the wire for each dirty byte of memory. Guest with {memory} MiB, \
         interval {interval} ms, seed {seed}.\n\n\
         | ms | p50 | p99 | max |\n|---|---:|---:|---:|\n",
        output = args.database.output.name(),
        rhythm = args.database.rhythm.name(),
        late = if args.late {
            ", each late in an epoch"
        } else {
            ""
        },
        failovers = summary["failovers"],
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
