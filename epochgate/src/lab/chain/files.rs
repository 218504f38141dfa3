//! The configuration files of a chain of hosts, as a user would write them.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Plan;
use crate::lab::lan::{self, HOSTS};
use crate::lab::layout::{CHANNEL_PORT, NBD_PORT};
use crate::lab::network::Host;
use crate::lab::relay;
use crate::lab::site::VM;

/// Names of the VM's disks, in the order in which the guest sees them; their images are `NAME.img` in the guest's folder.
pub(super) const DISKS: [&str; 2] = ["root", "data"];
/// Silence after which a host is taken for lost. Long: a machine that has other work must not look like a dead host, and one that
/// is killed closes its connections.
const SUSPICION_MS: u64 = 5000;

/// The gateway's control socket, in the working directory.
pub(super) const CONTROL: &str = "gateway.sock";

/// Where processes of a host have their sockets.
pub(super) fn runtime_dir(dir: &Path, host: &str) -> PathBuf {
    dir.join(host)
}

/// Where the parts of a site find each other.
#[derive(Debug, Clone, Copy)]
struct Addresses<'a> {
    /// The working directory.
    dir: &'a Path,
    /// Over the network of the hosts; else all are on one host, with unix sockets.
    networked: bool,
}

impl Addresses<'_> {
    /// What NBD clients connect to.
    fn nbd(self) -> String {
        if self.networked {
            format!("{}:{NBD_PORT}", Host::Storage.address())
        } else {
            format!("{}/nbd.sock", self.dir.display())
        }
    }

    /// Where a standby takes checkpoints.
    fn channel(self, (name, host): (&str, Host)) -> String {
        if self.networked {
            format!("tcp:{}:{CHANNEL_PORT}", host.address())
        } else {
            format!("unix:{}/{name}.sock", self.dir.display())
        }
    }

    /// The control API, as processes of `host` see it.
    fn control(self, host: Host) -> PathBuf {
        if self.networked {
            relay::socket(self.dir, host)
        } else {
            self.dir.join(CONTROL)
        }
    }
}

/// Writes `g.toml`, `vm.toml` for the first host, and `standby-HOST.toml` for each.
pub(super) fn write(
    plan: &Plan<'_>,
    guest: &Path,
    dir: &Path,
    ram_dir: &Path,
    networked: bool,
) -> anyhow::Result<()> {
    let place = Addresses { dir, networked };
    let vm = vm_section(plan, guest, dir, ram_dir, networked)?;
    let put = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("{} can't be written", path.display()))
    };
    put("g.toml", &gateway(place))?;
    for (here, host) in HOSTS.iter().enumerate() {
        let other = HOSTS[(here + 1) % HOSTS.len()];
        let role = role(*host, place);
        let protect = protect(plan, other, place);
        let listen = place.channel(*host);
        let standby = format!("{role}listen = \"{listen}\"\n\n[protect]\n{protect}\n{vm}");
        put(&format!("standby-{}.toml", host.0), &standby)?;
        if here == 0 {
            put("vm.toml", &format!("{role}{protect}\n{vm}"))?;
        }
    }
    Ok(())
}

fn gateway(place: Addresses<'_>) -> String {
    let kind = if place.networked { "tcp" } else { "unix" };
    let nbd = place.nbd();
    let dir = place.dir.display();
    let disks: String = DISKS
        .iter()
        .map(|disk| format!("\n[[group.disk]]\nname = \"{disk}\"\nimage = \"{dir}/{disk}.img\"\n"))
        .collect();
    format!(
        "control = \"{dir}/{CONTROL}\"\nlisten = [\"{kind}:{nbd}\"]\ninsecure = true\n\n\
         [[group]]\nname = \"{VM}\"\nlog = \"{dir}/{VM}.epochlog\"\nepoch_memory = \"{dir}\"\nmode = \"async\"\n{disks}"
    )
}

fn role((name, host): (&str, Host), place: Addresses<'_>) -> String {
    format!(
        "host = \"{name}\"\ngateway = \"{}\"\nnbd = \"{}\"\nruntime_dir = \"{}\"\n\
         disks = {DISKS:?}\nsuspicion_ms = {SUSPICION_MS}\ninsecure = true\n",
        place.control(host).display(),
        place.nbd(),
        runtime_dir(place.dir, name).display(),
    )
}

fn protect(plan: &Plan<'_>, standby: (&str, Host), place: Addresses<'_>) -> String {
    format!(
        "standby = [\"{}\"]\ninterval_ms = {}\nrhythm = \"{}\"\noutput = \"{}\"\n",
        place.channel(standby),
        plan.interval_ms,
        plan.rhythm.name(),
        plan.output.name(),
    )
}

fn vm_section(
    plan: &Plan<'_>,
    guest: &Path,
    dir: &Path,
    ram_dir: &Path,
    networked: bool,
) -> anyhow::Result<String> {
    let args = plan.lab;
    let (address, interface) = if networked {
        (lan::GUEST_CMDLINE, lan::QEMU_ARGS)
    } else {
        ("", "")
    };
    let cmdline = guest.join("cmdline");
    let cmdline = std::fs::read_to_string(&cmdline)
        .with_context(|| format!("{} can't be read", cmdline.display()))?;
    Ok(format!(
        "[vm]\nname = \"{VM}\"\nqemu = \"{}\"\naccel = \"{}\"\nmemory_mib = {}\n\
         kernel = \"{guest}/vmlinuz\"\ninitrd = \"{guest}/initrd.gz\"\nappend = \"{} {} {}\"\n\
         dirty_tracker = \"{}\"\nram_dir = \"{}\"\n\
         extra_args = [\"-serial\", \"file:{dir}/serial-{{host}}.log\"{}]\n",
        args.qemu.display(),
        args.accel,
        args.memory,
        cmdline.trim(),
        address,
        plan.append,
        args.tracker.name(),
        ram_dir.display(),
        interface,
        guest = guest.display(),
        dir = dir.display(),
    ))
}
