//! The site: images, configuration files, and the three processes that protect one VM.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use coordinator::report::{Report, Stamped, now_us};
use rustix::process::{Pid, Signal};

use super::layout::{self, DISKS, Layout, Paths, Small};
use super::namespaces::Place;
use super::nas::Nas;
use super::network::{Host, Network};
use super::process::Process;
use super::relay::{self, Relay};
use super::seen::Seen;
use super::small_disk::SmallDisk;
use super::witness::Serial;
use crate::cli::LabArgs;
use crate::exit::Usage;

/// Name of the VM and of its group.
pub(crate) const VM: &str = "vm1";
/// Size of the small file system of a site that has one.
const SMALL_MIB: u64 = 96;

/// A part of the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// `epochgate gateway`.
    Gateway,
    /// `epochgate standby`.
    Standby,
    /// `epochgate protect`.
    Source,
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
    /// All events so far, with the lab's own time: a part's clock may be wrong.
    journal: Vec<(Who, Stamped)>,
    /// How far a part's clock was from the lab's at most, in microseconds.
    astray: u64,
    layout: Layout,
    env: Vec<(Who, String, String)>,
    relays: Option<[Relay; 3]>,
    network: Option<Network>,
    small: Option<SmallDisk>,
    nas: Option<Nas>,
    ram_dir: tempfile::TempDir,
    dir: Option<tempfile::TempDir>,
}

/// The guest that is protected.
pub(crate) fn guest_folder(args: &LabArgs) -> anyhow::Result<PathBuf> {
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
    Ok(guest)
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

/// An error if the user wanted out.
pub(crate) fn heed_interruption() -> anyhow::Result<()> {
    anyhow::ensure!(!INTERRUPTED.load(Ordering::Relaxed), Interrupted);
    Ok(())
}

/// Whether `error` only says that the user wanted out.
pub(crate) fn is_interruption(error: &anyhow::Error) -> bool {
    error.is::<Interrupted>()
}

impl Site {
    /// The usual site: prepares images and configuration and starts the gateway.
    pub(crate) fn start(args: &LabArgs) -> anyhow::Result<Self> {
        Self::with(args, &Layout::default(), Vec::new())
    }

    /// The same for another layout. Parts are given what `env` has for them when they are started for the first time.
    pub(crate) fn with(
        args: &LabArgs,
        layout: &Layout,
        env: Vec<(Who, String, String)>,
    ) -> anyhow::Result<Self> {
        let guest = guest_folder(args)?;
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
            journal: Vec::new(),
            astray: 0,
            layout: layout.clone(),
            env,
            relays: None,
            network: None,
            small: None,
            nas: None,
            ram_dir,
            dir: Some(dir),
        };
        site.start_small_disk()?;
        if layout.nas {
            site.nas = Some(Nas::start(&site.paths().nas_dir())?);
        }
        let images = site.make_images()?;
        layout::write_files(
            layout,
            &site.paths(),
            &images,
            args,
            &guest,
            site.ram_dir.path(),
        )?;
        site.start_network()?;
        site.start_gateway()?;
        Ok(site)
    }

    /// Where its files are.
    pub(crate) fn paths(&self) -> Paths {
        Paths {
            dir: self.path().to_owned(),
            small: self.layout.small,
            nas: self.layout.nas,
        }
    }

    /// Its network, where it has one.
    pub(crate) fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// Its small disk, where it has one.
    pub(crate) fn small_disk(&self) -> Option<&SmallDisk> {
        self.small.as_ref()
    }

    /// Its NAS, where it has one.
    pub(crate) fn nas(&mut self) -> Option<&mut Nas> {
        self.nas.as_mut()
    }

    fn start_small_disk(&mut self) -> anyhow::Result<()> {
        if self.layout.small.is_some() {
            let at = self.paths().small_dir();
            std::fs::create_dir(&at)?;
            self.small = Some(SmallDisk::start(&at, SMALL_MIB)?);
        }
        Ok(())
    }

    /// The images, as those who run on the storage host see them.
    fn make_images(&mut self) -> anyhow::Result<Vec<PathBuf>> {
        let mut images = Vec::new();
        for disk in DISKS {
            let name = format!("{disk}.img");
            let file = match &self.small {
                Some(small) if self.layout.small != Some(Small::LogFull) => small.inside(&name),
                _ if self.layout.nas => self.paths().nas_dir().join(&name),
                _ => self.path().join(&name),
            };
            match &self.layout.saved {
                Some(saved) => super::saved::copy_sparse(&saved.join(&name), &file)?,
                None => std::fs::File::create(&file)?.set_len(self.layout.disk_bytes)?,
            }
            images.push(match &mut self.small {
                Some(small) if self.layout.small == Some(Small::ImagesFail) => {
                    small.device(&name)?
                }
                _ if self.layout.nas => Nas::url(&self.paths().nas_dir(), &name),
                _ => self.paths().image_dir().join(&name),
            });
        }
        Ok(images)
    }

    fn start_network(&mut self) -> anyhow::Result<()> {
        if !self.layout.networked {
            return Ok(());
        }
        let network = Network::start()?;
        let paths = self.paths();
        let relays = relay::of_control(&network, paths.control(), &paths.dir)?;
        self.relays = Some(relays);
        self.network = Some(network);
        Ok(())
    }

    fn place(&self, who: Who) -> anyhow::Result<Place> {
        let host = match who {
            Who::Gateway => Host::Storage,
            Who::Standby => Host::Standby,
            Who::Source => Host::Source,
        };
        let mut place = self
            .network
            .as_ref()
            .map(|network| network.place(host).clone())
            .unwrap_or_default();
        if who == Who::Gateway
            && let Some(small) = &self.small
        {
            place.mounts = Some(small.mounts()?);
        }
        if who == Who::Gateway
            && let Some(nas) = &self.nas
        {
            place = nas.host()?;
        }
        Ok(place)
    }

    /// The working directory.
    pub(crate) fn path(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new("."), |dir| dir.path())
    }

    fn launch(&mut self, who: Who, args: &[&str]) -> anyhow::Result<Process> {
        let log = self.path().join(format!("{who:?}.log").to_lowercase());
        let place = self.place(who)?;
        let (mine, others) = std::mem::take(&mut self.env)
            .into_iter()
            .partition(|(whose, _, _)| *whose == who);
        self.env = others;
        let env: Vec<_> = Vec::into_iter(mine).map(|(_, k, v)| (k, v)).collect();
        Process::start(who, args, &env, &log, self.sender.clone(), &place)
    }

    /// What a gateway that is gone held in memory is gone, too, as with its machine.
    pub(crate) fn forget_held(&self) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(self.path())? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "held")
            {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Starts the gateway, and waits until it answers.
    pub(crate) fn start_gateway(&mut self) -> anyhow::Result<()> {
        let config = self.path().join("g.toml");
        let config = config.to_string_lossy();
        self.gateway = Some(self.launch(Who::Gateway, &["gateway", "--config", &config])?);
        let socket = self.paths().control();
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

    /// SIGKILL for all parts: what they leave behind is of no interest any more.
    pub(crate) fn kill_all(&mut self) {
        for who in [Who::Source, Who::Standby, Who::Gateway] {
            if let Some(part) = self.part(who) {
                part.kill();
            }
        }
    }

    /// Stops the gateway in order.
    pub(crate) fn stop_gateway(&mut self) {
        if let Some(mut gateway) = self.gateway.take() {
            gateway.stop();
        }
    }

    /// Starts the standby, and waits until it listens. A source that is there already finds it by itself.
    pub(crate) fn start_standby(&mut self) -> anyhow::Result<()> {
        self.launch_standby()?;
        self.wait_for(
            Duration::from_secs(20),
            "the standby to listen",
            |who, report| who == Who::Standby && matches!(report, Report::Listening { .. }),
        )?;
        Ok(())
    }

    /// Starts the VM at the source.
    pub(crate) fn start_source(&mut self, env: &[(String, String)]) -> anyhow::Result<()> {
        let for_source = env.iter().map(|(k, v)| (Who::Source, k.clone(), v.clone()));
        self.env.extend(for_source);
        let saved = self.layout.saved.clone();
        self.start_protect(saved.as_deref(), &[])
    }

    /// Starts the VM from its disks, whoever had it before.
    pub(crate) fn start_cold(&mut self) -> anyhow::Result<()> {
        self.start_protect(None, &["--cold-start"])
    }

    fn start_protect(&mut self, saved: Option<&Path>, more: &[&str]) -> anyhow::Result<()> {
        let config = self.path().join("vm.toml").display().to_string();
        let saved = saved.map(|saved| saved.display().to_string());
        let mut args = vec!["protect", "--json", "--config", &config];
        if let Some(saved) = &saved {
            args.extend(["--saved-state", saved, "--any-disks"]);
        }
        args.extend(more);
        self.source = Some(self.launch(Who::Source, &args)?);
        Ok(())
    }

    /// Starts the standby, for the first time or again, without waiting.
    pub(crate) fn launch_standby(&mut self) -> anyhow::Result<()> {
        let config = self.path().join("s.toml");
        let args = ["standby", "--json", "--config", &config.to_string_lossy()];
        self.standby = Some(self.launch(Who::Standby, &args)?);
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
        heed_interruption()?;
        match self.events.recv_timeout(limit) {
            Ok((who, event)) => {
                self.seen.note(&event);
                let heard = Stamped {
                    t_us: now_us(),
                    report: event.report.clone(),
                };
                self.astray = self.astray.max(heard.t_us.abs_diff(event.t_us));
                self.journal.push((who, heard));
                Ok(Some((who, event)))
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(None),
        }
    }

    /// All events so far, at the times at which they were heard.
    pub(crate) fn journal(&self) -> &[(Who, Stamped)] {
        &self.journal
    }

    /// How far a part's clock was from the lab's at most, in microseconds.
    pub(crate) fn astray_us(&self) -> u64 {
        self.astray
    }

    /// All that a part wrote to stderr.
    pub(crate) fn log_text(&self, who: Who) -> String {
        let log = self.path().join(format!("{who:?}.log").to_lowercase());
        std::fs::read_to_string(log).unwrap_or_default()
    }

    /// A part, if it was started.
    pub(crate) fn part(&mut self, who: Who) -> Option<&mut Process> {
        match who {
            Who::Gateway => self.gateway.as_mut(),
            Who::Standby => self.standby.as_mut(),
            Who::Source => self.source.as_mut(),
        }
    }

    /// What was seen so far.
    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Forgets what was measured so far: a guest that boots is not the load that is meant.
    pub(crate) fn measure_from_now(&mut self) {
        self.seen.measure_from_now();
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
        self.part(who)
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
        let text = self.log_text(who);
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
