//! `epochgate clone`: writable clones of the disks of a group, through the control socket of its gateway.

use std::process::ExitCode;

use nbd_server::control::api::{CloneRequest, CloneStatus};
use nbd_server::group::history::rfc3339;

use crate::cli::clone::{CloneAddArgs, CloneListArgs, CloneRemoveArgs};
use crate::commands::export::ask;
use crate::exit::usage;
use crate::output::bytes;

pub(crate) fn list(args: &CloneListArgs) -> anyhow::Result<ExitCode> {
    let clones = ask(&args.control.control, async |client| {
        client.clones(&args.group).await
    })?;
    if args.control.json {
        println!("{}", serde_json::to_string(&clones)?);
        return Ok(ExitCode::SUCCESS);
    }
    if clones.is_empty() {
        println!(
            "group '{}' has no clones; make one with: epochgate clone add {} NAME",
            args.group, args.group
        );
    }
    for clone in &clones {
        println!(
            "{:<24} {}, {} written to {}, {} connections",
            clone.name,
            point(clone),
            bytes(clone.written),
            clone.dir.display(),
            clone.connections
        );
        if let Some(error) = &clone.error {
            println!("{:<24} TROUBLE: it can't be attached: {error}", "");
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn add(args: &CloneAddArgs) -> anyhow::Result<ExitCode> {
    // The gateway has another working directory.
    let dir = args.dir.as_ref().map(std::path::absolute).transpose();
    let request = CloneRequest {
        name: args.name.clone(),
        at: args.at.clone(),
        dir: dir.map_err(usage)?,
    };
    let clone = ask(&args.control.control, async |client| {
        client.add_clone(&args.group, &request).await
    })?;
    if args.control.json {
        println!("{}", serde_json::to_string(&clone)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("clone '{}' is of {}", clone.name, point(&clone));
    for export in clone.exports.values() {
        println!("  {export}");
    }
    if let Some(error) = &clone.error {
        anyhow::bail!("it can't be attached: {error}");
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn remove(args: &CloneRemoveArgs) -> anyhow::Result<ExitCode> {
    ask(&args.control.control, async |client| {
        client
            .remove_clone(&args.group, &args.name, args.force)
            .await
    })?;
    if args.control.json {
        println!("{}", serde_json::json!({ "name": args.name }));
    } else {
        println!(
            "group '{}' no longer has a clone '{}'",
            args.group, args.name
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What it is of.
fn point(clone: &CloneStatus) -> String {
    match (clone.epoch, clone.time_ms) {
        (Some(epoch), Some(time)) => format!("epoch {epoch}, {}", rfc3339(time)),
        _ => "an unknown epoch".to_owned(),
    }
}
