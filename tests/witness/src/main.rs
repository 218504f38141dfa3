//! The witness: the guest's workload and its judge in one program.
//!
//! It writes disks and memory without pause and remembers, in memory only, what every block of every disk must
//! hold. After a failover the same process runs on from a checkpoint; if disk and memory were not cut at the same
//! instant, some block is older, newer, torn or foreign to what memory says, and the witness reports it on the
//! serial line. It knows nothing of epochs, NBD or QEMU: it trusts only its own memory.
//!
//! In a guest its settings come from the kernel command line (`witness.blocks=4096`), elsewhere from the command
//! line (`witness --disks a,b --ops 1000`); see [`config`]. The lines it prints are described in [`report`].
//! Exit codes: 0 all that was checked is good, 1 something was not, 2 wrong usage or a disk that can't be opened.

mod block;
mod config;
mod discard;
mod disk;
mod judge;
mod load;
mod memory;
mod report;
mod rng;
mod service;
mod sweep;
mod table;
mod workload;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use config::{Config, ConfigError};
use disk::{Disk, DiskError};
use report::Report;
use workload::Worker;

/// Everything that keeps the witness from starting or from finishing its run.
#[derive(Debug, thiserror::Error)]
enum WitnessError {
    #[error("the settings are not usable")]
    Config(#[source] ConfigError),
    #[error("a disk is not usable")]
    Disk(#[source] DiskError),
    #[error("the service on the network could not be started")]
    Service(#[source] std::io::Error),
    #[error("the load could not be started")]
    Load(#[source] std::io::Error),
    #[error("a worker thread could not be started")]
    Spawn(#[source] std::io::Error),
    #[error("a worker thread panicked")]
    Panicked,
}

fn main() -> ExitCode {
    match Config::load(std::env::args().skip(1))
        .map_err(WitnessError::Config)
        .and_then(|config| run(&config))
    {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            let mut message = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(inner) = cause {
                message = format!("{message}: {inner}");
                cause = inner.source();
            }
            eprintln!("witness: {message}");
            ExitCode::from(2)
        }
    }
}

/// Runs until the operations that were asked for are done, for ever if there is no such limit. True if all is good.
fn run(config: &Config) -> Result<bool, WitnessError> {
    let disks = config
        .disk_paths()
        .iter()
        .map(|path| Disk::open(path, config.blocks))
        .collect::<Result<Vec<_>, _>>()
        .map_err(WitnessError::Disk)?;
    let disks = Arc::new(disks);
    let report = Arc::new(Report::new(rng::run_id(), disks.len(), config.writers));
    report.hello(config, &disks);
    if config.service != 0 {
        service::serve(config.service).map_err(WitnessError::Service)?;
    }
    if let Some(to) = config.beacon {
        service::beacon(to).map_err(WitnessError::Service)?;
    }
    // Held until the end: it is there to be mapped.
    let _filling = load::fill(config.fill_mib);
    if config.load_mib != 0 {
        load::run(config.load_mib, &disks).map_err(WitnessError::Load)?;
        return Ok(true);
    }

    let mut workers = Vec::new();
    for index in 0..config.writers {
        let mut worker = Worker::new(index, config, Arc::clone(&disks), Arc::clone(&report));
        let thread = thread::Builder::new()
            .name(format!("writer-{index}"))
            .spawn(move || worker.run())
            .map_err(WitnessError::Spawn)?;
        workers.push(thread);
    }
    // A worker ends only when the limit of operations is reached (or by a panic), so this loop is the guest's life.
    let mut seq = 0;
    while !workers.iter().all(thread::JoinHandle::is_finished) {
        seq += 1;
        report.line(seq);
        thread::sleep(Duration::from_millis(config.report_ms));
    }
    for worker in workers {
        worker.join().map_err(|_| WitnessError::Panicked)?;
    }
    report.line(seq + 1);
    let counts = &report.counts;
    let bad = [&counts.mismatches, &counts.io_errors, &counts.memory_errors];
    Ok(bad.iter().all(|count| count.load(Ordering::Relaxed) == 0))
}
