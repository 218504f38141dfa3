//! A guest that a standby has taken over, from its first instruction there to its end: this host is its source now. It runs
//! in sync mode until the next standby protects it, and is fenced like any source when the disks get another owner.

use tokio::sync::{mpsc, watch};

use crate::address::Listener;
use crate::command::Command;
use crate::config::{ProtectionPolicy, StandbyConfig};
use crate::ending::Ending;
use crate::handshake::refuse;
use crate::link::Timing;
use crate::report::Reporter;
use crate::source_loop::{Running, SourceLoop};

/// What a source that connects meanwhile is told.
const BUSY: &str = "the VM runs on this host since its takeover; stop it here first";

/// Keeps the guest, protected again if there is a standby for it, until it ends, is fenced, or `stop` asks for it (once: power
/// off; twice: at once).
pub(crate) async fn run(
    running: Running,
    config: &StandbyConfig,
    listener: &Listener,
    reporter: &Reporter,
    commands: mpsc::Receiver<Command>,
    stop: watch::Receiver<u32>,
) -> Ending {
    let protection = config
        .protect
        .clone()
        .unwrap_or_else(ProtectionPolicy::none);
    let timing = Timing::new(config.heartbeat_ms, config.suspicion_ms);
    let group = running.place.group.clone();
    let source = SourceLoop::new(protection, timing, reporter.clone(), running);
    let ending = tokio::select! {
        ending = source.run(commands, stop) => ending,
        never = turn_away(listener, &group) => never,
    };
    ending.report(reporter);
    ending
}

/// Refuses every source that comes.
async fn turn_away(listener: &Listener, group: &str) -> Ending {
    loop {
        if let Ok((_, mut writer)) = listener.accept().await {
            refuse(&mut writer, group, BUSY).await;
        }
    }
}
