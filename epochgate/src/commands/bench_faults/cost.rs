//! Where the time of a run goes: phase by phase, how long it took and how much of the machine it used meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::inject;
use crate::bench::proc::cpu_of;
use crate::lab::{Site, Who};

/// What one phase cost, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Phase {
    name: String,
    wall: u64,
    /// CPU time of the site's processes and of the thread that drives them. Of a process that is killed, what it used since the
    /// phase before is missing.
    cpu: u64,
}

/// The phases of a run, and the CPU time of each part, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Costs {
    phases: Vec<Phase>,
    parts: BTreeMap<String, u64>,
}

impl Costs {
    fn add(&mut self, other: &Self) {
        for phase in &other.phases {
            match self.phases.iter_mut().find(|sum| sum.name == phase.name) {
                Some(sum) => {
                    sum.wall += phase.wall;
                    sum.cpu += phase.cpu;
                }
                None => self.phases.push(phase.clone()),
            }
        }
        for (part, ms) in &other.parts {
            *self.parts.entry(part.clone()).or_default() += ms;
        }
    }
}

/// Notes the costs of one run.
#[derive(Debug)]
pub(super) struct Meter {
    since: Instant,
    driver: u64,
    /// Of each process that was ever seen, its CPU time at the end of the last phase.
    known: HashMap<u32, u64>,
    costs: Costs,
}

impl Meter {
    pub(super) fn start() -> Self {
        Self {
            since: Instant::now(),
            driver: own_cpu_ms(),
            known: HashMap::new(),
            costs: Costs::default(),
        }
    }

    /// The end of a phase.
    pub(super) fn ends(&mut self, phase: &str, site: &mut Site) {
        let mut used = Vec::new();
        for (name, pid) in processes(site) {
            if let Some(now) = cpu_of(pid).map(millis) {
                let before = self.known.insert(pid, now).unwrap_or(0);
                used.push((name, now.saturating_sub(before)));
            }
        }
        self.note(phase, used);
    }

    /// The end of the last phase, and of all processes.
    pub(super) fn over(&mut self, phase: &str) {
        self.note(phase, Vec::new());
    }

    fn note(&mut self, phase: &str, mut used: Vec<(&str, u64)>) {
        let wall = millis(self.since.elapsed());
        self.since = Instant::now();
        let driver = own_cpu_ms();
        used.push(("lab", driver.saturating_sub(self.driver)));
        self.driver = driver;
        let cpu = used.iter().map(|(_, ms)| ms).sum();
        let parts = used.into_iter().map(|(name, ms)| (name.to_owned(), ms));
        let name = phase.to_owned();
        self.costs.add(&Costs {
            phases: vec![Phase { name, wall, cpu }],
            parts: parts.collect(),
        });
    }

    pub(super) fn costs(self) -> Costs {
        self.costs
    }
}

fn processes(site: &mut Site) -> Vec<(&'static str, u32)> {
    let mut found = Vec::new();
    for (who, name, qemu) in [
        (Who::Gateway, "gateway", ""),
        (Who::Source, "source", "source's QEMU"),
        (Who::Standby, "standby", "standby's QEMU"),
    ] {
        found.extend(site.part(who).map(|part| (name, part.pid())));
        found.extend(inject::qemu(site, who).map(|pid| (qemu, pid)));
    }
    found
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// CPU time of this thread.
fn own_cpu_ms() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec * 1000 + time.tv_nsec / 1_000_000).unwrap_or(0)
}

/// The mean over many runs.
#[derive(Debug, Default)]
pub(super) struct Mean {
    runs: u64,
    sum: Costs,
}

impl Mean {
    pub(super) fn add(&mut self, costs: &Costs) {
        self.runs += 1;
        self.sum.add(costs);
    }

    pub(super) fn per_run(&self) -> Costs {
        let runs = self.runs.max(1);
        let phases = self.sum.phases.iter().map(|phase| Phase {
            name: phase.name.clone(),
            wall: phase.wall / runs,
            cpu: phase.cpu / runs,
        });
        let parts = self.sum.parts.iter();
        Costs {
            phases: phases.collect(),
            parts: parts.map(|(part, ms)| (part.clone(), ms / runs)).collect(),
        }
    }
}

impl std::fmt::Display for Costs {
    /// Two lines: each phase as `name wall/cpu`, and the CPU time of each part.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |items: Vec<String>| items.join(", ");
        let phases = self.phases.iter();
        let phases = phases.map(|p| format!("{} {}/{}", p.name, p.wall, p.cpu));
        let parts = self.parts.iter().map(|(part, ms)| format!("{part} {ms}"));
        writeln!(
            f,
            "ms a run, and of CPU time: {}; in all {}/{}",
            list(phases.collect()),
            self.phases.iter().map(|phase| phase.wall).sum::<u64>(),
            self.phases.iter().map(|phase| phase.cpu).sum::<u64>()
        )?;
        write!(f, "CPU ms a run: {}", list(parts.collect()))
    }
}
