//! The command line of `epochgate clone`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use nbd_server::group::history::Point;

use super::ControlArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum CloneCommand {
    /// List the clones of a group.
    List(CloneListArgs),
    /// Make a clone of all disks of a group. It stays, also when the gateway is started again, until it is removed.
    Add(CloneAddArgs),
    /// Remove a clone and all that was written to it.
    Remove(CloneRemoveArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CloneListArgs {
    #[command(flatten)]
    pub control: ControlArgs,
    /// Name of the group.
    pub group: String,
}

#[derive(Debug, Args)]
pub(crate) struct CloneAddArgs {
    #[command(flatten)]
    pub control: ControlArgs,
    /// Name of the group.
    pub group: String,
    /// Name of the clone: its disks are the exports GROUP/DISK@clone=NAME.
    pub name: String,
    /// The point in time: `epoch=1234`, `time=2026-11-22T10:15:00Z` or `pin=NAME`. Default: now.
    #[arg(long, value_name = "POINT")]
    pub at: Option<Point>,
    /// Directory on the gateway's machine for what is written to the clone; empty, or not there yet. Default: one beside the group's log.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CloneRemoveArgs {
    #[command(flatten)]
    pub control: ControlArgs,
    /// Name of the group.
    pub group: String,
    /// Name of the clone.
    pub name: String,
    /// Also while clients are attached: what they asked is answered, then they are cut.
    #[arg(long)]
    pub force: bool,
}
