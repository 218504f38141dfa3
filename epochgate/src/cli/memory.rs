//! Arguments of what has to do with the memory of a VM at earlier epochs.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum MemoryCommand {
    /// List the points that are kept.
    List(MemoryListArgs),
    /// Write one point out as a saved state: all of memory and the devices.
    Export(MemoryExportArgs),
}

#[derive(Debug, Args)]
pub(crate) struct MemoryListArgs {
    /// Directory of the memory history: `memory_history.dir` of the standby.
    pub dir: PathBuf,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MemoryExportArgs {
    /// Directory of the memory history: `memory_history.dir` of the standby.
    pub dir: PathBuf,
    /// Epoch of the point.
    #[arg(long)]
    pub epoch: u64,
    /// Directory that is made for it.
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
}
