//! One disk behind a real gateway, in each way that it can be served, for tests of what NBD clients see.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::command::{self, epochgate};
use crate::epochs::Epochs;
use crate::process::Process;
use crate::site::{forget_held, make_image, tempdir, wait_for_socket};

/// Milliseconds between epochs of a group that commits by itself: short, so that epochs are cut in the midst of everything.
const EPOCH_INTERVAL_MS: u64 = 5;
/// Longer than any test.
const NEVER_MS: u64 = 3_600_000;

/// How the disk is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `epochgate serve`: sync mode.
    Sync,
    /// `epochgate serve --async`: it commits by itself, all the while.
    Async,
    /// The same, but an epoch is committed only when somebody flushes.
    AsyncByFlush,
    /// `epochgate gateway` with a group that a source owns. The test is the source: a thread seals and commits at random times.
    Source,
    /// The same, but the test itself says when ([`Disk::epochs`]).
    SourceByHand,
}

impl Mode {
    /// Those in which epochs come by themselves, where there are any.
    pub const ALL: [Self; 3] = [Self::Sync, Self::Async, Self::Source];
}

/// A disk that is served. Dropping it stops the gateway and removes the files.
#[derive(Debug)]
pub struct Disk {
    /// How it is served.
    pub mode: Mode,
    // Stopped in this order.
    epochs: Option<Epochs>,
    gateway: Process,
    starts: u64,
    dir: tempfile::TempDir,
}

impl Disk {
    /// Serves a new image of zeros.
    pub fn start(mode: Mode, bytes: u64) -> Self {
        let dir = tempdir();
        make_image(&dir.path().join("disk.img"), bytes);
        std::fs::write(dir.path().join("g.toml"), config(dir.path()))
            .expect("a file can be written");
        let mut disk = Self {
            mode,
            epochs: None,
            gateway: run(mode, dir.path()),
            starts: 0,
            dir,
        };
        disk.attach();
        disk
    }

    /// A file beside the image.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text.
    pub fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The NBD socket.
    pub fn socket(&self) -> PathBuf {
        self.path("nbd.sock")
    }

    /// The image.
    pub fn image(&self) -> PathBuf {
        self.path("disk.img")
    }

    /// The name of the export.
    pub fn export(&self) -> String {
        match &self.epochs {
            Some(epochs) => format!("g/d@{}", epochs.owner()),
            None => String::new(),
        }
    }

    /// Where NBD clients find it.
    pub fn url(&self) -> String {
        format!(
            "nbd+unix:///{}?socket={}",
            self.export(),
            self.file("nbd.sock")
        )
    }

    /// The gateway's process id.
    pub fn pid(&self) -> u32 {
        self.gateway.pid()
    }

    /// The source, where there is one.
    #[track_caller]
    pub fn epochs(&self) -> &Epochs {
        self.epochs.as_ref().expect("there is a source")
    }

    /// The last epoch that the log of the stopped gateway has as committed; `None` in sync mode.
    pub fn committed(&self) -> Option<u64> {
        let log = match self.mode {
            Mode::Sync => return None,
            Mode::Async | Mode::AsyncByFlush => self.file("disk.img.epochlog"),
            Mode::Source | Mode::SourceByHand => self.file("log"),
        };
        let report = epochgate(["log", "inspect", "--json", &log]).with(0);
        let report: Value = serde_json::from_str(&report.out).expect("a report is JSON");
        Some(
            report["state"]["committed"]
                .as_u64()
                .expect("the log says what is committed"),
        )
    }

    /// As when its machine fails, but for the page cache: SIGKILL, and what it held in memory is gone.
    pub fn kill(&mut self) {
        self.kill_process();
        forget_held(self.dir.path());
    }

    /// SIGKILL, as in a crash of the process.
    pub fn kill_process(&mut self) {
        // The source may be in the midst of a request, as it would be.
        if let Some(epochs) = &self.epochs {
            epochs.expect_the_worst();
        }
        self.gateway.kill();
        self.epochs = None;
    }

    /// An orderly stop: everything is in the image afterwards. Asserts that epochs were committed while it ran, where
    /// there are any.
    #[track_caller]
    pub fn stop(&mut self) {
        if let Some(epochs) = self.epochs.take() {
            epochs.detach();
        }
        self.gateway.stop();
        if matches!(self.mode, Mode::Async | Mode::Source)
            && let Some(committed) = self.committed()
        {
            assert!(committed > 0, "no epoch was committed");
        }
    }

    /// Starts the gateway again.
    #[track_caller]
    pub fn start_again(&mut self) {
        self.gateway = run(self.mode, self.dir.path());
        self.attach();
    }

    fn attach(&mut self) {
        if matches!(self.mode, Mode::Source | Mode::SourceByHand) {
            self.starts += 1;
            let control = self.path("gateway.sock");
            wait_for_socket(&control, &mut self.gateway);
            let mut epochs = Epochs::attach(control, &format!("source:{}", self.starts));
            if self.mode == Mode::Source {
                epochs.run();
            }
            self.epochs = Some(epochs);
        }
    }

    /// Runs `qemu-io` on the export; asserts that every command succeeded.
    #[track_caller]
    pub fn qemu_io(&self, commands: &[&str]) {
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        let url = self.url();
        let mut args = vec!["-f", "raw"];
        args.extend(commands);
        args.push(&url);
        let said = command::run_well("qemu-io", args);
        assert!(!said.contains("failed"), "{said}");
    }
}

fn config(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "control = \"{dir}/gateway.sock\"\nlisten = [\"unix:{dir}/nbd.sock\"]\n\n[[group]]\nname = \"g\"\n\
         epoch_memory = \"{dir}\"\nlog = \"{dir}/log\"\n\n[[group.disk]]\nname = \"d\"\nimage = \"{dir}/disk.img\"\n"
    )
}

fn run(mode: Mode, dir: &Path) -> Process {
    let file = |name: &str| dir.join(name).display().to_string();
    let memory = dir.display().to_string();
    let (image, socket, config) = (file("disk.img"), file("nbd.sock"), file("g.toml"));
    let interval = match mode {
        Mode::Async => EPOCH_INTERVAL_MS,
        _ => NEVER_MS,
    }
    .to_string();
    let args = match mode {
        Mode::Sync => vec!["serve", &image, "--unix", &socket],
        Mode::Async | Mode::AsyncByFlush => vec![
            "serve",
            &image,
            "--unix",
            &socket,
            "--async",
            "--epoch-interval",
            &interval,
            "--epoch-memory",
            &memory,
        ],
        Mode::Source | Mode::SourceByHand => vec!["gateway", "--config", &config],
    };
    let mut gateway = Process::epochgate("gateway", dir, args, &[]);
    wait_for_socket(&dir.join("nbd.sock"), &mut gateway);
    gateway
}
