//! What a committer does for a group that commits by itself, and for the clients that wait for a flush of it.

use std::time::Instant;

use epoch_log::LogError;

use super::super::barriers::{Input, Phase};
use super::super::error::GroupError;
use super::Committer;
use crate::export::IoError;

impl Committer {
    /// Seals and commits what a group holds that commits by itself. Does nothing for others.
    pub(super) fn self_commit(&mut self) -> Result<(), GroupError> {
        self.next_self_commit = self.now + self.interval;
        self.perform_outstanding()?;
        {
            let mut core = self.shared.core();
            if !core.barriers.commits_by_itself() {
                return Ok(());
            }
            if self.shared.holds_writes() {
                self.shared.step(&mut core, Input::SelfSeal)?;
            }
        }
        loop {
            let (generation, next, sealed) = {
                let barriers = &self.shared.core().barriers;
                (
                    barriers.generation(),
                    barriers.committed().next(),
                    barriers.sealed(),
                )
            };
            if next > sealed {
                return Ok(());
            }
            self.step(Input::Commit {
                generation,
                epoch: next,
                standby: None,
            })?;
            self.commit_asked = Instant::now();
            self.perform_outstanding()?;
        }
    }

    /// One commit for everyone who waits for a flush. With a full log they go on waiting.
    pub(super) fn flush(&mut self) {
        let is_draining = {
            let barriers = &self.shared.core().barriers;
            matches!(barriers.phase(), Phase::Draining { .. })
                && barriers.committed() < barriers.sealed()
        };
        // Its owner leaves, and what is flushed is in the epochs that are being committed.
        if is_draining {
            if self.shared.is_stopping() {
                self.fail_flushers(IoError::Shutdown);
            }
            return;
        }
        let flushers = std::mem::take(&mut self.flushers);
        match self.self_commit() {
            Ok(()) => {
                for flusher in flushers {
                    let _ = flusher.send(Ok(()));
                }
            }
            Err(error) => {
                self.flushers = flushers;
                if is_full(&error) && self.shared.is_stopping() {
                    // The listeners stop only when all requests are answered, and space may never come.
                    self.fail_flushers(IoError::Shutdown);
                } else if is_full(&error) {
                    self.retry_later();
                } else {
                    self.fail_flushers(IoError::Io);
                }
            }
        }
    }

    pub(super) fn fail_flushers(&mut self, error: IoError) {
        for flusher in self.flushers.drain(..) {
            let _ = flusher.send(Err(error));
        }
    }
}

/// The log has no room: it can be tried again.
pub(super) fn is_full(error: &GroupError) -> bool {
    matches!(error, GroupError::Log(error) if matches!(error.as_ref(), LogError::Full { .. }))
}
