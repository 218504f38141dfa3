//! The servers that are compared, and how each is started on a disk of its own with the same content: all on unix
//! sockets, all with their defaults where those are fair, page cache and writes that are not synced.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde::Serialize;

use super::child::Server;
use crate::exit::Usage;
use crate::load::Target;

/// Name of the export of servers that have no empty name.
const NAMED: &str = "disk";

/// What a server is to the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The gateway.
    Ours,
    /// A server that people use instead: it stores what is written.
    Peer,
    /// What limits any server: the client alone, or the file without a server.
    Floor,
}

/// A server, or a floor that takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Kind {
    /// `epochgate serve IMAGE`.
    #[value(name = "epochgate-sync")]
    Sync,
    /// `epochgate serve IMAGE --async`.
    #[value(name = "epochgate-async")]
    Async,
    /// nbdkit's file plugin.
    #[value(name = "nbdkit-file")]
    NbdkitFile,
    /// nbdkit's memory plugin: no storage at all behind it.
    #[value(name = "nbdkit-memory")]
    NbdkitMemory,
    /// qemu-nbd, I/O by threads.
    #[value(name = "qemu-nbd-threads")]
    QemuThreads,
    /// qemu-nbd, I/O by io_uring.
    #[value(name = "qemu-nbd-io_uring")]
    QemuUring,
    /// nbd-server, Debian's package of that name.
    #[value(name = "nbd-server")]
    NbdServer,
    /// nbdkit's null plugin: stores nothing, so what the client alone can do.
    #[value(name = "nbdkit-null")]
    NbdkitNull,
    /// fio on the file, without a server: io_uring, page cache.
    #[value(name = "bare-file")]
    BareFile,
}

impl Kind {
    /// All, in the order of the tables.
    pub(crate) const ALL: [Self; 9] = [
        Self::Sync,
        Self::Async,
        Self::NbdkitFile,
        Self::NbdkitMemory,
        Self::QemuThreads,
        Self::QemuUring,
        Self::NbdServer,
        Self::NbdkitNull,
        Self::BareFile,
    ];

    /// As in options and tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sync => "epochgate-sync",
            Self::Async => "epochgate-async",
            Self::NbdkitFile => "nbdkit-file",
            Self::NbdkitMemory => "nbdkit-memory",
            Self::QemuThreads => "qemu-nbd-threads",
            Self::QemuUring => "qemu-nbd-io_uring",
            Self::NbdServer => "nbd-server",
            Self::NbdkitNull => "nbdkit-null",
            Self::BareFile => "bare-file",
        }
    }

    /// What it is to the comparison.
    pub(crate) fn role(self) -> Role {
        match self {
            Self::Sync | Self::Async => Role::Ours,
            Self::NbdkitNull | Self::BareFile => Role::Floor,
            _ => Role::Peer,
        }
    }

    /// Whether it has the disk in a file.
    pub(crate) fn has_image(self) -> bool {
        !matches!(self, Self::NbdkitMemory | Self::NbdkitNull)
    }

    /// Whether it gives back what was written.
    pub(crate) fn stores(self) -> bool {
        self != Self::NbdkitNull
    }

    /// Whether the disk must be filled through the server, for lack of a file.
    pub(crate) fn starts_empty(self) -> bool {
        self == Self::NbdkitMemory
    }

    /// What a write means with it, for the reader of the figures.
    pub(crate) fn writes(self) -> &'static str {
        match self {
            Self::Sync => "a write is in the page cache when it is answered; FLUSH syncs the image",
            Self::Async => {
                "a write is in the open epoch when it is answered; epochs commit to the log every interval and on \
                 FLUSH, and are then applied to the image"
            }
            Self::NbdkitMemory => "a write is in memory, never on storage; FLUSH does nothing",
            Self::NbdkitNull => "a write is thrown away",
            Self::BareFile => "a write is in the page cache when it is done; the flush is fsync",
            _ => "a write is in the page cache when it is answered; FLUSH syncs the image",
        }
    }

    /// The program and the Debian package that has it; none for this program itself.
    fn program(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Sync | Self::Async => None,
            Self::NbdkitFile | Self::NbdkitMemory | Self::NbdkitNull => Some(("nbdkit", "nbdkit")),
            Self::QemuThreads | Self::QemuUring => Some(("qemu-nbd", "qemu-utils")),
            Self::NbdServer => Some(("nbd-server", "nbd-server")),
            Self::BareFile => Some(("fio", "fio")),
        }
    }

    /// The version of the program.
    pub(crate) fn version(self) -> String {
        match self.program() {
            None => env!("CARGO_PKG_VERSION").to_owned(),
            Some((program, _)) => super::machine::version(program, "--version")
                .unwrap_or_else(|| "unknown version".to_owned()),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A usage error for the first program that is not installed: nothing is left out silently.
pub(crate) fn check_installed(kinds: &[Kind]) -> anyhow::Result<()> {
    for kind in kinds {
        if let Some((program, package)) = kind.program()
            && !installed(program)
        {
            return Err(Usage(format!(
                "{kind} needs {program}, which is not installed: install the Debian package {package}, or choose \
                 others with --peers"
            ))
            .into());
        }
    }
    Ok(())
}

/// Whether a program is on the PATH.
pub(crate) fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// How the gateway is set up in async mode.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct AsyncMode {
    /// Milliseconds between two epochs.
    pub epoch_interval_ms: u64,
    /// Memory for epochs, in MiB.
    pub memory_budget_mib: u64,
}

/// A server with its disk.
#[derive(Debug)]
pub(crate) struct Station {
    /// What it is.
    pub kind: Kind,
    /// Its disk; does not exist for those without.
    pub image: PathBuf,
    server: Option<Server>,
    target: Option<Target>,
}

impl Station {
    /// Makes the disk with `make_image` and starts the server, all files in `dir`.
    pub(crate) fn start(
        kind: Kind,
        dir: &Path,
        size: u64,
        async_mode: AsyncMode,
        make_image: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let image = dir.join(format!("{kind}.img"));
        if kind.has_image() {
            make_image(&image)?;
        }
        let socket = dir.join(format!("{kind}.sock"));
        let log = dir.join(format!("{kind}.log"));
        let server = match kind {
            Kind::BareFile => None,
            Kind::NbdServer => Some(nbd_server(dir, &image, &socket, &log)?),
            _ => Some(Server::start(
                command(kind, &image, &socket, size, async_mode)?,
                &socket,
                &log,
            )?),
        };
        let export = if kind == Kind::NbdServer { NAMED } else { "" };
        Ok(Self {
            kind,
            image,
            target: server.is_some().then(|| Target {
                socket,
                export: export.to_owned(),
            }),
            server,
        })
    }

    /// Where it serves; none for the bare file.
    pub(crate) fn target(&self) -> Option<&Target> {
        self.target.as_ref()
    }

    /// The NBD URI of the export; none for the bare file.
    pub(crate) fn uri(&self) -> Option<String> {
        let target = self.target.as_ref()?;
        Some(format!(
            "nbd+unix:///{}?socket={}",
            target.export,
            target.socket.display()
        ))
    }

    /// CPU time of the server so far; none for the bare file.
    pub(crate) fn cpu(&self) -> anyhow::Result<Option<std::time::Duration>> {
        self.server
            .as_ref()
            .map(|server| super::proc::cpu_of_tree(server.pid()))
            .transpose()
    }

    /// An error with its last words if the server has ended.
    pub(crate) fn alive(&mut self) -> anyhow::Result<()> {
        match &mut self.server {
            Some(server) => server.alive(),
            None => Ok(()),
        }
        .with_context(|| self.kind.name())
    }
}

fn command(
    kind: Kind,
    image: &Path,
    socket: &Path,
    size: u64,
    async_mode: AsyncMode,
) -> anyhow::Result<Command> {
    let (image, size) = (image.display().to_string(), size.to_string());
    let mut command = match kind.program() {
        None => {
            let me = std::env::current_exe().context("this program's own path is not known")?;
            let mut command = Command::new(me);
            command.args(["serve", &image]);
            if kind == Kind::Async {
                let interval = async_mode.epoch_interval_ms.to_string();
                let budget = async_mode.memory_budget_mib.to_string();
                command.args(["--async", "--epoch-interval", &interval]);
                command.args(["--memory-budget", &budget]);
            }
            command.arg("--unix");
            command
        }
        Some((program @ "nbdkit", _)) => {
            let mut command = Command::new(program);
            // Its own default is 16 threads per connection; -f keeps it in the foreground.
            command.arg("-f");
            match kind {
                Kind::NbdkitFile => command.args(["file", &image]),
                Kind::NbdkitMemory => command.args(["memory", &size]),
                _ => command.args(["null", &size]),
            };
            command.arg("--unix");
            command
        }
        Some((program, _)) => {
            let aio = match kind {
                Kind::QemuUring => "--aio=io_uring",
                _ => "--aio=threads",
            };
            let mut command = Command::new(program);
            let rest = ["--cache=writeback", "--persistent", "--shared=64", &image];
            command.args(["--format=raw", aio]).args(rest);
            command.arg("--socket");
            command
        }
    };
    command.arg(socket);
    Ok(command)
}

/// nbd-server takes its socket from a configuration file, and its foreground mode serves one client only.
fn nbd_server(dir: &Path, image: &Path, socket: &Path, log: &Path) -> anyhow::Result<Server> {
    let config = dir.join("nbd-server.conf");
    let pid = dir.join("nbd-server.pid");
    let text = format!(
        "[generic]\nunixsock = {}\n[{NAMED}]\nexportname = {}\nflush = true\nfua = true\n",
        socket.display(),
        image.display()
    );
    std::fs::write(&config, text)?;
    let mut command = Command::new("nbd-server");
    command.arg("-C").arg(&config).arg("-p").arg(&pid);
    Server::start_daemon(command, socket, log, &pid)
}
