//! The options of `epochgate bench overhead`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::LabArgs;
use super::bench::{OutputArgs, seconds};

/// What the guest does while it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// Arithmetic.
    Cpu,
    /// Writing pages of memory.
    Memory,
    /// Writing blocks to a disk, with a flush after each.
    Disk,
    /// Answering requests, one at a time, on one connection.
    RoundTrip,
    /// Sending without end on one connection.
    Stream,
}

/// How packets are held, for the comparison of gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Gate {
    /// No gate (`output = "pass"`), an epoch every 25 ms.
    None,
    /// Held, an epoch every 25 ms.
    #[value(name = "fixed-25")]
    Fixed25,
    /// Held, an epoch every 5 ms.
    #[value(name = "fixed-5")]
    Fixed5,
    /// Held, an epoch as soon as a packet waits, 5 ms after the last one.
    Demand,
    /// As on demand, within the default budget of pauses.
    Adaptive,
}

#[derive(Debug, Args)]
#[command(mut_arg("interval", |arg| arg.hide(true)))]
pub(crate) struct OverheadArgs {
    #[command(flatten)]
    pub lab: LabArgs,
    /// Epochs a second, at a fixed interval. `0` for none.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "10,20,40,100", value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub rates: Vec<u32>,
    /// What the guest does. `round-trip` and `stream` need root, for a network.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "cpu,memory,disk,round-trip,stream"
    )]
    pub workloads: Vec<Workload>,
    /// Ways to hold packets, measured with `round-trip` and `stream` alone.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        num_args = 0..,
        default_value = "none,fixed-25,fixed-5,demand,adaptive"
    )]
    pub gates: Vec<Gate>,
    /// How often protected and unprotected stretches follow each other.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
    /// Length of one stretch of one workload.
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    pub seconds: f64,
    /// MiB of memory that the workload `memory` writes to, over and over.
    #[arg(long, value_name = "MIB", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub working_set: u64,
    #[command(flatten)]
    pub figures: OutputArgs,
    /// Bars of the ratios as an SVG picture.
    #[arg(long, value_name = "PATH")]
    pub svg: Option<PathBuf>,
}
