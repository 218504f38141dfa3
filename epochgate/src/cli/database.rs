//! The options of `epochgate demo-db` and `epochgate bench database`.

use clap::{Args, ValueEnum};

use super::LabArgs;
use super::bench::OutputArgs;

/// What becomes of the packets that the guest sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// They wait until their epoch is committed.
    Hold,
    /// They leave at once: what a failover rolls back may have been seen.
    Pass,
}

impl Output {
    /// As in a configuration file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Pass => "pass",
        }
    }
}

/// When checkpoints are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rhythm {
    /// Every interval.
    Fixed,
    /// As soon as a packet waits, and every interval.
    Demand,
    /// As on demand, within a budget of pauses.
    Adaptive,
}

impl Rhythm {
    /// As in a configuration file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Demand => "demand",
            Self::Adaptive => "adaptive",
        }
    }
}

/// The guest with the database, and its clients.
#[derive(Debug, Args)]
#[command(
    mut_arg("guest", |arg| arg
        .default_value("target/guest-db")
        .help("Folder with the guest that has a database (`make guest-db` builds it)")),
    mut_arg("memory", |arg| arg.default_value("256"))
)]
pub(crate) struct DatabaseArgs {
    #[command(flatten)]
    pub lab: LabArgs,
    /// Connections that clients keep open.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub connections: u32,
    /// `pass` shows what happens without the output gate: losses and broken connections.
    #[arg(long, value_enum, default_value = "hold")]
    pub output: Output,
    /// When checkpoints are taken. An answer waits for the next one.
    #[arg(long, value_enum, default_value = "demand")]
    pub rhythm: Rhythm,
    /// Keep the working directory with all logs.
    #[arg(long)]
    pub keep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DemoDbArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Seconds of protected running before each host dies; the instant is random beyond that.
    #[arg(long, value_name = "S", default_value_t = 5)]
    pub seconds: u64,
    /// How often the VM loses its host.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub failovers: u32,
    /// Print one JSON object at the end instead of the timeline.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DatabaseBenchArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// How many failovers.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub failovers: u32,
    /// How many switchovers, after the failovers.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub switchovers: u32,
    /// Seconds for each of the two rates, unprotected and protected.
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
    /// Kill late in an epoch, not at a random instant: with `--output pass --rhythm fixed` and long intervals, losses are certain then.
    #[arg(long)]
    pub late: bool,
    /// Seed of the random instants; printed, so that a run can be repeated.
    #[arg(long)]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub figures: OutputArgs,
}
