//! What every long-running subcommand needs: logging, an async runtime, a clean stop on SIGTERM and SIGINT.

use std::io::IsTerminal;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// Logs go to stderr: warnings and what an operator should see by default, more with `-v`.
pub(crate) fn init_logging(verbose: u8) {
    let default = match verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    let filter =
        EnvFilter::try_from_env("EPOCHGATE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(verbose > 0)
        .init();
}

/// A runtime with a thread per core, at least two: the pause must not wait behind anything else.
pub(crate) fn tokio() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().max(2)))
        .enable_all()
        .build()
        .context("the async runtime can't be started")
}

/// Lets this process have as many files open as the system allows it to have: each 64 MiB of history are one.
pub(crate) fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Counts SIGTERM and SIGINT: the first asks for a clean stop, the second for a quick one. Call inside a runtime.
pub(crate) fn stop_signals() -> anyhow::Result<watch::Receiver<u32>> {
    let (sender, receiver) = watch::channel(0);
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).context("signals can't be watched")?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                sender.send_modify(|count| *count += 1);
            }
        });
    }
    Ok(receiver)
}

/// SIGHUP: read the configuration again. Call inside a runtime.
pub(crate) fn hangup_signal() -> anyhow::Result<Signal> {
    signal(SignalKind::hangup()).context("signals can't be watched")
}

/// For the lab, which waits without a runtime: a thread that turns a signal into [`crate::lab::site::interrupt`].
pub(crate) fn interrupt_on_signals() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            if let Ok(mut stop) = stop_signals() {
                while stop.changed().await.is_ok() {
                    crate::lab::site::interrupt();
                }
            }
        });
    });
    Ok(())
}
