//! The lab's network: a namespace of its own for all of it, and in it a tap for each VM. Gone when the lab ends.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Says that this process is in the lab's namespace.
const INSIDE: &str = "EPOCHGATE_LAB_NETWORK";

/// Starts this program again in a network namespace of its own, unless it is in it.
pub fn enter() -> anyhow::Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return ip(&["link", "set", "lo", "up"]);
    }
    if !rustix::process::geteuid().is_root() {
        bail!("the laboratory makes network devices, which needs root");
    }
    let me = std::env::current_exe()?;
    let error = Command::new("unshare")
        .arg("--net")
        .arg(me)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "yes")
        .exec();
    Err(error).context("unshare (util-linux) can't be started")
}

/// The hosts of a protected VM, both of them this machine. They are the last number of the address at which probes reach it there.
pub const HOSTS: [&str; 2] = ["1", "2"];

/// The tap of one VM, with a network of two addresses; and ports of this machine for the probe, which goes another way.
#[derive(Debug)]
pub struct Tap {
    name: String,
    guest: String,
    slot: u32,
}

impl Tap {
    /// Makes it. `slot` is a number that no other running VM has. With `spare`, a second one that leads nowhere, for a standby.
    pub fn make(slot: u32, spare: bool) -> anyhow::Result<Self> {
        let tap = Self {
            guest: format!("10.79.{slot}.2"),
            name: format!("lab{slot}-{}", HOSTS[0]),
            slot,
        };
        for host in &HOSTS[..if spare { 2 } else { 1 }] {
            let name = tap.of_host(host);
            // What a run before has left.
            let _ = ip(&["link", "del", &name]);
            ip(&["tuntap", "add", "dev", &name, "mode", "tap"])?;
        }
        ip(&[
            "addr",
            "add",
            &format!("10.79.{slot}.1/30"),
            "dev",
            &tap.name,
        ])?;
        ip(&["link", "set", &tap.name, "up"])?;
        Ok(tap)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name of the tap of a host: the second one leads nowhere.
    pub fn of_host(&self, host: &str) -> String {
        format!("lab{}-{host}", self.slot)
    }

    /// The guest's address.
    pub fn guest(&self) -> &str {
        &self.guest
    }

    /// The port of 127.0.0.1 that leads to a port of the guest.
    pub fn probe_port(&self, port: u16) -> u16 {
        let slot = u16::try_from(self.slot).unwrap_or(0);
        20_000 + 2 * slot + u16::from(port == crate::probe::APP)
    }

    /// The same for QEMU on a host.
    pub fn forwards(&self, host: &str) -> String {
        let forward = |port| {
            format!(
                "hostfwd=tcp:127.0.0.{host}:{}-:{port}",
                self.probe_port(port)
            )
        };
        [crate::probe::BEAT, crate::probe::APP]
            .map(forward)
            .join(",")
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        for host in HOSTS {
            let _ = ip(&["link", "del", &self.of_host(host)]);
        }
    }
}

fn ip(args: &[&str]) -> anyhow::Result<()> {
    let ended = Command::new("ip")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("ip (iproute2) can't be started")?;
    if !ended.status.success() {
        bail!(
            "ip {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&ended.stderr).trim()
        );
    }
    Ok(())
}
