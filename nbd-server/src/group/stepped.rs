//! A group without threads, over any storage, with the clock of whoever drives it: what a simulator runs. The code is that of
//! [`Group::open`]; only who calls it, and when, is different.

use std::sync::Arc;
use std::time::Instant;

use epoch_log::{Epoch, Generation, Holder};

use super::applier::Applier;
use super::barriers::{Gate, Phase};
use super::committer::Committer;
use super::open::Parts;
use super::{Group, GroupConfig, Image, Next, OpenError};

pub use super::open::LogPlace;

/// A group whose two threads are turns that the owner takes. Nothing in it waits for a clock or for another thread. Dropping it is
/// a crash.
#[derive(Debug)]
pub struct Stepped {
    // Before the group: what crashes stops working first.
    committer: Option<Committer>,
    applier: Applier,
    group: Arc<Group>,
}

/// Where a group stands at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The current generation.
    pub generation: Generation,
    /// The newest committed epoch.
    pub committed: Epoch,
    /// The newest epoch that the images durably hold.
    pub applied: Epoch,
    /// The newest sealed epoch; the newest committed one if none is.
    pub sealed: Epoch,
    /// The phase.
    pub phase: Phase,
    /// What writes do.
    pub gate: Gate,
    /// Who holds memory.
    pub holder: Option<Holder>,
    /// The active source.
    pub owner: Option<String>,
}

impl Stepped {
    /// Opens the group over the log at `log` and `images`, whose paths in `config` are ignored.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        config: &GroupConfig,
        images: Vec<Image>,
        log: LogPlace,
        now: Instant,
    ) -> Result<Self, OpenError> {
        super::open::check(config)?;
        let parts = Parts::open(config, images, log, &mut |_| {}, now)?;
        Ok(Self {
            committer: Some(parts.committer),
            applier: parts.applier,
            group: Arc::new(parts.group),
        })
    }

    /// The group. Its futures are answered while turns are taken.
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// One turn of the committer.
    pub fn commit_turn(&mut self, now: Instant) -> Next {
        let Some(committer) = self.committer.take() else {
            return Next::Over;
        };
        let (committer, next) = committer.step_once(now);
        self.committer = committer;
        next
    }

    /// One turn of the applier.
    pub fn apply_turn(&mut self, now: Instant) -> Next {
        self.applier.turn(now)
    }

    /// Where the group stands.
    pub fn standing(&self) -> Standing {
        let core = self.group.shared.core();
        let barriers = &core.barriers;
        Standing {
            generation: barriers.generation(),
            committed: barriers.committed(),
            applied: barriers.applied(),
            sealed: barriers.sealed(),
            phase: barriers.phase(),
            gate: barriers.gate(),
            holder: barriers.holder().cloned(),
            owner: barriers.owner().map(str::to_owned),
        }
    }

    /// What fails now.
    pub fn last_error(&self) -> Option<String> {
        self.group.shared.last_error()
    }

    /// Whether the committer has come to its end.
    pub fn is_over(&self) -> bool {
        self.committer.is_none()
    }

    /// Begins to stop in order: the committer's turns end it.
    pub fn begin_stop(&self) {
        self.group.begin_stop();
    }
}
