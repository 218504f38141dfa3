//! COMMIT 2 and its neighbours at the gateway: one task that sends the source's requests one after another and turns
//! every outcome into an event of the state machine. And the watch on the gateway's event stream.
//!
//! A request whose answer was lost is asked again: commit, sync and detach do no harm when they happen twice, also late,
//! and a generation that was raised meanwhile answers *fenced*. So what the gateway's log says is found out, never guessed.

use std::time::{Duration, Instant};

use nbd_server::control::api::{self, ErrorKind, Protection};
use nbd_server::control::client::{Client, ControlError};
use nbd_server::{Epoch, Generation};
use tokio::sync::mpsc;

use crate::checkpoint_channel::{Stamp, VmId};

/// Between two attempts to reach a gateway that does not answer: short, because the guest's I/O waits.
const RECONNECT: Duration = Duration::from_millis(20);
/// Between two attempts at what the gateway could not do (log full, storage failing): long enough not to burn a core.
const RETRY: Duration = Duration::from_millis(250);

/// What the gateway is asked to do.
#[derive(Debug)]
pub(crate) enum Request {
    /// COMMIT 2.
    Commit { epoch: Epoch, standby: String },
    /// Sync mode, everything committed: this protection is given up.
    Drain { protection: Protection },
    /// The VM ended as planned.
    Detach,
}

/// What came of it, and what the gateway tells by itself.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Record durable; how long it took.
    Committed { epoch: Epoch, took: Duration },
    /// Not now.
    CommitFailed { epoch: Epoch, reason: String },
    /// Sync mode reached; the last committed epoch.
    Drained { epoch: Epoch },
    /// Not drained now.
    DrainFailed,
    /// The disks are handed back; all that the guest wrote is committed.
    Detached,
    /// They are not.
    NotDetached,
    /// More than half of the memory budget is held.
    Pressure,
    /// The disks belong to someone else.
    Fenced { reason: String },
    /// The gateway does not answer.
    Lost { reason: String },
    /// It answers again, and the generation is ours.
    Back,
    /// It has not answered anything for so long.
    Silent { patience: Duration },
}

/// The source's place at the gateway.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub client: Client,
    pub group: String,
    pub generation: Generation,
}

impl Place {
    /// What is on every frame of this source.
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp {
            vm: VmId::of(&self.group),
            generation: self.generation,
        }
    }
}

/// Carries out requests in order until the sender is dropped.
pub(crate) async fn run(
    place: Place,
    mut requests: mpsc::Receiver<Request>,
    outcomes: mpsc::Sender<Outcome>,
) {
    while let Some(request) = requests.recv().await {
        let outcome = carry_out(&place, request).await;
        if outcomes.send(outcome).await.is_err() {
            return;
        }
    }
}

async fn carry_out(place: &Place, request: Request) -> Outcome {
    let started = Instant::now();
    loop {
        let (client, group, generation) = (&place.client, &place.group, place.generation);
        let done = match &request {
            Request::Commit { epoch, standby } => client
                .commit(group, generation, *epoch, standby)
                .await
                .map(|_| Outcome::Committed {
                    epoch: *epoch,
                    took: started.elapsed(),
                }),
            Request::Drain { protection } => client
                .sync(group, generation, Some(*protection))
                .await
                .map(|epoch| Outcome::Drained { epoch }),
            Request::Detach => client
                .detach(group, generation)
                .await
                .map(|_| Outcome::Detached),
        };
        match done {
            Ok(outcome) => return outcome,
            Err(error) if error.is_fenced() => {
                return Outcome::Fenced {
                    reason: error.to_string(),
                };
            }
            Err(ControlError::Unreachable { .. }) => tokio::time::sleep(RECONNECT).await,
            Err(error) => {
                tokio::time::sleep(RETRY).await;
                match &request {
                    Request::Commit { epoch, .. } => {
                        return Outcome::CommitFailed {
                            epoch: *epoch,
                            reason: error.to_string(),
                        };
                    }
                    Request::Drain { .. } => {
                        tracing::warn!(%error, "the gateway could not be drained to sync mode yet");
                        return Outcome::DrainFailed;
                    }
                    Request::Detach => {
                        tracing::warn!(%error, "the gateway did not take the disks back");
                        return Outcome::NotDetached;
                    }
                }
            }
        }
    }
}

/// Watches the gateway's events: fencing is learnt the moment it happens, also while nothing else is asked.
pub(crate) async fn watch(place: Place, outcomes: mpsc::Sender<Outcome>) {
    let mut lost = false;
    loop {
        let outcome = match place.client.events(&place.group, place.generation).await {
            Ok(mut stream) => {
                if std::mem::take(&mut lost) && outcomes.send(Outcome::Back).await.is_err() {
                    return;
                }
                loop {
                    match stream.next().await {
                        Ok(Some(api::Event::Pressure { .. })) => {
                            if outcomes.send(Outcome::Pressure).await.is_err() {
                                return;
                            }
                        }
                        Ok(Some(api::Event::Fenced { generation, owner })) => {
                            let owner = owner.unwrap_or_else(|| "nobody yet".to_owned());
                            break Outcome::Fenced {
                                reason: format!(
                                    "generation {generation} of the disks belongs to {owner}"
                                ),
                            };
                        }
                        Ok(Some(_)) => {}
                        Ok(None) => {
                            break Outcome::Lost {
                                reason: "the gateway closed its event stream".to_owned(),
                            };
                        }
                        Err(error) => {
                            break Outcome::Lost {
                                reason: error.to_string(),
                            };
                        }
                    }
                }
            }
            Err(error) if error.is_fenced() => Outcome::Fenced {
                reason: error.to_string(),
            },
            Err(error) if error.kind() == Some(ErrorKind::UnknownGroup) => Outcome::Fenced {
                reason: error.to_string(),
            },
            Err(error) => Outcome::Lost {
                reason: error.to_string(),
            },
        };
        match outcome {
            Outcome::Lost { .. } if lost => {}
            Outcome::Lost { .. } => {
                lost = true;
                if outcomes.send(outcome).await.is_err() {
                    return;
                }
            }
            fenced => {
                let _ = outcomes.send(fenced).await;
                return;
            }
        }
        tokio::time::sleep(RECONNECT).await;
    }
}
