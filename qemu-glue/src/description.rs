//! What a VM is made of, as the user writes it down, and which of it can't be protected. Plain values; starts nothing.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::device_state::DeviceStateChoice;
use crate::dirty_pages::TrackerChoice;
use crate::error::{Error, Result};

/// Longest name of a VM or id of a disk: it becomes part of file and QEMU node names (QEMU's limit for those is 31).
const NAME_LIMIT: usize = 24;

/// How guest code is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// KVM if a trial guest runs on it, else TCG, with a warning.
    #[default]
    Auto,
    /// QEMU's translator: works everywhere, slow.
    Tcg,
    /// The kernel's hypervisor.
    Kvm,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accelerator::Auto => "auto",
            Accelerator::Tcg => "tcg",
            Accelerator::Kvm => "kvm",
        })
    }
}

/// Which of the QEMUs of a VM. Goes into file names and into the placeholder `{role}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The one that runs the guest.
    Source,
    /// The one that waits to continue it.
    Standby,
    /// A copy of an earlier state, beside the others. It reaches no network.
    Clone,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Source => "source",
            Role::Standby => "standby",
            Role::Clone => "clone",
        })
    }
}

/// Where one QEMU of a VM lives on this host.
#[derive(Debug, Clone)]
pub struct RuntimePlace {
    /// Its role.
    pub role: Role,
    /// Directory for sockets and the preloaded shim; made if it is missing, readable by its owner only.
    /// Keep it short: a socket's whole path has 107 bytes.
    pub runtime_dir: PathBuf,
    /// Name of this host, for the placeholder `{host}`.
    pub host: String,
}

impl RuntimePlace {
    /// The place of the source in `runtime_dir`.
    pub fn source(runtime_dir: impl Into<PathBuf>) -> Self {
        RuntimePlace {
            role: Role::Source,
            runtime_dir: runtime_dir.into(),
            host: String::new(),
        }
    }

    /// The place of the standby in `runtime_dir`.
    pub fn standby(runtime_dir: impl Into<PathBuf>) -> Self {
        RuntimePlace {
            role: Role::Standby,
            runtime_dir: runtime_dir.into(),
            host: String::new(),
        }
    }

    /// The place of a clone in `runtime_dir`.
    pub fn clone_of(runtime_dir: impl Into<PathBuf>) -> Self {
        RuntimePlace {
            role: Role::Clone,
            runtime_dir: runtime_dir.into(),
            host: String::new(),
        }
    }

    /// The same place, on the host of this name.
    pub fn on(self, host: impl Into<String>) -> Self {
        RuntimePlace {
            host: host.into(),
            ..self
        }
    }
}

/// Where an NBD server listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NbdServer {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP address.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
}

/// One disk of the VM, served over NBD, seen by the guest as a virtio-blk device. Given at launch: the export's name
/// depends on who attaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskAttachment {
    /// Id of the device: the same on source and standby.
    pub id: String,
    /// The server.
    pub server: NbdServer,
    /// The export's name.
    pub export: String,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// The export is only read, and what the guest writes goes to a temporary file that ends with QEMU.
    #[serde(default)]
    pub overlay: bool,
}

impl DiskAttachment {
    /// A writable disk behind a unix socket.
    pub fn unix(
        id: impl Into<String>,
        socket: impl Into<PathBuf>,
        export: impl Into<String>,
    ) -> Self {
        DiskAttachment {
            id: id.into(),
            server: NbdServer::Unix(socket.into()),
            export: export.into(),
            read_only: false,
            overlay: false,
        }
    }

    /// A writable disk behind a TCP address.
    pub fn tcp(
        id: impl Into<String>,
        host: impl Into<String>,
        port: u16,
        export: impl Into<String>,
    ) -> Self {
        DiskAttachment {
            id: id.into(),
            server: NbdServer::Tcp {
                host: host.into(),
                port,
            },
            export: export.into(),
            read_only: false,
            overlay: false,
        }
    }
}

/// A VM, as far as QEMU must know it. Source and standby use the same description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmDescription {
    /// Name: letters, digits, `-`, `_`; at most 24 characters.
    pub name: String,
    /// The QEMU program.
    #[serde(default = "default_qemu")]
    pub qemu: PathBuf,
    /// How guest code is run.
    #[serde(default)]
    pub accel: Accelerator,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Number of virtual CPUs.
    #[serde(default = "default_cpus")]
    pub cpus: u32,
    /// QEMU's machine type with options of it, such as `pc` or `q35,hpet=off`.
    #[serde(default = "default_machine")]
    pub machine: String,
    /// Linux kernel to boot directly. Without it the firmware boots from the first disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Its initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Its command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
    /// Firmware image instead of QEMU's own (`-bios`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<PathBuf>,
    /// More arguments for QEMU. `{role}` becomes `source`, `standby` or `clone`, `{vm}` the name, `{host}` the name
    /// of this host, `{dir}` the VM's runtime directory on it.
    #[serde(default)]
    pub extra_args: Vec<String>,
    /// How dirty pages are found.
    #[serde(default)]
    pub dirty_tracker: TrackerChoice,
    /// How the device state is taken. Source and standby need not agree.
    #[serde(default)]
    pub device_state: DeviceStateChoice,
    /// Directory of the RAM file: a tmpfs or hugetlbfs with room for the guest's memory.
    #[serde(default = "default_ram_dir")]
    pub ram_dir: PathBuf,
}

fn default_qemu() -> PathBuf {
    "qemu-system-x86_64".into()
}

fn default_cpus() -> u32 {
    1
}

fn default_machine() -> String {
    "pc".into()
}

fn default_ram_dir() -> PathBuf {
    "/dev/shm".into()
}

impl VmDescription {
    /// A VM with this name and memory and defaults for the rest.
    pub fn new(name: impl Into<String>, memory_mib: u64) -> Self {
        VmDescription {
            name: name.into(),
            qemu: default_qemu(),
            accel: Accelerator::default(),
            memory_mib,
            cpus: default_cpus(),
            machine: default_machine(),
            kernel: None,
            initrd: None,
            append: None,
            firmware: None,
            extra_args: Vec::new(),
            dirty_tracker: TrackerChoice::default(),
            device_state: DeviceStateChoice::default(),
            ram_dir: default_ram_dir(),
        }
    }

    /// Guest memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_mib.saturating_mul(1 << 20)
    }

    /// Checks all that can be known without starting QEMU.
    ///
    /// # Errors
    /// [`Error::Description`] for the first thing that is wrong or that would break shared RAM or dirty tracking.
    pub fn validate(&self, disks: &[DiskAttachment]) -> Result<()> {
        self.check(disks).map_err(|problem| Error::Description {
            vm: self.name.clone(),
            problem,
        })
    }

    /// The ids of the network backends whose packets an output gate has to hold.
    ///
    /// # Errors
    /// [`Error::Description`]: `extra_args` has an interface whose packets a gate can't hold.
    pub fn gated_netdevs(&self) -> Result<Vec<String>> {
        crate::gate::gated(&self.extra_args).map_err(|problem| Error::Description {
            vm: self.name.clone(),
            problem,
        })
    }

    /// Checks that a clone of it can be kept off the network.
    ///
    /// # Errors
    /// [`Error::Description`]: `extra_args` has an interface that is not written as `-netdev` and `-device`.
    pub fn validate_clone(&self) -> Result<()> {
        crate::arguments::check_clone(&self.extra_args).map_err(|problem| Error::Description {
            vm: self.name.clone(),
            problem,
        })
    }

    fn check(&self, disks: &[DiskAttachment]) -> Result<(), String> {
        check_name("name", &self.name)?;
        if self.memory_mib == 0 || self.memory_mib > 1 << 24 {
            return Err(format!(
                "memory_mib is {} but must be between 1 and 16777216",
                self.memory_mib
            ));
        }
        if self.cpus == 0 {
            return Err("cpus is 0 but a VM needs at least one".into());
        }
        for key in ["memory-backend", "accel", "suppress-vmdesc"] {
            if self
                .machine
                .split(',')
                .any(|part| part.split('=').next() == Some(key))
            {
                return Err(format!(
                    "machine sets {key}, which Epochgate sets itself: remove it"
                ));
            }
        }
        if self.kernel.is_none() && (self.initrd.is_some() || self.append.is_some()) {
            return Err("initrd and append need a kernel: set kernel or remove them".into());
        }
        for (key, file) in [
            ("kernel", &self.kernel),
            ("initrd", &self.initrd),
            ("firmware", &self.firmware),
        ] {
            check_file(key, file.as_deref())?;
        }
        let mut ids: Vec<&str> = disks.iter().map(|disk| disk.id.as_str()).collect();
        for id in &ids {
            check_name("disk id", id)?;
        }
        ids.sort_unstable();
        if let Some(twice) = ids
            .windows(2)
            .find_map(|pair| (pair.first() == pair.last()).then(|| pair.concat()))
        {
            return Err(format!(
                "two disks have the same id: \"{}\"",
                &twice[..twice.len() / 2]
            ));
        }
        crate::arguments::check_extra(self)
    }
}

fn check_name(what: &str, name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > NAME_LIMIT || !name.chars().all(good) {
        return Err(format!(
            "{what} \"{name}\" must be 1 to {NAME_LIMIT} letters, digits, '-' or '_' (it becomes part of file names)"
        ));
    }
    Ok(())
}

fn check_file(key: &str, file: Option<&Path>) -> Result<(), String> {
    match file {
        Some(path) if !path.is_file() => {
            Err(format!("{key} {} is not a readable file", path.display()))
        }
        _ => Ok(()),
    }
}
