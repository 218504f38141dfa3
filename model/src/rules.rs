//! The invariants of the protocol (docs/architecture.md), as the checker tests them.
//!
//! Some are broken by a state, some by a step; a step that breaks one leaves its verdict in the state.

use coordinator::standby::Standby;
use nbd_server::Epoch;
use nbd_server::group::barriers::{Gate, Phase};
use stateright::Property;

use crate::channel::Ram;
use crate::host::Side;
use crate::world::{Protocol, World};

/// An invariant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// 2: image and merged RAM show nothing that is not committed.
    NothingEarly,
    /// 3: committed is what the log says, for everybody.
    OneCommitPoint,
    /// 4: the standby holds N before record N; a record without a standby is written only when the log names none.
    HeldFirst,
    /// 5: what was held of the output leaves only when a recovery would come to it.
    OutputCommit,
    /// 6: an older generation does nothing; the new one is durable first.
    Fencing,
    /// 1 and 7: the owner's guest and its disk belong together, and it remembers all that the outside world has seen.
    Recovery,
    /// A seal or drain of a protection that is over changes nothing, however late it comes.
    GivenUp,
    /// After a single failure the VM goes on, and nothing stays half done.
    GoesOn,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::NothingEarly,
        Self::OneCommitPoint,
        Self::HeldFirst,
        Self::OutputCommit,
        Self::Fencing,
        Self::Recovery,
        Self::GivenUp,
        Self::GoesOn,
    ];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::NothingEarly => "2 nothing early",
            Self::OneCommitPoint => "3 one commit point",
            Self::HeldFirst => "4 held first",
            Self::OutputCommit => "5 output commit",
            Self::Fencing => "6 fencing",
            Self::Recovery => "7 recovery",
            Self::GivenUp => "given up is given up",
            Self::GoesOn => "the VM goes on",
        }
    }
}

/// Things that must be possible, or the rules above say nothing.
pub const REACHED: [&str; 5] = [
    "protected",
    "taken over",
    "back in sync mode",
    "protected again after a loss",
    "taken over twice",
];

/// What is tested on every state.
pub fn properties() -> Vec<Property<Protocol>> {
    let [protected, taken_over, drained, again, twice] = REACHED;
    vec![
        Property::always(Rule::NothingEarly.name(), |_, world| {
            holds(world, Rule::NothingEarly, nothing_early)
        }),
        Property::always(Rule::OneCommitPoint.name(), |_, world| {
            holds(world, Rule::OneCommitPoint, one_commit_point)
        }),
        Property::always(Rule::HeldFirst.name(), |_, world| {
            holds(world, Rule::HeldFirst, |_| true)
        }),
        Property::always(Rule::OutputCommit.name(), |_, world| {
            holds(world, Rule::OutputCommit, output_commit)
        }),
        Property::always(Rule::Fencing.name(), |_, world| {
            holds(world, Rule::Fencing, fencing)
        }),
        Property::always(Rule::Recovery.name(), |_, world| {
            holds(world, Rule::Recovery, recovery)
        }),
        Property::always(Rule::GivenUp.name(), |_, world| {
            holds(world, Rule::GivenUp, |_| true)
        }),
        Property::always(Rule::GoesOn.name(), goes_on),
        Property::sometimes(protected, |_, world: &World| {
            world.gateway.log.mode.holder().is_some()
        }),
        Property::sometimes(taken_over, |_, world: &World| has_run(world, 1)),
        Property::sometimes(drained, |_, world: &World| {
            world.gateway.log.committed > Epoch(0)
                && world.gateway.log.mode == epoch_log::Mode::Sync
        }),
        Property::sometimes(again, |_, world: &World| {
            world.next.channel > 1 && world.gateway.log.mode.holder().is_some()
        }),
        Property::sometimes(twice, |_, world: &World| has_run(world, 2)),
    ]
}

fn has_run(world: &World, run: u8) -> bool {
    Side::BOTH.iter().any(|side| {
        let vm = world.source(*side).and_then(|source| source.vm.as_ref());
        vm.is_some_and(|vm| vm.run == run)
    })
}

fn holds(world: &World, rule: Rule, state: fn(&World) -> bool) -> bool {
    world.verdict != Some(rule) && state(world)
}

fn nothing_early(world: &World) -> bool {
    let durable = world.gateway.durable;
    let image = world.gateway.image.begins(durable);
    let merged = Side::BOTH.iter().all(|side| match world.standby(*side) {
        Some(standby) if standby.stamp == world.gateway.log.generation => match standby.ram {
            Ram::At(memory) => memory.begins(durable),
            Ram::Empty | Ram::Base(_) => true,
            Ram::Garbage => false,
        },
        _ => true,
    });
    image && merged
}

fn one_commit_point(world: &World) -> bool {
    let committed = world.gateway.log.committed;
    let gateway = world
        .gateway
        .running
        .as_ref()
        .is_none_or(|running| running.barriers.committed() == committed);
    let sides = Side::BOTH.iter().all(|side| {
        let source = world.source(*side);
        let source = source.and_then(|source| source.machine.committed());
        let standby = world.standby(*side);
        let standby = standby.and_then(|standby| Standby::merged(&standby.machine));
        source <= Some(committed) && standby <= Some(committed)
    });
    gateway && sides
}

fn output_commit(world: &World) -> bool {
    let recovers = world.gateway.log.mode.holder().is_some();
    !recovers
        || world
            .seen
            .iter()
            .all(|seen| seen.begins(world.gateway.durable))
}

fn fencing(world: &World) -> bool {
    let durable = world
        .gateway
        .running
        .as_ref()
        .is_none_or(|running| running.barriers.generation() == world.gateway.log.generation);
    let apart = match (world.source(Side::A), world.source(Side::B)) {
        (Some(a), Some(b)) => a.generation != b.generation,
        _ => true,
    };
    durable && apart
}

fn recovery(world: &World) -> bool {
    let Some(running) = &world.gateway.running else {
        return true;
    };
    Side::BOTH.iter().all(|side| {
        let Some(source) = world.source(*side) else {
            return true;
        };
        let owner = source.generation == running.barriers.generation()
            && running.barriers.owner() == Some(&source.id);
        match &source.vm {
            Some(vm) if owner => {
                vm.memory == world.gateway.view()
                    && world.seen.iter().all(|seen| seen.begins(vm.memory))
            }
            _ => true,
        }
    })
}

/// Where nothing more happens by itself, the VM runs and nothing waits. As every run without further faults comes to such
/// a state (steps, epochs and faults are bounded, and what is tried again without end changes nothing), this is liveness
/// under fairness.
fn goes_on(protocol: &Protocol, world: &World) -> bool {
    let faults = protocol.bounds.faults - world.faults_left;
    if faults > 1 || world.excused || world.verdict.is_some() || is_going_on(world) {
        return true;
    }
    !protocol.is_at_rest(world)
}

fn is_going_on(world: &World) -> bool {
    let Some(running) = &world.gateway.running else {
        return false;
    };
    let writable = matches!(running.barriers.gate(), Gate::Through | Gate::Held(_))
        || matches!(running.barriers.phase(), Phase::Dormant { .. });
    writable
        && Side::BOTH.iter().any(|side| {
            world.source(*side).is_some_and(|source| {
                source.vm.is_some()
                    && source.generation == running.barriers.generation()
                    && running.barriers.owner() == Some(&source.id)
                    && source.is_settled()
            })
        })
}
