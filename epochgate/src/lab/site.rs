//! The site: images, configuration files, and the three processes that protect one VM.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use coordinator::report::{Report, Stamped, now_us};
use rustix::process::{Pid, Signal};

use super::process::Process;
use super::witness::Serial;
use crate::cli::{LabArgs, Tracker};
use crate::exit::Usage;

/// Name of the VM and of its group.
pub(crate) const VM: &str = "vm1";
/// Size of each of the two disks in bytes. Small: the witness reads all of it again and again.
const DISK_BYTES: u64 = 16 << 20;

/// Silence after which a peer is suspected. Generous: everything shares one machine here, and a build beside the demo
/// must not look like a dead host. A host that dies closes its connections, so this is not what detection takes.
const SUSPICION_MS: u64 = 2000;

/// A part of the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// `epochgate gateway`.
    Gateway,
    /// `epochgate standby`.
    Standby,
    /// `epochgate protect`.
    Source,
}

/// What is in the events so far, kept by [`Site`] while it waits.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    /// Process id of the source's QEMU.
    pub source_qemu: Option<i32>,
    /// Version of QEMU.
    pub qemu: String,
    /// The dirty tracker that runs.
    pub dirty_tracker: String,
    /// Pauses in microseconds, since [`Site::measure_from_now`].
    pub pauses: Vec<coordinator::report::Pause>,
    /// Bytes on the wire per checkpoint.
    pub wire_bytes: Vec<u64>,
    /// Microseconds from capture to COMMIT 1.
    pub commit1: Vec<u64>,
    /// Microseconds from COMMIT 1 to the durable record.
    pub commit2: Vec<u64>,
    /// Last epoch that the source reported as committed.
    pub committed: u64,
    /// Epochs committed since the VM is protected.
    pub epochs: u64,
    /// What the standby came to after it lost the source: it resumed, or discarded what it held.
    pub conclusion: Option<Stamped>,
    /// How the standby noticed.
    pub noticed_by: String,
}

/// A running site. Dropping it stops everything and removes its files.
#[derive(Debug)]
pub(crate) struct Site {
    // Declared first, so that they are stopped before their files go.
    source: Option<Process>,
    standby: Option<Process>,
    gateway: Option<Process>,
    events: Receiver<(Who, Stamped)>,
    sender: Sender<(Who, Stamped)>,
    seen: Seen,
    ram_dir: tempfile::TempDir,
    dir: Option<tempfile::TempDir>,
}

/// Set by SIGINT and SIGTERM: everything that waits gives up, and the site is taken down in order.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Says that the user wants out.
pub(crate) fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// The user wanted out.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted;

/// Whether `error` only says that the user wanted out.
pub(crate) fn is_interruption(error: &anyhow::Error) -> bool {
    error.is::<Interrupted>()
}

impl Site {
    /// Prepares images and configuration and starts the gateway.
    pub(crate) fn start(args: &LabArgs) -> anyhow::Result<Self> {
        let guest = args
            .guest
            .canonicalize()
            .unwrap_or_else(|_| args.guest.clone());
        for file in ["vmlinuz", "initrd.gz"] {
            if !guest.join(file).is_file() {
                return Err(Usage(format!(
                    "there is no {} (the guest that is protected); build it with `make guest`, or name its folder with --guest",
                    guest.join(file).display()
                ))
                .into());
            }
        }
        let dir = tempfile::Builder::new().prefix("epochgate-").tempdir()?;
        let ram_dir = tempfile::Builder::new()
            .prefix("epochgate-")
            .tempdir_in("/dev/shm")
            .context("the guest's RAM needs /dev/shm")?;
        let (sender, events) = channel();
        let mut site = Self {
            source: None,
            standby: None,
            gateway: None,
            events,
            sender,
            seen: Seen::default(),
            ram_dir,
            dir: Some(dir),
        };
        site.write_files(args, &guest)?;
        site.start_gateway()?;
        Ok(site)
    }

    /// The working directory.
    pub(crate) fn path(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new("."), |dir| dir.path())
    }

    fn write_files(&self, args: &LabArgs, guest: &Path) -> anyhow::Result<()> {
        let dir = self.path().display();
        for disk in ["root", "data"] {
            let image = std::fs::File::create(self.path().join(format!("{disk}.img")))?;
            image.set_len(DISK_BYTES)?;
        }
        let mut gateway = format!(
            "control = \"{dir}/gateway.sock\"\nlisten = [\"unix:{dir}/nbd.sock\"]\n\n\
             [[group]]\nname = \"{VM}\"\nlog = \"{dir}/{VM}.epochlog\"\nmode = \"async\"\n\
             epoch_memory = \"{ram_dir}\"\n",
            ram_dir = self.ram_dir.path().display(),
        );
        for disk in ["root", "data"] {
            write!(
                gateway,
                "\n[[group.disk]]\nname = \"{disk}\"\nimage = \"{dir}/{disk}.img\"\n"
            )?;
        }
        let tracker = match args.tracker {
            Tracker::Auto => "auto",
            Tracker::Pagemap => "pagemap",
            Tracker::Hash => "hash",
        };
        let cmdline = std::fs::read_to_string(guest.join("cmdline"))
            .unwrap_or_else(|_| "console=ttyS0 quiet panic=-1".to_owned());
        let vm = format!(
            "[vm]\nname = \"{VM}\"\nqemu = \"{}\"\naccel = \"{}\"\nmemory_mib = {}\n\
             kernel = \"{guest}/vmlinuz\"\ninitrd = \"{guest}/initrd.gz\"\nappend = \"{}\"\n\
             dirty_tracker = \"{tracker}\"\nram_dir = \"{}\"\n\
             extra_args = [\"-serial\", \"file:{dir}/serial-{{role}}.log\"]\n",
            args.qemu.display(),
            args.accel,
            args.memory,
            cmdline.trim(),
            self.ram_dir.path().display(),
            guest = guest.display(),
        );
        let common = format!(
            "gateway = \"{dir}/gateway.sock\"\nnbd = \"{dir}/nbd.sock\"\nruntime_dir = \"{dir}\"\nsuspicion_ms = {SUSPICION_MS}\ndisks = [\"root\", \"data\"]\n"
        );
        let channel = format!("unix:{dir}/standby.sock");
        let protect = format!(
            "host = \"host-a\"\n{common}standby = [\"{channel}\"]\ninterval_ms = {}\n\n{vm}",
            args.interval
        );
        let standby = format!("host = \"host-b\"\n{common}listen = \"{channel}\"\n\n{vm}");
        for (name, text) in [("g", gateway), ("vm", protect), ("s", standby)] {
            std::fs::write(self.path().join(format!("{name}.toml")), text)?;
        }
        Ok(())
    }

    fn launch(&self, who: Who, args: &[&str], env: &[(String, String)]) -> anyhow::Result<Process> {
        let log = self.path().join(format!("{who:?}.log").to_lowercase());
        Process::start(who, args, env, &log, self.sender.clone())
    }

    /// Starts the gateway, and waits until it answers.
    fn start_gateway(&mut self) -> anyhow::Result<()> {
        let config = self.path().join("g.toml");
        let config = config.to_string_lossy();
        self.gateway = Some(self.launch(Who::Gateway, &["gateway", "--config", &config], &[])?);
        let socket = self.path().join("gateway.sock");
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            if Instant::now() > deadline || self.ended(Who::Gateway) {
                bail!(
                    "the gateway did not start:\n{}",
                    self.log_tail(Who::Gateway)
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Starts the standby, and waits until it listens. A source that is there already finds it by itself.
    pub(crate) fn start_standby(&mut self) -> anyhow::Result<()> {
        let config = self.path().join("s.toml");
        let args = ["standby", "--json", "--config", &config.to_string_lossy()];
        self.standby = Some(self.launch(Who::Standby, &args, &[])?);
        self.wait_for(
            Duration::from_secs(20),
            "the standby to listen",
            |who, report| who == Who::Standby && matches!(report, Report::Listening { .. }),
        )?;
        Ok(())
    }

    /// Starts the VM at the source.
    pub(crate) fn start_source(&mut self, env: &[(String, String)]) -> anyhow::Result<()> {
        let config = self.path().join("vm.toml");
        let args = ["protect", "--json", "--config", &config.to_string_lossy()];
        self.source = Some(self.launch(Who::Source, &args, env)?);
        Ok(())
    }

    /// Waits for an event. Meanwhile, a part that ends unexpectedly is an error that shows its last words.
    pub(crate) fn wait_for(
        &mut self,
        limit: Duration,
        what: &str,
        mut wanted: impl FnMut(Who, &Report) -> bool,
    ) -> anyhow::Result<Stamped> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some((who, event)) = self.next_event(Duration::from_millis(20))? {
                if wanted(who, &event.report) {
                    return Ok(event);
                }
                continue;
            }
            for who in [Who::Gateway, Who::Standby] {
                if self.ended(who) {
                    bail!(
                        "{who:?} ended while waiting for {what}:\n{}",
                        self.log_tail(who)
                    );
                }
            }
            if Instant::now() > deadline {
                bail!(
                    "waited {} s in vain for {what}; source:\n{}\nstandby:\n{}",
                    limit.as_secs(),
                    self.log_tail(Who::Source),
                    self.log_tail(Who::Standby)
                );
            }
        }
    }

    /// The next event, if one comes within `limit`.
    pub(crate) fn next_event(&mut self, limit: Duration) -> anyhow::Result<Option<(Who, Stamped)>> {
        if INTERRUPTED.load(Ordering::Relaxed) {
            return Err(Interrupted.into());
        }
        match self.events.recv_timeout(limit) {
            Ok((who, event)) => {
                self.note(&event);
                Ok(Some((who, event)))
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(None),
        }
    }

    fn note(&mut self, event: &Stamped) {
        match &event.report {
            Report::VmStarted {
                pid,
                qemu,
                dirty_tracker,
                ..
            } => {
                self.seen.source_qemu = i32::try_from(*pid).ok();
                self.seen.qemu.clone_from(qemu);
                self.seen.dirty_tracker.clone_from(dirty_tracker);
            }
            Report::Captured {
                pause_us,
                wire_bytes,
                ..
            } => {
                self.seen.pauses.push(*pause_us);
                self.seen.wire_bytes.push(*wire_bytes);
            }
            Report::Committed {
                epoch,
                commit1_us,
                commit2_us,
            } => {
                self.seen.committed = epoch.0;
                self.seen.epochs += 1;
                self.seen.commit1.push(*commit1_us);
                self.seen.commit2.push(*commit2_us);
            }
            Report::SourceLost { reason } => self.seen.noticed_by.clone_from(reason),
            Report::Resumed { .. } | Report::Discarded { .. } => {
                self.seen.conclusion = Some(event.clone());
            }
            _ => {}
        }
    }

    /// What was seen so far.
    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Forgets what was measured so far: a guest that boots is not the load that is meant.
    pub(crate) fn measure_from_now(&mut self) {
        self.seen.pauses.clear();
        self.seen.wire_bytes.clear();
        self.seen.commit1.clear();
        self.seen.commit2.clear();
    }

    /// SIGKILL for the source's QEMU and its coordinator, as when the host dies. Returns the instant.
    pub(crate) fn kill_source(&mut self) -> u64 {
        let at = now_us();
        if let Some(pid) = self.seen.source_qemu.and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        if let Some(mut source) = self.source.take() {
            source.kill();
        }
        at
    }

    /// Whether a part has ended by itself (or was never started).
    pub(crate) fn ended(&mut self, who: Who) -> bool {
        let part = match who {
            Who::Gateway => &mut self.gateway,
            Who::Standby => &mut self.standby,
            Who::Source => &mut self.source,
        };
        part.as_mut()
            .is_none_or(|process| process.ended().is_some())
    }

    /// The serial line of the guest, at its source or at its standby.
    pub(crate) fn serial(&self, who: Who) -> Serial {
        let role = if who == Who::Standby {
            "standby"
        } else {
            "source"
        };
        Serial::new(self.path().join(format!("serial-{role}.log")))
    }

    /// The last lines that a part wrote to stderr.
    pub(crate) fn log_tail(&self, who: Who) -> String {
        let log = self.path().join(format!("{who:?}.log").to_lowercase());
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Keeps the working directory and says where it is.
    pub(crate) fn keep(&mut self) -> Option<PathBuf> {
        self.dir
            .as_ref()
            .map(|dir| dir.path().to_owned())
            .inspect(|_| {
                if let Some(dir) = self.dir.as_mut() {
                    dir.disable_cleanup(true);
                }
            })
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // The source first: it hands the disks back to the gateway.
        self.source.take();
        self.standby.take();
        self.gateway.take();
    }
}
