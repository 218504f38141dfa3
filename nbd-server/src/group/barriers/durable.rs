//! The durable half of each decision: log operations go out, and only when they are durable the effects come.

use epoch_log::{Holder, Mode};

use super::words::{Effect, LogOp, LogOutcome};
use super::{Barriers, MAX_FENCED, NoMemory, Pending, Phase, Protection, Purpose};

impl Barriers {
    /// Makes `ops` outstanding; what they are for happens when they are durable. The gate may close meanwhile.
    pub(super) fn begin(&mut self, purpose: Purpose, ops: Vec<LogOp>) -> Vec<Effect> {
        let before = self.gate();
        self.pending = Some(Pending { purpose, ops });
        if self.outstanding() == Some(&[]) {
            return self.log_done(0, LogOutcome::Done);
        }
        let after = self.gate();
        // A switch closes the gate by its phase, before it begins.
        if before != after || self.phase == Phase::Switching {
            vec![Effect::Gate(after)]
        } else {
            Vec::new()
        }
    }

    pub(super) fn log_done(&mut self, done: usize, outcome: LogOutcome) -> Vec<Effect> {
        let Some(Pending { purpose, ops }) = self.pending.take() else {
            // The log failed at something of its own, such as what it says of the images.
            if outcome == LogOutcome::Broken {
                self.broken = true;
                return vec![Effect::Gate(self.gate())];
            }
            return Vec::new();
        };
        let before = self.generation;
        let previous_owner = self.owner.clone();
        let mut effects = Vec::new();
        for op in ops.iter().take(done) {
            self.record(op, &mut effects);
        }
        if self.generation > before {
            self.change_hands(previous_owner, &purpose, &mut effects);
        }
        match outcome {
            LogOutcome::Done => self.complete(&purpose, &mut effects),
            LogOutcome::Retry if purpose == Purpose::Switch => self.undo_switch(&mut effects),
            LogOutcome::Retry => {}
            LogOutcome::Broken => self.broken = true,
        }
        effects.push(Effect::Gate(self.gate()));
        effects
    }

    /// Takes over what the log now says.
    fn record(&mut self, op: &LogOp, effects: &mut Vec<Effect>) {
        match op {
            LogOp::SyncImages => {}
            LogOp::SetMode(mode) => {
                if self.mode.holder().is_some() {
                    self.no_memory = NoMemory::StaleSince(self.committed);
                }
                self.mode = mode.clone();
            }
            LogOp::RaiseGeneration { owner, reason } => {
                self.generation = self.generation.next();
                self.owner.clone_from(owner);
                self.reason = reason;
            }
            LogOp::Commit { epoch, standby } => {
                self.committed = *epoch;
                self.first_held = self.first_held.filter(|first| first > epoch);
                if let Some(standby) = standby {
                    let since = match self.mode.holder() {
                        Some(holder) if holder.standby == *standby => holder.since,
                        _ => *epoch,
                    };
                    self.mode = Mode::Async {
                        holder: Some(Holder {
                            standby: standby.clone(),
                            since,
                        }),
                    };
                }
                effects.push(Effect::Committed(*epoch));
            }
        }
    }

    /// The generation has risen: everything uncommitted is void, and so is everyone of before.
    fn change_hands(
        &mut self,
        previous: Option<String>,
        purpose: &Purpose,
        effects: &mut Vec<Effect>,
    ) {
        self.sealed = self.committed;
        self.first_held = None;
        self.over = Protection::default();
        self.phase = Phase::Reserved;
        if let Some(previous) = previous.filter(|previous| Some(previous) != self.owner.as_ref()) {
            self.fenced.push_back(previous);
            if self.fenced.len() > MAX_FENCED {
                self.fenced.pop_front();
            }
        }
        if *purpose == Purpose::Attach {
            self.no_memory = NoMemory::NeverWas;
        }
        self.parked
            .retain(|parked| Some(parked) != self.owner.as_ref());
        effects.push(Effect::DropUncommitted);
        effects.push(Effect::Generation {
            generation: self.generation,
            owner: self.owner.clone(),
        });
    }

    fn complete(&mut self, purpose: &Purpose, effects: &mut Vec<Effect>) {
        self.phase = match purpose {
            Purpose::Commit => self.phase,
            Purpose::Takeover => Phase::Dormant { wanted: false },
            Purpose::Attach | Purpose::Settle => self.sync_phase(),
            Purpose::Switch => Phase::Held,
            Purpose::Abort | Purpose::Release | Purpose::Restart => match &self.mode {
                Mode::Async { holder: Some(_) } => Phase::Reserved,
                Mode::Async { holder: None } => {
                    // What went through before may be in the images' page cache only.
                    self.first_held = Some(self.sealed.next());
                    Phase::Held
                }
                Mode::Sync => self.sync_phase(),
            },
            Purpose::StartDraining {
                release,
                protection,
            } => {
                // Not before: if the log is full, it is asked again.
                self.give_up(*protection);
                self.phase = Phase::Draining { release: *release };
                self.sealed = self.sealed.next();
                effects.extend([Effect::Gate(self.gate()), Effect::Seal(self.sealed)]);
                self.phase
            }
        };
    }

    /// The record of the first seal did not fit: nothing was held yet, so the group still is in sync mode.
    fn undo_switch(&mut self, effects: &mut Vec<Effect>) {
        self.sealed = self.committed;
        self.first_held = None;
        self.phase = match self.mode {
            Mode::Sync => self.sync_phase(),
            Mode::Async { .. } => Phase::Dormant { wanted: true },
        };
        effects.push(Effect::DropUncommitted);
    }
}
