//! The configuration files of a chain of hosts, as a user would write them.

use std::path::Path;

use anyhow::Context;

use super::{HOSTS, Plan};
use crate::lab::lan;
use crate::lab::site::VM;

/// Names of the VM's disks, in the order in which the guest sees them; their images are `NAME.img` in the guest's folder.
pub(super) const DISKS: [&str; 2] = ["root", "data"];
/// Silence after which a host is taken for lost. Long: a machine that has other work must not look like a dead host, and one that
/// is killed closes its connections.
const SUSPICION_MS: u64 = 5000;

/// Writes `g.toml`, `vm.toml` for the first host, and `standby-HOST.toml` for each.
pub(super) fn write(
    plan: &Plan<'_>,
    guest: &Path,
    dir: &Path,
    ram_dir: &Path,
    networked: bool,
) -> anyhow::Result<()> {
    let vm = vm_section(plan, guest, dir, ram_dir, networked)?;
    let put = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("{} can't be written", path.display()))
    };
    put("g.toml", &gateway(dir))?;
    for (here, host) in HOSTS.iter().enumerate() {
        let other = HOSTS[(here + 1) % HOSTS.len()];
        let role = role(host, dir);
        let protect = protect(plan, other, dir);
        let standby = format!(
            "{role}listen = \"unix:{dir}/{host}.sock\"\n\n[protect]\n{protect}\n{vm}",
            dir = dir.display()
        );
        put(&format!("standby-{host}.toml"), &standby)?;
        if here == 0 {
            put("vm.toml", &format!("{role}{protect}\n{vm}"))?;
        }
    }
    Ok(())
}

fn gateway(dir: &Path) -> String {
    let dir = dir.display();
    let disks: String = DISKS
        .iter()
        .map(|disk| format!("\n[[group.disk]]\nname = \"{disk}\"\nimage = \"{dir}/{disk}.img\"\n"))
        .collect();
    format!(
        "control = \"{dir}/gateway.sock\"\nlisten = [\"unix:{dir}/nbd.sock\"]\n\n\
         [[group]]\nname = \"{VM}\"\nlog = \"{dir}/{VM}.epochlog\"\nepoch_memory = \"{dir}\"\nmode = \"async\"\n{disks}"
    )
}

fn role(host: &str, dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "host = \"{host}\"\ngateway = \"{dir}/gateway.sock\"\nnbd = \"{dir}/nbd.sock\"\nruntime_dir = \"{dir}/{host}\"\n\
         disks = {DISKS:?}\nsuspicion_ms = {SUSPICION_MS}\n"
    )
}

fn protect(plan: &Plan<'_>, standby: &str, dir: &Path) -> String {
    format!(
        "standby = [\"unix:{}/{standby}.sock\"]\ninterval_ms = {}\nrhythm = \"{}\"\noutput = \"{}\"\n",
        dir.display(),
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
