//! `epochgate memory list | export`, and the ways back with memory: `epochgate rewind --with-memory` and `--as-clone`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use coordinator::memory_history::{self, MemoryPoint};
use coordinator::saved_state::{DisksAt, Origin};
use coordinator::{CloneOf, ProtectConfig, run_clone};
use nbd_server::Epoch;
use nbd_server::control::api::Point;
use nbd_server::group::history::rfc3339;
use serde_json::json;

use crate::cli::history::RewindArgs;
use crate::cli::memory::{MemoryExportArgs, MemoryListArgs};
use crate::commands::export::ask;
use crate::config_file;
use crate::exit::{Usage, usage};
use crate::output::bytes;
use crate::runtime;

pub(crate) fn list(args: &MemoryListArgs) -> anyhow::Result<ExitCode> {
    let points = memory_history::list(&args.dir)?;
    if args.json {
        println!("{}", serde_json::to_string(&points)?);
        return Ok(ExitCode::SUCCESS);
    }
    for point in &points {
        println!(
            "{:<24}  epoch {}  {} of memory",
            rfc3339(point.time_ms),
            point.epoch,
            bytes(point.ram_bytes)
        );
    }
    if points.is_empty() {
        println!("no memory is kept yet");
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn export(args: &MemoryExportArgs) -> anyhow::Result<ExitCode> {
    memory_history::export(&args.dir, Epoch(args.epoch), &args.state)?;
    Ok(ExitCode::SUCCESS)
}

/// The newest memory point at or before what was asked for.
fn find(args: &RewindArgs, dir: &Path) -> anyhow::Result<MemoryPoint> {
    let points = memory_history::list(dir)?;
    let first = points.first().map(|point| point.epoch);
    let fits: Box<dyn Fn(&MemoryPoint) -> bool> = match &args.to {
        Point::Epoch(epoch) => Box::new(|point| point.epoch <= *epoch),
        Point::Time(ms) => Box::new(|point| point.time_ms <= *ms),
        Point::Pin(name) => {
            let group = ask(&args.control.control, async |client| {
                client.group(&args.group).await
            })?;
            let pins = group.history.map(|history| history.pins);
            let mut pins = pins.unwrap_or_default().into_iter();
            let pin = pins.find(|pin| pin.name == *name);
            let pin = pin.ok_or_else(|| Usage(format!("there is no pin named '{name}'")))?;
            Box::new(move |point| point.epoch <= pin.point.until)
        }
    };
    let found = points.iter().filter(|point| fits(point));
    let found = found.max_by_key(|point| point.epoch).cloned();
    found.ok_or_else(|| {
        let what = match first {
            Some(first) => format!("the first one is of epoch {first}"),
            None => "there is none at all".to_owned(),
        };
        Usage(format!(
            "no memory at or before {} is kept in {}; {what}",
            args.to,
            dir.display()
        ))
        .into()
    })
}

fn given<T>(argument: &Option<T>) -> anyhow::Result<&T> {
    argument
        .as_ref()
        .context("an argument is missing")
        .map_err(usage)
}

pub(crate) fn rewind(args: &RewindArgs) -> anyhow::Result<ExitCode> {
    let (memory, state) = (given(&args.memory)?, given(&args.state)?);
    let point = find(args, memory)?;
    // First what takes time and changes nothing.
    memory_history::export(memory, point.epoch, state)?;
    let set_back = set_back(args, &point, state);
    if set_back.is_err() {
        // Memory without its disks is of no use to anybody.
        let _ = std::fs::remove_dir_all(state);
    }
    let (rewound, disks) = set_back?;
    if args.control.json {
        let state = state.display().to_string();
        let answer = json!({ "memory": point, "rewound": rewound, "disks": disks, "state": state });
        println!("{answer}");
    } else {
        println!(
            "{} is as it was at epoch {}, {}, which is epoch {} from now on; {} of its disks were put back, and its memory is in {}.\n\
             Start it with: epochgate protect --config vm.toml --saved-state {}",
            args.group,
            point.epoch,
            rfc3339(point.time_ms),
            rewound.epoch,
            bytes(rewound.bytes),
            state.display(),
            state.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Sets the disks back to those of a memory point, and writes down that they belong to it.
fn set_back(
    args: &RewindArgs,
    point: &MemoryPoint,
    state: &Path,
) -> anyhow::Result<(nbd_server::control::api::Rewound, DisksAt)> {
    // By its pin: an epoch of the same number in another life of the group is not meant.
    let to = Point::Pin(point.pin.clone());
    let (rewound, group) = ask(&args.control.control, async |client| {
        let rewound = client.rewind(&args.group, &to, args.force).await?;
        Ok((rewound, client.group(&args.group).await?))
    })
    .with_context(|| format!("the disks can't be set back to epoch {}", point.epoch))?;
    let disks = DisksAt {
        group: group.name,
        epoch: rewound.epoch,
        generation: group.generation,
    };
    let broken = || format!("{} can't be completed", state.display());
    let origin = Origin::read(state).with_context(broken)?;
    let mut origin = origin.with_context(broken)?;
    origin.disks = Some(disks.clone());
    origin.write(state).with_context(broken)?;
    Ok((rewound, disks))
}

pub(crate) fn clone(args: &RewindArgs) -> anyhow::Result<ExitCode> {
    let (memory, config) = (given(&args.memory)?, given(&args.config)?);
    let name = given(&args.as_clone)?.clone();
    let config: ProtectConfig = config_file::load(config)?;
    let point = find(args, memory)?;
    let state = tempfile::Builder::new()
        .prefix("epochgate-clone-")
        .tempdir()?;
    let saved_state = state.path().join("state");
    memory_history::export(memory, point.epoch, &saved_state)?;
    let of = CloneOf {
        config,
        name,
        disks: Point::Pin(point.pin.clone()),
        saved_state,
    };
    let started = |pid: u32| {
        if args.control.json {
            println!(
                "{}",
                json!({ "event": "clone_started", "name": of.name, "pid": pid, "memory": point })
            );
        } else {
            println!(
                "{} as it was at epoch {}, {}, runs as {} (process {pid}), without network. Ctrl-C ends it.",
                args.group,
                point.epoch,
                rfc3339(point.time_ms),
                of.name
            );
        }
    };
    runtime::tokio()?.block_on(async {
        let mut stop = runtime::stop_signals()?;
        run_clone(&of, started, &mut stop).await?;
        anyhow::Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}
