//! A group without threads, over any storage, with the clock of whoever drives it: what a simulator runs. The code is that of
//! [`Group::open`]; only who calls it, and when, is different.

use std::sync::Arc;
use std::time::Instant;

use epoch_log::LogOptions;
use epoch_log::storage::Storage;

use super::applier::Applier;
use super::committer::Committer;
use super::open::{LogPlace, Parts};
use super::{Group, GroupConfig, Image, Next, OpenError};

/// A group whose two threads are turns that the owner takes. Nothing in it waits for a clock or for another thread. Dropping it is
/// a crash.
#[derive(Debug)]
pub struct Stepped {
    // Before the group: what crashes stops working first.
    committer: Option<Committer>,
    applier: Applier,
    group: Arc<Group>,
}

impl Stepped {
    /// Opens the group over `storage` and `images`, whose paths in `config` are ignored.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        config: &GroupConfig,
        images: Vec<Image>,
        storage: Arc<dyn Storage>,
        options: LogOptions,
        now: Instant,
    ) -> Result<Self, OpenError> {
        super::open::check(config)?;
        let log = LogPlace { storage, options };
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

    /// Begins to stop in order: the committer's turns end it.
    pub fn begin_stop(&self) {
        self.group.begin_stop();
    }
}
