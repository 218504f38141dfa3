//! What is asked of a group, one rule after the other. What must be durable first goes through
//! [`Barriers::begin`](super::durable).

use epoch_log::{Epoch, Generation, Mode};

use super::words::{Effect, LogOp, Protection, SealNumber};
use super::{Barriers, Holds, MAX_PARKED, MAX_SEALED, NoMemory, Phase, Purpose, Refusal, check_id};

impl Barriers {
    pub(super) fn attach(&mut self, owner: String) -> Result<Vec<Effect>, Refusal> {
        check_id(&owner)?;
        if self.owner.as_deref() == Some(&owner) {
            match self.phase {
                // The answer was lost, and nothing has happened since that the answer doesn't say.
                Phase::Through | Phase::Backlog => return Ok(Vec::new()),
                // The log was full halfway.
                Phase::Reserved => {}
                _ => return Err(self.used(&owner)),
            }
        } else if self.is_fenced(&owner) || self.parked.contains(&owner) {
            return Err(self.used(&owner));
        }
        let raise = LogOp::RaiseGeneration {
            owner: Some(owner),
            reason: "a source attached",
        };
        let ops = std::iter::once(raise)
            .chain(self.mode_op(Mode::Sync))
            .collect();
        Ok(self.begin(Purpose::Attach, ops))
    }

    pub(super) fn park(&mut self, standby: String) -> Result<Vec<Effect>, Refusal> {
        check_id(&standby)?;
        if self.parked.contains(&standby) {
            return Ok(Vec::new());
        }
        if self.is_fenced(&standby) || self.owner.as_deref() == Some(&standby) {
            return Err(self.used(&standby));
        }
        self.parked.push_back(standby);
        let holder = self.mode.holder().map(|holder| &holder.standby);
        let oldest = self.parked.iter().position(|id| Some(id) != holder);
        let forgotten = oldest
            .filter(|_| self.parked.len() > MAX_PARKED)
            .and_then(|i| self.parked.remove(i));
        Ok(forgotten.map(Effect::Forget).into_iter().collect())
    }

    /// Whether a seal is in order now, with or without a number. It says nothing of what the disks hold; nothing changes.
    pub fn check_seal(
        &self,
        generation: Generation,
        number: Option<SealNumber>,
    ) -> Result<(), Refusal> {
        self.check_owner(generation)?;
        if let Some(number) = number {
            self.check_not_over(number.protection)?;
            if self.is_sealed_as(number) {
                return Ok(());
            }
            let next = self.sealed.next();
            if number.epoch != next && !self.is_floor(number) {
                let epoch = number.epoch;
                return Err(Refusal::OutOfOrder { epoch, next });
            }
        }
        let busy = |purpose: &Purpose| {
            purpose.changes_hands()
                || matches!(purpose, Purpose::Settle | Purpose::StartDraining { .. })
        };
        if self
            .pending
            .as_ref()
            .is_some_and(|pending| busy(&pending.purpose))
        {
            return Err(Refusal::Busy);
        }
        match self.phase {
            Phase::Draining { .. } => Err(Refusal::Draining),
            Phase::Reserved => Err(Refusal::Reserved),
            Phase::Through if self.sealed > self.committed => Err(Refusal::Unsettled),
            _ => Ok(()),
        }
    }

    /// The seal that was asked for has happened.
    fn is_sealed_as(&self, number: SealNumber) -> bool {
        let SealNumber { epoch, protection } = number;
        let first = self.holds == Holds::Always
            && protection.is_some()
            && self.holder().is_none()
            && self.sealed == self.committed.next();
        let again =
            self.sealed > self.committed && (epoch == self.sealed || first && epoch < self.sealed);
        again && matches!(self.phase, Phase::Held | Phase::Switching)
    }

    /// The number is only the lowest that the epoch may get: the group has committed by itself since its owner heard of it.
    fn is_floor(&self, number: SealNumber) -> bool {
        self.phase == Phase::Through
            && self.commits_by_itself()
            && number.protection.is_some()
            && number.epoch <= self.sealed
    }

    pub(super) fn seal(&mut self, generation: Generation) -> Result<Vec<Effect>, Refusal> {
        self.check_seal(generation, None)?;
        match self.phase {
            Phase::Held | Phase::Switching => self.cut(),
            _ => {
                self.phase = Phase::Switching;
                self.first_held = Some(self.sealed.next());
                let mut effects = self.begin(
                    Purpose::Switch,
                    vec![LogOp::SetMode(Mode::Async { holder: None })],
                );
                effects.extend(self.cut()?);
                Ok(effects)
            }
        }
    }

    pub(super) fn seal_as(
        &mut self,
        generation: Generation,
        number: SealNumber,
    ) -> Result<Vec<Effect>, Refusal> {
        self.check_seal(generation, Some(number))?;
        if self.is_sealed_as(number) {
            return Ok(Vec::new());
        }
        let effects = self.seal(generation)?;
        // Who begins anew has nothing more to ask of the protections before.
        self.give_up(
            number
                .protection
                .map(|Protection(count)| Protection(count.saturating_sub(1))),
        );
        Ok(effects)
    }

    pub(super) fn self_seal(&mut self) -> Result<Vec<Effect>, Refusal> {
        if self.commits_by_itself() {
            self.cut()
        } else {
            Err(Refusal::Busy)
        }
    }

    fn cut(&mut self) -> Result<Vec<Effect>, Refusal> {
        let count = self.sealed.0 - self.committed.0;
        if count >= MAX_SEALED {
            return Err(Refusal::TooManySealed { count });
        }
        self.sealed = self.sealed.next();
        Ok(vec![Effect::Seal(self.sealed)])
    }

    pub(super) fn commit(
        &mut self,
        generation: Generation,
        epoch: Epoch,
        standby: Option<String>,
    ) -> Result<Vec<Effect>, Refusal> {
        self.check_generation(generation)?;
        if epoch <= self.committed {
            return Ok(Vec::new());
        }
        if let Some(standby) = &standby {
            check_id(standby)?;
        }
        // An owner that is its own standby would look like a takeover that has not written yet.
        let sync = self.phase == Phase::Through;
        let by_itself = standby.is_none() && sync && self.commits_by_itself();
        let wrong = self.owner.is_some() != standby.is_some()
            || (standby.is_some() && self.owner == standby);
        if wrong && !by_itself {
            return Err(Refusal::WrongStandby);
        }
        match self.phase {
            Phase::Draining { .. } => return Err(Refusal::Draining),
            Phase::Reserved => return Err(Refusal::Reserved),
            _ => {}
        }
        // No standby acknowledges what is sealed in sync mode.
        let sealed = if sync && !by_itself {
            self.committed
        } else {
            self.sealed
        };
        if epoch > sealed {
            return Err(Refusal::NotSealed { epoch, sealed });
        }
        let next = self.committed.next();
        if epoch != next {
            return Err(Refusal::OutOfOrder { epoch, next });
        }
        Ok(self.begin_commit(standby))
    }

    fn begin_commit(&mut self, standby: Option<String>) -> Vec<Effect> {
        let epoch = self.committed.next();
        let images = (self.first_held == Some(epoch)).then_some(LogOp::SyncImages);
        let ops = images
            .into_iter()
            .chain([LogOp::Commit { epoch, standby }])
            .collect();
        self.begin(Purpose::Commit, ops)
    }

    pub(super) fn drain(
        &mut self,
        generation: Generation,
        protection: Option<Protection>,
        release: bool,
    ) -> Result<Vec<Effect>, Refusal> {
        self.check_owner(generation)?;
        match self.phase {
            Phase::Held | Phase::Switching => {
                self.check_not_over(protection)?;
                let ops = self.mode_op(Mode::Async { holder: None });
                Ok(self.begin(
                    Purpose::StartDraining {
                        release,
                        protection,
                    },
                    ops.into_iter().collect(),
                ))
            }
            Phase::Reserved => Err(Refusal::Reserved),
            Phase::Draining { release: before } => {
                self.give_up(protection);
                self.phase = Phase::Draining {
                    release: before || release,
                };
                Ok(Vec::new())
            }
            Phase::Through if release && self.commits_by_itself() => Ok(self.begin(
                Purpose::StartDraining {
                    release,
                    protection,
                },
                Vec::new(),
            )),
            Phase::Through | Phase::Backlog | Phase::Dormant { .. } if release => {
                self.phase = Phase::Draining { release };
                Ok(vec![Effect::Gate(self.gate())])
            }
            Phase::Through | Phase::Backlog | Phase::Dormant { .. } => {
                // There is nothing to drain, but the first seal may still come.
                self.give_up(protection);
                Ok(Vec::new())
            }
        }
    }

    pub(super) fn takeover(&mut self, standby: String) -> Result<Vec<Effect>, Refusal> {
        check_id(&standby)?;
        let Some(holder) = self.mode.holder() else {
            return Err(match self.no_memory {
                NoMemory::NeverWas => Refusal::NoCheckpoint,
                NoMemory::StaleSince(since) => Refusal::MemoryStale { since },
            });
        };
        if holder.standby != standby {
            let holder = holder.standby.clone();
            return Err(Refusal::OtherHolder {
                standby,
                holder,
                epoch: self.committed,
            });
        }
        if self.owner.as_deref() == Some(&standby) {
            // It has taken over before and has written nothing since: the same answer again.
            return Ok(Vec::new());
        }
        if self.is_fenced(&standby) {
            return Err(self.used(&standby));
        }
        let raise = LogOp::RaiseGeneration {
            owner: Some(standby),
            reason: "a standby took over",
        };
        Ok(self.begin(Purpose::Takeover, vec![raise]))
    }

    pub(super) fn abort(&mut self, generation: Generation) -> Result<Vec<Effect>, Refusal> {
        self.check_owner(generation)?;
        let raise = LogOp::RaiseGeneration {
            owner: None,
            reason: "its owner aborted",
        };
        let ops = std::iter::once(raise)
            .chain(self.ops_without_owner())
            .collect();
        Ok(self.begin(Purpose::Abort, ops))
    }

    pub(super) fn applied_to(&mut self, epoch: Epoch) -> Vec<Effect> {
        self.applied = self.applied.max(epoch.min(self.committed));
        vec![Effect::Applied(self.applied)]
    }

    pub(super) fn advance(&mut self) -> Vec<Effect> {
        if self.pending.is_some() || self.broken {
            return Vec::new();
        }
        let applied = self.applied == self.committed;
        match self.phase {
            Phase::Backlog if applied => {
                self.phase = Phase::Through;
                vec![Effect::Gate(self.gate())]
            }
            Phase::Dormant { wanted: true } if applied => {
                self.begin(Purpose::Settle, vec![LogOp::SetMode(Mode::Sync)])
            }
            Phase::Draining { .. } if self.committed < self.sealed => self.begin_commit(None),
            Phase::Draining { release: false } if applied => {
                let ops = self.mode_op(Mode::Sync);
                self.begin(Purpose::Settle, ops.into_iter().collect())
            }
            Phase::Draining { release: true } if applied => {
                let target = self.mode_without_owner();
                let raise = LogOp::RaiseGeneration {
                    owner: None,
                    reason: "its owner detached",
                };
                let ops = self.mode_op(target).into_iter().chain([raise]).collect();
                self.begin(Purpose::Release, ops)
            }
            // The log was full when the last owner went.
            Phase::Reserved if self.owner.is_none() && self.holder().is_none() => {
                let ops = self.ops_without_owner();
                self.begin(Purpose::Abort, ops.into_iter().collect())
            }
            _ => Vec::new(),
        }
    }
}
