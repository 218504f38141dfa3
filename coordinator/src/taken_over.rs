//! A guest that a standby has taken over, from its first instruction there to its end: this host is its source now. It runs
//! in sync mode until the next standby protects it, and is fenced like any source when the disks get another owner.

use qemu_glue::SourceVm;
use tokio::sync::{mpsc, watch};

use crate::address::Listener;
use crate::command::Command;
use crate::config::{Protection, StandbyConfig};
use crate::ending::Ending;
use crate::gateway_task::Place;
use crate::handshake::refuse;
use crate::link::Timing;
use crate::report::Reporter;
use crate::source_loop::{Gate, SourceLoop};

/// What a source that connects meanwhile is told.
const BUSY: &str = "the VM runs on this host since its takeover; stop it here first";

/// The guest, and its place at the gateway.
pub(crate) struct TakenOver {
    pub vm: SourceVm,
    pub place: Place,
    /// The id of the standby, which owns the disks now.
    pub owner: String,
    /// The network backends that an output gate is put in front of.
    pub netdevs: Vec<String>,
}

impl TakenOver {
    /// Keeps the guest, protected again if there is a standby for it, until it ends, is fenced, or `stop` asks for it (once: power
    /// off; twice: at once).
    pub(crate) async fn run(
        self,
        config: &StandbyConfig,
        listener: &Listener,
        reporter: &Reporter,
        commands: mpsc::Receiver<Command>,
        stop: watch::Receiver<u32>,
    ) -> Ending {
        let Self {
            vm,
            place,
            owner,
            netdevs,
        } = self;
        let protection = config.protect.clone().unwrap_or_else(Protection::none);
        let timing = Timing::new(config.heartbeat_ms, config.suspicion_ms);
        let group = place.group.clone();
        let gate = Gate::Later { netdevs };
        let source = SourceLoop::new(protection, timing, reporter.clone(), place, owner, vm, gate);
        let ending = tokio::select! {
            ending = source.run(commands, stop) => ending,
            never = turn_away(listener, &group) => never,
        };
        ending.report(reporter);
        ending
    }
}

/// Refuses every source that comes.
async fn turn_away(listener: &Listener, group: &str) -> Ending {
    loop {
        if let Ok((_, mut writer)) = listener.accept().await {
            refuse(&mut writer, group, BUSY).await;
        }
    }
}
