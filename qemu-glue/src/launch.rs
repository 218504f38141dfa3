//! One QEMU process with all that belongs to it: RAM file, QMP connection, the userfaultfd that the shim handed out, the
//! last lines of its stderr. Whatever ends its owner ends the process.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder};
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use qapi::qmp;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::accelerator;
use crate::arguments::{CommandLine, SaveFds, blocks_migration, second_process};
use crate::description::{DiskAttachment, Role, RuntimePlace, VmDescription};
use crate::device_state::{DeviceStateChoice, NotSaved, QemuSaveEnds, SaveChannel, SaveEnds};
use crate::dirty_pages::{DirtyTracker, TrackerChoice, TrackerKind};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::guest_ram::GuestRam;
use crate::page_hash::PageHashTracker;
use crate::pagemap_scan::PagemapTracker;
use crate::qmp::Qmp;
use crate::sys::process::spawn_bound;
use crate::watch_socket::WatchSocket;

/// The shim that is preloaded into QEMU (shim/uffd_shim.c, built by build.rs).
const SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/uffd_shim.so"));

/// Lines of QEMU's stderr that are kept for error messages.
const STDERR_LINES: usize = 10;

/// How long QEMU may take from its start to its QMP greeting. A loaded host with a large firmware takes a few seconds.
const GREETING_LIMIT: Duration = Duration::from_secs(60);

/// How long a QEMU whose QMP connection broke may take to be gone.
const EXIT_LIMIT: Duration = Duration::from_secs(2);

/// What the new QEMU waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// `cont`, then it boots.
    Paused,
    /// Device state, then `cont`.
    Incoming,
}

/// A QEMU that answers on QMP.
#[derive(Debug)]
pub(crate) struct Launched {
    name: String,
    role: Role,
    qmp: Qmp,
    process: Mutex<Process>,
    pid: u32,
    ram: Arc<GuestRam>,
    fingerprint: Fingerprint,
    sockets: PathBuf,
    watch: WatchSocket,
    tracker_choice: TrackerChoice,
    second_process: Option<String>,
    device_state_choice: DeviceStateChoice,
    /// QEMU holds its other ends; taken by the first device state.
    save_channel: Mutex<Result<SaveChannel, NotSaved>>,
    /// What the shim sent; taken by the first tracker.
    uffd: Mutex<Result<OwnedFd, String>>,
}

/// The child, and what reads its stderr.
#[derive(Debug)]
struct Process {
    child: Child,
    stderr: Arc<Mutex<VecDeque<String>>>,
    reader: JoinHandle<()>,
}

impl Launched {
    /// Starts QEMU and waits for its QMP greeting.
    pub(crate) async fn start(
        description: &VmDescription,
        place: &RuntimePlace,
        disks: &[DiskAttachment],
        ram: Arc<GuestRam>,
        start: Start,
    ) -> Result<Self> {
        make_private_dir(&place.runtime_dir)?;
        let accelerator = accelerator::choose(description, &place.runtime_dir).await?;
        let sockets = place.runtime_dir.join(unique_name(&description.name));
        let pair = || {
            UnixStream::pair().map_err(Error::file("make sockets for QEMU in", &place.runtime_dir))
        };
        let ((qmp_socket, qmp_child), (shim_socket, shim_child)) = (pair()?, pair()?);
        let (save_ends, save_child) = match save_ends(description) {
            Ok((ours, theirs)) => (Ok(ours), Some(theirs)),
            Err(reason) => (Err(reason), None),
        };
        let (watch, watch_child) = WatchSocket::create(&sockets)?;
        let arguments = CommandLine {
            description,
            role: place.role,
            accelerator,
            disks,
            ram: ram.path(),
            runtime_dir: &place.runtime_dir,
            host: &place.host,
            qmp_fd: qmp_child.as_raw_fd(),
            watch_fd: watch_child.fd(),
            save: save_child.as_ref().map(|ends| SaveFds {
                file: ends.file.as_raw_fd(),
                qmp: ends.qmp.as_raw_fd(),
            }),
            incoming: start == Start::Incoming,
        };
        let mut command = Command::new(&description.qemu);
        command
            .args(arguments.build())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let shim = Shim::write(&sockets)?;
        command
            .env("LD_PRELOAD", shim.preload())
            .env("EPOCHGATE_UFFD_FD", shim_child.as_raw_fd().to_string());
        tracing::debug!(?command, "starting QEMU");
        let mut inherited = vec![qmp_child.into(), shim_child.into(), watch_child.into()];
        inherited.extend(
            save_child
                .into_iter()
                .flat_map(|ends| [ends.file, ends.qmp]),
        );
        let spawned = spawn_bound(command, inherited);
        let process = Process::watch(spawned.map_err(|source| Error::Spawn {
            program: description.qemu.clone(),
            source,
        })?);
        let pid = process.child.id();
        let process = Mutex::new(process);
        let monitors = async {
            let qmp = Qmp::connect(qmp_socket).await?;
            let save_channel = match save_ends {
                Ok(ends) => Ok(ends.connect().await?),
                Err(reason) => Err(reason),
            };
            Ok((qmp, save_channel))
        };
        let greetings = tokio::time::timeout(GREETING_LIMIT, monitors).await;
        let connected = greetings.unwrap_or(Err(Error::Timeout {
            what: "answer on QMP after its start",
            seconds: GREETING_LIMIT.as_secs(),
        }));
        let (qmp, save_channel) = match connected {
            Ok(monitors) => monitors,
            Err(error) => return Err(explain(&description.name, &process, error).await),
        };
        Ok(Launched {
            name: description.name.clone(),
            role: place.role,
            fingerprint: Fingerprint::new(description, disks, accelerator, qmp.version()),
            qmp,
            process,
            pid,
            ram,
            sockets,
            watch,
            tracker_choice: description.dirty_tracker,
            second_process: second_process(&description.extra_args).cloned(),
            device_state_choice: description.device_state,
            save_channel: Mutex::new(save_channel),
            uffd: Mutex::new(receive_uffd(&shim_socket)),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn role(&self) -> Role {
        self.role
    }

    pub(crate) fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    pub(crate) fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Where somebody who watches may connect.
    pub(crate) fn watch_socket(&self) -> &Path {
        self.watch.path()
    }

    /// The path of this QEMU's socket for `purpose`.
    pub(crate) fn socket_path(&self, purpose: &str) -> PathBuf {
        self.sockets.with_extension(purpose)
    }

    /// Lets the guest run.
    pub(crate) async fn cont(&self) -> Result<()> {
        loop {
            if let Some(state) = self.qmp.guest_end() {
                return Err(Error::GuestEnded {
                    vm: self.name.clone(),
                    state,
                });
            }
            match self.qmp.execute(&qmp::cont {}).await {
                // QEMU reports a migration as completed a moment before it leaves it (qmp_cont in QEMU's
                // monitor/qmp-cmds.c): the next try is good.
                Err(Error::Refused { description, .. })
                    if description.contains("not finalized") =>
                {
                    tokio::time::sleep(Duration::from_micros(100)).await;
                }
                other => return other.map(drop),
            }
        }
    }

    /// The tracker that was asked for, or the best that works.
    pub(crate) fn choose_tracker(&self) -> Result<Box<dyn DirtyTracker>> {
        let hash = || Box::new(PageHashTracker::new(Arc::clone(&self.ram)));
        let reason = match (self.tracker_choice, &self.second_process) {
            (TrackerChoice::Hash, _) => return Ok(hash()),
            (TrackerChoice::Pagemap, _) => return Ok(Box::new(self.pagemap_tracker()?)),
            (TrackerChoice::Auto, Some(argument)) => {
                format!("another process writes guest memory ({argument})")
            }
            (TrackerChoice::Auto, None) => match self.pagemap_tracker() {
                Ok(tracker) => return Ok(Box::new(tracker)),
                Err(error) => with_sources(&error),
            },
        };
        tracing::warn!(
            vm = self.name,
            reason,
            "dirty pages are found by hashing all memory: pauses are longer"
        );
        Ok(hash())
    }

    /// How the device state is to be taken.
    pub(crate) fn device_state_choice(&self) -> DeviceStateChoice {
        self.device_state_choice
    }

    /// What QEMU can save its devices by, or why it can't. To be taken once.
    pub(crate) fn take_save_channel(&self) -> Result<SaveChannel, NotSaved> {
        let mut slot = self
            .save_channel
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *slot, Err(NotSaved::Taken))
    }

    fn pagemap_tracker(&self) -> Result<PagemapTracker> {
        let mut slot = self.uffd.lock().unwrap_or_else(PoisonError::into_inner);
        let uffd = std::mem::replace(&mut *slot, Err("its userfaultfd is already in use".into()));
        let uffd = uffd.map_err(|problem| Error::Tracker {
            kind: TrackerKind::Pagemap,
            problem,
            source: None,
        })?;
        PagemapTracker::attach(self.pid, uffd, &self.ram)
    }

    /// Kills QEMU and waits until it is gone.
    pub(crate) async fn kill(self) {
        // Giving back the memory of a large guest takes its time. A panic there has nothing left to clean up.
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }

    /// Replaces an error by the better one, if there is a better one: that QEMU ended, and why.
    pub(crate) async fn explained<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => Err(explain(&self.name, &self.process, error).await),
        }
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        for purpose in ["device", "incoming"] {
            // Most are already gone.
            let _ = fs::remove_file(self.socket_path(purpose));
        }
    }
}

impl Process {
    fn watch(mut child: Child) -> Self {
        let stderr = Arc::new(Mutex::new(VecDeque::new()));
        let pipe = child.stderr.take();
        let (pid, kept) = (child.id(), Arc::clone(&stderr));
        let reader = std::thread::spawn(move || keep_last_lines(pipe, pid, &kept));
        Process {
            child,
            stderr,
            reader,
        }
    }

    /// How it ended and its last words; None while it runs.
    fn end(&mut self) -> Option<(ExitStatus, String)> {
        let status = self.child.try_wait().ok().flatten()?;
        // The last lines may still be on their way, but a stray child of QEMU may hold the pipe open forever.
        for _ in 0..100 {
            if self.reader.is_finished() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let lines = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        Some((
            status,
            lines.iter().map(|line| format!("\n  {line}")).collect(),
        ))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it has already ended; then wait returns at once.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn explain(vm: &str, process: &Mutex<Process>, error: Error) -> Error {
    let patience = match error {
        Error::QmpClosed => EXIT_LIMIT,
        // A standby that can't load its state reports that and then ends.
        Error::DeviceState { .. } => EXIT_LIMIT / 4,
        _ => Duration::ZERO,
    };
    let step = Duration::from_millis(5);
    let mut waited = Duration::ZERO;
    loop {
        let end = process.lock().unwrap_or_else(PoisonError::into_inner).end();
        if let Some((status, stderr)) = end {
            return Error::Exited {
                vm: vm.into(),
                status: in_words(status),
                stderr,
            };
        }
        if waited >= patience {
            return error;
        }
        tokio::time::sleep(step).await;
        waited += step;
    }
}

fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// An error with all its causes in one line.
fn with_sources(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn keep_last_lines(pipe: Option<ChildStderr>, pid: u32, kept: &Mutex<VecDeque<String>>) {
    for line in pipe
        .into_iter()
        .flat_map(|pipe| BufReader::new(pipe).lines())
    {
        let Ok(line) = line else { return };
        tracing::info!(pid, "QEMU says: {line}");
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == STDERR_LINES {
            kept.pop_front();
        }
        kept.push_back(line);
    }
}

/// What QEMU is to save its devices by.
fn save_ends(description: &VmDescription) -> Result<(SaveEnds, QemuSaveEnds), NotSaved> {
    if description.device_state == DeviceStateChoice::Migrate {
        return Err(NotSaved::NotWanted);
    }
    match blocks_migration(&description.extra_args) {
        Some(argument) => Err(NotSaved::Blockable {
            argument: argument.clone(),
        }),
        None => SaveEnds::create().map_err(NotSaved::File),
    }
}

/// A name for this process' next QEMU. Short: it becomes part of socket paths.
fn unique_name(vm: &str) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static LAUNCHES: AtomicU64 = AtomicU64::new(0);
    format!(
        "{vm}-{}-{}",
        std::process::id(),
        LAUNCHES.fetch_add(1, Ordering::Relaxed)
    )
}

fn make_private_dir(dir: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(Error::file("make the runtime directory", dir))
}

/// The shim as a file, for as long as QEMU needs to load it.
#[derive(Debug)]
struct Shim(PathBuf);

impl Shim {
    fn write(stem: &Path) -> Result<Self> {
        let path = std::path::absolute(stem.with_extension("shim.so"))
            .map_err(Error::file("find", stem))?;
        fs::write(&path, SHIM).map_err(Error::file("write the shim for QEMU to", &path))?;
        Ok(Shim(path))
    }

    /// Value of LD_PRELOAD: the shim, and what was there before.
    fn preload(&self) -> std::ffi::OsString {
        let mut list = self.0.clone().into_os_string();
        if let Some(before) = std::env::var_os("LD_PRELOAD") {
            list.push(":");
            list.push(before);
        }
        list
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // A runtime directory that was removed in the meantime is fine.
        let _ = fs::remove_file(&self.0);
    }
}

/// Takes what the shim sent before QEMU's main function began. Nothing, if it was not loaded.
fn receive_uffd(socket: &UnixStream) -> Result<OwnedFd, String> {
    let mut number = [0; 4];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [io::IoSliceMut::new(&mut number)];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut buffers, &mut control, flags);
    if !matches!(received, Ok(ref message) if message.bytes == 4) {
        return Err("the preloaded shim did not report from QEMU: is the QEMU binary static, setuid or named without \"qemu\"?".into());
    }
    let handed = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    handed.ok_or_else(|| {
        let reason = io::Error::from_raw_os_error(i32::from_ne_bytes(number));
        format!("QEMU may not use userfaultfd ({reason}): run as root, allow /dev/userfaultfd, or set the sysctl vm.unprivileged_userfaultfd to 1")
    })
}
