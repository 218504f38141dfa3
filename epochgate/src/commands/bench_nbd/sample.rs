//! One run of one profile against one server: load, flush, and what it cost the server until it had nothing left to do.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

use crate::bench::fio::{self, On, Values};
use crate::bench::image::warm;
use crate::bench::profile::Profile;
use crate::bench::server::Station;
use crate::load::{self, Content, Latency, Load, Stop, Target};

/// Who sends the requests of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Client {
    /// The load generator of this program.
    Native,
    /// fio's nbd engine.
    Fio,
}

impl Client {
    /// As in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Fio => "fio",
        }
    }
}

/// What one run came to.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Sample {
    /// Requests per second.
    pub iops: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Microseconds from request to answer.
    pub latency_us: Latency,
    /// Seconds of the FLUSH after a run that wrote.
    pub drain_s: Option<f64>,
    /// CPU seconds of the server: load, flush, and the work in the background until it was still.
    pub server_cpu_s: Option<f64>,
    /// Requests answered.
    pub requests: u64,
    /// Bytes read and written.
    pub bytes: u64,
    /// Bytes read and found right; 0 where nothing is checked.
    pub verified: u64,
    /// CPU seconds of the client, if it is the native one.
    pub client_cpu_s: Option<f64>,
}

/// What a run needs to know beside the profile.
#[derive(Debug, Clone)]
pub(crate) struct Setting<'a> {
    pub client: Client,
    pub profile: Profile,
    pub connections: usize,
    pub length: Duration,
    pub size: u64,
    pub seed: u64,
    pub structured: bool,
    pub scratch: &'a Path,
}

/// Between two looks at the CPU time of a server that still works in the background.
const LOOK: Duration = Duration::from_millis(100);
/// Looks without progress after which it is taken to be still.
const STILL: u32 = 2;
/// A server that works on for longer is left to it; its CPU time then lacks the rest.
const SETTLE: Duration = Duration::from_secs(60);
/// Blocks of 4 KiB that are read back after a native run that wrote.
const READ_BACK: u64 = 2000;

/// Runs a profile once.
pub(crate) fn take(
    setting: &Setting<'_>,
    station: &mut Station,
    content: &mut Content,
) -> anyhow::Result<Sample> {
    if station.kind.has_image() {
        warm(&station.image)?;
    }
    let before = station.cpu()?;
    let mut sample = match setting.client {
        Client::Native => native(setting, station, content),
        Client::Fio => by_fio(setting, station),
    }
    .with_context(|| {
        format!(
            "{}, {} with {} connections by {}",
            station.kind,
            setting.profile.name,
            setting.connections,
            setting.client.name()
        )
    })?;
    station.alive()?;
    if setting.profile.writes {
        sample.drain_s = flush(station)?.map(|length| length.as_secs_f64());
        settle(station)?;
    }
    if let (Some(before), Some(after)) = (before, station.cpu()?) {
        sample.server_cpu_s = Some(after.saturating_sub(before).as_secs_f64());
    }
    if setting.client == Client::Native
        && setting.profile.writes
        && station.kind.stores()
        && let Some(target) = station.target()
    {
        read_back(setting, target, content)
            .with_context(|| format!("{} after {}", station.kind, setting.profile.name))?;
    }
    Ok(sample)
}

fn native(
    setting: &Setting<'_>,
    station: &Station,
    content: &mut Content,
) -> anyhow::Result<Sample> {
    let (Some(target), Some(native)) = (station.target(), setting.profile.native) else {
        anyhow::bail!("there is nothing for the native client to do");
    };
    let load = Load {
        connections: setting.connections,
        stop: Stop::After(setting.length),
        seed: setting.seed,
        structured: setting.structured,
        verify: station.kind.stores(),
        ..native.load(setting.size)
    };
    let outcome = load::run(target, &load, content)?;
    let mut sample = figures(
        outcome.requests,
        outcome.bytes,
        outcome.elapsed,
        outcome.latency.latency(),
    );
    sample.verified = outcome.verified;
    sample.client_cpu_s = Some(outcome.client_cpu.as_secs_f64());
    Ok(sample)
}

fn by_fio(setting: &Setting<'_>, station: &Station) -> anyhow::Result<Sample> {
    let uri = station.uri();
    let on = match &uri {
        Some(uri) => On::Uri(uri),
        None => On::File(&station.image),
    };
    let values = Values {
        size: setting.size,
        connections: setting.connections,
        length: setting.length,
    };
    let outcome = fio::run(setting.profile.job, &on, &values, setting.scratch)?;
    Ok(figures(
        outcome.requests,
        outcome.bytes,
        outcome.elapsed,
        outcome.latency,
    ))
}

#[allow(clippy::cast_precision_loss, reason = "shown with a few digits")]
fn figures(requests: u64, bytes: u64, elapsed: Duration, latency: Latency) -> Sample {
    let seconds = elapsed.as_secs_f64().max(1e-6);
    Sample {
        iops: requests as f64 / seconds,
        bytes_per_second: bytes as f64 / seconds,
        latency_us: latency,
        drain_s: None,
        server_cpu_s: None,
        requests,
        bytes,
        verified: 0,
        client_cpu_s: None,
    }
}

/// Makes durable what was written: nobody hides work in a cache.
fn flush(station: &Station) -> anyhow::Result<Option<Duration>> {
    match station.target() {
        Some(target) => load::flush(target),
        None => {
            let started = Instant::now();
            std::fs::File::open(&station.image)?.sync_all()?;
            Ok(Some(started.elapsed()))
        }
    }
}

/// Waits until the server has nothing left to do, so that its work neither escapes its own bill nor slows the next one.
fn settle(station: &Station) -> anyhow::Result<()> {
    let started = Instant::now();
    let (mut last, mut still) = (station.cpu()?, 0);
    while last.is_some() && still < STILL && started.elapsed() < SETTLE {
        std::thread::sleep(LOOK);
        let now = station.cpu()?;
        still = if now == last { still + 1 } else { 0 };
        last = now;
    }
    Ok(())
}

fn read_back(setting: &Setting<'_>, target: &Target, content: &mut Content) -> anyhow::Result<()> {
    let load = Load {
        stop: Stop::Requests(READ_BACK),
        seed: !setting.seed,
        ..Load::new(setting.size)
    };
    load::run(target, &load, content).map(drop)
}
