//! The cells of the fault matrix, as data: what is done to whom at which instant, and how it may end.
//!
//! A name reads `phase:fault/victim/instant`, as in `running:kill/source-host/source-after-seal`. A rule leaves out what can't be
//! or says nothing; [`left_out`] lists those rules.

use coordinator::failpoints as coordinator_points;
use nbd_server::failpoint as gateway_points;

use crate::lab::layout::Small;
use crate::lab::network::Host;
use crate::lab::{Who, clock, namespaces};

/// What the site is doing when the fault comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    /// The VM is protected, epochs flow.
    Running,
    /// The source's host was killed and its standby takes over.
    TakingOver,
    /// The source's host sleeps and its standby takes over.
    TakingOverFromSleeper,
    /// The first copy of the memory is under way: the VM is not protected yet.
    FirstCopy,
}

/// When the fault comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Instant {
    /// At a random instant.
    Random,
    /// While this part stands at this failpoint.
    At(Who, &'static str),
}

/// Processes that a fault of processes hits together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Victim {
    SourceQemu,
    SourceCoordinator,
    /// QEMU and coordinator.
    SourceHost,
    Gateway,
    StandbyQemu,
    StandbyCoordinator,
    StandbyHost,
    /// The gateway runs on the source's host.
    SourceAndGateway,
    /// The gateway runs on the standby's host.
    StandbyAndGateway,
}

/// A way in which packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Cut {
    /// A host from all others.
    Isolate(Host),
    /// Two hosts from each other.
    Link(Host, Host),
    /// What the first sends to the second.
    OneWay(Host, Host),
}

/// Where a clock goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    Forward,
    Back,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fault {
    /// SIGKILL, as when the machine fails: what a gateway held is gone. What should always run (gateway, standby) is started again.
    Kill(Victim),
    /// SIGKILL of the gateway's process alone, whose next start finds what it held.
    Restart,
    /// SIGSTOP until after the takeover, then SIGCONT.
    Freeze(Victim),
    /// The network of a host goes, then its processes: nobody is told that connections end.
    PowerOff(Host),
    /// Packets are lost for a while.
    Cut(Cut),
    /// Packets are lost until the guest goes on elsewhere.
    CutForGood(Cut),
    /// Storage fails for a while.
    Storage(Small),
    /// The time of day of a part's host steps by an hour.
    Clock(Who, Step),
    /// The sleeping source wakes.
    Wake,
}

/// Where the guest is in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Ending {
    /// It goes on at the standby, from the last committed epoch; the old source is gone or fenced.
    Standby,
    /// It goes on at the source and is protected, still or again.
    Source,
    /// Nobody has its memory; it is started from its disks.
    Down,
}

/// One cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Cell {
    pub phase: Phase,
    pub fault: Fault,
    pub instant: Instant,
}

/// All of them.
pub(super) fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    let mut add = |phase, faults: &[Fault], instants: &[Instant]| {
        for &fault in faults {
            cells.extend(instants.iter().map(|&instant| Cell {
                phase,
                fault,
                instant,
            }));
        }
    };
    let epoch = epoch_instants();
    let running = running_faults();
    add(Phase::Running, &running, &epoch);
    let gateway: Vec<_> = epoch
        .iter()
        .copied()
        .filter(|instant| matches!(instant, Instant::Random | Instant::At(Who::Gateway, _)))
        .collect();
    let storage = [Small::LogFull, Small::ImagesFull, Small::ImagesFail].map(Fault::Storage);
    add(Phase::Running, &storage, &gateway);
    let takeover = takeover_instants();
    add(Phase::TakingOver, &takeover_faults(), &takeover);
    add(Phase::TakingOverFromSleeper, &[Fault::Wake], &takeover);
    let clocks = |parts: &[Who]| -> Vec<Fault> {
        let steps = parts
            .iter()
            .map(|&who| [Step::Forward, Step::Back].map(|s| Fault::Clock(who, s)));
        steps.flatten().collect()
    };
    let all = clocks(&[Who::Source, Who::Standby, Who::Gateway]);
    add(Phase::Running, &all, &[Instant::Random]);
    add(
        Phase::TakingOver,
        &clocks(&[Who::Standby, Who::Gateway]),
        &takeover,
    );
    add(
        Phase::FirstCopy,
        &first_copy_faults(),
        &[
            Instant::At(Who::Source, coordinator_points::FIRST_COPY[0]),
            Instant::At(Who::Standby, coordinator_points::FIRST_COPY[1]),
        ],
    );
    cells
}

fn at(who: Who, points: &'static [&'static str]) -> impl Iterator<Item = Instant> {
    points.iter().map(move |point| Instant::At(who, point))
}

fn epoch_instants() -> Vec<Instant> {
    std::iter::once(Instant::Random)
        .chain(at(Who::Source, coordinator_points::SOURCE))
        .chain(at(Who::Standby, coordinator_points::STANDBY))
        .chain(at(Who::Gateway, gateway_points::EPOCH))
        .collect()
}

fn takeover_instants() -> Vec<Instant> {
    at(Who::Standby, coordinator_points::TAKEOVER)
        .chain(at(Who::Gateway, gateway_points::TAKEOVER))
        .collect()
}

fn running_faults() -> Vec<Fault> {
    use Host::{Source, Standby, Storage};
    let mut faults: Vec<Fault> = Victim::ALL.map(Fault::Kill).to_vec();
    faults.push(Fault::Restart);
    faults.extend(Victim::ALL.map(Fault::Freeze));
    faults.extend(Host::ALL.map(Fault::PowerOff));
    faults.extend(Host::ALL.map(|host| Fault::Cut(Cut::Isolate(host))));
    for (a, b) in [(Source, Standby), (Source, Storage), (Standby, Storage)] {
        faults.extend([Cut::Link(a, b), Cut::OneWay(a, b), Cut::OneWay(b, a)].map(Fault::Cut));
    }
    // Others are answered with a takeover or with going on unprotected long before they pass.
    let from_storage = [
        Cut::Link(Source, Storage),
        Cut::OneWay(Source, Storage),
        Cut::OneWay(Storage, Source),
    ];
    faults.extend(from_storage.map(Fault::CutForGood));
    faults
}

fn takeover_faults() -> Vec<Fault> {
    use Victim::{Gateway, StandbyCoordinator, StandbyHost, StandbyQemu};
    let mut faults = [StandbyQemu, StandbyCoordinator, StandbyHost, Gateway]
        .map(Fault::Kill)
        .to_vec();
    faults.push(Fault::Restart);
    faults.extend([StandbyQemu, StandbyCoordinator, StandbyHost, Gateway].map(Fault::Freeze));
    faults.push(Fault::Cut(Cut::Link(Host::Standby, Host::Storage)));
    faults.push(Fault::Cut(Cut::OneWay(Host::Storage, Host::Standby)));
    faults
}

fn first_copy_faults() -> Vec<Fault> {
    use Victim::{Gateway, SourceHost, SourceQemu, StandbyCoordinator, StandbyHost, StandbyQemu};
    let mut faults = [
        SourceQemu,
        SourceHost,
        Gateway,
        StandbyQemu,
        StandbyCoordinator,
        StandbyHost,
    ]
    .map(Fault::Kill)
    .to_vec();
    faults.push(Fault::Restart);
    faults.extend([SourceHost, Gateway, StandbyCoordinator, StandbyHost].map(Fault::Freeze));
    faults.push(Fault::Cut(Cut::Link(Host::Source, Host::Standby)));
    faults.push(Fault::Cut(Cut::Isolate(Host::Standby)));
    faults
}

/// Which combinations are not there, and why.
pub(super) fn left_out() -> Vec<(&'static str, &'static str)> {
    vec![
        (
            "faults of storage at failpoints of source and standby",
            "they last longer than an epoch; the steps of the storage are the gateway's",
        ),
        (
            "steps of a clock at the failpoints of an epoch",
            "nothing there reads the time of day; at a random instant the guest must not notice, in a takeover neither",
        ),
        (
            "failpoints of a takeover while the VM runs",
            "nobody passes them before a takeover",
        ),
        (
            "faults of the source's host in a takeover, other than waking",
            "the host is dead already",
        ),
        (
            "EIO on the log",
            "needs a block device that fails below a file system that does not; the device mapper, which has one, is missing in many kernels. epoch-log's tests inject the errors of its files instead (epoch-log/src/faults.rs)",
        ),
    ]
}

impl Victim {
    const ALL: [Self; 9] = [
        Self::SourceQemu,
        Self::SourceCoordinator,
        Self::SourceHost,
        Self::Gateway,
        Self::StandbyQemu,
        Self::StandbyCoordinator,
        Self::StandbyHost,
        Self::SourceAndGateway,
        Self::StandbyAndGateway,
    ];

    /// The parts that are hit themselves.
    pub(super) fn parts(self) -> &'static [Who] {
        match self {
            Self::SourceQemu | Self::StandbyQemu => &[],
            Self::SourceCoordinator | Self::SourceHost => &[Who::Source],
            Self::Gateway => &[Who::Gateway],
            Self::StandbyCoordinator | Self::StandbyHost => &[Who::Standby],
            Self::SourceAndGateway => &[Who::Source, Who::Gateway],
            Self::StandbyAndGateway => &[Who::Standby, Who::Gateway],
        }
    }

    /// The part whose QEMU is hit.
    pub(super) fn qemu(self) -> Option<Who> {
        match self {
            Self::SourceQemu | Self::SourceHost | Self::SourceAndGateway => Some(Who::Source),
            Self::StandbyQemu | Self::StandbyHost | Self::StandbyAndGateway => Some(Who::Standby),
            Self::SourceCoordinator | Self::Gateway | Self::StandbyCoordinator => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::SourceQemu => "source-qemu",
            Self::SourceCoordinator => "source-coordinator",
            Self::SourceHost => "source-host",
            Self::Gateway => "gateway",
            Self::StandbyQemu => "standby-qemu",
            Self::StandbyCoordinator => "standby-coordinator",
            Self::StandbyHost => "standby-host",
            Self::SourceAndGateway => "source-host+gateway",
            Self::StandbyAndGateway => "standby-host+gateway",
        }
    }
}

impl Cut {
    fn name(self) -> String {
        match self {
            Self::Isolate(host) => format!("isolate/{}", host_name(host)),
            Self::Link(a, b) => format!("cut/{}-{}", host_name(a), host_name(b)),
            Self::OneWay(a, b) => format!("cut-one-way/{}-to-{}", host_name(a), host_name(b)),
        }
    }
}

fn host_name(host: Host) -> &'static str {
    match host {
        Host::Source => "source",
        Host::Standby => "standby",
        Host::Storage => "storage",
    }
}

impl Fault {
    /// `fault/victim`.
    pub(super) fn name(self) -> String {
        match self {
            Self::Kill(victim) => format!("kill/{}", victim.name()),
            Self::Restart => "restart/gateway".to_owned(),
            Self::Freeze(victim) => format!("freeze/{}", victim.name()),
            Self::PowerOff(host) => format!("power-off/{}", host_name(host)),
            Self::Cut(cut) => cut.name(),
            Self::CutForGood(cut) => format!("lasting-{}", cut.name()),
            Self::Storage(Small::LogFull) => "disk-full/log".to_owned(),
            Self::Storage(Small::ImagesFull) => "disk-full/images".to_owned(),
            Self::Storage(Small::ImagesFail) => "eio/images".to_owned(),
            Self::Clock(who, step) => format!("clock-{step:?}/{who:?}").to_lowercase(),
            Self::Wake => "wake/source-host".to_owned(),
        }
    }
}

impl Cell {
    pub(super) fn name(&self) -> String {
        let instant = match self.instant {
            Instant::Random => "random",
            Instant::At(_, point) => point,
        };
        format!("{}/{instant}", self.row())
    }

    /// The name without the instant.
    pub(super) fn row(&self) -> String {
        let phase = match self.phase {
            Phase::Running => "running",
            Phase::TakingOver => "takeover",
            Phase::TakingOverFromSleeper => "takeover-from-sleeper",
            Phase::FirstCopy => "first-copy",
        };
        format!("{phase}:{}", self.fault.name())
    }

    /// Whether its hosts must be network namespaces.
    pub(super) fn networked(&self) -> bool {
        matches!(
            self.fault,
            Fault::PowerOff(_) | Fault::Cut(_) | Fault::CutForGood(_)
        )
    }

    pub(super) fn small(&self) -> Option<Small> {
        match self.fault {
            Fault::Storage(small) => Some(small),
            _ => None,
        }
    }

    /// Why it can't run on this machine, if it can't.
    pub(super) fn obstacle(&self) -> Option<String> {
        if self.networked() || self.small().is_some() {
            return namespaces::allowed().err();
        }
        match self.fault {
            Fault::Clock(..) => clock::library().err(),
            _ => None,
        }
    }

    /// How it may end. More than one where it is a race that either side may win.
    pub(super) fn endings(&self) -> &'static [Ending] {
        use Ending::{Down, Source, Standby};
        match self.phase {
            Phase::Running => running_endings(self.fault),
            // Nobody has asked the gateway yet: whoever does so first wins.
            Phase::TakingOverFromSleeper
                if self.instant == Instant::At(Who::Standby, coordinator_points::TAKEOVER[0]) =>
            {
                &[Standby, Source]
            }
            Phase::TakingOverFromSleeper => &[Standby],
            Phase::TakingOver => match self.fault {
                Fault::Kill(Victim::Gateway) => &[Standby],
                // Two failures: the memory is gone with the only one that held it.
                Fault::Kill(_) => &[Down],
                _ => &[Standby],
            },
            Phase::FirstCopy => match self.fault {
                Fault::Kill(Victim::SourceQemu | Victim::SourceHost) => &[Down],
                _ => &[Source],
            },
        }
    }
}

fn running_endings(fault: Fault) -> &'static [Ending] {
    use Ending::{Down, Source, Standby};
    use Victim::{
        Gateway, SourceAndGateway, SourceCoordinator, SourceHost, SourceQemu, StandbyAndGateway,
    };
    match fault {
        Fault::Kill(SourceQemu | SourceCoordinator | SourceHost | SourceAndGateway) => &[Standby],
        // With its open epoch gone the guest goes back to the last committed one, at the standby.
        Fault::Kill(Gateway) => &[Standby, Source],
        // Two failures: a guest whose open epoch is gone has nobody who holds its memory.
        Fault::Kill(StandbyAndGateway) => &[Down, Source],
        Fault::Kill(_) => &[Source],
        Fault::Freeze(SourceCoordinator | SourceHost) => &[Standby],
        Fault::Freeze(SourceAndGateway | StandbyAndGateway) => &[Standby, Source],
        Fault::Freeze(_) => &[Source],
        Fault::PowerOff(Host::Source) | Fault::Cut(Cut::Isolate(Host::Source)) => &[Standby],
        Fault::PowerOff(Host::Storage) => &[Standby, Source],
        Fault::PowerOff(Host::Standby) | Fault::Cut(Cut::Isolate(Host::Standby)) => &[Source],
        Fault::Cut(Cut::Isolate(Host::Storage)) => &[Source, Standby],
        // Nobody asks the gateway on the standby's behalf while the source is well.
        Fault::Cut(
            Cut::Link(Host::Standby, Host::Storage)
            | Cut::OneWay(Host::Standby, Host::Storage)
            | Cut::OneWay(Host::Storage, Host::Standby),
        ) => &[Source],
        Fault::Cut(_) => &[Source, Standby],
        Fault::CutForGood(_) => &[Standby],
        Fault::Restart | Fault::Storage(_) | Fault::Clock(..) | Fault::Wake => &[Source],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_cell_has_a_name_of_its_own_and_an_ending() {
        let cells = all();
        let names: HashSet<String> = cells.iter().map(Cell::name).collect();
        assert_eq!(names.len(), cells.len());
        assert!(cells.iter().all(|cell| !cell.endings().is_empty()));
    }

    #[test]
    fn every_failpoint_of_an_epoch_meets_every_victim() {
        let cells = all();
        for point in coordinator_points::SOURCE
            .iter()
            .chain(coordinator_points::STANDBY)
            .chain(gateway_points::EPOCH)
        {
            for victim in Victim::ALL {
                for fault in [Fault::Kill(victim), Fault::Freeze(victim)] {
                    let there = cells.iter().any(|cell| {
                        cell.fault == fault
                            && matches!(cell.instant, Instant::At(_, at) if at == *point)
                    });
                    assert!(there, "{} at {point}", fault.name());
                }
            }
        }
    }
}
