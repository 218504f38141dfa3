//! Runs the checker and says what came of it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

use crate::protocol::Step;
use crate::rules::{REACHED, Rule};
use crate::world::{Protocol, World};

/// What came of one run.
#[derive(Debug, Clone)]
pub struct Findings {
    /// States, each counted once.
    pub states: usize,
    /// Length of the longest shortest way to a state.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// Everything within the bounds was explored.
    pub complete: bool,
    /// Rules that are broken, and a shortest way to where they are.
    pub broken: Vec<(Rule, Vec<Step>)>,
    /// What was reached of [`REACHED`].
    pub reached: Vec<&'static str>,
}

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// All is explored.
    Explored,
    /// This rule is broken.
    Broken(Rule),
}

/// Explores everything within the bounds, in breadth, for at most `limit`.
pub fn check(
    protocol: Protocol,
    until: Until,
    threads: usize,
    limit: Option<Duration>,
) -> Findings {
    let began = Instant::now();
    let mut builder = protocol.checker().threads(threads);
    builder = match until {
        Until::Explored => builder.finish_when(HasDiscoveries::All),
        Until::Broken(rule) => {
            builder.finish_when(HasDiscoveries::AnyOf([rule.name()].into_iter().collect()))
        }
    };
    if let Some(limit) = limit {
        builder = builder.timeout(limit);
    }
    let checker = builder.spawn_bfs().join();
    let took = began.elapsed();
    let discoveries = checker.discoveries();
    let broken = Rule::ALL.into_iter().filter_map(|rule| {
        let path = discoveries.get(rule.name())?;
        Some((rule, path.clone().into_actions()))
    });
    let reached = REACHED.into_iter();
    Findings {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        took,
        complete: checker.is_done() && limit.is_none_or(|limit| took < limit),
        broken: broken.collect(),
        reached: reached
            .filter(|name| discoveries.contains_key(name))
            .collect(),
    }
}

/// Whether every run that meets no further fault comes to an end: no state comes back to itself by good steps alone. The
/// rule [`Rule::GoesOn`] looks at the ends only, and needs this.
pub fn good_runs_end(protocol: &Protocol) -> bool {
    let mut search = Search {
        protocol,
        marks: HashMap::new(),
        later: protocol.init_states(),
    };
    while let Some(start) = search.later.pop() {
        let mut path: Vec<Visit> = search.visit(&start).into_iter().collect();
        while let Some(visit) = path.last_mut() {
            let Some(next) = visit.ahead.pop() else {
                search.marks.insert(visit.state, Mark::Done);
                path.pop();
                continue;
            };
            if search.marks.get(&fingerprint(&next)) == Some(&Mark::OnPath) {
                return false;
            }
            path.extend(search.visit(&next));
        }
    }
    true
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// To be looked at later.
    Known,
    /// Good steps lead from here to where the search is.
    OnPath,
    /// All good runs from here end.
    Done,
}

/// A state on the way, and where good steps lead from it.
struct Visit {
    state: u64,
    ahead: Vec<World>,
}

/// A search in depth over good steps, from everything that is reached by any.
struct Search<'a> {
    protocol: &'a Protocol,
    marks: HashMap<u64, Mark>,
    later: Vec<World>,
}

impl Search<'_> {
    /// None if the state has been visited.
    fn visit(&mut self, world: &World) -> Option<Visit> {
        let state = fingerprint(world);
        match self.marks.insert(state, Mark::OnPath) {
            None | Some(Mark::Known) => {}
            Some(before) => {
                self.marks.insert(state, before);
                return None;
            }
        }
        for next in self.protocol.after_other_steps(world) {
            if let Entry::Vacant(unknown) = self.marks.entry(fingerprint(&next)) {
                unknown.insert(Mark::Known);
                self.later.push(next);
            }
        }
        Some(Visit {
            state,
            ahead: self.protocol.after_good_steps(world),
        })
    }
}

fn fingerprint(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}
