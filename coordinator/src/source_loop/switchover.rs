//! The planned move of a VM to its standby: who asked for it, and what they are told.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::SourceLoop;
use crate::command::{Command, Moved, NotMoved};
use crate::commit::{Event, Phase};
use crate::ending::Ending;

/// The VM is paused from the last checkpoint on; if that is not committed by then, it runs on here.
const LIMIT: Duration = Duration::from_secs(5);

/// A switchover under way.
#[derive(Debug)]
pub(super) struct Switchover {
    standby: String,
    pub(super) until: Instant,
    reply: oneshot::Sender<Result<Moved, NotMoved>>,
}

impl SourceLoop {
    pub(super) async fn commanded(&mut self, command: Command) {
        let Command::Switchover { reply } = command;
        let refusal = match self.machine.phase() {
            _ if self.switchover.is_some() => NotMoved::Busy,
            Phase::Protecting { standby, .. } if self.machine.protected() => {
                tracing::info!(standby, "the VM is moved to its standby");
                self.switchover = Some(Switchover {
                    standby: standby.clone(),
                    until: Instant::now() + LIMIT,
                    reply,
                });
                return self.step(Event::SwitchoverAsked).await;
            }
            _ => NotMoved::Unprotected,
        };
        // Whoever asked may be gone.
        let _ = reply.send(Err(refusal));
    }

    pub(super) async fn switchover_too_slow(&mut self) {
        tracing::warn!("the switchover takes too long: the VM runs on here");
        self.answer(Err(NotMoved::TooSlow(LIMIT.as_secs())));
        self.step(Event::SwitchoverOff).await;
    }

    /// Looks whether the last step has decided a switchover.
    pub(super) fn follow_switchover(&mut self) {
        if self.switchover.is_none() || self.machine.switching() && !self.machine.is_over() {
            return;
        }
        match (self.machine.moved(), &self.switchover) {
            (Some(epoch), Some(Switchover { standby, .. })) => {
                let standby = standby.clone();
                let reason = format!("it was moved to {standby} at epoch {epoch}");
                self.ending.get_or_insert(Ending::Planned(reason));
                self.answer(Ok(Moved { standby, epoch }));
            }
            _ if self.machine.is_over() => self.answer(Err(NotMoved::Ended)),
            _ => self.answer(Err(NotMoved::StandbyLost)),
        }
    }

    fn answer(&mut self, answer: Result<Moved, NotMoved>) {
        if let Some(switchover) = self.switchover.take() {
            let _ = switchover.reply.send(answer);
        }
    }
}
