//! `epochgate bench faults`: the fault matrix. Real processes, real faults, at every step of an epoch; the witness judges.
//!
//! A guest boots once; each run starts from that state with a site of its own. What the cells are, [`cells`] says.

mod busy;
mod cells;
mod cost;
mod inject;
mod judge;
mod ledger;
mod plan;
mod record;
mod results;
mod run;
mod table;

use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use indicatif::ProgressBar;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::busy::TooBusy;
use self::cells::Cell;
use self::cost::Meter;
use self::plan::{Plan, Until};
use self::record::Record;
use self::results::Results;
use self::run::Ground;
use crate::bench::output::styled;
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
    let results = Results::open(args.results.as_deref(), args.ledger.as_deref())?;
    let until = match args.runs {
        Some(runs) => Until::Runs(runs.into()),
        None => Until::PerCell(args.per_cell.into()),
    };
    let so_far = can
        .iter()
        .map(|cell| (*cell, results.ledger().runs_of(&cell.name())));
    let plan = Plan::new(so_far, until, seed);
    let work = Work {
        bar: progress(args, plan.left()),
        plan: Mutex::new(plan),
        results: Mutex::new(results),
        build: args.build.clone(),
    };
    // Without any, it is only the table over the runs that there were.
    let outcome = if work.plan().left() > 0 {
        work.on_a_saved_guest(args)
    } else {
        Ok(())
    };
    work.bar.finish_and_clear();
    let missing = work.plan().left_alone();
    let results = work
        .results
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    table::print(&results, args, seed, &can, &cannot);
    match outcome {
        // What is there counts; the rest is for another time.
        Err(error) if !is_interruption(&error) => Err(error),
        // Cells that can't run here are not passed, nor those that said nothing.
        _ if results.bad() == 0 && missing == 0 && cannot.is_empty() => Ok(ExitCode::SUCCESS),
        _ => Ok(ExitCode::FAILURE),
    }
}

/// What the workers share.
struct Work {
    plan: Mutex<Plan>,
    results: Mutex<Results>,
    bar: ProgressBar,
    build: String,
}

impl Work {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Boots the guest, and does all runs.
    fn on_a_saved_guest(&self, args: &FaultsArgs) -> anyhow::Result<()> {
        let state = tempfile::Builder::new().prefix("epochgate-").tempdir()?;
        let state = state.path();
        boot_and_save(&args.lab, &run::layout(state), state)?;
        let outcomes: Vec<anyhow::Result<()>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..args.parallel)
                .map(|number| {
                    scope.spawn(move || {
                        let go = state.join(format!("go-{number}"));
                        self.work(&Ground {
                            lab: &args.lab,
                            saved: state,
                            go: &go,
                            keep: args.keep,
                        })
                    })
                })
                .collect();
            let ended = workers.into_iter().map(|worker| {
                let panicked = |_| Err(anyhow::anyhow!("a worker panicked"));
                worker.join().unwrap_or_else(panicked)
            });
            ended.collect()
        });
        let mut errors: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
        // That the user wanted out says less than what went wrong.
        errors.sort_by_key(is_interruption);
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    fn work(&self, ground: &Ground<'_>) -> anyhow::Result<()> {
        loop {
            let Some((cell, seed)) = self.plan().next() else {
                return Ok(());
            };
            self.bar.set_message(cell.name());
            let began = Instant::now();
            let mut meter = Meter::start();
            let mut rng = StdRng::seed_from_u64(seed);
            let mut record = Record {
                cell: cell.name(),
                build: self.build.clone(),
                seed,
                ..Record::default()
            };
            match run::run(ground, &cell, &mut rng, &mut meter) {
                Ok(outcome) => record.outcome = Some(outcome),
                Err(error) if is_interruption(&error) => return Err(error),
                Err(error) if error.is::<TooBusy>() => record.void = true,
                Err(error) => record.failure = Some(format!("{error:#}")),
            }
            record.ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            record.costs = meter.costs();
            if record.void {
                self.plan().void(&cell);
            } else {
                self.plan().said(&cell);
                self.bar.inc(1);
            }
            let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
            results.add(&record)?;
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

fn list(cells: &[Cell]) {
    for cell in cells {
        let endings: Vec<String> = cell.endings().iter().map(|e| format!("{e:?}")).collect();
        println!("{:<80} {}", cell.name(), endings.join(" or "));
    }
    println!("\n{} cells. Not among them:", cells.len());
    for (what, why) in cells::left_out() {
        println!("- {what}: {why}");
    }
    for (why, count) in table::obstacles(cells) {
        println!("- {count} of the above can't run here: {why}");
    }
}

fn progress(args: &FaultsArgs, runs: u64) -> ProgressBar {
    if args.json || args.markdown {
        return ProgressBar::hidden();
    }
    styled(ProgressBar::new(runs))
}
