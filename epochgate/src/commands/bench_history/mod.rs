//! `epochgate bench history`: whether the head of a disk pays for its past. Three gateways take turns under the same load: one without a
//! history, one whose history has just begun, and one that keeps a million epochs.
//!
//! What is written counts until it is in the image: a gateway takes a part of it into memory first, and a bench that ended there would not see
//! what the history costs. The same load on all three comes one right after the other, in an order that changes with each round, as the machine
//! may get faster or slower meanwhile. A round before the first is not counted: files of the log are made in it.

mod report;
mod seed;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nbd_server::GatewayConfig;
use nbd_server::group::history::{HistoryConfig, Size, TimeSpan};
use nbd_server::group::{DiskConfig, GroupConfig, GroupMode};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use crate::bench::gateway::Gateway;
use crate::bench::image::{ensure_room, make_image, room, scratch, warm};
use crate::bench::interrupt;
use crate::bench::machine::Machine;
use crate::bench::output::output;
use crate::bench::proc;
use crate::cli::bench_history::HistoryArgs;
use crate::load::{self, Content, Load, Stop};

const GROUP: &str = "vm";
const DISK: &str = "disk";
/// Requests in flight.
const DEPTH: usize = 32;
/// So much of the place for disks and logs stays free, in bytes: the histories keep all, and would fill it.
const HEADROOM: u64 = 2 << 30;

/// How much past a server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Past {
    /// It keeps none.
    None,
    /// It has just begun to.
    Empty,
    /// It keeps all that there is to keep.
    Long,
}

impl Past {
    const ALL: [Self; 3] = [Self::None, Self::Empty, Self::Long];

    fn name(self) -> &'static str {
        match self {
            Self::None => "no history",
            Self::Empty => "history, nothing kept yet",
            Self::Long => "history, all epochs kept",
        }
    }
}

/// One server and what was measured of it.
struct Side {
    past: Past,
    gateway: Gateway,
    image: PathBuf,
    content: Content,
    /// Requests a second, by round.
    reads: Vec<f64>,
    /// The same, until the last is in the image.
    writes: Vec<f64>,
    /// Until it served, in seconds.
    started: f64,
    /// Resident memory before the first load, in bytes.
    rss: u64,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Figures {
    epochs: u64,
    sides: Vec<SideFigures>,
    /// From the connection to the first 4 KiB read at a random epoch, in milliseconds: median and longest.
    open_ms: (f64, f64),
    opened: u32,
    history_bytes: u64,
    history_runs: u64,
    seeding_s: f64,
}

#[derive(Debug, Serialize)]
struct SideFigures {
    past: Past,
    reads: Vec<f64>,
    writes: Vec<f64>,
    started_s: f64,
    rss: u64,
}

pub(crate) fn run(args: &HistoryArgs) -> anyhow::Result<ExitCode> {
    interrupt::watch()?;
    let dir = scratch(Some(&args.dir))?;
    let figures = measure(args, dir.path())?;
    let machine = Machine::here(dir.path());
    let json = serde_json::json!({ "machine": machine, "figures": figures });
    output(
        &args.output,
        &json,
        &report::markdown(&figures, &machine),
        &report::text(&figures),
    )?;
    Ok(ExitCode::SUCCESS)
}

fn measure(args: &HistoryArgs, dir: &Path) -> anyhow::Result<Figures> {
    // Three disks, and the epochs of the long history, in its log until they are applied and in its history.
    ensure_room(dir, 3 * args.size + args.epochs * 10_000 + HEADROOM)?;
    let mut seeding = Duration::ZERO;
    let mut sides = Vec::new();
    for past in Past::ALL {
        let dir = dir.join(format!("{past:?}"));
        std::fs::create_dir(&dir)?;
        let image = dir.join("disk.img");
        make_image(&image, args.size)?;
        let group = group(past, &dir, &image);
        if past == Past::Long {
            let begun = Instant::now();
            seed::seed(&group, DISK, args.epochs, args.size)?;
            seeding = begun.elapsed();
        }
        let config = GatewayConfig {
            groups: vec![group],
            ..GatewayConfig::default()
        };
        let begun = Instant::now();
        let gateway = Gateway::start(config, &dir)?;
        sides.push(Side {
            past,
            started: begun.elapsed().as_secs_f64(),
            rss: proc::memory(gateway.pid(), "VmRSS")?,
            gateway,
            image,
            content: Content::new(args.size),
            reads: Vec::new(),
            writes: Vec::new(),
        });
    }
    let open = open_times(args, &sides)?;
    let mut took = 0;
    for round in 0..=args.repeats {
        // A round takes about what the last one took.
        ensure_room(dir, took + HEADROOM)?;
        let before = room(dir)?;
        reorder(&mut sides, round);
        for percent in [100, 0] {
            for side in &mut sides {
                let rate = side.load(args, round, percent)?;
                match percent {
                    _ if round == 0 => {}
                    0 => side.writes.push(rate),
                    _ => side.reads.push(rate),
                }
            }
        }
        took = before.saturating_sub(room(dir)?);
    }
    sides.sort_by_key(|side| side.past as u8);
    let long = sides.iter().find(|side| side.past == Past::Long);
    let status = match long {
        Some(side) => side.gateway.group(GROUP)?.history,
        None => None,
    };
    Ok(Figures {
        epochs: args.epochs,
        open_ms: open,
        opened: args.views,
        history_bytes: status.as_ref().map_or(0, |status| status.bytes),
        history_runs: status.as_ref().map_or(0, |status| status.runs),
        seeding_s: seeding.as_secs_f64(),
        sides: sides
            .into_iter()
            .map(|side| SideFigures {
                past: side.past,
                reads: side.reads,
                writes: side.writes,
                started_s: side.started,
                rss: side.rss,
            })
            .collect(),
    })
}

fn group(past: Past, dir: &Path, image: &Path) -> GroupConfig {
    let disk = DiskConfig {
        name: DISK.to_owned(),
        image: image.to_owned(),
        read_only: false,
        export: None,
    };
    let everything = HistoryConfig {
        age: TimeSpan(u64::from(u32::MAX)),
        size: Size(1 << 44),
        min_free: Size(0),
        thin: Vec::new(),
        cold: None,
    };
    GroupConfig {
        mode: GroupMode::Async,
        history: (past != Past::None).then_some(everything),
        ..GroupConfig::new(GROUP, dir.join("log"), vec![disk])
    }
}

/// Each comes first, second and last equally often, and after each of the others equally often, in six rounds.
fn reorder<T>(sides: &mut [T], round: u32) {
    if round.is_multiple_of(3) {
        sides.reverse();
    } else {
        sides.rotate_left(1.min(sides.len()));
    }
}

impl Side {
    /// Requests a second under a load of which so many percent are reads. What was written is in the image then, but for the epoch that is open
    /// at the end, a tenth of a second: the next one is not to pay for what this one has left.
    fn load(&mut self, args: &HistoryArgs, round: u32, percent: u32) -> anyhow::Result<f64> {
        interrupt::check()?;
        let target = self.gateway.target(&format!("{GROUP}/{DISK}"));
        warm(&self.image)?;
        let load = Load {
            depth: DEPTH,
            read_percent: percent,
            stop: Stop::After(Duration::from_secs(args.seconds)),
            seed: u64::from(round) + 1,
            ..Load::new(args.size)
        };
        let outcome = load::run(&target, &load, &mut self.content)?;
        let ended = Instant::now();
        self.gateway.applied(GROUP)?;
        let applying = if percent == 100 {
            Duration::ZERO
        } else {
            ended.elapsed()
        };
        #[allow(clippy::cast_precision_loss, reason = "shown with a few digits")]
        let requests = outcome.requests as f64;
        Ok(requests / (outcome.elapsed + applying).as_secs_f64())
    }
}

/// How long it takes from the connection to the first answer at random epochs of the long history.
fn open_times(args: &HistoryArgs, sides: &[Side]) -> anyhow::Result<(f64, f64)> {
    let Some(side) = sides.iter().find(|side| side.past == Past::Long) else {
        return Ok((0.0, 0.0));
    };
    let mut random = StdRng::seed_from_u64(1);
    let mut times = Vec::new();
    for view in 0..args.views {
        interrupt::check()?;
        let epoch = random.random_range(0..args.epochs);
        let target = side
            .gateway
            .target(&format!("{GROUP}/{DISK}@epoch={epoch}"));
        let load = Load {
            depth: 1,
            stop: Stop::Requests(1),
            seed: u64::from(view) + 1,
            ..Load::new(args.size)
        };
        let begun = Instant::now();
        load::run(&target, &load, &mut Content::new(args.size))?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().unwrap_or(0.0);
    Ok((median, times.last().copied().unwrap_or(0.0)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn nobody_has_a_better_place_than_the_others() {
        let mut sides = [0, 1, 2];
        let (mut places, mut followed) = (BTreeMap::new(), BTreeMap::new());
        for round in 0..6 {
            reorder(&mut sides, round);
            for (place, side) in sides.iter().enumerate() {
                *places.entry((place, *side)).or_insert(0) += 1;
            }
            for two in sides.windows(2) {
                *followed.entry((two[0], two[1])).or_insert(0) += 1;
            }
        }
        assert!(places.len() == 9 && places.values().all(|count| *count == 2));
        assert!(followed.len() == 6 && followed.values().all(|count| *count == 2));
    }
}
