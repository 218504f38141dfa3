//! A guest that a standby has taken over, from its first instruction there to its end. It runs in sync mode and is not
//! protected; it is fenced like any source when the disks get another owner.

use qemu_glue::{SourceVm, VmEvent};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::address::Listener;
use crate::ending::{Ending, FAREWELL_LIMIT, POWER_DOWN_LIMIT, until};
use crate::gateway_task::{self, Outcome, Place};
use crate::handshake::refuse;
use crate::report::{Report, Reporter, emit};

/// What a source that connects meanwhile is told.
const BUSY: &str = "the VM runs on this host since its takeover; stop it here first";

/// The guest, and its place at the gateway.
pub(crate) struct TakenOver {
    pub vm: SourceVm,
    pub place: Place,
}

impl TakenOver {
    /// Watches over the guest until it ends, is fenced, or `stop` asks for it (once: power off; twice: at once).
    pub(crate) async fn run(
        self,
        listener: &Listener,
        reporter: &Reporter,
        mut stop: watch::Receiver<u32>,
    ) -> Ending {
        let Self { vm, place } = self;
        let mut events = vm.subscribe();
        let (outcomes, mut gateway) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(gateway_task::watch(place.clone(), outcomes));
        let mut power_down_until = None;
        let ending = loop {
            tokio::select! {
                event = events.recv() => match event {
                    Ok(VmEvent::Shutdown { guest: true, .. }) => {
                        break Ending::Planned("the guest powered off".to_owned());
                    }
                    Ok(VmEvent::Shutdown { reason, .. }) => {
                        break Ending::Planned(format!("QEMU was asked to end: {reason}"));
                    }
                    Ok(VmEvent::Closed) | Err(RecvError::Closed) => {
                        break Ending::Lost("QEMU ended".to_owned());
                    }
                    _ => {}
                },
                Some(outcome) = gateway.recv() => match outcome {
                    Outcome::Fenced { reason } => break Ending::Fenced(reason),
                    Outcome::Lost { reason } => emit(reporter, Report::GatewayLost { reason }),
                    Outcome::Back => emit(reporter, Report::GatewayBack),
                    _ => {}
                },
                accepted = listener.accept() => {
                    if let Ok((_, mut writer)) = accepted {
                        refuse(&mut writer, &place.group, BUSY).await;
                    }
                }
                Ok(()) = stop.changed() => {
                    if *stop.borrow() > 1 || power_down_until.is_some() {
                        break Ending::Planned("the operator ended the VM at once".to_owned());
                    }
                    tracing::info!("stopping: the guest is asked to power off; once more to end it now");
                    if vm.power_down().await.is_err() {
                        break Ending::Lost("QEMU ended".to_owned());
                    }
                    power_down_until = Some(Instant::now() + POWER_DOWN_LIMIT);
                }
                () = until(power_down_until) => {
                    break Ending::Planned("the guest did not power off in time and was ended".to_owned());
                }
            }
        };
        vm.kill().await;
        if !matches!(ending, Ending::Fenced(_)) {
            hand_back(&place).await;
        }
        ending.report(reporter);
        ending
    }
}

/// Gives the disks back, so that the group has no owner any more. Nothing is lost if the gateway does not answer: in
/// sync mode it holds nothing.
async fn hand_back(place: &Place) {
    let detach = place.client.detach(&place.group, place.generation);
    match timeout(FAREWELL_LIMIT, detach).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the gateway did not take the disks back"),
        Err(_) => tracing::warn!("the gateway did not take the disks back in time"),
    }
}
