//! `epochgate monitor train`.

use std::process::ExitCode;

use monitor::learn::{Options, Table, train};
use monitor::recording::DataSet;

use crate::cli::monitor::{LearnArgs, TrainArgs};

pub(crate) fn options(args: &LearnArgs) -> Options {
    Options {
        method: args.method,
        seed: args.seed,
        rows: args.rows,
        ..Options::default()
    }
}

pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let table = Table::of(&DataSet::load(&args.learn.data_set)?);
    let all: Vec<usize> = (0..table.runs.len()).collect();
    let model = train(&table, &all, options(&args.learn))?;
    model.save(&args.to)?;
    let header = model.header();
    let (training, verdict) = (&header.training, header.verdict);
    println!(
        "{}: {}, {} features, {} kinds of fault, from {} windows of {} recordings ({:.1} h)",
        args.to.display(),
        header.method.name(),
        header.features.len(),
        header.kinds.len(),
        training.windows,
        training.recordings,
        training.hours,
    );
    println!(
        "on recordings kept aside: F1 {:.3}, AUC {:.3}; a window is faulty from {:.3} on, a VM is ill with {} of {} windows from {:.3} on",
        training.f1, training.auc, verdict.threshold, verdict.k, verdict.n, verdict.alarm
    );
    Ok(ExitCode::SUCCESS)
}
