//! Storage that runs full or fails: a small tmpfs that only the storage host sees, in a mount namespace, with a ballast file that
//! takes what is left; and a loop device over a sparse file there, which fails with EIO where the tmpfs is full.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, bail};

use super::namespaces::Holder;

/// A small file system, gone when this is dropped.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    holder: Holder,
    at: PathBuf,
    /// Keep the devices until the end; they were told to go with their last users.
    devices: Vec<File>,
}

impl SmallDisk {
    /// Mounts a tmpfs of `mib` on the directory `at`, for those who enter [`SmallDisk::mounts`].
    pub(crate) fn start(at: &Path, mib: u64) -> anyhow::Result<Self> {
        let holder = Holder::start(
            &["--mount", "--propagation", "private"],
            r#"mount -t tmpfs -o "size=${2}m" tmpfs "$1""#,
            &[&at.to_string_lossy(), &mib.to_string()],
        )?;
        Ok(Self {
            holder,
            at: at.to_owned(),
            devices: Vec::new(),
        })
    }

    /// The mount namespace.
    pub(crate) fn mounts(&self) -> anyhow::Result<Arc<OwnedFd>> {
        self.holder.namespace("mnt")
    }

    /// A path on it, as it is seen from outside.
    pub(crate) fn inside(&self, name: &str) -> PathBuf {
        let at = self.at.to_string_lossy();
        Path::new("/proc")
            .join(self.holder.pid().to_string())
            .join("root")
            .join(at.trim_start_matches('/'))
            .join(name)
    }

    /// Makes a loop device over its file `name`. Writes to holes of the file fail with EIO while the file system is full.
    pub(crate) fn device(&mut self, name: &str) -> anyhow::Result<PathBuf> {
        let run = |args: &[&str]| -> anyhow::Result<String> {
            let ended = Command::new("losetup").args(args).output();
            let ended = ended.context("losetup (mount) can't be started")?;
            if !ended.status.success() {
                bail!("losetup: {}", String::from_utf8_lossy(&ended.stderr).trim());
            }
            Ok(String::from_utf8_lossy(&ended.stdout).trim().to_owned())
        };
        let file = self.inside(name);
        let device = run(&["--find", "--show", &file.to_string_lossy()])?;
        let opened = File::open(&device).with_context(|| format!("{device} can't be opened"));
        // It goes when its last user does, also if the lab is killed.
        run(&["--detach", &device])?;
        self.devices.push(opened?);
        Ok(device.into())
    }

    /// Takes every last byte, also what was given back since the last time.
    pub(crate) fn fill(&self) -> anyhow::Result<()> {
        let mut ballast = File::options()
            .create(true)
            .append(true)
            .open(self.inside("ballast"))?;
        for size in [1 << 20, 64 << 10, 4096] {
            while ballast.write_all(&vec![7; size]).is_ok() {}
        }
        Ok(())
    }

    /// Gives the space back.
    pub(crate) fn free(&self) -> anyhow::Result<()> {
        match std::fs::remove_file(self.inside("ballast")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}
