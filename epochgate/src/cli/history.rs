//! Arguments of what has to do with the past of a group.

use std::path::PathBuf;

use clap::Args;
use nbd_server::group::history::{Point, TimeSpan};
use nbd_server::storage::objects::Place;

use super::{ControlArgs, LogArgs};

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub log: LogArgs,
    /// Read what is in cold storage as well: s3://BUCKET/PREFIX or a directory, as [group.history.cold] has it.
    #[arg(long, value_name = "PLACE")]
    pub cold: Option<Place>,
}

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
pub(crate) struct FreezeArgs {
    #[command(flatten)]
    pub control: ControlArgs,
    /// The group, which is the VM's name in most configurations.
    pub group: String,
    /// It ends by itself after this time: 90s, 10min, 6h, 7d. Without: with `epochgate log thaw`.
    #[arg(long = "for", value_name = "TIME")]
    pub span: Option<TimeSpan>,
}

#[derive(Debug, Args)]
pub(crate) struct ThawArgs {
    #[command(flatten)]
    pub control: ControlArgs,
    /// The group, which is the VM's name in most configurations.
    pub group: String,
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
    /// The memory, too: that of the newest memory point at or before POINT, and the disks of exactly its epoch.
    #[arg(long, requires_all = ["memory", "state"])]
    pub with_memory: bool,
    /// Directory of the memory history: `memory_history.dir` of the standby.
    #[arg(long, value_name = "DIR")]
    pub memory: Option<PathBuf>,
    /// Directory that is made for the memory; the VM is started from it.
    #[arg(long, value_name = "DIR", requires = "memory")]
    pub state: Option<PathBuf>,
    /// Change nothing: start the VM as it was then beside the one that runs, under this name and without network, and end it with this
    /// command. What it writes is gone then.
    #[arg(long, value_name = "NAME", requires_all = ["memory", "config"], conflicts_with_all = ["with_memory", "force", "state"])]
    pub as_clone: Option<String>,
    /// The configuration of the VM's source, for --as-clone.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}
