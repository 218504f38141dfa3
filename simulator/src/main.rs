//! The simulator on the command line: seeds one after another, until one fails.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use simulator::planted::Planted;
use simulator::{Options, run};

/// Runs seeds of the simulator. A seed that fails is printed with the command that replays it; the exit code is then 1.
#[derive(Debug, Parser)]
#[command(name = "simulator")]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    start: u64,
    /// Only this one.
    #[arg(long)]
    seed: Option<u64>,
    /// Print what happens.
    #[arg(long)]
    verbose: bool,
    /// Make this mistake.
    #[arg(long, value_enum)]
    planted: Option<Planted>,
    /// The group keeps history.
    #[arg(long)]
    history: bool,
    /// Do not stop at the first violation.
    #[arg(long)]
    keep_going: bool,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = Options {
        planted: arguments.planted,
        history: arguments.history || arguments.planted.is_some_and(Planted::needs_history),
        verbose: arguments.verbose,
    };
    let (start, count) = match arguments.seed {
        Some(seed) => (seed, 1),
        None => (arguments.start, arguments.seeds),
    };
    let began = Instant::now();
    let mut said = began;
    let (mut done, mut events) = (0_u64, 0);
    let mut violations = Vec::new();
    let (mut faults, mut reached) = (BTreeMap::new(), BTreeMap::new());
    for seed in start..start + count {
        let outcome = run(seed, &options);
        done += 1;
        events += outcome.trace.events;
        add(&mut faults, &outcome.trace.faults);
        add(&mut reached, &outcome.trace.reached);
        if let Some(violation) = outcome.violation {
            let planted = arguments.planted.map_or(String::new(), |planted| {
                use clap::ValueEnum;
                let value = planted.to_possible_value();
                let name = value.map_or(String::new(), |value| value.get_name().to_owned());
                format!(" --planted {name}")
            });
            let history = if arguments.history { " --history" } else { "" };
            println!("seed {seed}: {}", violation.0);
            println!(
                "replay: cargo run -p simulator --release -- --seed {seed} --verbose{planted}{history}"
            );
            violations.push(seed);
            if !arguments.keep_going {
                break;
            }
        }
        if said.elapsed() > Duration::from_secs(20) {
            said = Instant::now();
            eprintln!("{done} of {count} seeds, {events} events");
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let per_seed = seconds * 1000.0 / done as f64;
    if arguments.json {
        let figures = serde_json::json!({
            "seeds": done, "events": events, "faults": faults, "reached": reached,
            "violations": violations, "seconds": seconds, "ms_per_seed": per_seed,
        });
        println!("{figures}");
    } else {
        println!("{done} seeds, {events} events, {seconds:.1} s, {per_seed:.2} ms per seed");
        println!("faults: {faults:?}");
        println!("reached: {reached:?}");
        println!("violations: {}", violations.len());
    }
    if violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn add(all: &mut BTreeMap<&'static str, u64>, some: &BTreeMap<&'static str, u64>) {
    for (name, count) in some {
        *all.entry(name).or_default() += count;
    }
}
