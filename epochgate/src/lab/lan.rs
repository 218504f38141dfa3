//! The network of a guest on this machine, beside that of its hosts: each host has a bridge with the guest's tap and a cable to a switch,
//! and so has the outside world, where clients are, in a namespace of its own. The switch is not told where the guest is: it learns that from
//! what comes in at its ports, so it has to hear of it when the guest moves. Nothing has a name anywhere, so all of it goes with the lab.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, ensure};

use super::namespaces::{Holder, Place};
use super::network::{Host, Network, ip};

/// The hosts where the guest can be, with their names in configuration files; their taps are named after them.
pub(crate) const HOSTS: [(&str, Host); 2] = [("host-a", Host::Source), ("host-b", Host::Standby)];
/// The guest's address. The same in every lab: each has a network of its own.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
/// What the guest's kernel is told.
pub(crate) const GUEST_CMDLINE: &str = "guest.address=10.78.0.2/24";
/// What QEMU is told, as it continues a list in TOML. `{host}` is filled in by the roles.
pub(crate) const QEMU_ARGS: &str = r#", "-netdev", "tap,id=n0,ifname=tap-{host},script=no,downscript=no", "-device", "virtio-net-pci,netdev=n0,mac=52:54:00:78:00:02,disable-modern=on,romfile=""#;
/// As in [`QEMU_ARGS`].
const GUEST_MAC: &str = "52:54:00:78:00:02";

/// The network. Gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Lan {
    /// The network of the hosts.
    pub hosts: Network,
    /// Where the clients run.
    pub outside: Place,
    _outside: Holder,
}

impl Lan {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let hosts = Network::start()?;
        let holder = Holder::network()?;
        let outside = holder.place()?;
        let mut switch = bridge("guests");
        for (name, host) in HOSTS {
            let own = format!(
                "{}tuntap add tap-{name} mode tap\n\
                 link set tap-{name} master guests up\n\
                 link add uplink type veth peer name {name} netns {switch}\n\
                 link set uplink master guests up\n",
                bridge("guests"),
                switch = hosts.switch_pid(),
            );
            ip(hosts.place(host), &own)?;
            switch.push_str(&format!("link set {name} master guests up\n"));
        }
        switch.push_str(&format!(
            "link add cable type veth peer name eth0 netns {}\nlink set cable master guests up\n",
            holder.pid()
        ));
        ip(hosts.switch(), &switch)?;
        ip(
            &outside,
            "link set lo up\naddr add 10.78.0.1/24 dev eth0\nlink set eth0 up\n",
        )?;
        Ok(Self {
            hosts,
            outside,
            _outside: holder,
        })
    }

    /// The host to which the switch sends what is for the guest, as an index into [`HOSTS`]; None if it has not learned one.
    pub(crate) fn learned(&self) -> anyhow::Result<Option<usize>> {
        let mut command = Command::new("bridge");
        command.args(["fdb", "show", "br", "guests"]);
        self.hosts.switch().enter(&mut command);
        let output = command
            .output()
            .context("bridge (iproute2) can't be started")?;
        ensure!(
            output.status.success(),
            "bridge: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(port_of_guest(&String::from_utf8_lossy(&output.stdout)))
    }
}

/// What bridge(8) says of the switch: one address a line, `MAC dev PORT master BRIDGE`.
fn port_of_guest(table: &str) -> Option<usize> {
    let port = table.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(GUEST_MAC) && words.next() == Some("dev")).then(|| words.next())?
    })?;
    HOSTS.iter().position(|(name, _)| *name == port)
}

/// Lines of ip(8) for a bridge that passes everything on.
fn bridge(name: &str) -> String {
    format!("link add {name} type bridge mcast_snooping 0\nlink set {name} up\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_in_the_table_of_the_switch() {
        let table = "33:33:00:00:00:01 dev guests self permanent\n\
                     02:aa:bb:cc:dd:ee dev host-a master guests permanent\n\
                     52:54:00:78:00:02 dev host-b master guests \n";
        assert_eq!(port_of_guest(table), Some(1));
        assert_eq!(
            port_of_guest(&table.replace("dev host-b", "dev cable")),
            None
        );
        assert_eq!(port_of_guest("52:54:00:78:00:03 dev host-b\n"), None);
    }
}
