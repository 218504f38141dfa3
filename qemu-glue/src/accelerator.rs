//! Decides between KVM and TCG by trying: `/dev/kvm` may be there, and open, and yet not run a guest.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::description::{Accelerator, VmDescription};
use crate::error::{Error, Result};
use crate::sys::process::spawn_bound;

/// A trial guest has this long for its first words; on KVM that works it takes less than a second.
const TRIAL_LIMIT: Duration = Duration::from_secs(5);

/// The accelerator to launch with: what was asked for, or the outcome of a trial.
pub(crate) async fn choose(description: &VmDescription, runtime_dir: &Path) -> Result<Accelerator> {
    if description.accel != Accelerator::Auto {
        return Ok(description.accel);
    }
    let log = runtime_dir.join(format!("{}-{}.trial", description.name, std::process::id()));
    let trial = description.clone();
    let outcome = tokio::task::spawn_blocking(move || {
        let outcome = try_kvm(&trial, &log);
        // Not there if QEMU did not come that far.
        let _ = fs::remove_file(&log);
        outcome
    });
    match outcome.await.map_err(|e| Error::Qmp {
        problem: format!("the trial of KVM failed: {e}"),
    })? {
        Ok(()) => Ok(Accelerator::Kvm),
        Err(reason) => {
            tracing::warn!(
                vm = description.name,
                reason,
                "KVM does not run this guest here, so it runs on TCG: slower"
            );
            Ok(Accelerator::Tcg)
        }
    }
}

/// Runs a small guest: the VM's own kernel if it has one, else only the firmware. It works if it says something.
fn try_kvm(description: &VmDescription, log: &Path) -> Result<(), String> {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|e| format!("/dev/kvm: {e}"))?;
    let mut command = Command::new(&description.qemu);
    command.args([
        "-accel",
        "kvm",
        "-m",
        "256",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    command.arg("-machine").arg(&description.machine);
    let sign = match &description.kernel {
        Some(kernel) => {
            command
                .arg("-kernel")
                .arg(kernel)
                .args(["-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1"]);
            command
                .arg("-serial")
                .arg(format!("file:{}", log.display()));
            "Linux version"
        }
        None => {
            // The firmware's debug port; SeaBIOS and OVMF write to it.
            command
                .arg("-debugcon")
                .arg(format!("file:{}", log.display()));
            command.args(["-global", "isa-debugcon.iobase=0x402"]);
            "\n"
        }
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut qemu = spawn_bound(command, Vec::new()).map_err(|e| e.to_string())?;
    let began = Instant::now();
    let outcome = loop {
        let said = fs::read(log).unwrap_or_default();
        if String::from_utf8_lossy(&said).contains(sign) {
            break Ok(());
        }
        match qemu.try_wait() {
            Ok(None) if began.elapsed() < TRIAL_LIMIT => {
                std::thread::sleep(Duration::from_millis(20))
            }
            Ok(None) => {
                break Err(format!(
                    "a trial guest did not start within {} s",
                    TRIAL_LIMIT.as_secs()
                ));
            }
            Ok(Some(status)) => break Err(format!("a trial guest ended at once ({status})")),
            Err(error) => break Err(error.to_string()),
        }
    };
    // Fails only if it has already ended.
    let _ = qemu.kill();
    let _ = qemu.wait();
    outcome
}
