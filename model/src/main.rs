//! The checker on the command line: the table of docs/testing.md, or one run with any bounds.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use model::check::{Findings, Until, check};
use model::mutation::Mutation;
use model::scenarios::{finding, scenarios};
use model::{Bounds, Fault, Protocol};

/// Explores the commit protocol. Without arguments: all runs of the test suite, as a table.
#[derive(Debug, Parser)]
#[command(name = "model")]
struct Arguments {
    /// Make one run, with so many faults.
    #[arg(long)]
    faults: Option<u8>,
    /// Which kinds of faults; all if left out.
    #[arg(long = "kind", value_enum)]
    kinds: Vec<Fault>,
    /// No checkpoint becomes due after so many epochs.
    #[arg(long, default_value_t = 3)]
    epochs: u64,
    /// Steps of the guest.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=10))]
    steps: u8,
    /// Epochs in flight.
    #[arg(long, default_value_t = 2)]
    in_flight: usize,
    /// A host that has taken over looks for a standby.
    #[arg(long)]
    protect_again: bool,
    /// Make this mistake.
    #[arg(long, value_enum)]
    mutation: Option<Mutation>,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Stop after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    match arguments.faults {
        Some(faults) => one_run(arguments, faults),
        None => table(arguments.threads),
    }
}

fn one_run(arguments: Arguments, faults: u8) -> anyhow::Result<ExitCode> {
    let kinds = if arguments.kinds.is_empty() {
        Fault::ALL.to_vec()
    } else {
        arguments.kinds
    };
    let protocol = Protocol {
        bounds: Bounds {
            epochs: arguments.epochs,
            steps: arguments.steps,
            in_flight: arguments.in_flight,
            faults,
            kinds,
            protect_again: arguments.protect_again,
        },
        mutation: arguments.mutation,
    };
    let limit = arguments.seconds.map(Duration::from_secs);
    let findings = check(protocol, Until::Explored, arguments.threads, limit);
    let mut out = std::io::stdout().lock();
    let complete = if findings.complete { "all" } else { "not all" };
    writeln!(
        out,
        "{} states, depth {}, {:.1} s: {complete} within the bounds; reached: {}",
        findings.states,
        findings.depth,
        findings.took.as_secs_f64(),
        findings.reached.join(", ")
    )?;
    for (rule, path) in &findings.broken {
        writeln!(out, "broken: {}", rule.name())?;
        for step in path {
            writeln!(out, "    {step:?}")?;
        }
    }
    Ok(verdict(findings.broken.is_empty()))
}

fn table(threads: usize) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    let mut good = true;
    writeln!(
        out,
        "| run | epochs | steps | in flight | faults | states | depth | time |\n|---|---|---|---|---|---|---|---|"
    )?;
    for scenario in scenarios() {
        let bounds = scenario.bounds.clone();
        let protocol = Protocol {
            bounds: scenario.bounds,
            mutation: None,
        };
        let findings = check(protocol, Until::Explored, threads, None);
        good &= findings.broken.is_empty() && findings.complete;
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            scenario.name,
            bounds.epochs,
            bounds.steps,
            bounds.in_flight,
            bounds.faults,
            size(&findings)
        )?;
    }
    writeln!(
        out,
        "\n| mistake | found by | steps to it | states | depth | time |\n|---|---|---|---|---|---|"
    )?;
    for mutation in Mutation::ALL {
        let (protocol, rule) = finding(mutation);
        let findings = check(protocol, Until::Broken(rule), 1, None);
        let path = findings.broken.iter().find(|(broken, _)| *broken == rule);
        good &= path.is_some();
        let steps = path.map_or("not found".to_owned(), |(_, path)| path.len().to_string());
        let (name, size) = (format!("{mutation:?}"), size(&findings));
        writeln!(out, "| {name} | {} | {steps} | {size} |", rule.name())?;
    }
    Ok(verdict(good))
}

fn size(findings: &Findings) -> String {
    let seconds = findings.took.as_secs_f64();
    format!("{} | {} | {seconds:.2} s", findings.states, findings.depth)
}

fn verdict(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
