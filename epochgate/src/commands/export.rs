//! `epochgate export`: what a running gateway exports, and changes of it, through its control socket.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nbd_server::control::api::{ErrorKind, ExportConfig, ExportStatus, GatewayStatus};
use nbd_server::control::client::{Client, ControlError};
use serde::Serialize;

use crate::cli::{ControlArgs, ExportAddArgs, ExportRemoveArgs, ExportResizeArgs};
use crate::exit::usage;
use crate::output::{bytes, shown};
use crate::runtime;

/// One export as it is listed.
#[derive(Debug, Serialize)]
struct Line {
    /// What a client asks for.
    name: String,
    /// `export`, or `disk` for a disk of a group.
    kind: &'static str,
    size: u64,
    /// Of an export outside of groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_only: Option<bool>,
    /// Of an export outside of groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<PathBuf>,
    /// Open connections; of a group's disk, those to all disks of the group.
    connections: u64,
}

pub(crate) fn list(args: &ControlArgs) -> anyhow::Result<ExitCode> {
    let lines = lines(ask(&args.control, async |client| client.status().await)?);
    if args.json {
        println!("{}", serde_json::to_string(&lines)?);
        return Ok(ExitCode::SUCCESS);
    }
    if lines.is_empty() {
        println!(
            "this gateway exports nothing; add an image with: epochgate export add NAME IMAGE"
        );
    }
    for line in &lines {
        let access = match line.read_only {
            Some(true) => ", read-only",
            _ => "",
        };
        let image = line
            .image
            .iter()
            .map(|image| format!("  {}", image.display()));
        println!(
            "{:<24} {}{access}, {} connections{}",
            shown(&line.name),
            bytes(line.size),
            line.connections,
            image.collect::<String>()
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn lines(status: GatewayStatus) -> Vec<Line> {
    let disks = status.groups.into_iter().flat_map(|group| {
        let connections = group.attachments.iter();
        let connections = connections.map(|a| u64::from(a.connections)).sum();
        group.disks.into_iter().map(move |disk| Line {
            name: format!("{}/{}", group.name, disk.name),
            kind: "disk",
            size: disk.size,
            read_only: None,
            image: None,
            connections,
        })
    });
    let exports = status.exports.into_iter().map(|export| Line {
        name: export.name,
        kind: "export",
        size: export.size,
        read_only: Some(export.read_only),
        image: Some(export.image),
        connections: export.connections,
    });
    disks.chain(exports).collect()
}

pub(crate) fn add(args: &ExportAddArgs) -> anyhow::Result<ExitCode> {
    // The gateway has another working directory.
    let image = std::path::absolute(&args.image).map_err(usage)?;
    let config = ExportConfig {
        name: args.name.clone(),
        image,
        read_only: args.read_only,
        direct: args.direct,
        client_resize: args.client_resize,
    };
    let export = ask(&args.control.control, async |client| {
        client.add_export(&config).await
    })?;
    say(&args.control, "serves", &export)
}

pub(crate) fn remove(args: &ExportRemoveArgs) -> anyhow::Result<ExitCode> {
    ask(&args.control.control, async |client| {
        client.remove_export(&args.name, args.force).await
    })?;
    if args.control.json {
        println!("{}", serde_json::json!({ "name": args.name }));
    } else {
        println!("the gateway no longer serves '{}'", args.name);
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn resize(args: &ExportResizeArgs) -> anyhow::Result<ExitCode> {
    let export = ask(&args.control.control, async |client| {
        client
            .resize_export(&args.name, args.size, args.shrink)
            .await
    })?;
    say(&args.control, "now serves", &export)
}

fn say(args: &ControlArgs, what: &str, export: &ExportStatus) -> anyhow::Result<ExitCode> {
    if args.json {
        println!("{}", serde_json::to_string(export)?);
    } else {
        println!(
            "the gateway {what} {} as '{}', {}",
            export.image.display(),
            export.name,
            bytes(export.size)
        );
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn ask<T>(
    control: &Path,
    request: impl AsyncFnOnce(Client) -> Result<T, ControlError>,
) -> anyhow::Result<T> {
    let answer = async { request(Client::connect(control).await?).await };
    runtime::tokio()?.block_on(answer).map_err(explain)
}

/// Which errors are the user's to mend.
fn explain(error: ControlError) -> anyhow::Error {
    match error.kind() {
        Some(
            ErrorKind::UnknownExport
            | ErrorKind::UnknownGroup
            | ErrorKind::UnknownClone
            | ErrorKind::BadImage
            | ErrorKind::BadRequest,
        ) => usage(error),
        _ => error.into(),
    }
}
