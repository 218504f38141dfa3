//! The plan: which loads and faults are run on which sizes, for so many hours of VM time. The same seed gives the same plan. Starts nothing.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::faults::{FAULTS, Fault};
use crate::loads::{self, Drawn, LOADS, Load};
use crate::spec::{Change, FaultSpec, SIZES, Size, Spec, Way};

/// Of the VM time, the part of runs without a fault.
const HEALTHY_SHARE: f64 = 0.45;

/// Of the runs, those whose application has clients beside the load, also where no fault needs them: clients must not be a sign of faults.
const CLIENTS_SHARE: f64 = 0.45;

/// Every so many-th run is of a VM that Epochgate protects: the others of one that is only watched.
const PROTECTED_EVERY: usize = 4;
/// Milliseconds between its checkpoints, in turn.
const CHECKPOINTS_MS: [u64; 3] = [100, 250, 50];

/// Of the runs, those whose load changes: a VM that begins to work, or has done its work, is not ill.
const CHANGE_SHARE: [f64; 2] = [0.6, 0.3];
/// Seconds without a change after the begin, and before a fault or the end.
const STEADY_S: u64 = 50;
/// Seconds between two changes, at least.
const APART_S: u64 = 35;

/// Runs of so many seconds in all, at least, with every load and every fault in it about equally often.
pub fn plan(seed: u64, seconds: u64) -> Vec<Spec> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut healthy = Deck::new(LOADS.to_vec());
    let mut faults = Deck::new(FAULTS.to_vec());
    // Every fault goes through the loads in an order of its own.
    let mut beside: Vec<Deck<Load>> = FAULTS
        .iter()
        .map(|_| Deck::new(LOADS[1..].to_vec()))
        .collect();
    let mut sizes = Deck::new(SIZES.to_vec());
    let (mut runs, mut well, mut all) = (Vec::new(), 0, 0);
    while all < seconds {
        let behind = well as f64 <= all as f64 * HEALTHY_SHARE;
        let size = sizes.next(&mut random);
        let number = runs.len();
        let spec = if behind {
            spec(number, healthy.next(&mut random), None, size, &mut random)
        } else {
            let fault = faults.next(&mut random);
            let at = FAULTS
                .iter()
                .position(|other| other.name == fault.name)
                .unwrap_or(0);
            let load = beside[at].next(&mut random);
            spec(number, load, Some(fault), size, &mut random)
        };
        well += if spec.fault.is_none() {
            spec.seconds()
        } else {
            0
        };
        all += spec.seconds();
        runs.push(spec);
    }
    runs
}

/// One run with what is random in it drawn.
pub fn spec(
    number: usize,
    load: Load,
    fault: Option<Fault>,
    size: Size,
    random: &mut StdRng,
) -> Spec {
    let mut drawn = load.draw(random, size);
    let has_app = drawn
        .clients
        .iter()
        .any(|client| matches!(client, crate::spec::Client::Get { port: 8080, .. }));
    let wanted =
        fault.is_some_and(|fault| fault.needs_clients) || random.random_bool(CLIENTS_SHARE);
    if wanted && !has_app && load.name != "boot" {
        drawn.clients.push(loads::app_clients(random, 15.0));
    }
    let swap = random.random_bool(0.6) || fault.is_some_and(|fault| fault.needs_swap);
    let (normal_s, faulty_s) = match fault {
        Some(_) => (
            random.random_range(100..=180),
            random.random_range(75..=110),
        ),
        None => (random.random_range(210..=300), 0),
    };
    let kind = fault.map_or("none", |fault| fault.name);
    let mut also: Vec<String> = drawn.parts.iter().map(|part| (*part).to_owned()).collect();
    let way = fault.map(|fault| fault.draw(random, size));
    // A checkpoint waits until the disks have no requests: then neither hangs nor fails the disk as it is to.
    let by_disk = matches!(way, Some(Way::DiskHangs | Way::DiskFails));
    let is_protected = number % PROTECTED_EVERY == PROTECTED_EVERY - 1 && !by_disk;
    let checkpoints_ms = CHECKPOINTS_MS[number / PROTECTED_EVERY % CHECKPOINTS_MS.len()];
    let seed = random.random();
    let changes = changes(load, fault.is_some(), size, normal_s, seed, &mut also);
    Spec {
        id: format!(
            "{number:03}-{}-{kind}-{}x{}",
            load.name, size.cpus, size.memory_mib
        ),
        load: load.name.to_owned(),
        size,
        swap,
        lines: drawn.lines,
        clients: drawn.clients,
        protected_ms: is_protected.then_some(checkpoints_ms),
        fault: way.map(|way| FaultSpec {
            kind: kind.to_owned(),
            way,
        }),
        normal_s,
        faulty_s,
        also,
        changes,
        seed,
    }
}

/// What the load changes to, and when, from a seed of its own.
fn changes(
    load: Load,
    is_faulty: bool,
    size: Size,
    normal_s: u64,
    seed: u64,
    also: &mut Vec<String>,
) -> Vec<Change> {
    let mut random = StdRng::seed_from_u64(!seed);
    let wanted = random.random_bool(CHANGE_SHARE[usize::from(is_faulty)]);
    if !wanted || load.name == "boot" || normal_s < 2 * STEADY_S {
        return Vec::new();
    }
    let at_s = random.random_range(STEADY_S..=normal_s - STEADY_S);
    let mut is_quiet = ["idle", "night"].contains(&load.name);
    let mut all = vec![change(at_s, true, &mut is_quiet, size, &mut random, also)];
    let most = if is_faulty {
        1
    } else {
        random.random_range(1..=3)
    };
    for _ in 1..most {
        let at_s = random.random_range(STEADY_S..=normal_s - STEADY_S);
        if all.iter().all(|other| other.at_s.abs_diff(at_s) >= APART_S) {
            // More than two loads at once may not fit into the memory.
            all.push(change(at_s, false, &mut is_quiet, size, &mut random, also));
        }
    }
    all.sort_by_key(|change| change.at_s);
    all
}

fn change(
    at_s: u64,
    beside: bool,
    is_quiet: &mut bool,
    size: Size,
    random: &mut StdRng,
    also: &mut Vec<String>,
) -> Change {
    let mut drawn = Drawn::default();
    let (ends, begins) = match random.random_range(0..10) {
        _ if *is_quiet => (false, true),
        0..4 => (false, true),
        4..7 => (true, false),
        _ => (true, true),
    };
    let ends = ends || !beside;
    if ends {
        drawn.lines.push(loads::STOP.to_owned());
    }
    if begins {
        let next = loads::light(random);
        let begun = next.draw(random, size);
        drawn.add(next, begun);
    }
    *is_quiet = ends && !begins;
    also.extend(drawn.parts.iter().map(|part| (*part).to_owned()));
    Change {
        at_s,
        lines: drawn.lines,
        clients: drawn.clients,
    }
}

/// Cards that are dealt until there are none, then shuffled and dealt again.
#[derive(Debug)]
struct Deck<T> {
    cards: Vec<T>,
    dealt: usize,
}

impl<T: Copy> Deck<T> {
    fn new(cards: Vec<T>) -> Self {
        let dealt = cards.len();
        Self { cards, dealt }
    }

    fn next(&mut self, random: &mut StdRng) -> T {
        if self.dealt == self.cards.len() {
            self.cards.shuffle(random);
            self.dealt = 0;
        }
        self.dealt += 1;
        self.cards[self.dealt - 1]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::*;

    #[test]
    fn the_plan_is_balanced_and_the_same_for_a_seed() {
        let runs = plan(7, 8 * 3600);
        assert_eq!(runs, plan(7, 8 * 3600));
        assert_ne!(runs, plan(8, 8 * 3600));
        assert!(runs.iter().map(Spec::seconds).sum::<u64>() >= 8 * 3600);
        let ids: HashSet<_> = runs.iter().map(|run| &run.id).collect();
        assert_eq!(ids.len(), runs.len());
        let mut counts: BTreeMap<(bool, &str), usize> = BTreeMap::new();
        let mut sizes: HashSet<(u32, u64)> = HashSet::new();
        for run in &runs {
            let key = match &run.fault {
                Some(fault) => (true, fault.kind.as_str()),
                None => (false, run.load.as_str()),
            };
            *counts.entry(key).or_default() += 1;
            sizes.insert((run.size.cpus, run.size.memory_mib));
            assert!(run.fault.is_none() || run.load != "boot");
        }
        assert_eq!(counts.len(), LOADS.len() + FAULTS.len());
        assert_eq!(sizes.len(), SIZES.len());
        for faulty in [false, true] {
            let of_kind = || {
                counts
                    .iter()
                    .filter(|((is, _), _)| *is == faulty)
                    .map(|(_, count)| *count)
            };
            assert!(of_kind().max().unwrap_or(0) <= of_kind().min().unwrap_or(0) + 1);
        }
        // Each fault meets several loads.
        for fault in &FAULTS {
            let met: HashSet<_> = runs
                .iter()
                .filter(|run| run.fault.as_ref().is_some_and(|f| f.kind == fault.name))
                .map(|run| &run.load)
                .collect();
            assert!(met.len() >= 3, "{} meets {met:?}", fault.name);
        }
    }

    #[test]
    fn a_guest_is_given_no_more_than_it_has() {
        for run in plan(3, 40 * 3600) {
            for line in &run.lines {
                let mib = line.split(' ').find_map(|word| word.strip_prefix("MIB="));
                let memory = line.contains("batch_mem") || line.contains("memstream");
                if let (true, Some(mib)) = (memory, mib) {
                    assert!(
                        mib.parse::<u64>()
                            .is_ok_and(|mib| mib + 80 < run.size.memory_mib),
                        "{line}"
                    );
                }
            }
        }
    }
}
