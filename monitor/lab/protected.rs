//! A VM that Epochgate protects: `epochgate protect` runs it, `epochgate standby` gets its checkpoints. Both end with the lab.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use monitor::Watched;
use qemu_glue::Accelerator;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::network::HOSTS;
use crate::spec::Spec;
use crate::vm::{DISKS, NAME, Tools, tail};

/// How long something that is started may take until it answers, and a VM until it is protected.
const PATIENCE: Duration = Duration::from_secs(180);

/// The two processes.
#[derive(Debug)]
pub struct Protected {
    source: Child,
    standby: Option<Child>,
    epochgate: PathBuf,
    dir: PathBuf,
    pid: u32,
    /// Where the RAM is: the processes are killed, and leave it.
    _ram: tempfile::TempDir,
}

/// What QEMU and the kernel are told. `{role}` and `{host}` stand for what differs between source and standby: both are on this machine.
#[derive(Debug)]
pub struct Arguments {
    /// Of QEMU.
    pub qemu: Vec<String>,
    /// Of the kernel.
    pub kernel: String,
}

impl Protected {
    /// Starts the VM, with a checkpoint every `interval_ms` as soon as there is a standby. The gateway runs already.
    pub async fn launch(
        tools: &Tools,
        spec: &Spec,
        interval_ms: u64,
        dir: &Path,
        arguments: &Arguments,
    ) -> anyhow::Result<Self> {
        let at = |name: &str| dir.join(name).display().to_string();
        let common = format!(
            "gateway = {}\nnbd = {}\nruntime_dir = {}\ndisks = {}\nheartbeat_ms = 200\nsuspicion_ms = 60000\n",
            json!(at("gateway.sock")),
            json!(at("nbd.sock")),
            json!(dir),
            json!(DISKS),
        );
        let channel = json!(format!("unix:{}", at("standby.sock")));
        let ram = tempfile::Builder::new()
            .prefix("epochgate-lab-")
            .tempdir_in("/dev/shm")?;
        let mut vm = describe(tools, spec, arguments);
        vm.push_str(&format!("ram_dir = {}\n", json!(ram.path())));
        let [source_host, standby_host] = HOSTS;
        let source = format!(
            "host = \"{source_host}\"\nstandby = [{channel}]\ninterval_ms = {interval_ms}\noutput = \"hold\"\n{common}{vm}"
        );
        let standby = format!("host = \"{standby_host}\"\nlisten = {channel}\n{common}{vm}");
        std::fs::write(dir.join("vm.toml"), source)?;
        std::fs::write(dir.join("standby.toml"), standby)?;
        let mut source = start(&tools.epochgate, dir, "protect", "vm.toml")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = status(dir).await;
            let pid = status.and_then(|status| status["qemu_pid"].as_u64());
            if let Some(pid) = pid.and_then(|pid| u32::try_from(pid).ok()) {
                return Ok(Self {
                    source,
                    standby: None,
                    epochgate: tools.epochgate.clone(),
                    dir: dir.to_owned(),
                    pid,
                    _ram: ram,
                });
            }
            if source.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("the VM does not start: {}", said(dir, "protect"));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Starts the standby, and waits until the VM is protected. A VM boots faster without.
    pub async fn protect(&mut self) -> anyhow::Result<()> {
        let standby = start(&self.epochgate, &self.dir, "standby", "standby.toml")?;
        self.standby = Some(standby);
        let deadline = Instant::now() + PATIENCE;
        while !self.is_protected().await {
            if Instant::now() > deadline {
                let (protect, standby) = (said(&self.dir, "protect"), said(&self.dir, "standby"));
                bail!("the VM is not protected: {protect}; {standby}");
            }
            sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// Whether it is, now.
    pub async fn is_protected(&self) -> bool {
        let status = status(&self.dir).await;
        status.is_some_and(|status| status["state"] == "protected")
    }

    /// Process id of its QEMU.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The VM as the monitor watches it.
    pub fn watched(&self) -> Watched {
        Watched::protected(&self.dir, NAME)
    }

    /// Ends both; QEMU ends with them. What they were about to say is of no use any more.
    pub async fn stop(mut self) {
        if let Some(mut standby) = self.standby.take() {
            let _ = standby.kill().await;
        }
        let _ = self.source.kill().await;
    }
}

fn describe(tools: &Tools, spec: &Spec, arguments: &Arguments) -> String {
    let guest = |name: &str| json!(tools.guest.join(name));
    let accel = match tools.accelerator {
        Accelerator::Auto => "auto",
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    };
    // Strings and lists of them are written in JSON as in TOML.
    format!(
        "\n[vm]\nname = \"{NAME}\"\naccel = \"{accel}\"\nmemory_mib = {}\ncpus = {}\nkernel = {}\ninitrd = {}\nappend = {}\nextra_args = {}\n",
        spec.size.memory_mib,
        spec.size.cpus,
        guest("vmlinuz"),
        guest("initrd.gz"),
        json!(arguments.kernel),
        json!(arguments.qemu),
    )
}

fn start(epochgate: &Path, dir: &Path, what: &str, config: &str) -> anyhow::Result<Child> {
    let log = std::fs::File::create(dir.join(format!("{what}.log")))?;
    // It ends with the lab, however that ends.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(epochgate)
        .args([what, "--config"])
        .arg(dir.join(config))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("setpriv (util-linux) can't be started")
}

fn said(dir: &Path, what: &str) -> String {
    tail(&std::fs::read_to_string(dir.join(format!("{what}.log"))).unwrap_or_default())
}

/// What the source says of itself.
async fn status(dir: &Path) -> Option<Value> {
    let mut socket = UnixStream::connect(dir.join(format!("source-{NAME}.sock")))
        .await
        .ok()?;
    let mut text = Vec::new();
    socket.read_to_end(&mut text).await.ok()?;
    serde_json::from_slice(&text).ok()
}
