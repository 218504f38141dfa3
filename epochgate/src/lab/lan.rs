//! The network of a guest on this machine: a switch with the taps of two hosts in one network namespace, and the outside world, where
//! clients are, in another at the other end of a cable. It has no name anywhere, so all of it goes with the lab.

use std::net::Ipv4Addr;

use super::namespaces::{Holder, Place};
use super::network::ip;

/// The guest's address. The same in every lab: each has a network of its own.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
/// What the guest's kernel is told.
pub(crate) const GUEST_CMDLINE: &str = "guest.address=10.78.0.2/24";
/// What QEMU is told, as it continues a list in TOML. `{host}` is filled in by the roles.
pub(crate) const QEMU_ARGS: &str = r#", "-netdev", "tap,id=n0,ifname=tap-{host},script=no,downscript=no", "-device", "virtio-net-pci,netdev=n0,mac=52:54:00:78:00:02,romfile=""#;

/// The network. Gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Lan {
    /// Where the QEMUs run.
    pub inside: Place,
    /// Where the clients run.
    pub outside: Place,
    _holders: [Holder; 2],
}

impl Lan {
    /// Taps for `hosts`, named `tap-HOST`.
    pub(crate) fn start(hosts: &[&str]) -> anyhow::Result<Self> {
        let holders = [
            Holder::start(&["--net"], ":", &[])?,
            Holder::start(&["--net"], ":", &[])?,
        ];
        let place = |holder: &Holder| -> anyhow::Result<Place> {
            Ok(Place {
                network: Some(holder.namespace("net")?),
                mounts: None,
            })
        };
        let (inside, outside) = (place(&holders[0])?, place(&holders[1])?);
        let mut switch = "link set lo up\n\
             link add switch type bridge mcast_snooping 0\n\
             link set switch up\n"
            .to_owned();
        for host in hosts {
            switch.push_str(&format!(
                "tuntap add tap-{host} mode tap\nlink set tap-{host} master switch up\n"
            ));
        }
        switch.push_str(&format!(
            "link add cable type veth peer name eth0 netns {}\nlink set cable master switch up\n",
            holders[1].pid()
        ));
        ip(&inside, &switch)?;
        ip(
            &outside,
            "link set lo up\naddr add 10.78.0.1/24 dev eth0\nlink set eth0 up\n",
        )?;
        Ok(Self {
            inside,
            outside,
            _holders: holders,
        })
    }
}
