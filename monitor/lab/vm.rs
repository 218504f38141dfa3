//! One VM of the lab: a gateway with its disks, a QEMU as Epochgate launches it, a tap. All of it goes when it is dropped.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use monitor::Watched;
use qemu_glue::{Accelerator, DiskAttachment, RuntimePlace, SourceVm, VmDescription};
use tokio::process::{Child, Command};

use crate::network::{HOSTS, Tap};
use crate::protected::{Arguments, Protected};
use crate::qmp::Qmp;
use crate::shell::Shell;
use crate::spec::Spec;

/// Name of every VM and of its group: each has a gateway of its own.
pub const NAME: &str = "lab";
/// The disk that the loads write to, and the one that the guest swaps to.
pub const DISKS: [&str; 2] = ["data", "swap"];

/// What all runs need.
#[derive(Debug, Clone)]
pub struct Tools {
    /// Folder of the guest (target/guest-lab).
    pub guest: PathBuf,
    /// The command epochgate.
    pub epochgate: PathBuf,
    /// Folder in which runs make their own.
    pub scratch: PathBuf,
    /// How guest code is run.
    pub accelerator: Accelerator,
}

/// Who runs a VM.
#[derive(Debug)]
enum Engine {
    /// The lab itself, as Epochgate launches VMs.
    Own(Box<SourceVm>),
    /// `epochgate protect`.
    Protected(Box<Protected>),
}

/// A VM that runs.
#[derive(Debug)]
pub struct Vm {
    // In the order in which they end.
    engine: Option<Engine>,
    gateway: Child,
    tap: Tap,
    dir: tempfile::TempDir,
}

impl Vm {
    /// Starts it, and returns when QEMU runs the guest.
    pub async fn start(tools: &Tools, spec: &Spec, slot: u32) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("epochgate-lab-")
            .tempdir_in(&tools.scratch)?;
        let path = dir.path();
        sparse_copy(&tools.guest.join("data.img"), &path.join("data.img")).await?;
        std::fs::File::create(path.join("swap.img"))?.set_len(spec.size.memory_mib << 20)?;
        let gateway = start_gateway(tools, path).await?;
        let tap = Tap::make(slot, spec.protected_ms.is_some())?;
        let arguments = arguments(tools, spec, &tap, path)?;
        let engine = match spec.protected_ms {
            Some(interval_ms) => {
                let launched = Protected::launch(tools, spec, interval_ms, path, &arguments);
                Engine::Protected(Box::new(launched.await?))
            }
            None => Engine::Own(Box::new(launch(tools, spec, path, arguments).await?)),
        };
        Ok(Self {
            engine: Some(engine),
            gateway,
            tap,
            dir,
        })
    }

    /// If it is to be protected: waits until it is.
    pub async fn protect(&mut self) -> anyhow::Result<()> {
        match &mut self.engine {
            Some(Engine::Protected(protected)) => protected.protect().await,
            _ => Ok(()),
        }
    }

    /// Whether it is protected now, if it is to be.
    pub async fn is_as_planned(&self) -> bool {
        match &self.engine {
            Some(Engine::Protected(protected)) => protected.is_protected().await,
            Some(Engine::Own(_)) => true,
            None => false,
        }
    }

    /// A file of it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where its services are reached.
    pub fn address(&self) -> &str {
        self.tap.guest()
    }

    /// Name of its tap.
    pub fn tap(&self) -> &str {
        self.tap.name()
    }

    /// The port of this machine behind which its port for probes is: `beat` or the application.
    pub fn probe_port(&self, port: u16) -> u16 {
        self.tap.probe_port(port)
    }

    /// Process id of its QEMU.
    pub fn pid(&self) -> Option<u32> {
        self.engine.as_ref().map(|engine| match engine {
            Engine::Own(source) => source.pid(),
            Engine::Protected(protected) => protected.pid(),
        })
    }

    /// The VM as the monitor watches it: nothing of the lab is in it.
    pub fn watched(&self) -> anyhow::Result<Watched> {
        let watched = match self.engine.as_ref().context("the VM is gone")? {
            Engine::Own(source) => {
                let mut watched = Watched::qemu(source.watch_socket(), source.pid());
                watched.dirty = Some(source.watch_dirty_pages()?);
                watched
            }
            Engine::Protected(protected) => protected.watched(),
        };
        Ok(watched.with_gateway(self.file("gateway.sock"), NAME))
    }

    /// What the guest's kernel has said.
    pub fn console(&self) -> String {
        let text = std::fs::read(self.file("console-source.log")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Opens the guest's shell.
    pub async fn shell(&self, patience: Duration) -> anyhow::Result<Shell> {
        let opened = Shell::open(&self.file("shell-source.sock"), patience).await;
        opened.with_context(|| format!("its console says: {}", tail(&self.console())))
    }

    /// The QMP socket of the lab's own.
    pub fn lab_qmp(&self) -> PathBuf {
        self.file("lab-qmp-source.sock")
    }

    /// Opens a QMP connection there.
    pub async fn qmp(&self) -> anyhow::Result<Qmp> {
        Qmp::connect(&self.lab_qmp()).await
    }

    /// Ends it.
    pub async fn stop(mut self) {
        match self.engine.take() {
            Some(Engine::Own(source)) => (*source).kill().await,
            Some(Engine::Protected(protected)) => (*protected).stop().await,
            None => {}
        }
        // Its disks are of no use any more.
        let _ = self.gateway.kill().await;
    }
}

/// The last lines of a text.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join(" | ")
}

/// Starts it as Epochgate does, and lets the guest run.
async fn launch(
    tools: &Tools,
    spec: &Spec,
    dir: &Path,
    arguments: Arguments,
) -> anyhow::Result<SourceVm> {
    let guest = |name: &str| tools.guest.join(name);
    let disks = DISKS
        .map(|disk| DiskAttachment::unix(disk, dir.join("nbd.sock"), format!("{NAME}/{disk}")));
    let mut description = VmDescription::new(NAME, spec.size.memory_mib);
    description.cpus = spec.size.cpus;
    description.accel = tools.accelerator;
    description.kernel = Some(guest("vmlinuz"));
    description.initrd = Some(guest("initrd.gz"));
    description.append = Some(arguments.kernel);
    description.extra_args = arguments.qemu;
    let place = RuntimePlace::source(dir).on(HOSTS[0]);
    let mut source = SourceVm::launch(&description, &place, &disks).await?;
    source.resume().await?;
    Ok(source)
}

fn arguments(tools: &Tools, spec: &Spec, tap: &Tap, dir: &Path) -> anyhow::Result<Arguments> {
    let cmdline = std::fs::read_to_string(tools.guest.join("cmdline"))
        .context("there is no guest: run make guest-lab")?;
    let swap = if spec.swap { "on" } else { "off" };
    let (root, dir) = (tools.guest.join("root.img"), dir.display());
    let mut args: Vec<String> = Vec::new();
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    option(
        "-drive",
        format!(
            "file={},if=none,id=root,format=raw,readonly=on",
            root.display()
        ),
    );
    // Behind those that Epochgate adds: the guest has them as vda, vdb, and this one as vdc.
    option("-device", "virtio-blk-pci,drive=root".to_owned());
    option(
        "-netdev",
        format!(
            "tap,id=net,ifname={},script=no,downscript=no",
            tap.of_host("{host}")
        ),
    );
    option("-device", "virtio-net-pci,netdev=net,addr=10".to_owned());
    option(
        "-netdev",
        format!("user,id=probe,restrict=on,{}", tap.forwards("{host}")),
    );
    option("-device", "virtio-net-pci,netdev=probe,addr=11".to_owned());
    option("-serial", format!("file:{dir}/console-{{role}}.log"));
    option(
        "-chardev",
        format!("socket,id=shell,path={dir}/shell-{{role}}.sock,server=on,wait=off"),
    );
    option("-serial", "chardev:shell".to_owned());
    option(
        "-chardev",
        format!("socket,id=lab-qmp,path={dir}/lab-qmp-{{role}}.sock,server=on,wait=off"),
    );
    option("-mon", "chardev=lab-qmp,mode=control".to_owned());
    Ok(Arguments {
        qemu: args,
        kernel: format!(
            "{} lab.address={}/30 lab.swap={swap}",
            cmdline.trim(),
            tap.guest()
        ),
    })
}

/// A copy with its holes, as the image is nearly empty.
async fn sparse_copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let status = Command::new("cp")
        .arg("--sparse=always")
        .arg(from)
        .arg(to)
        .status()
        .await?;
    if !status.success() {
        bail!("{} can't be copied", from.display());
    }
    Ok(())
}

async fn start_gateway(tools: &Tools, path: &Path) -> anyhow::Result<Child> {
    let dir = path.display();
    let mut config = format!(
        "control = \"{dir}/gateway.sock\"\nlisten = [\"unix:{dir}/nbd.sock\"]\n\n[[group]]\nname = \"{NAME}\"\nlog = \"{dir}/lab.epochlog\"\n\
         mode = \"async\"\nepoch_interval_ms = 200\nmemory_budget_mib = 64\nepoch_memory = \"\"\n"
    );
    for disk in DISKS {
        config.push_str(&format!(
            "\n[[group.disk]]\nname = \"{disk}\"\nimage = \"{dir}/{disk}.img\"\n"
        ));
    }
    let file = path.join("gateway.toml");
    std::fs::write(&file, config)?;
    let log = std::fs::File::create(path.join("gateway.log"))?;
    // It ends with the lab, however that ends.
    let mut gateway = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(&tools.epochgate)
        .args(["gateway", "--config"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("setpriv (util-linux) can't be started")?;
    for _ in 0..600 {
        if std::os::unix::net::UnixStream::connect(path.join("nbd.sock")).is_ok() {
            return Ok(gateway);
        }
        if gateway.try_wait()?.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let said = std::fs::read_to_string(path.join("gateway.log")).unwrap_or_default();
    bail!("the gateway does not start: {}", tail(&said))
}
