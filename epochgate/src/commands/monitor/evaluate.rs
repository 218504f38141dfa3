//! `epochgate monitor evaluate`.

use std::process::ExitCode;

use monitor::evaluate::{Figures, Report, evaluate, load_heartbeats};
use monitor::learn::Table;
use monitor::recording::DataSet;

use super::train::options;
use crate::cli::monitor::EvaluateArgs;

pub(crate) fn run(args: &EvaluateArgs) -> anyhow::Result<ExitCode> {
    let folder = &args.learn.data_set;
    let table = Table::of(&DataSet::load(folder)?);
    let names = table.runs.iter().map(|run| &run.name);
    let beats: Vec<_> = names.map(|name| load_heartbeats(folder, name)).collect();
    let progress = |done: usize, all: usize| tracing::info!(done, all, "judged");
    let report = evaluate(
        &table,
        &beats,
        options(&args.learn),
        args.threads,
        &progress,
    )?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", text(&report));
    }
    Ok(ExitCode::SUCCESS)
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "{} recordings, {:.1} h of VM time\n\n{:<22} {:<7} {:>13} {:>13} {:>9} {:>9} {:>12} {:>7} {:>7} {:>9}\n",
        report.recordings,
        report.hours,
        "",
        "unseen",
        "F1",
        "AUC",
        "precision",
        "recall",
        "alarms/VM·d",
        "p50 s",
        "p90 s",
        "found",
    );
    for (name, summary) in report.classifiers.iter().chain(&report.baselines) {
        for (scheme, figures) in [
            ("loads", &summary.unseen_loads),
            ("faults", &summary.unseen_faults),
        ] {
            text.push_str(&line(name, scheme, figures));
        }
    }
    text
}

fn line(name: &str, scheme: &str, figures: &Figures) -> String {
    let number =
        |x: Option<f64>, digits: usize| x.map_or("-".to_owned(), |x| format!("{x:.digits$}"));
    let spread = |mean, spread| format!("{} ± {}", number(mean, 3), number(spread, 3));
    let delay = &figures.detection_delay_s;
    format!(
        "{name:<22} {scheme:<7} {:>13} {:>13} {:>9} {:>9} {:>12} {:>7} {:>7} {:>9}\n",
        spread(figures.f1, figures.f1_spread),
        spread(figures.auc, figures.auc_spread),
        number(figures.precision, 3),
        number(figures.recall, 3),
        number(figures.false_alarms_per_vm_day, 1),
        number(delay.p50, 1),
        number(delay.p90, 1),
        format!("{}/{}", delay.found, delay.of),
    )
}
