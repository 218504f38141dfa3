//! Arguments of `epochgate backup`.

use std::path::PathBuf;

use backup::Nbd;
use clap::{Args, Subcommand};
use nbd_server::storage::objects::Place;

/// A place is a directory, `file:///DIRECTORY` or `s3://BUCKET/PREFIX`; endpoint and credentials of a bucket come from the environment, by the names
/// that AWS tools have (`AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`).
#[derive(Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// Make a backup: the first one of everything, later ones of what has changed. One that was interrupted goes on.
    Create(CreateArgs),
    /// List the backups of a place.
    List(ListArgs),
    /// Read all that backups are made of and check every byte. Exit code 1 if something is wrong.
    Verify(VerifyArgs),
    /// Write the disks of a backup as raw images.
    Restore(RestoreArgs),
    /// Remove one backup, and what no other needs.
    Remove(RemoveArgs),
    /// Remove old backups, and what no other needs.
    Prune(PruneArgs),
}

/// Where backups lie, and whose.
#[derive(Debug, Args)]
pub(crate) struct PlaceArgs {
    /// The place with the backups.
    pub place: Place,
    /// The group; needed only if the place has backups of several.
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub control: super::ControlArgs,
    /// The group, which is the VM's name in most configurations. It needs a history.
    pub group: String,
    /// Where to: a directory, file:///DIRECTORY or s3://BUCKET/PREFIX. All backups of the group go there, and of other groups, too, if wanted.
    #[arg(long, value_name = "PLACE")]
    pub to: Place,
    /// The name of the backup. Default: after the time.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The point that this pin names. Default: the newest committed epoch.
    #[arg(long, value_name = "NAME")]
    pub pin: Option<String>,
    /// Read and store everything; share nothing with earlier backups.
    #[arg(long)]
    pub full: bool,
    /// Where the gateway serves its disks: unix:PATH or HOST:PORT. Default: as the gateway says itself, its unix socket before others.
    #[arg(long, value_name = "ADDRESS")]
    pub nbd: Option<Nbd>,
    /// Parts that are worked on at once. Each takes up to 40 MiB of memory.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Only this backup.
    #[arg(long, value_name = "NAME")]
    pub backup: Option<String>,
    /// Packs that are read at once. Each takes up to 40 MiB of memory.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// The backup, or `latest`.
    #[arg(long, value_name = "NAME", required_unless_present = "time")]
    pub backup: Option<String>,
    /// The newest backup at or before this time, such as 2026-11-22T10:15:00Z.
    #[arg(long, value_name = "TIME", conflicts_with = "backup")]
    pub time: Option<String>,
    /// The directory that gets DISK.raw for each disk.
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Only this disk; may be given several times.
    #[arg(long, value_name = "DISK")]
    pub disk: Vec<String>,
    /// Parts that are worked on at once. Each takes up to 8 MiB of memory.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// The backup.
    #[arg(long, value_name = "NAME")]
    pub backup: String,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("rule").required(true).multiple(true).args(["keep_last", "keep_days"]))]
pub(crate) struct PruneArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Keep so many of the newest.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_last: Option<u32>,
    /// Keep all that are no older than so many days. With both rules, what either keeps stays; the newest always stays.
    #[arg(long, value_name = "DAYS")]
    pub keep_days: Option<u32>,
    /// Only say what would go.
    #[arg(long)]
    pub dry_run: bool,
}
