//! `epochgate status`: what is protected on this host, and what the gateway holds.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use coordinator::report::{State, Status};
use monitor::judge::Health;
use monitor::watch::Now;
use nbd_server::control::api::{GatewayStatus, GroupStatus, ModeName};
use nbd_server::control::client::Client;
use nbd_server::group::history::rfc3339;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cli::{AskArgs, StatusArgs};
use crate::commands::history::until;
use crate::output::{bytes, millis, shown};
use crate::runtime;

/// A process that does not answer in this time is said to be silent.
const LIMIT: Duration = Duration::from_secs(2);

/// All that answers on this host.
#[derive(Debug, Serialize)]
pub(super) struct Everything {
    /// Sources and standbys.
    pub vms: Vec<Status>,
    /// What `epochgate monitor watch` says of VMs.
    pub health: Vec<Now>,
    /// The gateway.
    pub gateway: Option<GatewayStatus>,
}

impl Everything {
    /// Asks everybody.
    pub(super) fn ask(args: &AskArgs) -> anyhow::Result<Self> {
        let default = args.runtime_dir.join("gateway.sock");
        let socket = args.gateway.as_ref().unwrap_or(&default);
        let mut vms: Vec<Status> = answers(&args.runtime_dir, &["source-", "standby-"]);
        vms.sort_by(|a, b| (&a.vm, &a.role).cmp(&(&b.vm, &b.role)));
        let mut health: Vec<Now> = answers(&args.runtime_dir, &["monitor-"]);
        health.sort_by(|a, b| a.vm.cmp(&b.vm));
        Ok(Self {
            vms,
            health,
            gateway: gateway(socket, args.gateway.is_some())?,
        })
    }
}

pub(crate) fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let everything = Everything::ask(&args.ask)?;
    if args.json {
        println!("{}", serde_json::to_string(&everything)?);
    } else {
        print(&everything, &args.ask);
    }
    Ok(ExitCode::SUCCESS)
}

/// What is said at every socket in `dir` whose name begins so.
fn answers<T: DeserializeOwned>(dir: &Path, prefixes: &[&str]) -> Vec<T> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            prefixes.iter().any(|prefix| name.starts_with(prefix)) && name.ends_with(".sock")
        })
        .filter_map(|entry| ask(&entry.path()))
        .collect()
}

fn ask<T: DeserializeOwned>(socket: &Path) -> Option<T> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The gateway's word. A gateway that was named must answer; one that may be on another host need not.
fn gateway(socket: &Path, named: bool) -> anyhow::Result<Option<GatewayStatus>> {
    if !named && !socket.exists() {
        return Ok(None);
    }
    let status = runtime::tokio()?.block_on(async {
        let ask = async { Client::connect(socket).await?.status().await };
        tokio::time::timeout(LIMIT, ask).await
    });
    match status {
        Ok(Ok(status)) => Ok(Some(status)),
        Ok(Err(error)) if named => Err(error.into()),
        Err(_) if named => anyhow::bail!("the gateway at {} does not answer", socket.display()),
        _ => Ok(None),
    }
}

fn print(everything: &Everything, args: &AskArgs) {
    let Everything {
        vms,
        health,
        gateway,
    } = everything;
    if vms.is_empty() && health.is_empty() && gateway.is_none() {
        let default = args.runtime_dir.join("gateway.sock");
        println!(
            "nothing runs here: no source or standby answers in {}, no gateway at {}",
            args.runtime_dir.display(),
            args.gateway.as_ref().unwrap_or(&default).display()
        );
        return;
    }
    for status in vms {
        print_role(status);
    }
    for now in health {
        print_health(now);
    }
    if let Some(gateway) = gateway {
        println!(
            "gateway   pid {}, version {}, listens on {}",
            gateway.pid,
            gateway.version,
            gateway.listen.join(", ")
        );
        for group in &gateway.groups {
            print_group(group);
        }
        for export in &gateway.exports {
            let access = if export.read_only { ", read-only" } else { "" };
            println!(
                "  export {}  {}{access}, {} connections, {} reads ({}), {} writes ({})",
                shown(&export.name),
                bytes(export.size),
                export.connections,
                export.reads,
                bytes(export.bytes_read),
                export.writes,
                bytes(export.bytes_written),
            );
        }
        for advice in &gateway.storage {
            println!("  storage: {advice}");
        }
        if let Some(reload) = gateway.reload.as_ref().filter(|reload| !reload.ok) {
            println!(
                "  TROUBLE: the last reload of the configuration changed nothing: {}",
                reload.message
            );
        }
    }
}

fn print_role(status: &Status) {
    let state = match status.state {
        State::Idle => "waits for a source",
        State::Unprotected => "runs, NOT PROTECTED",
        State::Filling => "runs, first copy under way: not protected yet",
        State::Protected => "runs, protected",
        State::Receiving => "receives checkpoints",
        State::TakingOver => "takes over",
        State::Ended => "ended",
    };
    print!("{:<9} {}  {state}", status.role, status.vm);
    if let Some(peer) = &status.peer {
        let word = if status.role == "source" {
            "by"
        } else {
            "from"
        };
        print!(" {word} {peer}");
    }
    if let Some(epoch) = status.committed {
        print!(", epoch {epoch}");
    }
    if let Some(pause) = status.pause_us {
        print!(", last pause {:.1} ms", millis(pause.total));
    }
    if let Some(size) = status.wire_bytes {
        print!(", last checkpoint {}", bytes(size));
    }
    if let Some(tracker) = &status.dirty_tracker {
        print!(", dirty pages by {tracker}");
    }
    if let Some(kind) = status.device_state {
        print!(", device state by {kind}");
    }
    println!();
    if let Some(message) = &status.message {
        println!("          {message}");
    }
}

fn print_health(now: &Now) {
    let since = rfc3339(now.since_ms);
    print!("monitor   {}  {} since {since}", now.vm, now.health.name());
    if let Some(opinion) = &now.opinion {
        print!(
            ", score {:.2} (alarm from {:.2}), confidence {:.2}",
            opinion.score, opinion.threshold, opinion.confidence
        );
        if let Some(kind) = &opinion.kind {
            print!(", most like {kind}");
        }
    }
    if !now.missing.is_empty() {
        print!(", not measured: {}", now.missing.join(", "));
    }
    println!();
    if let Some(lost) = &now.lost {
        println!("          can't be seen: {lost}");
    }
    if matches!(now.health, Health::Faulty | Health::Strange) {
        let reasons = now.opinion.iter().flat_map(|opinion| &opinion.reasons);
        for reason in reasons {
            println!("          {reason}");
        }
        if let Some(sound) = now.sound_until_ms {
            println!("          it was sound at {}", rfc3339(sound));
        }
    }
}

fn print_group(group: &GroupStatus) {
    let mode = match group.mode {
        ModeName::Sync => "sync",
        ModeName::Async => "async",
    };
    println!(
        "  group {}  {mode} mode, generation {}, committed {}, applied {}, {} of {} held{}",
        group.name,
        group.generation,
        group.committed,
        group.applied,
        bytes(group.bytes_held),
        bytes(group.budget),
        group
            .holder
            .as_ref()
            .map(|holder| format!(", memory at {holder}"))
            .unwrap_or_default(),
    );
    for disk in &group.disks {
        println!(
            "    disk {}  {}, {} reads ({}), {} writes ({})",
            disk.name,
            bytes(disk.size),
            disk.reads,
            bytes(disk.bytes_read),
            disk.writes,
            bytes(disk.bytes_written),
        );
    }
    if let Some(history) = &group.history {
        let pins: Vec<&str> = history.pins.iter().map(|pin| pin.name.as_str()).collect();
        let pins = if pins.is_empty() {
            String::new()
        } else {
            format!(", pins: {}", pins.join(", "))
        };
        let cold = match history.cold_bytes {
            0 => String::new(),
            cold => format!(" and {} in cold storage", bytes(cold)),
        };
        let frozen = match &history.frozen {
            Some(frozen) => format!(", frozen {}", until(frozen)),
            None => String::new(),
        };
        println!(
            "    history since {} (epoch {}), {}{cold}{pins}{frozen}",
            rfc3339(history.oldest_time_ms),
            history.oldest,
            bytes(history.bytes)
        );
    }
    if let Some(error) = &group.last_error {
        println!("    TROUBLE: {error}");
    }
}
