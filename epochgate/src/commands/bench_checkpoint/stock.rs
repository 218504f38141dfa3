//! A stock QEMU with the guest that our checkpoints are taken of, on qcow2 images so that `savevm` works. All of its files lie in memory: no
//! storage slows it down.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::json;

use crate::cli::checkpoint::CheckpointArgs;
use crate::lab::process::die_with_parent;
use crate::lab::qmp::Qmp;
use crate::lab::site::heed_interruption;
use crate::lab::witness::Serial;

/// As our guests have.
const DISK_BYTES: u64 = 16 << 20;
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// More than any file takes: the peer is not to be held back.
const BANDWIDTH: u64 = 1 << 40;
/// Milliseconds that a live migration may pause the guest by its own estimate: about what our checkpoints take. QEMU's 300 would be worse.
const DOWNTIME_MS: u64 = 10;

/// The QEMU. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Stock {
    child: Child,
    pub qmp: Qmp,
    serial: Serial,
    /// Where saved VMs go.
    pub target: PathBuf,
    _dir: tempfile::TempDir,
}

impl Stock {
    /// Boots the guest, and waits until its witness has written so many blocks.
    pub(super) fn boot(
        args: &CheckpointArgs,
        guest: &Path,
        mib: u64,
        writes: u64,
    ) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("epochgate-")
            .tempdir_in("/dev/shm")
            .context("the files of the stock QEMU need /dev/shm")?;
        let file = |name: &str| dir.path().join(name);
        let cmdline = std::fs::read_to_string(guest.join("cmdline"))
            .unwrap_or_else(|_| "console=ttyS0 quiet panic=-1".to_owned());
        let mut command = Command::new(&args.lab.qemu);
        command
            .args(["-nodefaults", "-no-user-config", "-no-shutdown"])
            .args(["-machine", "pc", "-vga", "none", "-display", "none"])
            .args(["-accel", &args.lab.accel, "-m", &format!("{mib}M")])
            .arg("-kernel")
            .arg(guest.join("vmlinuz"))
            .arg("-initrd")
            .arg(guest.join("initrd.gz"))
            .arg("-append")
            .arg(format!(
                "{} {}",
                cmdline.trim(),
                super::ours::append(args, mib)
            ))
            .arg("-serial")
            .arg(format!("file:{}", file("serial.log").display()))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", file("qmp").display()));
        for disk in ["root", "data"] {
            let image = file(disk);
            create_image(&image)?;
            command.arg("-drive").arg(format!(
                "file={},format=qcow2,if=virtio,discard=unmap",
                image.display()
            ));
        }
        die_with_parent(&mut command);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{} can't be started", args.lab.qemu.display()))?;
        // The child is ended also if QMP fails.
        let mut ending = Ending(Some(child));
        let qmp = Qmp::connect(&file("qmp"))?;
        let child = ending.0.take().context("QEMU is gone")?;
        let mut stock = Self {
            child,
            qmp,
            serial: Serial::new(file("serial.log")),
            target: file("saved"),
            _dir: dir,
        };
        stock.qmp.execute(
            "migrate-set-parameters",
            json!({ "max-bandwidth": BANDWIDTH, "downtime-limit": DOWNTIME_MS }),
        )?;
        stock.capability("events", true)?;
        stock.until_written(writes)?;
        Ok(stock)
    }

    /// Turns a capability of migrations on or off.
    pub(super) fn capability(&mut self, name: &str, on: bool) -> anyhow::Result<()> {
        let capabilities = json!({ "capabilities": [{ "capability": name, "state": on }] });
        self.qmp
            .execute("migrate-set-capabilities", capabilities)
            .map(drop)
    }

    /// Blocks that the witness has written.
    pub(super) fn writes(&self) -> u64 {
        self.serial.latest().map_or(0, |verdict| verdict.writes)
    }

    fn until_written(&self, writes: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + BOOT_LIMIT;
        while self.writes() < writes {
            heed_interruption()?;
            if Instant::now() > deadline {
                bail!(
                    "the witness does not work in a stock QEMU; its serial line says:\n{}",
                    self.serial.text()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child that nobody owns yet.
struct Ending(Option<Child>);

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn create_image(path: &Path) -> anyhow::Result<()> {
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(path)
        .arg(DISK_BYTES.to_string())
        .output()
        .context("qemu-img (Debian's package qemu-utils) can't be started")?;
    if !made.status.success() {
        bail!("qemu-img: {}", String::from_utf8_lossy(&made.stderr).trim());
    }
    Ok(())
}
