//! QEMU's command line for a VM, and which of the user's own arguments it can't stand. Starts nothing.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

use serde_json::{Value, json};

use crate::description::{Accelerator, DiskAttachment, NbdServer, Role, VmDescription};
use crate::device_state::add_fd;
use crate::dirty_pages::TrackerChoice;

/// How long QEMU holds the guest's disk requests while it tries to reconnect to a lost NBD server, in seconds. Then they
/// fail and the guest is stopped.
pub(crate) const RECONNECT_DELAY_SECONDS: u32 = 30;

/// What the guest sees of a disk. A modern virtio device has the state of 1,024 queues, 45 KB, used or not, and saves it in each pause.
pub(crate) const DISK_DEVICE: &str = "virtio-blk-pci,disable-modern=on";

/// QEMU's name for the guest's memory.
pub(crate) const RAM_BACKEND: &str = "epochgate-ram";

/// Options that this crate sets, each with the key of the description to use instead.
const OWN_OPTIONS: &[(&str, &str)] = &[
    ("m", "set memory_mib instead"),
    ("smp", "set cpus instead"),
    ("machine", "set machine instead"),
    ("M", "set machine instead"),
    ("accel", "set accel instead"),
    ("enable-kvm", "set accel instead"),
    ("kernel", "set kernel instead"),
    ("initrd", "set initrd instead"),
    ("append", "set append instead"),
    ("bios", "set firmware instead"),
    ("name", "set name instead"),
    ("qmp", "Epochgate holds its own QMP connection"),
    ("qmp-pretty", "Epochgate holds its own QMP connection"),
    ("incoming", "Epochgate starts the standby itself"),
    ("loadvm", "a snapshot would replace the checkpointed state"),
    ("snapshot", "the guest's writes would not reach the gateway"),
    ("S", "Epochgate starts and stops the guest itself"),
    ("preconfig", "Epochgate starts and stops the guest itself"),
    ("daemonize", "Epochgate watches QEMU as its child"),
    (
        "readconfig",
        "it may hide options that break shared memory: write them out",
    ),
    ("mem-path", "set ram_dir instead"),
    ("mem-prealloc", "Epochgate makes the memory itself"),
];

/// The parts of a launch that the command line depends on.
#[derive(Debug)]
pub(crate) struct CommandLine<'a> {
    pub(crate) description: &'a VmDescription,
    pub(crate) role: Role,
    pub(crate) accelerator: Accelerator,
    pub(crate) disks: &'a [DiskAttachment],
    pub(crate) ram: &'a Path,
    /// What `{dir}` stands for.
    pub(crate) runtime_dir: &'a Path,
    /// What `{host}` stands for.
    pub(crate) host: &'a str,
    /// The inherited end of the QMP socket.
    pub(crate) qmp_fd: RawFd,
    /// The inherited socket at which somebody who watches may connect.
    pub(crate) watch_fd: RawFd,
    /// The inherited ends of what device state is saved by, if it is.
    pub(crate) save: Option<SaveFds>,
    pub(crate) incoming: bool,
}

/// What QEMU inherits to save its devices.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SaveFds {
    /// The file that it writes.
    pub(crate) file: RawFd,
    /// A QMP socket for this one command.
    pub(crate) qmp: RawFd,
}

impl CommandLine<'_> {
    /// All arguments, without the program.
    pub(crate) fn build(&self) -> Vec<OsString> {
        let d = self.description;
        let mut args: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: OsString| args.extend([name.into(), value]);
        option("-name", d.name.clone().into());
        option("-accel", self.accelerator.to_string().into());
        option(
            "-machine",
            format!(
                "{},memory-backend={RAM_BACKEND},suppress-vmdesc=on",
                d.machine
            )
            .into(),
        );
        option("-m", format!("{}M", d.memory_mib).into());
        option("-smp", d.cpus.to_string().into());
        let ram = json!({
            "qom-type": "memory-backend-file", "id": RAM_BACKEND, "size": d.memory_bytes(),
            "mem-path": self.ram.to_string_lossy(), "share": true,
        });
        option("-object", ram.to_string().into());
        // VGA memory would travel with the device state of each checkpoint.
        option("-vga", "none".into());
        option("-display", "none".into());
        let mut monitor = |id: &str, fd: RawFd, how: &str| {
            option("-chardev", format!("socket,id={id},fd={fd}{how}").into());
            option("-mon", format!("chardev={id},mode=control").into());
        };
        monitor("epochgate-qmp", self.qmp_fd, "");
        monitor("epochgate-watch", self.watch_fd, ",server=on,wait=off");
        if let Some(save) = self.save {
            monitor("epochgate-save", save.qmp, "");
            option("-add-fd", add_fd(save.file).into());
        }
        if self.incoming {
            option("-incoming", "defer".into());
        }
        for (name, file) in [
            ("-kernel", &d.kernel),
            ("-initrd", &d.initrd),
            ("-bios", &d.firmware),
        ] {
            if let Some(file) = file {
                option(name, file.clone().into());
            }
        }
        if let Some(append) = &d.append {
            option("-append", append.into());
        }
        for disk in self.disks {
            match disk.overlay {
                true => option("-drive", overlay(disk).into()),
                false => option("-blockdev", blockdev(disk).to_string().into()),
            }
            option("-device", device(disk).into());
        }
        // A guest that powers off leaves its QEMU in place, so that the event is never lost with the process.
        args.extend(["-nodefaults", "-no-user-config", "-no-shutdown", "-S"].map(OsString::from));
        let extra = match self.role {
            Role::Clone => unplugged(&d.extra_args),
            Role::Source | Role::Standby => d.extra_args.clone(),
        };
        args.extend(extra.iter().map(|arg| self.fill_in(arg).into()));
        args
    }

    fn fill_in(&self, argument: &str) -> String {
        argument
            .replace("{role}", &self.role.to_string())
            .replace("{host}", self.host)
            .replace("{dir}", &self.runtime_dir.to_string_lossy())
            .replace("{vm}", &self.description.name)
    }
}

fn node(disk: &DiskAttachment) -> String {
    format!("disk-{}", disk.id)
}

/// The user's arguments with every network backend replaced by one that leads nowhere. The guest's interfaces stay.
fn unplugged(args: &[String]) -> Vec<String> {
    let mut hubs = 0..;
    let mut after_netdev = false;
    let each = args.iter().map(|arg| {
        let backend = std::mem::replace(
            &mut after_netdev,
            matches!(arg.as_str(), "-netdev" | "--netdev"),
        );
        if !backend {
            return arg.clone();
        }
        let id = crate::gate::netdev_id(arg).unwrap_or_default();
        // A hub with one port.
        format!("hubport,id={id},hubid={}", hubs.next().unwrap_or(0))
    });
    each.collect()
}

/// Why a VM with these arguments can't be cloned.
pub(crate) fn check_clone(args: &[String]) -> Result<(), String> {
    for (option, value) in args.iter().zip(args.iter().skip(1)) {
        let name = option.trim_start_matches('-');
        let backend = option.starts_with('-') && ["nic", "net"].contains(&name);
        if backend && value != "none" {
            return Err(format!(
                "extra_args contains \"{option} {value}\", which a clone can't be kept off the network with: write it as -netdev with \
                 an id and -device"
            ));
        }
    }
    Ok(())
}

/// A disk whose export stays as it is.
fn overlay(disk: &DiskAttachment) -> String {
    let mut below = blockdev(&DiskAttachment {
        read_only: true,
        ..disk.clone()
    });
    if let Some(below) = below.as_object_mut() {
        // The node of this name is the one above.
        below.remove("node-name");
    }
    let (id, below) = (node(disk), below.to_string().replace(',', ",,"));
    format!("if=none,id={id},snapshot=on,file=json:{below}")
}

fn blockdev(disk: &DiskAttachment) -> Value {
    let server = match &disk.server {
        NbdServer::Unix(path) => json!({ "type": "unix", "path": path.to_string_lossy() }),
        NbdServer::Tcp { host, port } => {
            json!({ "type": "inet", "host": host, "port": port.to_string() })
        }
    };
    json!({
        "driver": "raw", "node-name": node(disk), "read-only": disk.read_only,
        "cache": { "direct": true, "no-flush": false },
        "file": {
            "driver": "nbd", "server": server, "export": disk.export, "read-only": disk.read_only,
            "reconnect-delay": RECONNECT_DELAY_SECONDS, "cache": { "direct": true, "no-flush": false },
        },
    })
}

fn device(disk: &DiskAttachment) -> String {
    // A lost gateway stops the guest; it must not see errors that a takeover would have spared it.
    format!(
        "{DISK_DEVICE},drive={},id={},werror=stop,rerror=stop",
        node(disk),
        disk.id
    )
}

/// Refuses arguments that contradict the description or break shared RAM or dirty tracking.
pub(crate) fn check_extra(description: &VmDescription) -> Result<(), String> {
    let args = &description.extra_args;
    for argument in args.iter().filter(|a| a.starts_with('-')) {
        let name = argument.trim_start_matches('-');
        if let Some((_, why)) = OWN_OPTIONS.iter().find(|(own, _)| *own == name) {
            return Err(format!("extra_args must not contain {argument}: {why}"));
        }
    }
    if let Some(object) = args
        .iter()
        .find(|a| a.contains("memory-backend-") || a.contains("memory-backend="))
    {
        // Shared memory is left out of the device state and would be lost; private memory would travel each time.
        return Err(format!(
            "extra_args contains \"{object}\": all guest memory must be the one shared file that Epochgate makes; remove it and set memory_mib"
        ));
    }
    if let Some(disk) = writable_disk(args) {
        return Err(format!(
            "extra_args contains \"{disk}\": what the guest writes there is not held in epochs and would not go back \
             with its memory; let the gateway serve it, or make it read-only"
        ));
    }
    if let Some(device) = args
        .iter()
        .find(|a| a.contains("vfio") || a.contains("ivshmem"))
    {
        return Err(format!(
            "extra_args contains \"{device}\": its writes to guest memory can't be tracked or saved; remove it"
        ));
    }
    if let Some(device) = second_process(args)
        && description.dirty_tracker == TrackerChoice::Pagemap
    {
        return Err(format!(
            "extra_args contains \"{device}\": another process writes guest memory, which the pagemap tracker does not see; set dirty_tracker = \"hash\""
        ));
    }
    Ok(())
}

/// The argument by which a process other than QEMU writes guest memory.
pub(crate) fn second_process(args: &[String]) -> Option<&String> {
    args.iter()
        .find(|a| a.contains("vhost-user") || a.contains("virtiofsd"))
}

/// The argument by which the guest itself can make QEMU unable to migrate, for as long as it likes: it mounts a 9p share.
pub(crate) fn blocks_migration(args: &[String]) -> Option<&String> {
    args.iter()
        .find(|a| a.contains("virtfs") || a.contains("virtio-9p"))
}

/// The argument that gives the guest a disk of its own to write to. Flash (the firmware's variables) may be: its content
/// travels with the device state.
fn writable_disk(args: &[String]) -> Option<&String> {
    const WHOLE_DISKS: &[&str] = &["hda", "hdb", "hdc", "hdd", "sd", "fda", "fdb", "mtdblock"];
    const HARMLESS: &[&str] = &[
        "readonly=on",
        "read-only=on",
        "\"read-only\":true",
        "media=cdrom",
        "if=pflash",
    ];
    args.iter()
        .zip(args.iter().skip(1))
        .find_map(|(option, value)| {
            let name = option.strip_prefix('-')?.trim_start_matches('-');
            let compact: String = value.chars().filter(|c| !c.is_whitespace()).collect();
            let described = name == "drive" || name == "blockdev";
            let writable = described && !HARMLESS.iter().any(|word| compact.contains(word));
            (writable || WHOLE_DISKS.contains(&name)).then_some(value)
        })
}
