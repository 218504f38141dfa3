//! The options of `epochgate bench checkpoint`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::bench::{OutputArgs, seconds};
use super::{DeviceState, LabArgs};
use crate::size;

/// Ways to have stock QEMU save a whole VM again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// `stop`, `migrate` to a file, `cont`.
    Stopped,
    /// `migrate` to a file while the guest runs, `cont` when it is through.
    Live,
    /// `savevm` into a qcow2 image.
    Savevm,
    /// `migrate` to a file with the capability background-snapshot.
    BackgroundSnapshot,
}

// `--memory` and `--interval` of the lab are what `--ram` and `--rates` are lists of.
#[derive(Debug, Args)]
#[command(mut_arg("device_state", |arg| arg.hide(true)))]
pub(crate) struct CheckpointArgs {
    #[command(flatten)]
    pub lab: LabArgs,
    /// RAM of the guests, such as 256M,512M,2G. Default: that of --memory.
    #[arg(long, value_name = "BYTES", value_delimiter = ',', value_parser = size::parse)]
    pub ram: Vec<u64>,
    /// How much of its RAM the guest uses, so that it is there to be looked through.
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u64).range(0..=80))]
    pub filled: u64,
    /// Epochs a second, such as 10,20,40,100. Default: what --interval makes.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rates: Vec<u32>,
    /// Ways to take device state.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "auto")]
    pub ways: Vec<DeviceState>,
    /// Ways of stock QEMU to compare with. None: `--peers` alone.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        num_args = 0..,
        default_value = "stopped,live,savevm,background-snapshot"
    )]
    pub peers: Vec<Peer>,
    /// Leave the highest rate out.
    #[arg(long)]
    pub no_max_rate: bool,
    /// How often everything is run; all take turns within each repetition. Every run boots a new guest.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
    /// Length of one measurement, which begins when the VM is protected.
    #[arg(long, value_name = "S", default_value = "4", value_parser = seconds)]
    pub seconds: f64,
    #[command(flatten)]
    pub figures: OutputArgs,
    /// Bars of the pause and its parts as an SVG picture.
    #[arg(long, value_name = "PATH")]
    pub svg: Option<PathBuf>,
}

impl CheckpointArgs {
    /// RAM of the guests in MiB.
    pub(crate) fn ram_mib(&self) -> Vec<u64> {
        match self.ram[..] {
            [] => vec![self.lab.memory],
            ref sizes => sizes.iter().map(|bytes| bytes >> 20).collect(),
        }
    }

    /// Milliseconds between two epochs.
    pub(crate) fn intervals_ms(&self) -> Vec<u64> {
        match self.rates[..] {
            [] => vec![self.lab.interval],
            ref rates => rates.iter().map(|rate| 1000 / u64::from(*rate)).collect(),
        }
    }
}
