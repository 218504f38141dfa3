//! `epochgate bench faults`: the fault matrix. Real processes, real faults, at every step of an epoch; the witness judges.
//!
//! A guest boots once; each run starts from that state with a site of its own. What the cells are, [`cells`] says.

mod cells;
mod inject;
mod judge;
mod results;
mod run;

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use self::cells::Cell;
use self::results::{Record, Results};
use self::run::{Ground, TooBusy};
use crate::cli::bench::FaultsArgs;
use crate::exit::Usage;
use crate::lab::saved::boot_and_save;
use crate::lab::site::is_interruption;

pub(crate) fn run(args: &FaultsArgs) -> anyhow::Result<ExitCode> {
    let chosen = chosen(&args.cell)?;
    if args.list {
        list(&chosen);
        return Ok(ExitCode::SUCCESS);
    }
    crate::runtime::interrupt_on_signals()?;
    let (can, cannot): (Vec<Cell>, Vec<Cell>) = chosen
        .into_iter()
        .partition(|cell| cell.obstacle().is_none());
    let seed = args.seed.unwrap_or_else(|| rand::rng().random());
    let results = Results::open(args.results.as_deref())?;
    let runs = match (args.runs, args.per_cell) {
        (Some(runs), _) => runs as usize,
        (None, per_cell) => per_cell as usize * can.len(),
    };
    let todo = plan(&can, &results, runs, args, seed);
    if todo.is_empty() {
        // Only the table over the runs that there were.
        results.print(args, seed, &cannot);
        return Ok(verdict(&results, &cannot));
    }
    let work = Work {
        todo: Mutex::new(todo),
        results: Mutex::new(results),
        bar: progress(args, runs),
    };
    let state = tempfile::Builder::new().prefix("epochgate-").tempdir()?;
    boot_and_save(&args.lab, &run::layout(state.path()), state.path())?;
    let outcomes: Vec<anyhow::Result<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.parallel)
            .map(|number| {
                let (work, state) = (&work, state.path());
                scope.spawn(move || {
                    let go = state.join(format!("go-{number}"));
                    let ground = Ground {
                        lab: &args.lab,
                        saved: state,
                        go: &go,
                        keep: args.keep,
                    };
                    work.work(&ground)
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("a worker panicked")))
            })
            .collect()
    });
    work.bar.finish_and_clear();
    let results = work
        .results
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    results.print(args, seed, &cannot);
    for outcome in outcomes {
        if let Err(error) = outcome
            && !is_interruption(&error)
        {
            return Err(error);
        }
    }
    Ok(verdict(&results, &cannot))
}

/// Cells that can't run here are not passed.
fn verdict(results: &Results, cannot: &[Cell]) -> ExitCode {
    if results.all_good() && cannot.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What the workers share.
struct Work {
    todo: Mutex<Vec<(Cell, u64)>>,
    results: Mutex<Results>,
    bar: ProgressBar,
}

impl Work {
    fn work(&self, ground: &Ground<'_>) -> anyhow::Result<()> {
        loop {
            let next = self
                .todo
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            let Some((cell, seed)) = next else {
                return Ok(());
            };
            self.bar.set_message(cell.name());
            let began = Instant::now();
            let mut rng = StdRng::seed_from_u64(seed);
            let (outcome, failure) = match run::run(ground, &cell, &mut rng) {
                Ok(outcome) => (Some(outcome), None),
                Err(error) if is_interruption(&error) => return Err(error),
                Err(error) if error.is::<TooBusy>() => {
                    let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
                    results.void(&cell.name());
                    self.bar.inc(1);
                    continue;
                }
                Err(error) => (None, Some(format!("{error:#}"))),
            };
            let record = Record {
                cell: cell.name(),
                row: cell.row(),
                seed,
                ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                outcome,
                failure,
            };
            self.results
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .add(record)?;
            self.bar.inc(1);
        }
    }
}

/// Cells whose names have all words of one of the patterns; all without a pattern.
fn chosen(patterns: &[String]) -> anyhow::Result<Vec<Cell>> {
    let cells = cells::all();
    if patterns.is_empty() {
        return Ok(cells);
    }
    let mut chosen = Vec::new();
    for pattern in patterns {
        let before = chosen.len();
        chosen.extend(cells.iter().copied().filter(|cell| {
            let name = cell.name();
            pattern.split('*').all(|word| name.contains(word))
        }));
        if chosen.len() == before {
            return Err(Usage(format!(
                "no cell is called `{pattern}`; `epochgate bench faults --list` names them all"
            ))
            .into());
        }
    }
    let mut seen = std::collections::HashSet::new();
    chosen.retain(|cell| seen.insert(*cell));
    Ok(chosen)
}

/// The runs in the order from last to first: cells that have had the fewest come first, at random among equals.
fn plan(
    cells: &[Cell],
    results: &Results,
    runs: usize,
    args: &FaultsArgs,
    seed: u64,
) -> Vec<(Cell, u64)> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut queue: Vec<(u64, Cell)> = cells
        .iter()
        .map(|cell| (results.runs_of(&cell.name()), *cell))
        .collect();
    queue.shuffle(&mut rng);
    let mut plan = Vec::new();
    while plan.len() < runs && !queue.is_empty() {
        queue.sort_by_key(|(count, _)| *count);
        if args.runs.is_none() && queue[0].0 >= u64::from(args.per_cell) {
            break;
        }
        let least = queue[0].0;
        for (count, cell) in queue.iter_mut().take_while(|(count, _)| *count == least) {
            if plan.len() < runs {
                plan.push((*cell, rng.random()));
                *count += 1;
            }
        }
    }
    plan.reverse();
    plan
}

fn list(cells: &[Cell]) {
    for cell in cells {
        let endings: Vec<String> = cell.endings().iter().map(|e| format!("{e:?}")).collect();
        println!("{:<80} {}", cell.name(), endings.join(" or "));
    }
    println!("\n{} cells. Not among them:", cells.len());
    for (what, why) in cells::left_out() {
        println!("- {what}: {why}");
    }
    for (why, count) in results::obstacles(cells) {
        println!("- {count} of the above can't run here: {why}");
    }
}

fn progress(args: &FaultsArgs, runs: usize) -> ProgressBar {
    if args.json || args.markdown {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(runs as u64);
    match ProgressStyle::with_template("{pos}/{len} {wide_bar} {msg} (about {eta} to go)") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
