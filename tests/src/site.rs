//! A site on this machine that protects one VM: images, configuration files, a gateway, a standby, a source.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde_json::Value;

use crate::command::{self, Ended};
use crate::network::{self, HOSTS, Lan, STORAGE, address};
use crate::paths;
use crate::process::{Process, signal_pid};
use crate::relay::{self, Relays};
use crate::serial::{Serial, Verdict};
use crate::waiting::wait_until;

/// Name of the VM and of its group.
pub const VM: &str = "vm1";
/// Names of its disks.
pub const DISKS: [&str; 2] = ["root", "data"];
/// Ports of NBD and of the checkpoint channel where hosts have a network.
const NBD_PORT: u16 = 10809;
const CHANNEL_PORT: u16 = 7070;
/// Size of each disk in bytes. Small: the witness reads all of it again and again.
pub const DISK_BYTES: u64 = 8 << 20;

/// How a site differs from the usual one.
#[derive(Debug, Clone)]
pub struct Options {
    /// RAM of the guest.
    pub memory_mib: u64,
    /// `auto`, `pagemap` or `hash`.
    pub tracker: &'static str,
    /// Milliseconds between two checkpoints.
    pub interval_ms: u64,
    /// Silence after which the other side is taken for lost. Long, so that a busy machine alone is never taken for a
    /// failure; a process that is killed is noticed at once all the same.
    pub suspicion_ms: u64,
    /// A network interface for the guest and what becomes of its packets: `hold` or `pass`. All parts are on hosts of a [`Lan`] then,
    /// and reach each other over it.
    pub output: Option<&'static str>,
    /// `fixed` or `demand`.
    pub rhythm: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory_mib: 256,
            tracker: "auto",
            interval_ms: 25,
            suspicion_ms: 10_000,
            output: None,
            rhythm: "fixed",
        }
    }
}

/// A site. Dropping it stops everything and removes its files.
#[derive(Debug)]
pub struct Site {
    // In the order in which they are stopped; their files go afterwards.
    /// `epochgate protect`.
    pub source: Option<Process>,
    /// `epochgate standby`.
    pub standby: Option<Process>,
    /// `epochgate gateway`.
    pub gateway: Option<Process>,
    network: Option<(Relays, Lan)>,
    ram_dir: tempfile::TempDir,
    dir: tempfile::TempDir,
    _alone: File,
}

impl Site {
    /// Prepares images and configuration; starts nothing. Waits until no other test has a site: two VMs at once would
    /// slow each other down.
    pub fn new(options: &Options) -> Self {
        let alone = vm_lock();
        let dir = tempdir();
        let ram_dir = tempfile::Builder::new()
            .prefix("epochgate-test-")
            .tempdir_in("/dev/shm")
            .expect("the guest's RAM needs /dev/shm");
        let mut site = Self {
            source: None,
            standby: None,
            gateway: None,
            network: None,
            ram_dir,
            dir,
            _alone: alone,
        };
        if options.output.is_some() {
            let lan = Lan::start();
            let relays = Relays::start(&lan, &site.control(), site.path());
            site.network = Some((relays, lan));
        }
        site.write_files(options);
        site
    }

    /// Its network. Panics if it has none.
    #[track_caller]
    pub fn lan(&self) -> &Lan {
        &self.network.as_ref().expect("a site with a network").1
    }

    /// Does something on a host, where there are any.
    fn on<T>(&self, host: &str, work: impl FnOnce() -> T) -> T {
        match &self.network {
            Some((_, lan)) => lan.on(host, work),
            None => work(),
        }
    }

    /// Where the standby on `host` is reached.
    pub fn channel(&self, host: &str) -> String {
        match self.network {
            Some(_) => format!("tcp:{}:{CHANNEL_PORT}", address(host)),
            None => format!("unix:{}", self.file("standby.sock")),
        }
    }

    /// How a role on `host` reaches the gateway, as lines of its configuration.
    pub fn gateway_lines(&self, host: &str) -> String {
        match self.network {
            Some(_) => format!(
                "gateway = \"{}\"\nnbd = \"{}:{NBD_PORT}\"\ninsecure = true\n",
                relay::socket(self.path(), host).display(),
                address(STORAGE)
            ),
            None => format!(
                "gateway = \"{}\"\nnbd = \"{}\"\n",
                self.control().display(),
                self.file("nbd.sock")
            ),
        }
    }

    /// The working directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A file in it, as text.
    pub fn file(&self, name: &str) -> String {
        self.path().join(name).display().to_string()
    }

    /// The gateway's control socket.
    pub fn control(&self) -> PathBuf {
        self.path().join("gateway.sock")
    }

    fn write_files(&self, options: &Options) {
        for disk in DISKS {
            make_image(&self.path().join(format!("{disk}.img")), DISK_BYTES);
        }
        self.write("gateway.toml", &gateway_toml(self.path()));
        if self.network.is_some() {
            let unix = format!("listen = [\"unix:{}\"]\n", self.file("nbd.sock"));
            let tcp = format!(
                "listen = [\"tcp:{}:{NBD_PORT}\"]\ninsecure = true\n",
                address(STORAGE)
            );
            self.derive("gateway.toml", "gateway.toml", &unix, &tcp);
        }
        let dir = self.path().display();
        let common = format!(
            "runtime_dir = \"{dir}\"\n\
             disks = [\"root\", \"data\"]\nheartbeat_ms = 50\nsuspicion_ms = {}\n",
            options.suspicion_ms
        );
        let vm = format!(
            "\n[vm]\nname = \"{VM}\"\nqemu = \"{}\"\naccel = \"tcg\"\nmemory_mib = {}\nkernel = \"{guest}/vmlinuz\"\n\
             initrd = \"{guest}/initrd.gz\"\nappend = \"{}\"\ndirty_tracker = \"{}\"\nram_dir = \"{}\"\n\
             extra_args = [\"-serial\", \"file:{dir}/serial-{{role}}.log\"{}]\n",
            paths::qemu(),
            options.memory_mib,
            match options.output {
                Some(_) => format!("{} {}", paths::cmdline(), network::GUEST_CMDLINE),
                None => paths::cmdline(),
            },
            options.tracker,
            self.ram_dir.path().display(),
            match options.output {
                Some(_) => network::QEMU_ARGS,
                None => "",
            },
            guest = paths::guest().display(),
        );
        self.write(
            "vm.toml",
            &format!(
                "host = \"host-a\"\nstandby = [\"{}\"]\ninterval_ms = {}\nrhythm = \"{}\"\n\
                 output = \"{}\"\n{}{common}{vm}",
                self.channel(HOSTS[1]),
                options.interval_ms,
                options.rhythm,
                options.output.unwrap_or("hold"),
                self.gateway_lines(HOSTS[0]),
            ),
        );
        self.write(
            "standby.toml",
            &format!(
                "host = \"host-b\"\nlisten = \"{}\"\n{}{common}{vm}",
                self.channel(HOSTS[1]),
                self.gateway_lines(HOSTS[1]),
            ),
        );
    }

    /// Writes a file in the working directory.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).expect("a file can be written");
    }

    /// Writes `to`, which is the configuration `from` with one text replaced by another.
    #[track_caller]
    pub fn derive(&self, from: &str, to: &str, old: &str, new: &str) {
        let text = std::fs::read_to_string(self.path().join(from)).expect("a file can be read");
        assert_eq!(
            text.matches(old).count(),
            1,
            "`{old}` is not there exactly once in\n{text}"
        );
        self.write(to, &text.replace(old, new));
    }

    /// Starts the binary under test as one of its parts, on a host where there are any.
    pub fn start<const N: usize>(
        &self,
        host: &str,
        name: &str,
        args: [&str; N],
        env: &[(&str, &str)],
    ) -> Process {
        self.on(host, || Process::epochgate(name, self.path(), args, env))
    }

    /// Starts the gateway (again), and waits until it answers.
    #[track_caller]
    pub fn start_gateway(&mut self, env: &[(&str, &str)]) {
        let config = self.file("gateway.toml");
        let args = ["gateway", "--config", &config];
        let gateway = self.start(STORAGE, "gateway", args, env);
        let gateway = self.gateway.insert(gateway);
        wait_for_socket(&self.dir.path().join("gateway.sock"), gateway);
    }

    /// Starts a standby, and waits until it listens. Returns its id.
    #[track_caller]
    pub fn start_standby(&mut self) -> String {
        let config = self.file("standby.toml");
        let args = ["standby", "--json", "--config", &config];
        let standby = self.start(HOSTS[1], "standby", args, &[]);
        let listening = self.standby.insert(standby).event(&["listening"]);
        listening["standby"]
            .as_str()
            .expect("a standby has an id")
            .to_owned()
    }

    /// Starts the source, and waits until its VM runs.
    #[track_caller]
    pub fn start_source(&mut self) {
        self.start_source_with(&[]);
    }

    /// The same with settings in its environment.
    #[track_caller]
    pub fn start_source_with(&mut self, env: &[(&str, &str)]) {
        let config = self.file("vm.toml");
        let args = ["protect", "--json", "--config", &config];
        let source = self.start(HOSTS[0], "source", args, env);
        self.source.insert(source).event(&["vm_started"]);
    }

    /// The source. Panics if there is none.
    #[track_caller]
    pub fn source(&mut self) -> &mut Process {
        self.source.as_mut().expect("a source was started")
    }

    /// The standby. Panics if there is none.
    #[track_caller]
    pub fn standby(&mut self) -> &mut Process {
        self.standby.as_mut().expect("a standby was started")
    }

    /// The gateway. Panics if there is none.
    #[track_caller]
    pub fn gateway(&mut self) -> &mut Process {
        self.gateway.as_mut().expect("a gateway was started")
    }

    /// Starts all: the VM first, which boots faster without checkpoints, then, when its witness works, the standby. Returns
    /// when the VM is protected and goes on, with the witness's word.
    #[track_caller]
    pub fn start_protected(&mut self, gateway_env: &[(&str, &str)]) -> Verdict {
        self.start_gateway(gateway_env);
        self.start_source();
        self.serial("source").at_work();
        self.start_standby();
        self.source().event(&["protected"]);
        self.serial("source").latest().expect("the witness works")
    }

    /// Process id of the source's QEMU.
    #[track_caller]
    pub fn source_qemu(&self) -> u32 {
        let events = self
            .source
            .as_ref()
            .map(Process::events)
            .unwrap_or_default();
        let started = events.iter().find(|event| event["event"] == "vm_started");
        started
            .and_then(|event| u32::try_from(event["pid"].as_u64()?).ok())
            .expect("the VM was started")
    }

    /// SIGKILL for the source's QEMU and its coordinator, as when the host dies. Returns the last epoch that the source
    /// had reported as committed.
    #[track_caller]
    pub fn kill_source(&mut self) -> u64 {
        signal_pid(self.source_qemu(), Signal::KILL);
        self.source().kill();
        self.source()
            .last_epoch("committed")
            .expect("an epoch was committed")
    }

    /// Waits until the guest goes on at the standby; returns the epoch from which it does.
    #[track_caller]
    pub fn resumed(&mut self) -> u64 {
        let event = self.standby().event(&["resumed", "discarded"]);
        assert_eq!(event["event"], "resumed", "{event}");
        event["epoch"].as_u64().expect("an epoch")
    }

    /// The guest's serial line at its `source` or `standby`.
    pub fn serial(&self, role: &str) -> Serial {
        Serial::new(self.path().join(format!("serial-{role}.log")))
    }

    /// `epochgate status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        let args = ["status", "--json", "--runtime-dir", &self.file("")];
        let ended = command::epochgate(args).with(0);
        serde_json::from_str(&ended.out).expect("status is JSON")
    }

    /// The group in the gateway's status.
    #[track_caller]
    pub fn group(&self) -> Value {
        self.status()["gateway"]["groups"][0].clone()
    }

    /// What the epoch log says, while no gateway has it.
    #[track_caller]
    pub fn inspect_log(&self) -> Value {
        let ended = self.log_command("inspect").with(0);
        serde_json::from_str(&ended.out).expect("a report is JSON")
    }

    /// `epochgate log inspect` or `verify`.
    pub fn log_command(&self, what: &str) -> Ended {
        command::epochgate(["log", what, "--json", &self.file("vm1.epochlog")])
    }
}

/// The configuration of a gateway with the usual group and all its files in `dir`.
pub fn gateway_toml(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "control = \"{dir}/gateway.sock\"\nlisten = [\"unix:{dir}/nbd.sock\"]\n\n[[group]]\nname = \"{VM}\"\n\
         log = \"{dir}/{VM}.epochlog\"\nepoch_memory = \"{dir}\"\nmode = \"async\"\n\n[[group.disk]]\nname = \"root\"\nimage = \"{dir}/root.img\"\n\
         \n[[group.disk]]\nname = \"data\"\nimage = \"{dir}/data.img\"\n"
    )
}

/// Removes what gateways that are gone held in memory, as when their machine failed.
pub fn forget_held(dir: &Path) {
    let entries = std::fs::read_dir(dir).expect("the directory is there");
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        if path
            .extension()
            .is_some_and(|extension| extension == "held")
        {
            std::fs::remove_file(path).expect("a file can be removed");
        }
    }
}

/// A directory for a test. Its path is short, as sockets need it.
pub fn tempdir() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("epochgate-test-")
        .tempdir()
        .expect("a temporary directory can be made")
}

/// An image of zeros.
pub fn make_image(path: &Path, bytes: u64) {
    let image = File::create(path).expect("an image can be made");
    image.set_len(bytes).expect("an image can be made");
}

/// Waits until somebody listens on a unix socket; fails if `process` ends before.
#[track_caller]
pub fn wait_for_socket(socket: &Path, process: &mut Process) {
    let log = process.log_tail();
    wait_until(
        "a listening socket",
        || {
            assert!(!process.ended(), "it ended early:\n{}", process.log_tail());
            std::os::unix::net::UnixStream::connect(socket).ok()
        },
        || log,
    );
}

/// Waits until no other test of any process runs a VM; that lasts while the file is open.
pub fn vm_lock() -> File {
    let path = paths::target().join("epochgate-tests.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .expect("the target directory is writable");
    flock(&file, FlockOperation::LockExclusive).expect("a file can be locked");
    file
}
