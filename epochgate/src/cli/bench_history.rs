//! Arguments of `epochgate bench history`.

use std::path::PathBuf;

use clap::Args;

use super::bench::OutputArgs;

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Epochs that the long history keeps, each with a write of 4 KiB.
    #[arg(long, default_value_t = 1_000_000)]
    pub epochs: u64,
    /// Size of the disk in bytes, or with a unit: 512M, 1G.
    #[arg(long, default_value = "1G", value_parser = crate::size::parse)]
    pub size: u64,
    /// Rounds in which the servers take turns. In six of them nobody has a better place than the others.
    #[arg(long, default_value_t = 6)]
    pub repeats: u32,
    /// Seconds of each load in each round. All that is written in them stays in two histories.
    #[arg(long, value_name = "S", default_value_t = 2)]
    pub seconds: u64,
    /// How many historic exports are opened for the times.
    #[arg(long, default_value_t = 50)]
    pub views: u32,
    /// Where disks and logs are put. In memory a million commits take minutes instead of an hour.
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    pub dir: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}
