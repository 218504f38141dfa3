//! How a site is laid out: what runs where, where its files are, and the configuration files that say so, as a user would
//! write them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::nas::Nas;
use super::network::Host;
use super::relay;
use super::site::VM;
use crate::cli::{DeviceState, LabArgs};

/// Names of the VM's disks, in the order in which the guest sees them.
pub(crate) const DISKS: [&str; 2] = ["root", "data"];
/// Port of the NBD server where hosts have a network.
pub(super) const NBD_PORT: u16 = 10809;
/// Port of the checkpoint channel.
pub(super) const CHANNEL_PORT: u16 = 7070;

/// What lies on a small disk of the storage host that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Small {
    /// The log, on a file system that runs full.
    LogFull,
    /// The images, likewise.
    ImagesFull,
    /// The images, on devices that fail with EIO.
    ImagesFail,
}

/// How a site differs from the usual one.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Size of each of the two disks in bytes. Small: the witness reads all of it again and again.
    pub disk_bytes: u64,
    /// Silence after which a peer is suspected. Generous: everything shares one machine here, and a build beside the demo
    /// must not look like a dead host. A host that dies closes its connections, so this is not what detection takes.
    pub suspicion_ms: u64,
    /// Silence of the gateway after which the source gives the VM up.
    pub patience_ms: u64,
    /// Added to the guest's command line: settings of the witness.
    pub append: String,
    /// Start from this saved state, images included, instead of booting.
    pub saved: Option<PathBuf>,
    /// The hosts are network namespaces.
    pub networked: bool,
    /// What can be made to fail.
    pub small: Option<Small>,
    /// Images and log lie on a NAS, over nfs://.
    pub nas: bool,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            disk_bytes: 16 << 20,
            suspicion_ms: 2000,
            patience_ms: 10_000,
            append: String::new(),
            saved: None,
            networked: false,
            small: None,
            nas: false,
        }
    }
}

/// Where things are in the working directory of a site.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    pub dir: PathBuf,
    pub small: Option<Small>,
    pub nas: bool,
}

impl Paths {
    pub(crate) fn log(&self) -> PathBuf {
        let name = format!("{VM}.epochlog");
        if self.nas {
            return Nas::url(&self.nas_dir(), &name);
        }
        match self.small {
            Some(Small::LogFull) => self.small_dir().join(name),
            _ => self.dir.join(name),
        }
    }

    pub(crate) fn image_dir(&self) -> PathBuf {
        match self.small {
            Some(Small::ImagesFull | Small::ImagesFail) => self.small_dir(),
            _ => self.dir.clone(),
        }
    }

    /// What the NAS exports, if there is one.
    pub(crate) fn nas_dir(&self) -> PathBuf {
        self.dir.join("nas")
    }

    /// Where the small file system is mounted, if there is one.
    pub(crate) fn small_dir(&self) -> PathBuf {
        self.dir.join("small")
    }

    /// The gateway's own control socket.
    pub(crate) fn control(&self) -> PathBuf {
        self.dir.join("gateway.sock")
    }
}

/// The configuration files `g.toml`, `vm.toml` and `s.toml`.
pub(crate) fn write_files(
    layout: &Layout,
    paths: &Paths,
    images: &[PathBuf],
    args: &LabArgs,
    guest: &Path,
    ram_dir: &Path,
) -> anyhow::Result<()> {
    let vm = vm_section(layout, paths, args, guest, ram_dir);
    let channel = if layout.networked {
        format!("tcp:{}:{CHANNEL_PORT}", Host::Standby.address())
    } else {
        format!("unix:{}/standby.sock", paths.dir.display())
    };
    let protect = format!(
        "host = \"host-a\"\n{}standby = [\"{channel}\"]\ngateway_patience_ms = {}\ninterval_ms = {}\n\n{vm}",
        common(layout, paths, Host::Source),
        layout.patience_ms,
        args.interval
    );
    let standby = format!(
        "host = \"host-b\"\n{}listen = \"{channel}\"\n\n{vm}",
        common(layout, paths, Host::Standby)
    );
    let gateway = gateway_file(layout, paths, images)?;
    for (name, text) in [("g", gateway), ("vm", protect), ("s", standby)] {
        std::fs::write(paths.dir.join(format!("{name}.toml")), text)?;
    }
    Ok(())
}

fn nbd(layout: &Layout, paths: &Paths) -> String {
    if layout.networked {
        format!("{}:{NBD_PORT}", Host::Storage.address())
    } else {
        format!("{}/nbd.sock", paths.dir.display())
    }
}

fn gateway_file(layout: &Layout, paths: &Paths, images: &[PathBuf]) -> anyhow::Result<String> {
    let (kind, insecure) = if layout.networked {
        ("tcp", "insecure = true\n")
    } else {
        ("unix", "")
    };
    let mut text = format!(
        "control = \"{}\"\nlisten = [\"{kind}:{}\"]\n{insecure}\n\
         [[group]]\nname = \"{VM}\"\nlog = \"{}\"\nepoch_memory = \"{}\"\nmode = \"async\"\n",
        paths.control().display(),
        nbd(layout, paths),
        paths.log().display(),
        paths.dir.display()
    );
    for (disk, image) in DISKS.iter().zip(images) {
        write!(
            text,
            "\n[[group.disk]]\nname = \"{disk}\"\nimage = \"{}\"\n",
            image.display()
        )?;
    }
    Ok(text)
}

fn common(layout: &Layout, paths: &Paths, host: Host) -> String {
    let (control, insecure) = if layout.networked {
        (relay::socket(&paths.dir, host), "insecure = true\n")
    } else {
        (paths.control(), "")
    };
    format!(
        "gateway = \"{}\"\nnbd = \"{}\"\nruntime_dir = \"{}\"\nsuspicion_ms = {}\ndisks = [\"root\", \"data\"]\n{insecure}",
        control.display(),
        nbd(layout, paths),
        paths.dir.display(),
        layout.suspicion_ms
    )
}

fn vm_section(
    layout: &Layout,
    paths: &Paths,
    args: &LabArgs,
    guest: &Path,
    ram_dir: &Path,
) -> String {
    let tracker = args.tracker.name();
    let device_state = match args.device_state {
        DeviceState::Auto => "auto",
        DeviceState::Save => "save",
        DeviceState::Migrate => "migrate",
    };
    let cmdline = std::fs::read_to_string(guest.join("cmdline"))
        .unwrap_or_else(|_| "console=ttyS0 quiet panic=-1".to_owned());
    let append = format!("{} {}", cmdline.trim(), layout.append);
    format!(
        "[vm]\nname = \"{VM}\"\nqemu = \"{}\"\naccel = \"{}\"\nmemory_mib = {}\n\
         kernel = \"{guest}/vmlinuz\"\ninitrd = \"{guest}/initrd.gz\"\nappend = \"{}\"\n\
         dirty_tracker = \"{tracker}\"\ndevice_state = \"{device_state}\"\nram_dir = \"{}\"\n\
         extra_args = [\"-serial\", \"file:{dir}/serial-{{role}}.log\"]\n",
        args.qemu.display(),
        args.accel,
        args.memory,
        append.trim(),
        ram_dir.display(),
        guest = guest.display(),
        dir = paths.dir.display(),
    )
}
