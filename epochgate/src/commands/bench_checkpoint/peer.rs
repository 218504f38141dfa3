//! Stock QEMU made to save the whole VM again and again, in the ways that it has.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::json;

use super::stock::Stock;
use crate::cli::checkpoint::{CheckpointArgs, Peer};
use crate::lab::qmp::{Event, Qmp};

/// As for our own guests.
const AT_WORK: u64 = 50;

/// All that one way came to.
#[derive(Debug)]
pub(super) struct PeerRuns {
    pub mib: u64,
    pub peer: Peer,
    /// Pauses in microseconds.
    pub pauses: Vec<u64>,
    /// Times per second, of each run.
    pub rates: Vec<f64>,
    /// Blocks that the witness wrote per second, of each run.
    pub paces: Vec<f64>,
    /// Bytes of each file.
    pub bytes: Vec<u64>,
    /// What QEMU said against it.
    pub refused: Option<String>,
}

impl PeerRuns {
    pub(super) fn new(mib: u64, peer: Peer) -> Self {
        Self {
            mib,
            peer,
            pauses: Vec::new(),
            rates: Vec::new(),
            paces: Vec::new(),
            bytes: Vec::new(),
            refused: None,
        }
    }
}

/// One guest, and each way in turn.
pub(super) fn run(
    args: &CheckpointArgs,
    guest: &Path,
    mib: u64,
    peers: &mut [&mut PeerRuns],
) -> anyhow::Result<()> {
    let mut stock = Stock::boot(args, guest, mib, AT_WORK)?;
    for runs in peers {
        if runs.refused.is_some() {
            continue;
        }
        let (began, before, mut count) = (Instant::now(), stock.writes(), 0_u32);
        while began.elapsed() < Duration::from_secs_f64(args.seconds) {
            stock.qmp.forget();
            match save(&mut stock, runs.peer) {
                Ok(pause) => {
                    runs.pauses.push(pause);
                    runs.bytes
                        .extend(std::fs::metadata(&stock.target).map(|file| file.len()));
                    count += 1;
                }
                Err(error) if crate::lab::site::is_interruption(&error) => return Err(error),
                Err(error) => {
                    runs.refused = Some(format!("{error:#}"));
                    break;
                }
            }
        }
        if runs.refused.is_some() {
            // In which state it left the guest nobody knows.
            stock = Stock::boot(args, guest, mib, AT_WORK)?;
            continue;
        }
        let seconds = began.elapsed().as_secs_f64();
        let written = u32::try_from(stock.writes().saturating_sub(before)).unwrap_or(u32::MAX);
        runs.rates.push(f64::from(count) / seconds);
        runs.paces.push(f64::from(written) / seconds);
        let _ = std::fs::remove_file(&stock.target);
    }
    Ok(())
}

/// Saves the VM once; it runs on afterwards. The pause in microseconds.
fn save(stock: &mut Stock, peer: Peer) -> anyhow::Result<u64> {
    let uri = format!("exec:cat > {}", stock.target.display());
    match peer {
        Peer::Stopped => {
            let began = Instant::now();
            stock.qmp.execute("stop", json!({}))?;
            migrate(&mut stock.qmp, &uri)?;
            cont(&mut stock.qmp)?;
            Ok(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX))
        }
        Peer::Live => {
            stock.qmp.execute("migrate", json!({ "uri": uri }))?;
            let stopped = named(&mut stock.qmp, "STOP")?;
            completed(&mut stock.qmp)?;
            cont(&mut stock.qmp)?;
            between(&mut stock.qmp, &stopped)
        }
        Peer::Savevm => {
            let savevm = json!({ "command-line": "savevm bench" });
            let said = stock.qmp.execute("human-monitor-command", savevm)?;
            let said = said.as_str().unwrap_or_default().trim().to_owned();
            if !said.is_empty() {
                bail!("{said}");
            }
            let stopped = named(&mut stock.qmp, "STOP")?;
            between(&mut stock.qmp, &stopped)
        }
        Peer::BackgroundSnapshot => {
            stock.capability("background-snapshot", true)?;
            stock.qmp.execute("migrate", json!({ "uri": uri }))?;
            let first = stock
                .qmp
                .wait(|event| event.name == "STOP" || failed(event))?;
            if failed(&first) {
                bail!("{}", why(&mut stock.qmp)?);
            }
            let pause = between(&mut stock.qmp, &first)?;
            completed(&mut stock.qmp)?;
            stock.capability("background-snapshot", false)?;
            Ok(pause)
        }
    }
}

fn named(qmp: &mut Qmp, name: &str) -> anyhow::Result<Event> {
    let event = qmp.wait(|event| event.name == name || failed(event))?;
    if failed(&event) {
        bail!("{}", why(qmp)?);
    }
    Ok(event)
}

/// From a pause's beginning to the guest running on, by QEMU's clock.
fn between(qmp: &mut Qmp, stopped: &Event) -> anyhow::Result<u64> {
    let resumed = named(qmp, "RESUME")?;
    Ok(resumed.at_us.saturating_sub(stopped.at_us))
}

fn migrate(qmp: &mut Qmp, uri: &str) -> anyhow::Result<()> {
    qmp.execute("migrate", json!({ "uri": uri }))?;
    completed(qmp)
}

fn completed(qmp: &mut Qmp) -> anyhow::Result<()> {
    let ended = qmp.wait(|event| {
        event.name == "MIGRATION" && event.data["status"] == "completed" || failed(event)
    })?;
    if failed(&ended) {
        bail!("{}", why(qmp)?);
    }
    Ok(())
}

fn failed(event: &Event) -> bool {
    event.name == "MIGRATION" && event.data["status"] == "failed"
}

/// QEMU's reason for a migration that failed.
fn why(qmp: &mut Qmp) -> anyhow::Result<String> {
    let state = qmp.execute("query-migrate", json!({}))?;
    Ok(state["error-desc"]
        .as_str()
        .unwrap_or("the migration failed, QEMU does not say why")
        .to_owned())
}

/// QEMU reports a migration as completed a moment before it leaves it.
fn cont(qmp: &mut Qmp) -> anyhow::Result<()> {
    loop {
        match qmp.execute("cont", json!({})) {
            Err(error) if error.to_string().contains("not finalized") => {
                std::thread::sleep(Duration::from_micros(100));
            }
            other => return other.map(drop),
        }
    }
}
