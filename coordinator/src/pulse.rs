//! Whether the gateway answers at all. A source that is cut off from it, and not from its standby, would stand still for as long
//! as that lasts: the guest's disk requests wait, and so does every seal. The standby may well reach the gateway, so after
//! `gateway_patience_ms` the source gives the VM up to it.

use std::time::{Duration, Instant};

use nbd_server::control::client::ControlError;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::gateway_task::{Outcome, Place};

/// Asks the gateway for a sign of life, again and again, and tells when it gave none for `patience`.
pub(crate) async fn run(place: Place, patience: Duration, outcomes: mpsc::Sender<Outcome>) {
    let mut heard = Instant::now();
    let mut unanswered = 0;
    loop {
        let asked = timeout(patience / 2, place.client.group(&place.group)).await;
        if let Ok(Ok(_) | Err(ControlError::Refused { .. })) = asked {
            heard = Instant::now();
            unanswered = 0;
        } else {
            unanswered += 1;
        }
        // One that is not answered says nothing: it may be we who slept.
        if unanswered > 1 && heard.elapsed() >= patience {
            let silent = Outcome::Silent {
                patience: heard.elapsed(),
            };
            if outcomes.send(silent).await.is_err() {
                return;
            }
            unanswered = 0;
        }
        sleep(patience / 8).await;
    }
}
