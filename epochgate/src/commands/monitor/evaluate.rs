//! `epochgate monitor evaluate`.

use std::process::ExitCode;

use monitor::evaluate::{Figures, Report, Rival, evaluate, load_heartbeats};
use monitor::learn::Table;
use monitor::recording::DataSet;

use super::plots;
use super::train::options;
use crate::cli::monitor::EvaluateArgs;

pub(crate) fn run(args: &EvaluateArgs) -> anyhow::Result<ExitCode> {
    let folder = &args.learn.data_set;
    let table = Table::of(&DataSet::load(folder)?);
    let names = table.runs.iter().map(|run| &run.name);
    let beats: Vec<_> = names.map(|name| load_heartbeats(folder, name)).collect();
    let progress = |done: usize, all: usize| tracing::info!(done, all, "judged");
    let options = options(&args.learn);
    let rivals = match args.alone {
        true => vec![Rival::Model(options.method)],
        false => Rival::all(options.method, beats.iter().any(Option::is_some)),
    };
    let report = evaluate(&table, &beats, options, &rivals, args.threads, &progress)?;
    if let Some(folder) = &args.plots {
        plots::draw(folder, &report)?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", text(&report));
    }
    Ok(ExitCode::SUCCESS)
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "{} recordings, {:.1} h of VM time\n\n{:<22} {:<7} {:>13} {:>13} {:>9} {:>9} {:>12} {:>13} {:>7} {:>7} {:>9} {:>9}\n",
        report.recordings,
        report.hours,
        "",
        "unseen",
        "F1",
        "AUC",
        "precision",
        "recall",
        "alarms/VM·d",
        "actions/VM·d",
        "p50 s",
        "p90 s",
        "found",
        "acted on",
    );
    for (name, summary) in report.classifiers.iter().chain(&report.baselines) {
        for (scheme, figures) in [
            ("loads", &summary.unseen_loads),
            ("faults", &summary.unseen_faults),
        ] {
            text.push_str(&line(name, scheme, figures));
        }
    }
    text.push_str(&kinds(report));
    text.push_str(&loads(report));
    text
}

/// What the main model makes of each kind of fault, under loads that it has never seen, and when the kind itself was never seen.
fn kinds(report: &Report) -> String {
    let mut text = format!(
        "\n{:<26} {:>9} {:>7} {:>13} {:>12} {:>12} {:>10}\n",
        format!("{}, by fault", report.method),
        "found",
        "p50 s",
        "named rightly",
        "unseen: F1",
        "found",
        "p50 s",
    );
    for (name, of) in &report.kinds {
        let share = of.named_rightly.map(|share| share * 100.0);
        let named = share.map_or("-".to_owned(), |share| format!("{share:.0} %"));
        text.push_str(&format!(
            "{name:<26} {:>9} {:>7} {named:>13} {:>12} {:>12} {:>10}\n",
            format!("{}/{}", of.found, of.of),
            number(of.p50, 1),
            number(of.unseen.f1, 3),
            format!("{}/{}", of.unseen.found, of.unseen.of),
            number(of.unseen.p50, 1),
        ));
    }
    text
}

/// What it makes of each load that it has never seen.
fn loads(report: &Report) -> String {
    let mut text = format!(
        "\n{:<26} {:>9} {:>13} {:>10} {:>9} {:>7}\n",
        format!("{}, by unseen load", report.method),
        "F1",
        "false alarms",
        "healthy h",
        "found",
        "p50 s",
    );
    for (name, of) in &report.loads {
        text.push_str(&format!(
            "{name:<26} {:>9} {:>13} {:>10.2} {:>9} {:>7}\n",
            number(of.f1, 3),
            of.false_alarms,
            of.normal_vm_hours,
            format!("{}/{}", of.found, of.of),
            number(of.p50, 1),
        ));
    }
    text
}

fn number(x: Option<f64>, digits: usize) -> String {
    x.map_or("-".to_owned(), |x| format!("{x:.digits$}"))
}

fn line(name: &str, scheme: &str, figures: &Figures) -> String {
    let spread = |mean, spread| format!("{} ± {}", number(mean, 3), number(spread, 3));
    let delay = &figures.detection_delay_s;
    format!(
        "{name:<22} {scheme:<7} {:>13} {:>13} {:>9} {:>9} {:>12} {:>13} {:>7} {:>7} {:>9} {:>9}\n",
        spread(figures.f1, figures.f1_spread),
        spread(figures.auc, figures.auc_spread),
        number(figures.precision, 3),
        number(figures.recall, 3),
        number(figures.false_alarms_per_vm_day, 1),
        number(figures.false_actions_per_vm_day, 1),
        number(delay.p50, 1),
        number(delay.p90, 1),
        format!("{}/{}", delay.found, delay.of),
        format!("{}/{}", figures.acted_on, delay.of),
    )
}

#[cfg(test)]
mod tests {
    use monitor::evaluate::{KindDetails, LoadDetails};

    use super::*;

    #[test]
    fn each_kind_and_each_load_has_a_line() {
        let mut report = Report {
            method: "forest".to_owned(),
            ..Report::default()
        };
        let leak = KindDetails {
            found: 3,
            of: 4,
            p50: Some(12.0),
            named_rightly: Some(0.5),
            ..KindDetails::default()
        };
        report.kinds.insert("leak".to_owned(), leak);
        let idle = LoadDetails {
            false_alarms: 2,
            normal_vm_hours: 1.5,
            ..LoadDetails::default()
        };
        report.loads.insert("idle".to_owned(), idle);
        let text = text(&report);
        let words = |name: &str| -> Vec<&str> {
            let line = text.lines().find(|line| line.starts_with(name));
            line.unwrap_or_default().split_whitespace().collect()
        };
        assert_eq!(
            words("leak"),
            ["leak", "3/4", "12.0", "50", "%", "-", "0/0", "-"]
        );
        assert_eq!(words("idle"), ["idle", "-", "2", "1.50", "0/0", "-"]);
    }
}
