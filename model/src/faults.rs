//! What goes wrong, and the repairs that need nobody's decision.

use coordinator::commit::Event;
use epoch_log::Mode;

use crate::bounds::Fault;
use crate::channel::Frame;
use crate::gateway::{Course, No};
use crate::host::{Host, Request, Side};
use crate::rules::Rule;
use crate::world::{Protocol, World};

/// None if the step can't be taken now.
type Taken = Option<()>;

impl World {
    /// Takes one fault of this kind off the bound.
    pub(crate) fn spend(&mut self, protocol: &Protocol, fault: Fault) -> Taken {
        if !protocol.bounds.kinds.contains(&fault) {
            return None;
        }
        self.faults_left = self.faults_left.checked_sub(1)?;
        Some(())
    }

    /// Spends what a course other than the good one takes.
    pub(crate) fn spend_course(&mut self, protocol: &Protocol, course: Course) -> Taken {
        match course {
            Course::Good => Some(()),
            Course::Crash(_) => self.spend(protocol, Fault::GatewayCrash),
            Course::Die(_) => self.spend(protocol, Fault::GatewayRestart),
            Course::Full(_) => self.spend(protocol, Fault::LogFull),
        }
    }

    /// The gateway has gone down: what it held was not protected if no standby holds memory.
    pub(crate) fn gateway_is_gone(&mut self) {
        let log = &self.gateway.log;
        if log.mode == (Mode::Async { holder: None }) && log.owner.is_some() {
            self.excused = true;
        }
    }

    pub(crate) fn gateway_dies(&mut self, protocol: &Protocol) -> Taken {
        self.gateway.running.as_ref()?;
        self.spend(protocol, Fault::GatewayRestart)?;
        self.gateway.die();
        Some(())
    }

    /// Also while no process runs: what the last one has left goes as well.
    pub(crate) fn crash_gateway(&mut self, protocol: &Protocol) -> Taken {
        if self.gateway.running.is_none() && self.gateway.remains.is_none() {
            return None;
        }
        self.spend(protocol, Fault::GatewayCrash)?;
        self.gateway.crash();
        self.gateway_is_gone();
        Some(())
    }

    pub(crate) fn restart_gateway(&mut self, protocol: &Protocol, course: Course) -> Taken {
        if self.gateway.running.is_some() {
            return None;
        }
        let (gateway, mut judge) = self.at_gateway(protocol);
        match gateway.restart(course, &mut judge) {
            Err(No::NeverSo) => None,
            _ => Some(()),
        }
    }

    pub(crate) fn crash_host(&mut self, protocol: &Protocol, side: Side) -> Taken {
        if *self.host(side) == Host::Down {
            return None;
        }
        self.spend(protocol, Fault::HostCrash)?;
        self.owner_is_gone(side);
        let under_way = match self.host(side) {
            Host::Source(source) if source.capturing => Some(source.seal()),
            Host::Source(source) => source.requests.front().cloned(),
            Host::Standby(standby) => standby.takeover.map(|_| Request::TakeOver {
                standby: standby.id.clone(),
            }),
            Host::Down => None,
        };
        if protocol.bounds.kinds.contains(&Fault::LateRequest) {
            self.strays.extend(under_way);
        }
        self.close_link(side);
        self.end_session(side);
        *self.host_mut(side) = Host::Down;
        Some(())
    }

    fn owner_is_gone(&mut self, side: Side) {
        let owner = self.source(side).is_some_and(|source| {
            source.vm.is_some() && source.generation == self.gateway.log.generation
        });
        let holder = self.gateway.log.mode.holder();
        let nobody =
            holder.is_none_or(|holder| Some(&holder.standby) == self.gateway.log.owner.as_ref());
        if owner && nobody {
            self.excused = true;
        }
    }

    /// A host that is down comes back, with a standby.
    pub(crate) fn restart_host(&mut self, side: Side) -> Taken {
        if *self.host(side) != Host::Down {
            return None;
        }
        self.start_standby(side);
        Some(())
    }

    pub(crate) fn start_cold(&mut self, protocol: &Protocol, side: Side) -> Taken {
        if *self.host(side) != Host::Down {
            return None;
        }
        self.spend(protocol, Fault::ColdStart)?;
        self.excused = true;
        self.cold_start(protocol, side).then_some(())
    }

    pub(crate) fn vm_dies(&mut self, protocol: &Protocol, side: Side) -> Taken {
        self.source(side)?.vm.as_ref()?;
        self.spend(protocol, Fault::VmDies)?;
        self.owner_is_gone(side);
        self.tell_source(side, Event::VmLost)
    }

    pub(crate) fn break_link(&mut self, protocol: &Protocol, number: u8) -> Taken {
        let channel = self.channel_mut(number)?;
        if channel.broken || !channel.source_open || !channel.standby_open {
            return None;
        }
        channel.broken = true;
        self.spend(protocol, Fault::LinkBreak)
    }

    pub(crate) fn damage(&mut self, protocol: &Protocol, number: u8) -> Taken {
        let frames = &mut self.channel_mut(number)?.to_standby;
        let checkpoint = frames.iter_mut().find_map(|frame| match frame {
            Frame::Checkpoint(checkpoint) if !checkpoint.damaged => Some(checkpoint),
            _ => None,
        })?;
        checkpoint.damaged = true;
        self.spend(protocol, Fault::Damage)
    }

    pub(crate) fn drop_memory(&mut self, protocol: &Protocol, side: Side) -> Taken {
        let standby = self.standby(side)?;
        if standby.takeover.is_some() || standby.session.is_none() {
            return None;
        }
        self.spend(protocol, Fault::StandbyDrop)?;
        self.end_session(side)
    }

    /// The seal or the request in front is asked again; the first copy may still arrive.
    pub(crate) fn repeat_request(&mut self, protocol: &Protocol, side: Side) -> Taken {
        let request = match self.host(side) {
            Host::Source(source) if source.capturing => source.seal(),
            Host::Source(source) if source.answer.is_none() => source.requests.front().cloned()?,
            Host::Standby(standby) => {
                standby.takeover?;
                Request::TakeOver {
                    standby: standby.id.clone(),
                }
            }
            _ => return None,
        };
        if !self.strays.insert(request) {
            return None;
        }
        self.spend(protocol, Fault::LateRequest)
    }

    /// A stray request arrives. Nobody waits for its answer.
    pub(crate) fn stray_arrives(&mut self, protocol: &Protocol, request: &Request) -> Taken {
        if self.gateway.running.is_none() || !self.strays.remove(request) {
            return None;
        }
        let before = self
            .is_given_up(request)
            .then(|| self.gateway.running.clone());
        let (gateway, mut judge) = self.at_gateway(protocol);
        let _ = match request {
            Request::Seal { generation, number } => gateway
                .seal(*generation, *number, Course::Good, &mut judge)
                .map(|_| ()),
            other => gateway
                .ask(other.input(), other.generation(), Course::Good, &mut judge)
                .map(|_| ()),
        };
        if before.is_some_and(|before| before != self.gateway.running) {
            self.broken(Rule::GivenUp);
        }
        Some(())
    }

    /// Whether its source has been told that what it belongs to is over.
    fn is_given_up(&self, request: &Request) -> bool {
        let sent = |side: &Side| {
            let source = self.source(*side)?;
            (request.generation() == Some(source.generation)).then_some(source)
        };
        let source = Side::BOTH.iter().find_map(sent);
        source.is_some_and(|source| request.protection().is_some_and(|it| it <= source.over))
    }

    pub(crate) fn lose_seal_answer(&mut self, protocol: &Protocol, side: Side) -> Taken {
        let source = self.source(side)?;
        let (generation, number) = (source.generation, source.next_seal());
        if !source.capturing {
            return None;
        }
        self.spend(protocol, Fault::SealAnswerLost)?;
        let (gateway, mut judge) = self.at_gateway(protocol);
        gateway
            .seal(generation, number, Course::Good, &mut judge)
            .ok()?;
        self.capture_failed(protocol, side)
    }

    pub(crate) fn delay_seal(&mut self, protocol: &Protocol, side: Side) -> Taken {
        let source = self.source(side)?;
        let seal = source.seal();
        if !source.capturing {
            return None;
        }
        self.spend(protocol, Fault::LateSeal)?;
        self.strays.insert(seal);
        self.capture_failed(protocol, side)
    }
}
