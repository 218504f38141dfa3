//! Namespaces of the kernel as hosts on this machine: a process that does nothing holds one, others enter it. They have no name
//! anywhere, so when the holder ends (it dies with the lab) all that is in them goes: devices, addresses, mounts.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::Context;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::process::die_with_parent;

/// Where a process of the site runs: on this machine as it is, or in namespaces.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    pub network: Option<Arc<OwnedFd>>,
    pub mounts: Option<Arc<OwnedFd>>,
}

impl Place {
    /// Has `command` run here.
    #[allow(unsafe_code)]
    pub(crate) fn enter(&self, command: &mut Command) {
        let place = self.clone();
        if place.network.is_none() && place.mounts.is_none() {
            return;
        }
        // SAFETY: setns(2) is async-signal-safe, and the closure allocates nothing.
        unsafe {
            command.pre_exec(move || Ok(place.enter_now()?));
        }
    }

    /// Moves the calling thread here.
    pub(crate) fn enter_now(&self) -> rustix::io::Result<()> {
        if let Some(network) = &self.network {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
        }
        if let Some(mounts) = &self.mounts {
            move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))?;
        }
        Ok(())
    }
}

/// A process in namespaces of its own that keeps them.
#[derive(Debug)]
pub(crate) struct Holder {
    child: Child,
}

impl Holder {
    /// `unshare` with `options` (of util-linux), then the shell `script` with `args`, then sleep. Returns when the script is through.
    pub(crate) fn start(options: &[&str], script: &str, args: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new("unshare");
        command
            .args(options)
            .args(["sh", "-c"])
            .arg(format!("set -e; {script}\necho; exec sleep infinity"))
            .arg("sh")
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        die_with_parent(&mut command);
        let mut child = command
            .spawn()
            .context("unshare (util-linux) can't be started")?;
        let mut ready = [0];
        let said = child.stdout.take().map(|mut out| {
            use std::io::Read;
            out.read(&mut ready)
        });
        if !matches!(said, Some(Ok(1))) {
            let _ = child.kill();
            let ended = child.wait_with_output()?;
            let why = String::from_utf8_lossy(&ended.stderr);
            anyhow::bail!("a namespace can't be made: {}", why.trim());
        }
        Ok(Self { child })
    }

    /// A network namespace with nothing in it.
    pub(crate) fn network() -> anyhow::Result<Self> {
        Self::start(&["--net"], ":", &[])
    }

    /// Where processes run that enter its network namespace.
    pub(crate) fn place(&self) -> anyhow::Result<Place> {
        Ok(Place {
            network: Some(self.namespace("net")?),
            mounts: None,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// One of its namespaces (`net`, `mnt`).
    pub(crate) fn namespace(&self, kind: &str) -> anyhow::Result<Arc<OwnedFd>> {
        let path = format!("/proc/{}/ns/{kind}", self.pid());
        let file = File::open(&path).with_context(|| format!("{path} can't be opened"))?;
        Ok(Arc::new(file.into()))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether this process may make namespaces, network devices and mounts.
pub(crate) fn allowed() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("needs root for namespaces".to_owned());
    }
    Ok(())
}
