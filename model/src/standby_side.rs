//! What the loop of a standby does around its machine: `standby_loop` of the coordinator, in small steps. It decides nothing
//! that the machine decides.

use coordinator::standby::{Action, Event, Phase};
use nbd_server::{Epoch, Generation};

use crate::channel::{Checkpoint, Frame, Ram};
use crate::gateway::{Course, No};
use crate::host::{Request, Side, StandbyProcess, TakeOver};
use crate::mutation::Mutation;
use crate::rules::Rule;
use crate::world::{Protocol, World};

/// None if the step can't be taken now.
type Taken = Option<()>;

impl World {
    /// A frame arrives at the standby.
    pub(crate) fn standby_receives(&mut self, protocol: &Protocol, side: Side) -> Taken {
        let standby = self.standby(side)?;
        if standby.machine.phase() != Phase::Receiving {
            return None;
        }
        let session = standby.session?;
        let frame = self.channel_mut(session)?.to_standby.pop_front()?;
        let standby = self.standby_mut(side)?;
        let good = match frame {
            Frame::Base => {
                let early = !standby.machine.holds_anything();
                if early {
                    standby.ram = Ram::Base(session);
                }
                early
            }
            Frame::Checkpoint(checkpoint) => self.take_checkpoint(protocol, side, checkpoint)?,
            Frame::Commit3(epoch) => {
                for action in standby.machine.step(Event::Commit3 { epoch }) {
                    if let Action::MergeUpTo { epoch } = action {
                        standby.merge_up_to(epoch);
                    }
                }
                true
            }
            Frame::Yield => false,
        };
        if good {
            Some(())
        } else {
            self.source_lost(protocol, side)
        }
    }

    /// COMMIT 1: verified, held, acknowledged. False ends the session.
    fn take_checkpoint(
        &mut self,
        protocol: &Protocol,
        side: Side,
        checkpoint: Checkpoint,
    ) -> Option<bool> {
        if checkpoint.damaged && !protocol.makes(Mutation::AckBeforeVerify) {
            return Some(false);
        }
        let epoch = checkpoint.epoch;
        let standby = self.standby_mut(side)?;
        let (session, id) = (standby.session?, standby.id.clone());
        let actions = standby.machine.step(Event::Verified { epoch });
        if !actions.contains(&Action::AckCommit1 { epoch }) {
            return Some(false);
        }
        standby.verified.insert(epoch, checkpoint);
        if protocol.makes(Mutation::MergeBeforeRecord) {
            standby.merge_up_to(epoch);
        }
        if !checkpoint.damaged {
            self.acked.insert((id, epoch, checkpoint.memory));
        }
        let channel = self.channel_mut(session)?;
        if channel.source_open {
            channel.to_source.push_back(epoch);
        }
        Some(true)
    }

    /// The standby finds the channel dead, or suspects its source.
    pub(crate) fn standby_loses(&mut self, protocol: &Protocol, side: Side) -> Taken {
        let standby = self.standby(side)?;
        let session = standby.session?;
        if standby.machine.phase() != Phase::Receiving {
            return None;
        }
        let channel = self.channel_mut(session)?;
        if channel.source_open && !channel.broken {
            return None;
        }
        self.source_lost(protocol, side)
    }

    fn source_lost(&mut self, protocol: &Protocol, side: Side) -> Taken {
        let committed = self.gateway.log.committed;
        let standby = self.standby_mut(side)?;
        let actions = standby.machine.step(Event::SourceLost);
        if !actions.contains(&Action::TakeOver) {
            self.end_session(side);
            return Some(());
        }
        if protocol.makes(Mutation::AskBeforeTakeover) {
            standby.early_epoch = Some(committed);
        }
        if protocol.makes(Mutation::TakeOverAlone) {
            let epoch = standby.newest()?;
            let generation = standby.stamp;
            return self.taken_over(protocol, side, generation, epoch);
        }
        standby.takeover = Some(TakeOver::Asked);
        Some(())
    }

    /// The takeover reaches the gateway.
    pub(crate) fn asks_for_takeover(
        &mut self,
        protocol: &Protocol,
        side: Side,
        course: Course,
    ) -> Taken {
        let standby = self.standby(side)?;
        if standby.takeover != Some(TakeOver::Asked) {
            return None;
        }
        let request = Request::TakeOver {
            standby: standby.id.clone(),
        };
        let (gateway, mut judge) = self.at_gateway(protocol);
        let outcome = match gateway.ask(request.input(), None, course, &mut judge) {
            Ok((generation, epoch)) => TakeOver::Granted { generation, epoch },
            Err(No::NeverSo) => return None,
            // Asked again.
            Err(No::Silent | No::Full) => return Some(()),
            Err(No::Busy | No::Fenced | No::Refused) => TakeOver::Refused,
        };
        self.standby_mut(side)?.takeover = Some(outcome);
        Some(())
    }

    /// The gateway's word arrives.
    pub(crate) fn hears_of_takeover(&mut self, protocol: &Protocol, side: Side) -> Taken {
        let standby = self.standby_mut(side)?;
        match standby.takeover? {
            TakeOver::Asked => None,
            TakeOver::Refused => {
                let reason = String::new();
                standby.machine.step(Event::TakeoverRefused { reason });
                self.end_session(side);
                Some(())
            }
            TakeOver::Granted { generation, epoch } => {
                // Invariant 6: durable before anything is read for recovery.
                if self.gateway.log.generation < generation {
                    self.broken(Rule::Fencing);
                }
                self.taken_over(protocol, side, generation, epoch)
            }
        }
    }

    fn taken_over(
        &mut self,
        protocol: &Protocol,
        side: Side,
        generation: Generation,
        epoch: Epoch,
    ) -> Taken {
        let standby = self.standby_mut(side)?;
        let epoch = if protocol.makes(Mutation::ResumeFromMerged) {
            standby.machine.merged().unwrap_or(epoch)
        } else {
            standby.early_epoch.unwrap_or(epoch)
        };
        let actions = standby.machine.step(Event::TakenOver { epoch });
        if !actions.contains(&Action::Resume { epoch }) {
            self.end_session(side);
            return Some(());
        }
        standby.merge_up_to(epoch);
        let (id, ram) = (standby.id.clone(), standby.ram);
        self.end_session(side);
        self.becomes_source(protocol, side, id, (generation, epoch), ram);
        Some(())
    }

    /// The standby waits for the next source.
    pub(crate) fn end_session(&mut self, side: Side) -> Taken {
        let standby = self.standby_mut(side)?;
        let session = standby.session;
        standby.reset();
        self.channel_mut(session?)?.standby_open = false;
        Some(())
    }
}

impl StandbyProcess {
    /// The newest epoch of which it holds the memory.
    fn newest(&self) -> Option<Epoch> {
        let verified = self.verified.last_key_value().map(|(epoch, _)| *epoch);
        verified.or(self.machine.merged())
    }
}
