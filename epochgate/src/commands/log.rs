//! `epochgate log inspect | verify | rebind`: looking into a group's epoch log. The first two change nothing. `log recover` is in
//! `log_recover.rs`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use epoch_log::history::{self, HistoryVerdict};
use epoch_log::inspect::{self, Report, Verdict};

use nbd_server::group::history::{ColdObjects, DIRECTORY};

use crate::cli::history::VerifyArgs;
use crate::cli::{LogArgs, RebindArgs};
use crate::commands::log_recover;
use crate::config_file;
use crate::exit::{Usage, usage};
use crate::output::bytes;

pub(crate) fn inspect(args: &LogArgs) -> anyhow::Result<ExitCode> {
    let report = inspect::inspect(&args.log).map_err(explain)?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print_report(&report);
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let cold = args.cold.clone();
    let args = &args.log;
    let verdict = inspect::verify(&args.log).map_err(explain)?;
    let cold = cold.map(|place| Arc::new(ColdObjects::new(place)) as _);
    let history = history::verify(&args.log.join(DIRECTORY), cold)?;
    if args.json {
        let mut all = serde_json::to_value(&verdict)?;
        if let (Some(object), Some(history)) = (all.as_object_mut(), &history) {
            object.insert("history".to_owned(), serde_json::to_value(history)?);
        }
        println!("{all}");
    } else {
        print_verdict(&args.log, &verdict);
        history.iter().for_each(print_history);
    }
    let past = history.is_none_or(|history| history.damages.is_empty());
    Ok(if verdict.is_whole() && past {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

pub(crate) fn rebind(args: &RebindArgs) -> anyhow::Result<ExitCode> {
    let config: nbd_server::gateway::GatewayConfig = config_file::load(&args.config)?;
    let group = config
        .groups
        .iter()
        .find(|group| group.name == args.group)
        .ok_or_else(|| {
            Usage(format!(
                "{} has no group \"{}\"",
                args.config.display(),
                args.group
            ))
        })?;
    group
        .rebind()
        .with_context(|| format!("the log of \"{}\" stays as it was", args.group))?;
    println!(
        "the log of \"{}\" now belongs to the images of {}",
        args.group,
        args.config.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// A path that is no log is the user's mistake; damage is not.
fn explain(error: epoch_log::LogError) -> anyhow::Error {
    match error {
        epoch_log::LogError::NotALog { .. } => usage(error),
        other => other.into(),
    }
}

fn print_report(report: &Report) {
    let state = &report.state;
    println!("log of group {}", report.group);
    for disk in &report.disks {
        println!("  disk {}  {}", disk.name, bytes(disk.size));
    }
    println!(
        "  generation {}, committed {}, applied {}, {}, {}",
        state.generation,
        state.committed,
        state.applied,
        mode(&state.mode),
        if report.clean {
            "closed cleanly"
        } else {
            "in use or not closed cleanly"
        }
    );
    for segment in &report.segments {
        println!("  segment {}  {}", segment.number, bytes(segment.bytes));
    }
    for (what, epochs) in [
        ("committed, not applied", &report.unapplied),
        ("not committed", &report.uncommitted),
    ] {
        for epoch in epochs {
            println!(
                "  epoch {}  {} in {} records, {what}",
                epoch.epoch,
                bytes(epoch.bytes),
                epoch.records
            );
        }
    }
    for entry in &report.history {
        println!(
            "  {}:{:<8} {:<10} generation {}, committed {}, applied {}{}{}",
            entry.segment,
            entry.offset,
            entry.kind,
            entry.generation,
            entry.committed,
            entry.applied,
            entry
                .owner
                .as_ref()
                .map(|o| format!(", owner {o}"))
                .unwrap_or_default(),
            entry
                .holder
                .as_ref()
                .map(|h| format!(", memory at {h}"))
                .unwrap_or_default(),
        );
    }
}

fn mode(mode: &epoch_log::Mode) -> String {
    match mode {
        epoch_log::Mode::Sync => "sync mode".to_owned(),
        epoch_log::Mode::Async { holder: None } => "async mode".to_owned(),
        epoch_log::Mode::Async {
            holder: Some(holder),
        } => format!(
            "async mode, memory at {} since epoch {}",
            holder.standby, holder.since
        ),
    }
}

fn print_history(history: &HistoryVerdict) {
    for damage in &history.damages {
        println!("DAMAGED  {damage}");
    }
    if history.damages.is_empty() {
        println!(
            "the history is whole: {} ranges, {} in {} files",
            history.ranges,
            bytes(history.bytes),
            history.runs
        );
        if history.cold_runs > 0 {
            println!(
                "{} of them are in cold storage{}",
                history.cold_runs,
                if history.cold_read {
                    ", and that was read, too"
                } else {
                    ", which was not read: --cold does that"
                }
            );
        }
    } else {
        println!(
            "         Points before the damage can't be read where it lies. The disks are not touched by it."
        );
    }
}

fn print_verdict(dir: &Path, verdict: &Verdict) {
    for damage in &verdict.damages {
        println!(
            "DAMAGED  segment {} at byte {} ({:016}.seg){}: {}",
            damage.segment,
            damage.offset,
            damage.segment,
            damage
                .epoch
                .map(|epoch| format!(", epoch {epoch}"))
                .unwrap_or_default(),
            damage.what
        );
        println!("         {}", damage.what.meaning());
    }
    for sector in &verdict.repairable {
        println!(
            "repairable: segment {} offset {} is damaged and has a second copy; opening the log mends it",
            sector.segment, sector.offset
        );
    }
    if verdict.uncommitted_bytes > 0 {
        println!(
            "{} at the end were never committed",
            bytes(verdict.uncommitted_bytes)
        );
    }
    if verdict.is_whole() {
        println!("whole: everything that is committed is there");
    } else {
        print!("{}", log_recover::advice(dir, verdict.salvage.as_ref()));
    }
}
