//! What is left out, and what may be learnt from then.

use std::collections::BTreeSet;

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::learn::Table;

/// What is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// A load, with all recordings of it.
    Loads,
    /// A kind of fault, with all recordings of it.
    Faults,
}

impl Scheme {
    /// Both.
    pub const ALL: [Scheme; 2] = [Scheme::Loads, Scheme::Faults];
}

/// One turn. Numbers of recordings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    /// What is left out.
    pub name: String,
    /// Learnt from.
    pub train: Vec<usize>,
    /// Judged.
    pub test: Vec<usize>,
}

/// All turns. Each recording is judged once in each scheme.
pub(super) fn folds(table: &Table, scheme: Scheme, seed: u64) -> Vec<Fold> {
    let runs = &table.runs;
    let name_of: Vec<String> = match scheme {
        Scheme::Loads => runs.iter().map(|run| run.load.clone()).collect(),
        Scheme::Faults => {
            let kinds: BTreeSet<&String> =
                runs.iter().filter_map(|run| run.fault.as_ref()).collect();
            let kinds: Vec<&String> = kinds.into_iter().collect();
            // Healthy recordings go to the kinds in turn: what is normal must not have been learnt either.
            let mut healthy: Vec<usize> = (0..runs.len())
                .filter(|at| runs[*at].fault.is_none())
                .collect();
            healthy.sort_by_key(|at| xxh3_64_with_seed(runs[*at].name.as_bytes(), seed));
            let mut names: Vec<String> = runs
                .iter()
                .map(|run| run.fault.clone().unwrap_or_default())
                .collect();
            if kinds.is_empty() {
                return Vec::new();
            }
            for (turn, at) in healthy.into_iter().enumerate() {
                names[at] = kinds[turn % kinds.len()].clone();
            }
            names
        }
    };
    let all: BTreeSet<&String> = name_of.iter().collect();
    let fold = |name: &String| {
        let test: Vec<usize> = (0..runs.len()).filter(|at| name_of[*at] == *name).collect();
        let families: BTreeSet<u64> = test.iter().filter_map(|at| runs[*at].family).collect();
        let is_apart = |at: &usize| {
            let is_part = scheme == Scheme::Loads && runs[*at].also.contains(name);
            name_of[*at] != *name
                && !is_part
                && runs[*at].family.is_none_or(|f| !families.contains(&f))
        };
        Fold {
            name: name.clone(),
            train: (0..runs.len()).filter(is_apart).collect(),
            test,
        }
    };
    all.into_iter().map(fold).collect()
}
