//! Three hosts on this machine: network namespaces `source`, `standby` and `storage` on a switch in a fourth. A cut loses
//! packets silently, as a broken switch does: the sender goes on addressing a machine that is not there. It can be one way only,
//! and no process sees more of it than silence.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::namespaces::{Holder, Place};

/// A host of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Host {
    Source,
    Standby,
    Storage,
}

impl Host {
    pub(crate) const ALL: [Self; 3] = [Self::Source, Self::Standby, Self::Storage];

    /// The same in every site: each site has a network of its own.
    pub(crate) fn address(self) -> &'static str {
        match self {
            Self::Source => "10.77.0.1",
            Self::Standby => "10.77.0.2",
            Self::Storage => "10.77.0.3",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Source => 0,
            Self::Standby => 1,
            Self::Storage => 2,
        }
    }

    fn mac(self) -> String {
        format!("02:00:00:00:00:0{}", self.index() + 1)
    }
}

/// No machine has this one.
const NOBODY: &str = "02:00:00:00:00:ff";

/// The network of one site. Gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Network {
    hosts: Vec<Place>,
    switch: Place,
    /// Of the hosts, and of the switch.
    holders: [Holder; 4],
}

impl Network {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let holders = [
            Holder::network()?,
            Holder::network()?,
            Holder::network()?,
            Holder::network()?,
        ];
        let mut places = holders
            .iter()
            .map(Holder::place)
            .collect::<anyhow::Result<Vec<_>>>()?;
        let switch = places.pop().context("the switch has a place")?;
        let mut ports = "link add switch type bridge\nlink set switch up\n".to_owned();
        for (host, holder) in Host::ALL.into_iter().zip(&holders) {
            let (port, pid) = (host.index(), holder.pid());
            ports.push_str(&format!(
                "link add port{port} type veth peer name eth0 netns {pid}\n\
                 link set port{port} master switch up\n"
            ));
        }
        ip(&switch, &ports)?;
        for host in Host::ALL {
            let mut lines = format!(
                "link set lo up\nlink set eth0 address {}\naddr add {}/24 dev eth0\nlink set eth0 up\n",
                host.mac(),
                host.address()
            );
            for peer in Host::ALL.into_iter().filter(|peer| *peer != host) {
                lines.push_str(&neighbour(peer, &peer.mac()));
            }
            ip(&places[host.index()], &lines)?;
        }
        Ok(Self {
            hosts: places,
            switch,
            holders,
        })
    }

    /// Where the switch is.
    pub(crate) fn switch(&self) -> &Place {
        &self.switch
    }

    /// The process that keeps the switch: what ip(8) calls a device's `netns`.
    pub(crate) fn switch_pid(&self) -> u32 {
        self.holders[3].pid()
    }

    /// Where processes of `host` run.
    pub(crate) fn place(&self, host: Host) -> &Place {
        &self.hosts[host.index()]
    }

    /// From now on nothing that `from` sends comes to `to`.
    pub(crate) fn cut(&self, from: Host, to: Host) -> anyhow::Result<()> {
        ip(self.place(from), &neighbour(to, NOBODY))
    }

    /// All is connected again.
    pub(crate) fn heal(&self) -> anyhow::Result<()> {
        for host in Host::ALL {
            let peers = Host::ALL.into_iter().filter(|peer| *peer != host);
            let lines: String = peers.map(|peer| neighbour(peer, &peer.mac())).collect();
            ip(self.place(host), &lines)?;
        }
        Ok(())
    }
}

fn neighbour(peer: Host, mac: &str) -> String {
    format!(
        "neigh replace {} lladdr {mac} nud permanent dev eth0\n",
        peer.address()
    )
}

/// Runs lines of ip(8) in a namespace.
pub(crate) fn ip(place: &Place, lines: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    place.enter(&mut command);
    let mut child = command.spawn().context("ip (iproute2) can't be started")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(lines.as_bytes())?;
    }
    let ended = child.wait_with_output()?;
    if !ended.status.success() {
        bail!("ip: {}", String::from_utf8_lossy(&ended.stderr).trim());
    }
    Ok(())
}
