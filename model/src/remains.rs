//! What a process of the gateway leaves behind when it dies and its machine does not: its open and sealed epochs, in memory that outlives it.

use std::collections::BTreeSet;

use epoch_log::Mode;
use nbd_server::Epoch;
use nbd_server::group::barriers::{Barriers, Holds, Left};

use crate::gateway::{Gateway, Judge, Running};
use crate::history::History;
use crate::mutation::Mutation;
use crate::rules::Rule;

/// What the process has left in memory that outlived it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Remains {
    left: Left,
    open: Option<History>,
    sealed: Vec<(Epoch, History)>,
}

impl Gateway {
    /// Its process dies.
    pub fn die(&mut self) {
        self.remains = self.running.take().map(|running| Remains {
            left: Left {
                generation: running.barriers.generation(),
                sealed: running.barriers.sealed(),
                held: running.open.is_some(),
                parked: running.barriers.parked().map(str::to_owned).collect(),
            },
            open: running.open,
            sealed: running.sealed,
        });
    }

    /// The process that goes on with what the last one has left, if that belongs to the log.
    pub(crate) fn resumed(&mut self, judge: &mut Judge<'_>) -> Running {
        let lost = self.remains.is_none() && judge.mutated(Mutation::ResumeWithoutMemory);
        let remains = self.remains.take().or_else(|| {
            lost.then(|| Remains {
                left: Left {
                    generation: self.log.generation,
                    sealed: self.log.committed,
                    held: false,
                    parked: Vec::new(),
                },
                open: None,
                sealed: Vec::new(),
            })
        });
        let Some(remains) = remains else {
            return Running::recovered(&self.log);
        };
        let Some(barriers) = Barriers::resume(&self.log, Holds::Protected, &remains.left) else {
            // Nobody may be fenced just because a process was started again.
            let same = remains.left.generation == self.log.generation;
            if same
                && (remains.open.is_some() || !remains.sealed.is_empty())
                && self.log.mode != Mode::Sync
            {
                judge.broken(Rule::Recovery);
            }
            return Running::recovered(&self.log);
        };
        let mut sealed = remains.sealed;
        sealed.retain(|(epoch, _)| *epoch > self.log.committed);
        Running {
            barriers,
            open: remains.open,
            sealed,
            draining: BTreeSet::new(),
        }
    }
}
