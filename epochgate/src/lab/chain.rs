//! A VM that goes from host to host on this machine: its host dies or the operator moves it, the other goes on with it, and the first one
//! comes back as the next standby. The hosts and the gateway are on the network of [`super::lan::Lan`], each in a namespace of its own.

mod files;
mod switchover;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use coordinator::report::{Report, Stamped, now_us};
use rustix::process::Signal;

use super::Who;
use super::lan::{HOSTS, Lan};
use super::namespaces::Place;
use super::network::Host;
use super::process::{Process, signal_pid};
use super::relay::{self, Relay};
use super::saved::copy_sparse;
use super::site::heed_interruption;
use crate::bench::proc::{cpu_of, cpu_of_tree};
use crate::cli::LabArgs;
use crate::cli::database::{Output, Rhythm};

/// Nothing that is awaited here takes this long, also without KVM and on a machine that has other work.
const LIMIT: Duration = Duration::from_secs(90);

/// The VM, and how it is protected.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub lab: &'a LabArgs,
    pub output: Output,
    pub rhythm: Rhythm,
    /// Milliseconds between two checkpoints.
    pub interval_ms: u64,
    /// What the disks hold at first.
    pub disks: Disks,
    /// Added to the guest's command line.
    pub append: String,
}

/// What disks hold at first.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Disks {
    /// Images in the guest's folder.
    Copied,
    /// Nothing; so many bytes.
    Blank(u64),
}

/// What runs on one host.
#[derive(Debug)]
struct Role {
    host: usize,
    process: Process,
    events: Receiver<(Who, Stamped)>,
    /// Process id of its QEMU.
    qemu: Option<u32>,
}

impl Role {
    fn name(&self) -> &'static str {
        HOSTS[self.host].0
    }
}

/// Figures of the checkpoints since they were last taken.
#[derive(Debug, Default, Clone)]
pub(crate) struct Checkpoints {
    /// Pauses in microseconds.
    pub pauses: Vec<u64>,
    /// Bytes of guest memory that were dirty.
    pub dirty_bytes: u64,
    /// Bytes on the checkpoint channel.
    pub wire_bytes: u64,
    /// Bytes that the guest wrote to its disks.
    pub disk_bytes: u64,
    /// The last epoch that was captured, and the last that was reported as committed.
    pub captured: u64,
    pub committed: u64,
}

impl Checkpoints {
    fn note(&mut self, report: &Report) {
        match report {
            Report::Captured {
                epoch,
                pause_us,
                dirty_bytes,
                disk_bytes,
                ..
            } => {
                self.pauses.push(pause_us.total);
                self.dirty_bytes += dirty_bytes;
                self.disk_bytes += disk_bytes;
                self.captured = epoch.0;
            }
            Report::Packed { wire_bytes, .. } => self.wire_bytes += wire_bytes,
            Report::Committed { epoch, .. } => self.committed = epoch.0,
            _ => {}
        }
    }
}

/// The hosts, their gateway, and the VM. Dropping it stops everything and removes its files.
#[derive(Debug)]
pub(crate) struct Chain {
    // In the order in which they are stopped; their files go afterwards.
    running: Option<Role>,
    waiting: Option<Role>,
    gateway: Process,
    checkpoints: Checkpoints,
    /// Where processes of each host run.
    places: [Place; 2],
    _relays: Option<[Relay; 3]>,
    ram_dir: tempfile::TempDir,
    dir: Option<tempfile::TempDir>,
}

impl Chain {
    /// Makes the guest's disks, writes the configuration and starts the gateway. Without a network the guest has no interface.
    pub(crate) fn start(plan: &Plan<'_>, guest: &Path, lan: Option<&Lan>) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("epochgate-").tempdir()?;
        let ram_dir = tempfile::Builder::new()
            .prefix("epochgate-")
            .tempdir_in("/dev/shm")
            .context("the guest's RAM needs /dev/shm")?;
        for disk in files::DISKS {
            let image = format!("{disk}.img");
            let path = dir.path().join(&image);
            match plan.disks {
                Disks::Copied => copy_sparse(&guest.join(&image), &path)?,
                Disks::Blank(bytes) => std::fs::File::create(&path)?.set_len(bytes)?,
            }
        }
        files::write(plan, guest, dir.path(), ram_dir.path(), lan.is_some())?;
        let control = dir.path().join(files::CONTROL);
        let hosts = lan.map(|lan| &lan.hosts);
        let relays = hosts
            .map(|hosts| relay::of_control(hosts, control, dir.path()))
            .transpose()?;
        let place = |host| hosts.map_or_else(Place::default, |hosts| hosts.place(host).clone());
        let (sender, _) = channel();
        let config = dir.path().join("g.toml").display().to_string();
        let gateway = Process::start(
            Who::Gateway,
            &["gateway", "--config", &config],
            &[],
            &dir.path().join("gateway.log"),
            sender,
            &place(Host::Storage),
        )?;
        let mut chain = Self {
            running: None,
            waiting: None,
            gateway,
            checkpoints: Checkpoints::default(),
            places: HOSTS.map(|(_, host)| place(host)),
            _relays: relays,
            ram_dir,
            dir: Some(dir),
        };
        chain.until_the_gateway_answers()?;
        Ok(chain)
    }

    fn until_the_gateway_answers(&mut self) -> anyhow::Result<()> {
        let socket = self.path().join(files::CONTROL);
        let deadline = Instant::now() + LIMIT;
        while UnixStream::connect(&socket).is_err() {
            heed_interruption()?;
            if self.gateway.ended().is_some() || Instant::now() > deadline {
                bail!("the gateway did not start:\n{}", self.log_tail("gateway"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Where the VM runs, as an index into [`HOSTS`].
    pub(crate) fn host(&self) -> Option<usize> {
        self.running.as_ref().map(|role| role.host)
    }

    /// The working directory.
    pub(crate) fn path(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new("."), |dir| dir.path())
    }

    fn launch(&self, host: usize, who: Who, args: &[&str]) -> anyhow::Result<Role> {
        let (sender, events) = channel();
        let log = self.path().join(format!("{}.log", HOSTS[host].0));
        let place = &self.places[host];
        Ok(Role {
            host,
            process: Process::start(who, args, &[], &log, sender, place)?,
            events,
            qemu: None,
        })
    }

    /// Boots the VM on the first host: with `cold_start` whoever had it before. Returns what `vm_started` says.
    pub(crate) fn boot(&mut self, cold_start: bool) -> anyhow::Result<Stamped> {
        let config = self.path().join("vm.toml").display().to_string();
        let mut args = vec!["protect", "--json", "--config", &config];
        args.extend(cold_start.then_some("--cold-start"));
        self.running = Some(self.launch(0, Who::Source, &args)?);
        self.wait("the VM to start", |report| {
            matches!(report, Report::VmStarted { .. })
        })
    }

    /// Starts a standby on the host where the VM does not run, and waits until it listens. The VM finds it by itself.
    pub(crate) fn start_standby(&mut self) -> anyhow::Result<()> {
        let host = self
            .running
            .as_ref()
            .map_or(1, |role| (role.host + 1) % HOSTS.len());
        let config = self.path().join(format!("standby-{}.toml", HOSTS[host].0));
        let config = config.display().to_string();
        let mut role = self.launch(
            host,
            Who::Standby,
            &["standby", "--json", "--config", &config],
        )?;
        self.wait_of(&mut role, "a standby to listen", &mut |report| {
            matches!(report, Report::Listening { .. })
        })?;
        self.waiting = Some(role);
        Ok(())
    }

    /// Waits until the VM is protected.
    pub(crate) fn until_protected(
        &mut self,
        mut progress: impl FnMut(&Report),
    ) -> anyhow::Result<Stamped> {
        self.wait("the VM to be protected", |report| {
            progress(report);
            matches!(report, Report::Protected { .. })
        })
    }

    /// Waits until the VM that has lost its standby runs in sync mode.
    pub(crate) fn until_unprotected(&mut self) -> anyhow::Result<()> {
        self.wait("the VM to run unprotected", |report| {
            matches!(report, Report::Unprotected { .. })
        })?;
        Ok(())
    }

    /// Waits for the next commit of the VM.
    pub(crate) fn until_committed(&mut self) -> anyhow::Result<()> {
        self.drain();
        self.wait("the next commit", |report| {
            matches!(report, Report::Committed { .. })
        })?;
        Ok(())
    }

    /// Takes note of what the running VM has said, for so long at most.
    pub(crate) fn follow(&mut self, limit: Duration) -> anyhow::Result<()> {
        heed_interruption()?;
        let Some(role) = &self.running else {
            bail!("no VM was started");
        };
        match role.events.recv_timeout(limit) {
            Ok((_, event)) => self.note(&event.report),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!(
                "{} ended without having been told to:\n{}",
                role.name(),
                self.log_tail(role.name())
            ),
        }
        Ok(())
    }

    /// Takes note of what the running VM has said until now.
    fn drain(&mut self) {
        while let Some((_, event)) = self
            .running
            .as_ref()
            .and_then(|role| role.events.try_recv().ok())
        {
            self.note(&event.report);
        }
    }

    fn note(&mut self, report: &Report) {
        self.checkpoints.note(report);
        if let (Report::VmStarted { pid, .. }, Some(role)) = (report, &mut self.running) {
            role.qemu = Some(*pid);
        }
    }

    /// The checkpoints since this was last asked for.
    pub(crate) fn take_checkpoints(&mut self) -> Checkpoints {
        self.drain();
        let now = &self.checkpoints;
        let next = Checkpoints {
            captured: now.captured,
            committed: now.committed,
            ..Checkpoints::default()
        };
        std::mem::replace(&mut self.checkpoints, next)
    }

    /// CPU time so far of those that the VM's protection is made of: QEMU, its coordinator, the gateway, and the standby with its own
    /// QEMU (none if there is none).
    pub(crate) fn cpu_times(&self) -> [Duration; 4] {
        let alone = |pid: Option<u32>| pid.and_then(cpu_of).unwrap_or_default();
        let running = self.running.as_ref();
        let standby = self.waiting.as_ref().map(|role| role.process.pid());
        [
            alone(running.and_then(|role| role.qemu)),
            alone(running.map(|role| role.process.pid())),
            alone(Some(self.gateway.pid())),
            standby
                .and_then(|pid| cpu_of_tree(pid).ok())
                .unwrap_or_default(),
        ]
    }

    /// Where the RAM files of the VM and its standby are.
    pub(crate) fn ram_dir(&self) -> &Path {
        self.ram_dir.path()
    }

    /// SIGKILL for the VM's QEMU and its coordinator, as when the host dies. Returns the instant, in microseconds since 1970.
    pub(crate) fn kill_host(&mut self) -> anyhow::Result<u64> {
        self.drain();
        let mut role = self.running.take().context("no VM was started")?;
        let at = now_us();
        let qemu = role.qemu.context("the VM's QEMU is not known")?;
        signal_pid(qemu, Signal::KILL);
        role.process.kill();
        // What it had still said when it died.
        for (_, event) in role.events.try_iter() {
            self.checkpoints.note(&event.report);
        }
        Ok(at)
    }

    /// SIGKILL for the standby that waits.
    pub(crate) fn kill_standby(&mut self) {
        if let Some(mut role) = self.waiting.take() {
            role.process.kill();
        }
    }

    /// Waits until the standby goes on with the VM; it is the one that runs from then on.
    pub(crate) fn resumed(&mut self) -> anyhow::Result<Stamped> {
        let mut role = self.waiting.take().context("there is no standby")?;
        let mut qemu = None;
        let mut wanted = |report: &Report| {
            if let Report::SourceJoined { pid, .. } = report {
                qemu = Some(*pid);
            }
            matches!(report, Report::Resumed { .. } | Report::Discarded { .. })
        };
        let event = self.wait_of(&mut role, "the standby to go on", &mut wanted)?;
        let Report::Resumed { epoch, .. } = &event.report else {
            bail!("the standby did not go on: {:?}", event.report);
        };
        if epoch.0 < self.checkpoints.committed {
            bail!(
                "the standby goes on from epoch {epoch}, although {} was reported as committed",
                self.checkpoints.committed
            );
        }
        role.qemu = qemu;
        self.running = Some(role);
        Ok(event)
    }

    fn wait(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&Report) -> bool,
    ) -> anyhow::Result<Stamped> {
        let mut role = self.running.take().context("no VM was started")?;
        let event = self.wait_of(&mut role, what, &mut wanted);
        self.running = Some(role);
        event
    }

    fn wait_of(
        &mut self,
        role: &mut Role,
        what: &str,
        wanted: &mut dyn FnMut(&Report) -> bool,
    ) -> anyhow::Result<Stamped> {
        let deadline = Instant::now() + LIMIT;
        let host = role.name();
        loop {
            heed_interruption()?;
            match role.events.recv_timeout(Duration::from_millis(20)) {
                Ok((_, event)) => {
                    self.checkpoints.note(&event.report);
                    if let Report::VmStarted { pid, .. } = event.report {
                        role.qemu = Some(pid);
                    }
                    if wanted(&event.report) {
                        return Ok(event);
                    }
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(RecvTimeoutError::Timeout) => bail!(
                    "waited {} s in vain for {what}; {host}:\n{}",
                    LIMIT.as_secs(),
                    self.log_tail(host)
                ),
                Err(RecvTimeoutError::Disconnected) => bail!(
                    "{host} ended while waiting for {what}:\n{}",
                    self.log_tail(host)
                ),
            }
        }
    }

    /// The last lines that a part wrote to stderr.
    pub(crate) fn log_tail(&self, name: &str) -> String {
        let log = self.path().join(format!("{name}.log"));
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Keeps the working directory and says where it is.
    pub(crate) fn keep(&mut self) -> Option<PathBuf> {
        let dir = self.dir.as_mut()?;
        dir.disable_cleanup(true);
        Some(dir.path().to_owned())
    }
}
