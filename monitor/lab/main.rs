//! The laboratory: real guests under real loads, into which real faults are put, recorded from outside. See README.md beside this file.
//!
//! | module | |
//! |---|---|
//! | `loads`, `faults` | the kinds, with their parameters |
//! | `plan`, `spec` | which of them are run on which sizes |
//! | `vm`, `network`, `shell`, `qmp` | one VM, and the lab's ways into it |
//! | `clients`, `http`, `probe` | what goes on outside of it |
//! | `stand` | a VM under load, and the fault |
//! | `check` | does each kind do what it says? |

mod check;
mod clients;
mod faults;
mod http;
mod loads;
mod network;
mod plan;
mod probe;
mod qmp;
mod shell;
mod spec;
mod stand;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
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
    /// VMs at the same time.
    #[arg(long, default_value_t = 4)]
    parallel: usize,
    /// The guest that `make guest-lab` makes.
    #[arg(long, default_value = "target/guest-lab")]
    guest: PathBuf,
    /// The command epochgate, whose gateway serves the disks.
    #[arg(long, env = "EPOCHGATE_BIN")]
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
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::WARN).init();
    if options.list {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let seconds = (options.hours * 3600.0) as u64;
    if options.plan {
        let runs = plan::plan(options.seed, seconds);
        for run in &runs {
            println!("{}", serde_json::to_string(run)?);
        }
        return Ok(ExitCode::SUCCESS);
    }
    network::enter()?;
    let tools = tools(&options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let good = runtime.block_on(check::check(&tools, &options.names, options.parallel))?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(1) })
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
    let guest = options.guest.canonicalize().with_context(|| format!("{}: run make guest-lab", options.guest.display()))?;
    let epochgate = match &options.epochgate {
        Some(path) => path.clone(),
        // target/PROFILE/examples/lab
        None => std::env::current_exe()?.parent().and_then(|dir| dir.parent()).context("no folder")?.join("epochgate"),
    };
    let epochgate = epochgate.canonicalize().with_context(|| format!("{}: run make build", epochgate.display()))?;
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
