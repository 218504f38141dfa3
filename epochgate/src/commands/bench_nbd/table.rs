//! The figures as text: a table for the terminal, the same as Markdown for docs/results.md.

use std::fmt::Write;

use super::plan::Plan;
use super::summary::{Block, Row};
use crate::bench::machine::Machine;
use crate::bench::ratio::Spread;
use crate::bench::server::{Kind, Role};

const HEADS: [&str; 12] = [
    "server",
    "IOPS",
    "MB/s",
    "mean µs",
    "p50 µs",
    "p99 µs",
    "× best peer",
    "× null",
    "p50 × best",
    "CPU s/M req",
    "CPU × best",
    "CPU s/GiB",
];

/// How the figures came about, for both forms.
pub(crate) fn remarks(plan: &Plan, machine: &Machine) -> Vec<String> {
    let mut lines = vec![
        format!(
            "{} cores ({}), Linux {}, disks of {} MiB on {}; {} repetitions of {} s, all servers alternating within each in \
             an order shuffled anew (seed {}).",
            machine.cores,
            machine.cpu,
            machine.kernel,
            plan.size >> 20,
            machine.file_system,
            plan.repeats,
            plan.length.as_secs_f64(),
            plan.seed
        ),
        "Every server has a disk of its own with the same content, read into the page cache before each run, on a unix socket. Medians over \
         the repetitions; ratios are taken within a repetition, shown as median (smallest–largest). A peer stores what is \
         written; the floors (nbdkit-null, bare-file) do not count as peers. `p50 × best` is against the peer with the lowest \
         median latency, `CPU × best` against the peer that needs the least CPU time per request. CPU is that of the server's \
         whole process tree, for the load, the flush after it and the work in the background until it is still; `drain` is the \
         FLUSH after a run that wrote, in seconds."
            .to_owned(),
    ];
    for server in &plan.servers {
        lines.push(format!(
            "{server} ({}): {}.",
            server.version(),
            server.writes()
        ));
    }
    if plan.servers.contains(&Kind::Async) {
        lines.push(format!(
            "Async mode commits every {} ms and has {} MiB for epochs that the image does not have yet.",
            plan.async_mode.epoch_interval_ms, plan.async_mode.memory_budget_mib
        ));
    }
    lines
}

/// `random-read, 4 KiB random read: native client, 1 connection, 64 in flight each`
fn heading(block: &Block) -> String {
    let depth = block.depth.map_or(String::new(), |depth| {
        format!(", {depth} in flight on each")
    });
    format!(
        "{} ({}): {} client, {} connection{}{depth}",
        block.profile,
        block.title,
        block.client.name(),
        block.connections,
        if block.connections == 1 { "" } else { "s" }
    )
}

fn cells(row: &Row) -> Vec<String> {
    let spread = |spread: Option<Spread>| spread.map_or("–".to_owned(), |s| s.to_string());
    let number = |value: Option<f64>| value.map_or("–".to_owned(), |v| format!("{v:.3}"));
    let mut cells = vec![
        row.server.to_owned(),
        format!("{:.0}", row.iops),
        format!("{:.0}", row.mb_per_second),
        format!("{:.1}", row.mean_us),
        format!("{:.1}", row.p50_us),
        format!("{:.1}", row.p99_us),
        spread(row.against_best_peer),
        spread(row.against_null),
        spread(row.latency_against_best),
        number(row.cpu_per_million),
        spread(row.cpu_against_best),
        number(row.cpu_per_gib),
    ];
    if row.drain_s.is_some() {
        cells.push(number(row.drain_s));
    }
    cells
}

fn heads(block: &Block) -> Vec<&'static str> {
    let mut heads = HEADS.to_vec();
    if block.servers.iter().any(|row| row.drain_s.is_some()) {
        heads.push("drain s");
    }
    heads
}

/// For a terminal.
pub(crate) fn text(blocks: &[Block], remarks: &[String]) -> String {
    let mut out = String::new();
    for remark in remarks {
        // Writing to a String can't fail.
        let _ = writeln!(out, "{remark}");
    }
    for block in blocks {
        let _ = writeln!(out, "\n{}", heading(block));
        let heads: Vec<String> = heads(block).iter().map(|head| (*head).to_owned()).collect();
        let mut lines = vec![heads];
        lines.extend(block.servers.iter().map(cells));
        let columns = lines.first().map_or(0, Vec::len);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = lines.iter().filter_map(|line| line.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for line in &lines {
            for (index, (cell, width)) in line.iter().zip(&widths).enumerate() {
                let _ = if index == 0 {
                    write!(out, "  {cell:<width$}")
                } else {
                    write!(out, "  {cell:>width$}")
                };
            }
            out.push('\n');
        }
    }
    out
}

/// A section of docs/results.md.
pub(crate) fn markdown(blocks: &[Block], remarks: &[String]) -> String {
    let mut out = String::from("## NBD servers side by side\n\n");
    for (index, remark) in remarks.iter().enumerate() {
        let sign = if index < 2 { "" } else { "- " };
        let gap = if index < 2 { "\n" } else { "" };
        let _ = writeln!(out, "{sign}{remark}{gap}");
    }
    for block in blocks {
        let heads = heads(block);
        let _ = writeln!(out, "\n### {}\n\n| {} |", heading(block), heads.join(" | "));
        let _ = writeln!(out, "|---|{}", "---:|".repeat(heads.len() - 1));
        for row in &block.servers {
            let mut cells = cells(row);
            if row.kind.role() == Role::Ours
                && let Some(name) = cells.first_mut()
            {
                *name = format!("**{name}**");
            }
            let _ = writeln!(out, "| {} |", cells.join(" | "));
        }
    }
    out.push('\n');
    out
}
