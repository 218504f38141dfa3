//! The command line: names, arguments and help texts. What they do is in `commands/`.

pub(crate) mod backup;
pub(crate) mod bench;
pub(crate) mod bench_history;
pub(crate) mod checkpoint;
pub(crate) mod clone;
pub(crate) mod database;
pub(crate) mod history;
pub(crate) mod memory;
pub(crate) mod monitor;
pub(crate) mod overhead;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Keeps an unmodified QEMU virtual machine alive through the loss of its host.
///
/// Exit codes: 0 good, 1 what was asked for did not hold, 2 wrong usage or configuration.
#[derive(Debug, Parser)]
#[command(name = "epochgate", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// Say more on stderr (twice: everything). EPOCHGATE_LOG takes a tracing filter.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the whole thing on this machine: protect a VM, kill its host, see it go on.
    Demo(DemoArgs),
    /// Show a database in a VM that loses its host, and clients that keep their connections. Needs root.
    DemoDb(database::DemoDbArgs),
    /// Serve one disk image over NBD at once, as qemu-nbd would.
    Serve(ServeArgs),
    /// Serve many disks in groups, with epochs and the control API.
    Gateway(ConfigArgs),
    /// Launch a VM and keep it protected.
    Protect(ProtectArgs),
    /// Be the backup of a VM.
    Standby(RoleArgs),
    /// Say what is protected, and how.
    Status(StatusArgs),
    /// Show the status again and again, with rates.
    Top(TopArgs),
    /// Move a protected VM to its standby, without losing anything.
    Switchover(SwitchoverArgs),
    /// Set the disks of a VM back to a point of their past, or the whole VM with its memory. What is undone stays in the history.
    Rewind(history::RewindArgs),
    /// Bring a group's committed epochs into its images, to leave Epochgate: they are plain raw files.
    Detach(DetachArgs),
    /// Watch VMs from outside.
    #[command(subcommand)]
    Monitor(monitor::MonitorCommand),
    /// Look at the memory of a VM at earlier epochs, which its standby keeps.
    #[command(subcommand)]
    Memory(memory::MemoryCommand),
    /// Look at, add, remove and resize what a running gateway exports.
    #[command(subcommand)]
    Export(ExportCommand),
    /// Make backups of a group in a directory or a bucket; list, check, restore and remove them.
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// Make, list and remove writable clones of a group at a point in time.
    #[command(subcommand)]
    Clone(clone::CloneCommand),
    /// Look into a group's epoch log and its history.
    #[command(subcommand)]
    Log(LogCommand),
    /// Measure.
    #[command(subcommand)]
    Bench(BenchCommand),
}

/// A span of time as configuration files have it: 500ms, 90s, 10m, 6h, 7d.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    text.parse()
        .map(nbd_server::group::history::TimeSpan::duration)
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The configuration file; docs/examples has a commented one for each role.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Only check the configuration.
    #[arg(long)]
    pub check: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RoleArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Write every event to stdout as one line of JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ProtectArgs {
    #[command(flatten)]
    pub role: RoleArgs,
    /// Start the VM from its disks even if it runs elsewhere (it is fenced and stops) or a standby holds its memory
    /// (which is void then).
    #[arg(long)]
    pub cold_start: bool,
    /// Go on with the memory in this directory instead of booting: what `epochgate rewind --with-memory` wrote. It is refused if the
    /// disks are not those that belong to it.
    #[arg(long, value_name = "DIR")]
    pub saved_state: Option<PathBuf>,
    /// Take the disks for those that belong to the saved state. For the fault matrix, which copies both.
    #[arg(long, hide = true, requires = "saved_state")]
    pub any_disks: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The raw image file or block device.
    pub image: PathBuf,
    /// Listen on this unix socket. Without it, --tcp and --vsock: on the sockets that systemd hands over (socket activation).
    #[arg(long, value_name = "PATH")]
    pub unix: Option<PathBuf>,
    /// Listen on this TCP address, such as `127.0.0.1:10809` or `[::1]:10809`.
    #[arg(long, value_name = "ADDRESS")]
    pub tcp: Option<std::net::SocketAddr>,
    /// Listen on vsock, for VMs of this host and programs beside this one, such as `2:10809`, or `*:10809` for any CID of this machine.
    #[arg(long, value_name = "CID:PORT")]
    pub vsock: Option<String>,
    /// Name of the export; the empty name finds it too.
    #[arg(long, default_value = "")]
    pub name: String,
    /// Async mode: hold writes in epochs and commit them together, by a log beside the image (IMAGE.epochlog).
    #[arg(long = "async")]
    pub async_mode: bool,
    /// Milliseconds between two epochs in async mode.
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 100,
        requires = "async_mode"
    )]
    pub epoch_interval: u64,
    /// Memory for epochs that the image does not have yet, in MiB; at the limit writes wait.
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 256,
        requires = "async_mode"
    )]
    pub memory_budget: u64,
    /// Directory in a tmpfs for held writes, so that they outlive this process; "" lets them go with it. For `--async`.
    #[arg(
        long,
        value_name = "DIR",
        default_value = nbd_server::group::DEFAULT_EPOCH_MEMORY,
        requires = "async_mode"
    )]
    pub epoch_memory: PathBuf,
    /// Refuse writes.
    #[arg(long, conflicts_with = "async_mode")]
    pub read_only: bool,
    /// Serve on an address that other machines can reach, without encryption.
    #[arg(long)]
    pub insecure: bool,
    /// Serve metrics for Prometheus here, over HTTP: an address such as 127.0.0.1:9109, or the path of a unix socket.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<String>,
    /// The server's certificate (PEM): with it and its key, clients use TLS.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// The private key of the server's certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// Authorities of clients' certificates (PEM): only clients with such a certificate get in over TLS.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_client_ca: Option<PathBuf>,
    /// Whether clients have to use TLS.
    #[arg(
        long,
        value_enum,
        default_value = "require",
        requires = "tls_certificate"
    )]
    pub tls: TlsChoice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TlsChoice {
    /// A client may do nothing before it uses TLS.
    Require,
    /// A client may use TLS or not.
    Allow,
    /// No TLS.
    Off,
}

impl From<TlsChoice> for nbd_server::tls::TlsMode {
    fn from(choice: TlsChoice) -> Self {
        match choice {
            TlsChoice::Require => Self::Require,
            TlsChoice::Allow => Self::Allow,
            TlsChoice::Off => Self::Off,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct SwitchoverArgs {
    /// The VM, on the host where it runs.
    pub vm: String,
    /// Where its source has its sockets.
    #[arg(long, value_name = "DIR", default_value = "/run/epochgate")]
    pub runtime_dir: PathBuf,
    /// The answer as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Who is asked how things stand.
#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// Where sources and standbys have their sockets.
    #[arg(long, value_name = "DIR", default_value = "/run/epochgate")]
    pub runtime_dir: PathBuf,
    /// Control socket of the gateway. Default: gateway.sock in the runtime directory.
    #[arg(long, value_name = "PATH")]
    pub gateway: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub ask: AskArgs,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    pub status: AskArgs,
    /// Time between two pages, such as 500ms or 5s.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    pub every: std::time::Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ExportCommand {
    /// List all exports, disks of groups too.
    List(ControlArgs),
    /// Serve one more raw image or block device, until the gateway ends; write it into the configuration file to keep it.
    Add(ExportAddArgs),
    /// Serve an image no longer.
    Remove(ExportRemoveArgs),
    /// Give a raw image another size while it is served. Clients see it when they attach again.
    Resize(ExportResizeArgs),
}

/// Which gateway, and how it answers.
#[derive(Debug, Args)]
pub(crate) struct ControlArgs {
    /// Control socket of the gateway.
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/epochgate/gateway.sock"
    )]
    pub control: PathBuf,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportAddArgs {
    #[command(flatten)]
    pub control: ControlArgs,
    /// Name of the export; "" is the default export.
    pub name: String,
    /// The raw image file or block device.
    pub image: PathBuf,
    /// Refuse writes.
    #[arg(long)]
    pub read_only: bool,
    /// Past the page cache (O_DIRECT), in whole blocks of the storage.
    #[arg(long)]
    pub direct: bool,
    /// Let clients change the size of the image (NBD_CMD_RESIZE).
    #[arg(long)]
    pub client_resize: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportRemoveArgs {
    #[command(flatten)]
    pub control: ControlArgs,
    /// Name of the export.
    pub name: String,
    /// Also while clients are attached: what they asked is answered, then they are cut.
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportResizeArgs {
    #[command(flatten)]
    pub control: ControlArgs,
    /// Name of the export.
    pub name: String,
    /// The new size in bytes, or with a unit of powers of 1024: 512M, 20G, 1T.
    #[arg(value_parser = crate::size::parse)]
    pub size: u64,
    /// It may be less than now: what lies beyond the new end is lost.
    #[arg(long)]
    pub shrink: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// List the segments and records of a log, without changing anything.
    Inspect(LogArgs),
    /// Check every checksum of a log, without changing anything. Exit code 1 if it is damaged; then it says what is left.
    Verify(history::VerifyArgs),
    /// Take a damaged log back to the last epoch before the damage. What was committed after it is lost.
    Recover(RecoverArgs),
    /// List the points in time that a group keeps, from a running gateway.
    List(history::ListArgs),
    /// Give a point in time a name: it is never trimmed.
    Pin(history::PinArgs),
    /// Take a name away: what it kept is trimmed as all else.
    Unpin(history::UnpinArgs),
    /// Keep all that a group's history has, whatever its age and size, until it is thawed: to look for what went wrong.
    Freeze(history::FreezeArgs),
    /// End that: what is too old or too much goes again.
    Thaw(history::ThawArgs),
    /// Accept moved or copied images as those that the log belongs to, if nothing is left to apply.
    Rebind(RebindArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// Directory of the log.
    pub log: PathBuf,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// Directory of the log. No gateway may have it open.
    pub log: PathBuf,
    /// The epoch to go back to. `log verify` names the last one that can be had.
    #[arg(long, value_name = "EPOCH")]
    pub to: u64,
    /// Do it. Without it, what would be lost is shown, and nothing is changed.
    #[arg(long)]
    pub yes: bool,
    /// Only show what would be lost; that is exit code 0 then.
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DetachArgs {
    /// The gateway's configuration. No gateway may have the group open.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Name of the group.
    pub group: String,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RebindArgs {
    /// The gateway's configuration, with the new images.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Name of the group.
    pub group: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tracker {
    /// PAGEMAP_SCAN where the kernel has it, else page hashes.
    Auto,
    /// PAGEMAP_SCAN.
    Pagemap,
    /// Page hashes.
    Hash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceState {
    /// QEMU's devices alone where the machine's ROMs are known to be constant, else a migration without RAM.
    Auto,
    /// QEMU's devices alone.
    Save,
    /// A migration without RAM.
    Migrate,
}

impl Tracker {
    /// As in a configuration file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Pagemap => "pagemap",
            Self::Hash => "hash",
        }
    }
}

/// The guest and the pace of the demo and the failover bench.
#[derive(Debug, Clone, Args)]
pub(crate) struct LabArgs {
    /// Folder with vmlinuz and initrd.gz of the test guest (`make guest` builds it).
    #[arg(long, value_name = "DIR", default_value = "target/guest")]
    pub guest: PathBuf,
    /// The QEMU to use.
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    pub qemu: PathBuf,
    /// `tcg` everywhere, `kvm` where it works.
    #[arg(long, default_value = "tcg")]
    pub accel: String,
    /// RAM of the guest in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    pub memory: u64,
    /// Milliseconds between two checkpoints.
    #[arg(long, value_name = "MS", default_value_t = 25)]
    pub interval: u64,
    /// How dirty pages are found.
    #[arg(long, value_enum, default_value = "auto")]
    pub tracker: Tracker,
    /// How device state is taken.
    #[arg(long, value_enum, default_value = "auto")]
    pub device_state: DeviceState,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    pub lab: LabArgs,
    /// Seconds of protected running before the host dies; the instant is random beyond that.
    #[arg(long, value_name = "S", default_value_t = 5)]
    pub seconds: u64,
    /// Print one JSON object at the end instead of the timeline.
    #[arg(long)]
    pub json: bool,
    /// Keep the working directory with all logs.
    #[arg(long)]
    pub keep: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Kill the source over and over, at random instants and between every two steps of a commit.
    Failover(FailoverArgs),
    /// The pause of checkpoints, part by part, the highest rate of them, and what stock QEMU comes to.
    Checkpoint(checkpoint::CheckpointArgs),
    /// What protection costs the guest, by stretches with and without it that take turns.
    Overhead(overhead::OverheadArgs),
    /// The fault matrix: kill, freeze, cut off and starve every part at every step of an epoch.
    Faults(bench::FaultsArgs),
    /// Kill the hosts of a database over and over, or move it between them, and count what its clients lose. Needs root.
    Database(database::DatabaseBenchArgs),
    /// Compare the gateway with other NBD servers, side by side on this machine.
    Nbd(bench::NbdArgs),
    /// Time COMMIT 2 of a large epoch against fio writing the same bytes.
    Commit(bench::CommitArgs),
    /// What the length of a history costs at the head, and how long it takes to open a point of it.
    History(bench_history::HistoryArgs),
    /// Write faster than the storage takes it, and hold the gateway to its memory budget.
    Memory(bench::MemoryArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LabStorage {
    /// In files of this machine.
    File,
    /// On a NAS in a network namespace (nfs-ganesha), over nfs://. Needs root.
    Nfs,
}

#[derive(Debug, Args)]
pub(crate) struct FailoverArgs {
    #[command(flatten)]
    pub lab: LabArgs,
    /// How many failovers.
    #[arg(long, default_value_t = 20)]
    pub runs: u32,
    /// Seed of the random instants; printed, so that a run can be repeated.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Kill only at this failpoint instead of all in turn (`random` for a random instant).
    #[arg(long, value_name = "NAME")]
    pub at: Option<String>,
    /// Where images and log lie.
    #[arg(long, value_enum, default_value = "file")]
    pub storage: LabStorage,
    /// With `--storage nfs`: before each failover freeze the NAS for so many seconds under load, then kill and restart its server.
    #[arg(long, value_name = "S")]
    pub nas_stall: Option<u64>,
    /// One JSON object at the end.
    #[arg(long, conflicts_with = "markdown")]
    pub json: bool,
    /// One section of Markdown at the end, as in docs/results.md.
    #[arg(long)]
    pub markdown: bool,
    /// The distribution of the times as an SVG picture.
    #[arg(long, value_name = "PATH")]
    pub svg: Option<PathBuf>,
    /// Keep the working directories of failed runs.
    #[arg(long)]
    pub keep: bool,
}
