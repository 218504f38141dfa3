//! The laboratory: real guests under real loads, into which real faults are put, recorded from outside. See README.md beside this file.
//!
//! | module | |
//! |---|---|
//! | `loads`, `faults` | the kinds, with their parameters |
//! | `plan`, `spec` | which of them are run on which sizes |
//! | `vm`, `protected`, `network`, `shell`, `qmp` | one VM, and the lab's ways into it |
//! | `clients`, `http`, `probe` | what goes on outside of it |
//! | `stand` | a VM under load, and the fault |
//! | `runner`, `datasheet` | many of them, recorded, resumed, counted |
//! | `check` | does each kind do what it says? |

mod check;
mod clients;
mod datasheet;
mod faults;
mod http;
mod loads;
mod network;
mod plan;
mod probe;
mod protected;
mod qmp;
mod runner;
mod shell;
mod spec;
mod stand;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use qemu_glue::Accelerator;

/// Records what VMs look like from outside under many loads, well and ill.
#[derive(Debug, Parser)]
struct Options {
    /// List the kinds of loads and faults.
    #[arg(long)]
    list: bool,
    /// Print the plan, a line for each run.
    #[arg(long)]
    plan: bool,
    /// Carry the plan out into the folder --out, as far as it is not there yet.
    #[arg(long)]
    run: bool,
    /// Run each kind for a short time and say whether it did what it says; with names, only these.
    #[arg(long)]
    check: bool,
    /// Names for --check.
    names: Vec<String>,
    /// Seed of the plan.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Hours of VM time, at least.
    #[arg(long, default_value_t = 8.5)]
    hours: f64,
    /// The folder of the data set.
    #[arg(long, default_value = "target/dataset")]
    out: PathBuf,
    /// Milliseconds from one sample to the next.
    #[arg(long, default_value_t = 1000)]
    interval_ms: u64,
    /// Seconds of every run, instead of those of the plan: for a trial.
    #[arg(long)]
    seconds: Option<u64>,
    /// With --plan and --run: only so many runs of the plan.
    #[arg(long)]
    first: Option<usize>,
    /// VMs at the same time.
    #[arg(long, default_value_t = 4)]
    parallel: usize,
    /// The guest that `make guest-lab` makes.
    #[arg(long, default_value = "target/guest-lab")]
    guest: PathBuf,
    /// The command epochgate, whose gateway serves the disks. Else EPOCHGATE_BIN, or the one that is built with this.
    #[arg(long)]
    epochgate: Option<PathBuf>,
    /// Folder for the disks of runs.
    #[arg(long, default_value = "/tmp")]
    scratch: PathBuf,
    /// How guest code is run: auto, tcg or kvm.
    #[arg(long, default_value = "tcg")]
    accelerator: String,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::WARN)
        .init();
    if options.list {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let seconds = (options.hours * 3600.0) as u64;
    let mut runs = plan::plan(options.seed, seconds);
    runs.truncate(options.first.unwrap_or(usize::MAX));
    if let Some(seconds) = options.seconds {
        for run in &mut runs {
            (run.normal_s, run.faulty_s) = (seconds, seconds);
        }
    }
    if options.plan {
        for run in &runs {
            println!("{}", serde_json::to_string(run)?);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !options.run && !options.check {
        bail!("say --list, --plan, --check or --run");
    }
    network::enter()?;
    let tools = tools(&options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let good = if options.check {
        runtime.block_on(check::check(&tools, &options.names, options.parallel))?
    } else {
        let job = runner::Job {
            folder: options.out.clone(),
            parallel: options.parallel,
            interval: Duration::from_millis(options.interval_ms),
            seed: options.seed,
        };
        let failed = runtime.block_on(runner::run(&tools, &job, &runs))?;
        runner::datasheet(&job)?;
        failed == 0
    };
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn list() {
    println!("loads");
    for load in &loads::LOADS {
        println!("  {:<18}{}", load.name, load.about);
    }
    println!("faults");
    for fault in &faults::FAULTS {
        println!("  {:<18}{}", fault.name, fault.about);
    }
}

fn tools(options: &Options) -> anyhow::Result<vm::Tools> {
    let guest = options
        .guest
        .canonicalize()
        .with_context(|| format!("{}: run make guest-lab", options.guest.display()))?;
    let named = options
        .epochgate
        .clone()
        .or_else(|| std::env::var_os("EPOCHGATE_BIN").map(PathBuf::from));
    let epochgate = match named {
        Some(path) => path,
        // target/PROFILE/examples/lab
        None => std::env::current_exe()?
            .parent()
            .and_then(|dir| dir.parent())
            .context("no folder")?
            .join("epochgate"),
    };
    let epochgate = epochgate
        .canonicalize()
        .with_context(|| format!("{}: run make build", epochgate.display()))?;
    let accelerator = match options.accelerator.as_str() {
        "auto" => Accelerator::Auto,
        "kvm" => Accelerator::Kvm,
        _ => Accelerator::Tcg,
    };
    Ok(vm::Tools {
        guest,
        epochgate,
        scratch: options.scratch.clone(),
        accelerator,
    })
}
