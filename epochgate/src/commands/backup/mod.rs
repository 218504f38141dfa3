//! `epochgate backup`: what the crate `backup` does, with a command line, a progress bar and words.

mod progress;

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use backup::format::{Id, Manifest};
use backup::{BackupError, Keep, Order, Pruned, Repository, Which};
use nbd_server::control::api::{ErrorKind, Point};
use nbd_server::group::history::rfc3339;
use serde_json::json;

use crate::cli::backup::{
    CreateArgs, ListArgs, PlaceArgs, PruneArgs, RemoveArgs, RestoreArgs, VerifyArgs,
};
use crate::exit::{Usage, usage};
use crate::output::bytes;
use progress::Progress;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Which errors are the user's to mend.
fn explain(error: BackupError) -> anyhow::Error {
    let kind = match &error {
        BackupError::Gateway(error) => error.kind(),
        _ => None,
    };
    if error.is_usage() || matches!(kind, Some(ErrorKind::UnknownGroup | ErrorKind::BadRequest)) {
        usage(error)
    } else {
        error.into()
    }
}

fn id(text: &str) -> anyhow::Result<Id> {
    Id::new(text).map_err(usage)
}

/// The place and the group that are meant.
fn open(args: &PlaceArgs) -> anyhow::Result<(Repository, String)> {
    let repository = Repository::open(&args.place).map_err(explain)?;
    let group = repository.group(args.group.as_deref()).map_err(explain)?;
    Ok((repository, group))
}

pub(crate) fn create(args: &CreateArgs) -> anyhow::Result<ExitCode> {
    let order = Order {
        group: args.group.clone(),
        control: args.control.control.clone(),
        nbd: args.nbd.clone(),
        name: args.name.as_deref().map(id).transpose()?,
        at: args.pin.clone().map(Point::Pin),
        full: args.full,
        jobs: usize::from(args.jobs),
    };
    let progress = Progress::watch("backup", args.control.json)?;
    let repository = Repository::create(&args.to).map_err(explain)?;
    let created = backup::create(&repository, &order, &progress);
    progress.end();
    let created = match created {
        Err(BackupError::Stopped) => anyhow::bail!(
            "stopped; run the same command again, and the backup goes on where it was"
        ),
        Err(error) if error.is_damage() && !args.full => anyhow::bail!(
            "{error}; `epochgate backup verify` says more, and a backup made with --full needs nothing of what is there"
        ),
        created => created.map_err(explain)?,
    };
    if args.control.json {
        println!("{}", serde_json::to_string(&created)?);
    } else {
        println!(
            "backup {} of group {}: epoch {} of {}, {} of disks; {} were read, {} stored{}",
            created.backup,
            created.group,
            created.epoch,
            rfc3339(created.time_ms),
            bytes(created.size),
            bytes(created.read),
            bytes(created.stored),
            match created.resumed {
                true => format!(
                    ", of which {} were there from an earlier run",
                    bytes(created.reused)
                ),
                false => String::new(),
            }
        );
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let args = &args.place;
    let repository = Repository::open(&args.place).map_err(explain)?;
    let (good, bad) = repository.backups(args.group.as_deref()).map_err(explain)?;
    if args.json {
        let backups: Vec<serde_json::Value> = good.iter().map(shown).collect();
        let damaged: Vec<String> = bad.iter().map(ToString::to_string).collect();
        println!("{}", json!({ "backups": backups, "damaged": damaged }));
    } else {
        for manifest in &good {
            let disks: Vec<&str> = manifest
                .disks
                .iter()
                .map(|disk| disk.name.as_str())
                .collect();
            println!(
                "{:<26} group {}, {} (epoch {}), {} on {}, brought {}",
                manifest.id,
                manifest.group,
                rfc3339(manifest.time_ms),
                manifest.epoch,
                bytes(manifest.size()),
                disks.join(", "),
                bytes(manifest.stored)
            );
        }
        for error in &bad {
            println!("TROUBLE: {error}");
        }
        if good.is_empty() && bad.is_empty() {
            println!("there is no backup in {}", args.place);
        }
    }
    Ok(match bad.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn shown(manifest: &Manifest) -> serde_json::Value {
    let disks = manifest.disks.iter();
    let disks: Vec<_> = disks
        .map(|disk| json!({ "name": disk.name, "size": disk.size }))
        .collect();
    json!({
        "backup": manifest.id.as_str(),
        "group": manifest.group,
        "epoch": manifest.epoch,
        "time_ms": manifest.time_ms,
        "made_ms": manifest.made_ms,
        "parent": manifest.parent.as_ref().map(Id::as_str),
        "read": manifest.read,
        "stored": manifest.stored,
        "disks": disks,
    })
}

pub(crate) fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let only = args.backup.as_deref().map(id).transpose()?;
    let (repository, group) = open(&args.place)?;
    let progress = Progress::watch("verify", args.place.json)?;
    let checked = backup::verify(
        &repository,
        &group,
        only.as_ref(),
        usize::from(args.jobs),
        &progress,
    );
    progress.end();
    let checked = checked.map_err(explain)?;
    if args.place.json {
        println!("{}", serde_json::to_string(&checked)?);
    } else {
        for problem in &checked.problems {
            println!("{problem}");
        }
        println!(
            "{} backups, {} packs, {} read: {}",
            checked.backups,
            checked.packs,
            bytes(checked.bytes),
            match checked.broken.len() {
                0 => "all is as it was written".to_owned(),
                broken => format!("{broken} CAN'T BE RESTORED IN FULL"),
            }
        );
        for broken in &checked.broken {
            println!("  {broken}");
        }
    }
    Ok(match checked.problems.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

pub(crate) fn restore(args: &RestoreArgs) -> anyhow::Result<ExitCode> {
    let which = match (args.backup.as_deref(), args.time.as_deref()) {
        (Some("latest"), _) => Which::Latest,
        (Some(name), _) => Which::Id(id(name)?),
        (None, time) => match format!("time={}", time.unwrap_or_default()).parse() {
            Ok(Point::Time(ms)) => Which::Time(ms),
            _ => {
                let text = time.unwrap_or_default();
                return Err(Usage(format!(
                    "'{text}' is no time; write it as 2026-11-22T10:15:00Z"
                ))
                .into());
            }
        },
    };
    let (repository, group) = open(&args.place)?;
    let manifest = repository.find(&group, &which).map_err(explain)?;
    let progress = Progress::watch("restore", args.place.json)?;
    let jobs = usize::from(args.jobs);
    let restored = backup::restore(
        &repository,
        &manifest,
        &args.disk,
        &args.to,
        jobs,
        &progress,
    );
    progress.end();
    let restored = match restored {
        Err(BackupError::Stopped) => anyhow::bail!(
            "stopped; disks that are complete are there, run the command again with --disk for the others"
        ),
        restored => restored.map_err(explain)?,
    };
    if args.place.json {
        println!(
            "{}",
            json!({ "backup": shown(&manifest), "restored": restored })
        );
    } else {
        for disk in &restored {
            println!(
                "{} is disk {} of backup {}, as it was at {}; {} of {} are not zeros",
                disk.image.display(),
                disk.disk,
                manifest.id,
                rfc3339(manifest.time_ms),
                bytes(disk.written),
                bytes(disk.size)
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn remove(args: &RemoveArgs) -> anyhow::Result<ExitCode> {
    let id = id(&args.backup)?;
    let (repository, group) = open(&args.place)?;
    let progress = Progress::watch("remove", args.place.json)?;
    let removed = backup::remove(&repository, &group, &id, &progress);
    progress.end();
    say_gone(&args.place, &group, &removed.map_err(explain)?, false)
}

pub(crate) fn prune(args: &PruneArgs) -> anyhow::Result<ExitCode> {
    let (repository, group) = open(&args.place)?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let keep = Keep {
        last: args
            .keep_last
            .map(|last| usize::try_from(last).unwrap_or(usize::MAX)),
        since_ms: args
            .keep_days
            .map(|days| now.saturating_sub(u64::from(days) * DAY_MS)),
    };
    let progress = Progress::watch("prune", args.place.json)?;
    let pruned = backup::prune(&repository, &group, keep, args.dry_run, &progress);
    progress.end();
    say_gone(&args.place, &group, &pruned.map_err(explain)?, args.dry_run)
}

fn say_gone(
    args: &PlaceArgs,
    group: &str,
    pruned: &Pruned,
    pretend: bool,
) -> anyhow::Result<ExitCode> {
    if args.json {
        println!("{}", serde_json::to_string(pruned)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{}: {} of group {group}, with {} packs of {}; {} are left",
        if pretend { "would go" } else { "removed" },
        match pruned.removed.as_slice() {
            [] => "no backup".to_owned(),
            removed => removed.join(", "),
        },
        pruned.packs,
        bytes(pruned.bytes),
        pruned.kept.len()
    );
    for pin in &pruned.pins {
        println!("the gateway keeps its point until you run: epochgate log unpin {group} {pin}");
    }
    Ok(ExitCode::SUCCESS)
}
