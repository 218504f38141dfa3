//! `epochgate bench nbd`: the gateway and other NBD servers on the same disk, side by side.

mod plan;
mod sample;
mod summary;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use crate::bench::image::scratch;
use crate::bench::interrupt;
use crate::bench::machine::Machine;
use crate::bench::output::output;
use crate::bench::plot::{self, Bar, Panel, Tone};
use crate::bench::profile::{self, About};
use crate::bench::server::{self, AsyncMode, Role};
use crate::cli::bench::{ClientChoice, NbdArgs, servers};
use crate::exit::Usage;
use plan::Plan;
use sample::Client;
use summary::Block;

/// Blocks of this size must fit into the disk, and into each connection's share of it.
const GRAIN: u64 = 1 << 20;
/// The smallest disk: more blocks of 256 KiB than the sequential profiles keep in flight.
const SMALLEST: u64 = 64 << 20;

pub(crate) fn run(args: &NbdArgs) -> anyhow::Result<ExitCode> {
    let plan = plan(args)?;
    interrupt::watch()?;
    let dir = scratch(args.dir.as_deref())?;
    let machine = Machine::here(dir.path());
    let series = plan.run(dir.path())?;
    let blocks = summary::blocks(&series);
    let remarks = table::remarks(&plan, &machine);
    if let Some(path) = &args.svg {
        plot::bars(path, &panels(&blocks))?;
    }
    let report = json!({
        "machine": machine,
        "size": plan.size,
        "seconds": args.seconds,
        "repeats": plan.repeats,
        "seed": plan.seed,
        "async_mode": plan.async_mode,
        "structured": plan.structured,
        "servers": plan.servers.iter().map(|kind| json!({
            "name": kind.name(), "version": kind.version(), "writes": kind.writes(),
        })).collect::<Vec<_>>(),
        "profiles": blocks,
    });
    output(
        &args.output,
        &report,
        &table::markdown(&blocks, &remarks),
        &table::text(&blocks, &remarks),
    )?;
    Ok(ExitCode::SUCCESS)
}

fn plan(args: &NbdArgs) -> anyhow::Result<Plan> {
    let usage = |text: String| anyhow::Error::from(Usage(text));
    let servers = servers(&args.modes, &args.peers).map_err(usage)?;
    let mut profiles = Vec::new();
    for name in &args.profiles {
        profiles.push(profile::find(name).ok_or_else(|| {
            let names: Vec<&str> = profile::ALL.iter().map(|profile| profile.name).collect();
            usage(format!(
                "there is no profile `{name}`; there are {}",
                names.join(", ")
            ))
        })?);
    }
    if profiles.is_empty() {
        profiles.extend(profile::ALL);
    }
    let clients = match args.client {
        ClientChoice::Fio => vec![Client::Fio],
        ClientChoice::Native => vec![Client::Native],
        ClientChoice::Both => vec![Client::Native, Client::Fio],
    };
    if clients == [Client::Native] && profiles.iter().all(|profile| profile.native.is_none()) {
        return Err(usage(
            "the native client has none of these profiles; use --client fio".to_owned(),
        ));
    }
    let connections: Vec<usize> = args.connections.iter().map(|n| usize::from(*n)).collect();
    let most = connections.iter().max().copied().unwrap_or(1) as u64;
    if !args.size.is_multiple_of(GRAIN) || args.size < SMALLEST * most.div_ceil(4) {
        return Err(usage(format!(
            "--size must be whole MiB, and {} MiB or more for {most} connections",
            (SMALLEST * most.div_ceil(4)) >> 20
        )));
    }
    server::check_installed(&servers)?;
    if clients.contains(&Client::Fio) && !server::installed("fio") {
        return Err(usage(
            "fio is not installed: install the Debian package fio, or use --client native"
                .to_owned(),
        ));
    }
    Ok(Plan {
        clients,
        servers,
        profiles,
        connections,
        repeats: usize::try_from(args.repeats)?,
        length: Duration::from_secs_f64(args.seconds),
        size: args.size,
        async_mode: AsyncMode {
            epoch_interval_ms: args.epoch_interval,
            memory_budget_mib: args.memory_budget,
        },
        structured: args.structured,
        seed: args.seed,
    })
}

fn panels(blocks: &[Block]) -> Vec<Panel> {
    let about = |block: &Block| profile::find(block.profile).map(|profile| profile.about);
    let panel = |block: &Block| {
        let latency = about(block) == Some(About::Latency);
        let bytes = about(block) == Some(About::Bytes);
        let unit = match (latency, bytes) {
            (true, _) => "median latency, µs (less is better)",
            (_, true) => "MB/s",
            _ => "requests/s",
        };
        Panel {
            title: format!(
                "{}: {}, {} client, {} connection(s)",
                block.title,
                unit,
                block.client.name(),
                block.connections
            ),
            bars: block
                .servers
                .iter()
                .map(|row| {
                    let value = match (latency, bytes) {
                        (true, _) => row.p50_us,
                        (_, true) => row.mb_per_second,
                        _ => row.iops,
                    };
                    let tone = match row.kind.role() {
                        Role::Ours => Tone::Ours,
                        Role::Peer => Tone::Peer,
                        Role::Floor => Tone::Floor,
                    };
                    Bar::new(row.server.to_owned(), value, tone)
                })
                .collect(),
        }
    };
    blocks
        .iter()
        .filter(|block| about(block) != Some(About::Data))
        .map(panel)
        .collect()
}
