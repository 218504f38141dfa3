//! Arguments of what has to do with the past of a group.

use clap::Args;
use nbd_server::group::history::Point;

use super::ControlArgs;

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub control: ControlArgs,
    /// The group, which is the VM's name in most configurations.
    pub group: String,
    /// From this point on: epoch=NUMBER, time=2026-11-22T10:15:00Z or pin=NAME.
    #[arg(long, value_name = "POINT")]
    pub since: Option<Point>,
    /// No more than so many points.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct PinArgs {
    #[command(flatten)]
    pub control: ControlArgs,
    /// The group, which is the VM's name in most configurations.
    pub group: String,
    /// The name, of letters, digits, '-', '_' and '.'.
    pub name: String,
    /// The point: epoch=NUMBER, time=2026-11-22T10:15:00Z or pin=NAME. Without: the newest committed epoch.
    #[arg(long, value_name = "POINT")]
    pub at: Option<Point>,
}

#[derive(Debug, Args)]
pub(crate) struct UnpinArgs {
    #[command(flatten)]
    pub control: ControlArgs,
    /// The group, which is the VM's name in most configurations.
    pub group: String,
    /// The name.
    pub name: String,
}

#[derive(Debug, Args)]
pub(crate) struct RewindArgs {
    #[command(flatten)]
    pub control: ControlArgs,
    /// The group, which is the VM's name in most configurations.
    pub group: String,
    /// The point: epoch=NUMBER, time=2026-11-22T10:15:00Z or pin=NAME.
    #[arg(long, value_name = "POINT")]
    pub to: Point,
    /// Also while somebody uses the disks: clients are sent away, and a VM that runs on them is fenced and stops.
    #[arg(long)]
    pub force: bool,
}
