//! What the tests with a real QEMU share: the guest, its description, and its own words on the serial line.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use qemu_glue::{
    Accelerator, GuestRam, PageSet, RuntimePlace, SourceVm, TrackerChoice, VmDescription,
};

/// Nothing that is awaited here takes this long, also on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Memory of the test guests in MiB.
pub const MEMORY_MIB: u64 = 128;

/// One VM with its directory, which is removed at the end.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub description: VmDescription,
}

impl Bench {
    /// A VM of this name (unique among the tests of one process) on the test guest.
    pub fn new(name: &str, tracker: TrackerChoice) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let guest = guest();
        let mut description = VmDescription::new(name, MEMORY_MIB);
        description.accel = Accelerator::Tcg;
        description.kernel = Some(guest.join("vmlinuz"));
        description.initrd = Some(guest.join("initrd.gz"));
        description.append =
            Some("console=ttyS0 quiet panic=-1 mitigations=off no_timer_check tsc=reliable".into());
        description.dirty_tracker = tracker;
        description.extra_args = vec![
            "-serial".into(),
            format!("file:{}/{{vm}}-{{role}}.serial", dir.path().display()),
        ];
        if let Some(qemu) = std::env::var_os("EPOCHGATE_QEMU") {
            description.qemu = qemu.into();
        }
        Bench { dir, description }
    }

    pub fn source(&self) -> RuntimePlace {
        RuntimePlace::source(self.dir.path())
    }

    pub fn standby(&self) -> RuntimePlace {
        RuntimePlace::standby(self.dir.path())
    }

    pub fn serial(&self, role: &str) -> PathBuf {
        self.dir
            .path()
            .join(format!("{}-{role}.serial", self.description.name))
    }

    /// Waits until the witness in the guest has reported at least `seq`, and returns its last report.
    pub async fn report(&self, role: &str, seq: u64) -> Report {
        let path = self.serial(role);
        let began = Instant::now();
        loop {
            let text = read(&path);
            assert!(!text.contains("WITNESS-EXIT"), "the witness ended:\n{text}");
            if let Some(report) = text.lines().rev().find_map(Report::parse)
                && report.seq >= seq
            {
                return report;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "no report {seq} from the guest; it said:\n{text}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// One line of the witness.
#[derive(Debug)]
pub struct Report {
    pub seq: u64,
    /// Drawn at its start: a guest that was restarted has another one.
    pub run: String,
    pub memory_ok: bool,
    pub writes: u64,
}

impl Report {
    fn parse(line: &str) -> Option<Report> {
        let line = line.trim().strip_prefix("W ")?;
        let field = |key: &str| {
            line.split(' ')
                .find_map(|f| f.strip_prefix(key)?.strip_prefix('='))
        };
        // The last field tells that the line is complete.
        field("sweep_start")?;
        Some(Report {
            seq: field("seq")?.parse().ok()?,
            run: field("run")?.to_owned(),
            memory_ok: field("mem")? == "ok",
            writes: field("writes")?.parse().ok()?,
        })
    }
}

fn guest() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest");
    let guest = std::env::var_os("EPOCHGATE_GUEST").map_or(built, PathBuf::from);
    assert!(
        guest.join("vmlinuz").is_file() && guest.join("initrd.gz").is_file(),
        "there is no test guest in {}: run `make guest`, or set EPOCHGATE_GUEST",
        guest.display()
    );
    guest
}

/// Takes the whole base copy into `shadow`.
pub async fn base_copy(vm: &mut SourceVm, shadow: &GuestRam) {
    let mut cursor = qemu_glue::BaseCursor::new(4 << 20);
    let mut pages = PageSet::default();
    loop {
        let more = vm.copy_base(&mut cursor, &mut pages).await.unwrap();
        shadow.write_pages(&pages).unwrap();
        if !more {
            break;
        }
    }
}

/// The pages in which two memories differ.
pub fn differing_pages(a: &GuestRam, b: &GuestRam) -> Vec<u64> {
    assert_eq!(a.len(), b.len());
    (0..a.len() / qemu_glue::PAGE_SIZE)
        .filter(|page| a.page(*page).unwrap() != b.page(*page).unwrap())
        .collect()
}

/// Whether a process is there; one that ended but was not yet reaped is not.
pub fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .trim_start()
            .starts_with('Z')
    })
}

/// Waits until `done`.
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn sigkill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
