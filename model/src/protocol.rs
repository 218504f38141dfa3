//! The protocol as the checker sees it: which steps there are, and where they lead.

use stateright::{Model, Property};

use crate::bounds::Fault;
use crate::gateway::{Course, No};
use crate::host::{Host, Request, Side};
use crate::rules;
use crate::world::{Protocol, World};

/// Most log operations that one request leads to.
const MOST_OPS: u8 = 3;

/// One small step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The guest computes, writes and sends.
    GuestRuns(Side),
    /// The guest's first write after a takeover is announced.
    GuestWaits(Side),
    /// A checkpoint is due.
    CheckpointDue(Side),
    /// The guest is stopped, the gateway seals.
    Capture(Side, Course),
    /// The gateway is down when it should seal.
    CaptureFails(Side),
    /// The first copy is sent.
    BaseSent(Side),
    /// The source finds a standby.
    Join(Side),
    /// A request of the source reaches the gateway.
    Ask(Side, Course),
    /// The gateway has drained.
    Drained(Side),
    /// An answer reaches the source.
    Answered(Side),
    /// The source learns that it is fenced.
    HearsOfFence(Side),
    /// An acknowledgement reaches the source.
    SourceReceives(Side),
    /// The source finds the channel dead.
    SourceLoses(Side),
    /// A frame reaches the standby.
    StandbyReceives(Side),
    /// The standby finds the channel dead.
    StandbyLoses(Side),
    /// A takeover reaches the gateway.
    AskTakeover(Side, Course),
    /// The answer reaches the standby.
    HearsOfTakeover(Side),
    /// The applier is done.
    Apply,
    /// The gateway goes on by itself.
    Settle(Course),
    /// The gateway starts again.
    RestartGateway(Course),
    /// A host comes back.
    RestartHost(Side),
    /// A stray request reaches the gateway.
    StrayArrives(Request),
    /// The gateway's host dies.
    CrashGateway,
    /// The gateway's process dies.
    GatewayDies,
    /// A host dies.
    CrashHost(Side),
    /// The VM dies.
    VmDies(Side),
    /// A cold start.
    ColdStart(Side),
    /// A channel breaks.
    BreakLink(u8),
    /// A checkpoint is altered.
    Damage(u8),
    /// A standby forgets.
    DropMemory(Side),
    /// A request is asked again.
    Repeat(Side),
    /// The answer to a seal is lost.
    LoseSealAnswer(Side),
    /// A seal is delayed and given up.
    DelaySeal(Side),
}

impl Protocol {
    /// Whether nothing more happens without a fault or a repair.
    pub fn is_at_rest(&self, world: &World) -> bool {
        let mut steps = Vec::new();
        self.good_steps(world, &mut steps);
        steps
            .into_iter()
            .all(|step| self.next_state(world, step).is_none())
    }

    /// Where the steps lead that need no fault and no repair.
    pub fn after_good_steps(&self, world: &World) -> Vec<World> {
        let mut steps = Vec::new();
        self.good_steps(world, &mut steps);
        self.after(world, steps)
    }

    /// Where faults, repairs and stray requests lead.
    pub fn after_other_steps(&self, world: &World) -> Vec<World> {
        let mut steps = Vec::new();
        self.other_steps(world, &mut steps);
        self.after(world, steps)
    }

    fn after(&self, world: &World, steps: Vec<Step>) -> Vec<World> {
        steps
            .into_iter()
            .filter_map(|step| self.next_state(world, step))
            .collect()
    }

    fn good_steps(&self, world: &World, steps: &mut Vec<Step>) {
        for side in Side::BOTH {
            match world.host(side) {
                Host::Down => {}
                Host::Source(source) => {
                    steps.extend([Step::GuestRuns(side), Step::GuestWaits(side)]);
                    steps.push(Step::CheckpointDue(side));
                    if source.capturing {
                        steps.push(Step::Capture(side, Course::Good));
                        if world.gateway.running.is_none() {
                            steps.push(Step::CaptureFails(side));
                        }
                    }
                    if source.copying.is_some() {
                        steps.push(Step::BaseSent(side));
                    }
                    if source.seeking {
                        steps.push(Step::Join(side));
                    }
                    if source.answer.is_some() {
                        steps.push(Step::Answered(side));
                    } else if !source.requests.is_empty() {
                        steps.extend([Step::Ask(side, Course::Good), Step::Drained(side)]);
                    }
                    steps.push(Step::HearsOfFence(side));
                    if source.link.is_some() {
                        steps.extend([Step::SourceReceives(side), Step::SourceLoses(side)]);
                    }
                }
                Host::Standby(standby) => {
                    if standby.session.is_some() {
                        steps.extend([Step::StandbyReceives(side), Step::StandbyLoses(side)]);
                    }
                    if standby.takeover.is_some() {
                        steps.push(Step::AskTakeover(side, Course::Good));
                        steps.push(Step::HearsOfTakeover(side));
                    }
                }
            }
        }
        if world.gateway.running.is_some() {
            steps.extend([Step::Apply, Step::Settle(Course::Good)]);
        } else {
            steps.push(Step::RestartGateway(Course::Good));
        }
    }

    fn other_steps(&self, world: &World, steps: &mut Vec<Step>) {
        for side in Side::BOTH {
            if *world.host(side) == Host::Down {
                steps.push(Step::RestartHost(side));
            }
        }
        steps.extend(world.strays.iter().cloned().map(Step::StrayArrives));
        if world.faults_left > 0 {
            self.faulty_steps(world, steps);
        }
    }

    fn faulty_steps(&self, world: &World, steps: &mut Vec<Step>) {
        for course in self.bad_courses() {
            for side in Side::BOTH {
                match world.host(side) {
                    Host::Source(source) => {
                        if source.capturing {
                            steps.push(Step::Capture(side, course));
                        }
                        if !source.requests.is_empty() {
                            steps.push(Step::Ask(side, course));
                        }
                    }
                    Host::Standby(standby) if standby.takeover.is_some() => {
                        steps.push(Step::AskTakeover(side, course));
                    }
                    _ => {}
                }
            }
            if world.gateway.running.is_some() {
                steps.push(Step::Settle(course));
            } else if matches!(course, Course::Crash(_) | Course::Die(_)) {
                steps.push(Step::RestartGateway(course));
            }
        }
        steps.extend([Step::CrashGateway, Step::GatewayDies]);
        for side in Side::BOTH {
            steps.extend([
                Step::CrashHost(side),
                Step::VmDies(side),
                Step::ColdStart(side),
                Step::DropMemory(side),
                Step::Repeat(side),
                Step::LoseSealAnswer(side),
                Step::DelaySeal(side),
            ]);
        }
        for channel in &world.channels {
            steps.extend([
                Step::BreakLink(channel.number),
                Step::Damage(channel.number),
            ]);
        }
    }

    fn bad_courses(&self) -> Vec<Course> {
        let kinds = &self.bounds.kinds;
        let mut courses = Vec::new();
        if kinds.contains(&Fault::GatewayCrash) {
            courses.extend((1..=MOST_OPS).map(Course::Crash));
        }
        if kinds.contains(&Fault::GatewayRestart) {
            courses.extend((0..=MOST_OPS).map(Course::Die));
        }
        if kinds.contains(&Fault::LogFull) {
            courses.extend((0..MOST_OPS).map(Course::Full));
        }
        courses
    }

    fn take(&self, world: &mut World, step: Step) -> Option<()> {
        match step {
            Step::GuestRuns(side) => world.run_guest(self, side),
            Step::GuestWaits(side) => world.guest_waits(self, side),
            Step::CheckpointDue(side) => world.checkpoint_due(self, side),
            Step::Capture(side, course) => {
                world.spend_course(self, course)?;
                world.capture(self, side, course)
            }
            Step::CaptureFails(side) => world.capture_failed(self, side),
            Step::BaseSent(side) => world.base_sent(side),
            Step::Join(side) => world.join(self, side),
            Step::Ask(side, course) => {
                world.spend_course(self, course)?;
                world.ask(self, side, course)
            }
            Step::Drained(side) => world.drained(self, side),
            Step::Answered(side) => world.answered(side),
            Step::HearsOfFence(side) => world.hears_of_fence(side),
            Step::SourceReceives(side) => world.source_receives(self, side),
            Step::SourceLoses(side) => world.source_loses(self, side),
            Step::StandbyReceives(side) => world.standby_receives(self, side),
            Step::StandbyLoses(side) => world.standby_loses(self, side),
            Step::AskTakeover(side, course) => {
                world.spend_course(self, course)?;
                world.asks_for_takeover(self, side, course)
            }
            Step::HearsOfTakeover(side) => world.hears_of_takeover(self, side),
            Step::Apply => {
                let (gateway, mut judge) = world.at_gateway(self);
                gateway.apply(&mut judge);
                Some(())
            }
            Step::Settle(course) => {
                world.spend_course(self, course)?;
                let (gateway, mut judge) = world.at_gateway(self);
                match gateway.settle(course, &mut judge) {
                    Err(No::NeverSo) => None,
                    _ => Some(()),
                }
            }
            Step::RestartGateway(course) => {
                world.spend_course(self, course)?;
                world.restart_gateway(self, course)
            }
            Step::RestartHost(side) => world.restart_host(side),
            Step::StrayArrives(request) => world.stray_arrives(self, &request),
            Step::CrashGateway => world.crash_gateway(self),
            Step::GatewayDies => world.gateway_dies(self),
            Step::CrashHost(side) => world.crash_host(self, side),
            Step::VmDies(side) => world.vm_dies(self, side),
            Step::ColdStart(side) => world.start_cold(self, side),
            Step::BreakLink(number) => world.break_link(self, number),
            Step::Damage(number) => world.damage(self, number),
            Step::DropMemory(side) => world.drop_memory(self, side),
            Step::Repeat(side) => world.repeat_request(self, side),
            Step::LoseSealAnswer(side) => world.lose_seal_answer(self, side),
            Step::DelaySeal(side) => world.delay_seal(self, side),
        }
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::start(self)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.verdict.is_some() {
            return;
        }
        self.good_steps(world, steps);
        self.other_steps(world, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        let was_running = next.gateway.running.is_some();
        self.take(&mut next, step)?;
        let forgotten = next.gateway.running.is_none() && next.gateway.remains.is_none();
        if was_running && forgotten {
            next.gateway_is_gone();
        }
        next.tidy();
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        rules::properties()
    }
}
