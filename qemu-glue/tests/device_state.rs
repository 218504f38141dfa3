//! The two ways to take device state, with real guests on both releases of QEMU: a standby must go on from either, whatever
//! happened to the guest before.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{Bench, Report, base_copy, differing_pages, eventually, read, sigkill};
use qemu_glue::{
    DeviceStateChoice, DeviceStateKind, DeviceStream, GuestRam, PageSet, Role, SourceVm, StandbyVm,
    TrackerChoice, VmEvent,
};

use DeviceStateKind::{Migrate, Save};

/// What stands for a whole release of QEMU.
#[derive(Clone, Copy)]
enum Release {
    /// The one that is installed, or that EPOCHGATE_QEMU names.
    Installed,
    /// The one that `make qemu10` fetches.
    Ten,
}

fn bench(name: &str, release: Release) -> Bench {
    let mut bench = Bench::new(name, TrackerChoice::Auto);
    if let Release::Ten = release {
        let built =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/qemu10/qemu-system-x86_64");
        assert!(
            built.is_file(),
            "{} is missing; run: make qemu10",
            built.display()
        );
        bench.description.qemu = built;
    }
    bench
}

/// A source under test with the memory that a standby would have.
struct Protected {
    bench: Bench,
    vm: SourceVm,
    shadow: Arc<GuestRam>,
    pages: PageSet,
}

impl Protected {
    async fn start(bench: Bench) -> Self {
        let mut vm = SourceVm::launch(&bench.description, &bench.source(), &[])
            .await
            .unwrap();
        vm.resume().await.unwrap();
        Self::of(bench, vm).await
    }

    async fn of(bench: Bench, mut vm: SourceVm) -> Self {
        let d = &bench.description;
        let shadow =
            GuestRam::create(&d.ram_dir, &d.name, Role::Standby, d.memory_bytes()).unwrap();
        let shadow = Arc::new(shadow);
        vm.start_tracking().await.unwrap();
        base_copy(&mut vm, &shadow).await;
        let pages = PageSet::default();
        Protected {
            bench,
            vm,
            shadow,
            pages,
        }
    }

    /// One checkpoint.
    async fn checkpoint(&mut self) -> (DeviceStateKind, Vec<u8>) {
        let mut stopped = self.vm.stop().await.unwrap();
        let state = stopped.save(&mut self.pages).await.unwrap();
        stopped.resume().await.unwrap();
        self.shadow.write_pages(&self.pages).unwrap();
        (state.kind(), state.into_vec())
    }

    /// One checkpoint without its end, compared with the stopped guest.
    async fn compared(&mut self) -> DeviceStream {
        let mut stopped = self.vm.stop().await.unwrap();
        let state = stopped.save(&mut self.pages).await.unwrap();
        self.shadow.write_pages(&self.pages).unwrap();
        assert_eq!(differing_pages(stopped.vm().ram(), &self.shadow), [0; 0]);
        state
    }

    /// Checkpoints until the last few were all saved: the firmware is through.
    async fn settle(&mut self) -> Vec<u8> {
        let mut saved = 0;
        for _ in 0..500 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let (kind, state) = self.checkpoint().await;
            saved = if kind == Save { saved + 1 } else { 0 };
            if saved == 20 {
                return state;
            }
        }
        panic!("device state does not come by save");
    }

    /// Kills the source and goes on from `state`.
    async fn fail_over(self, state: &[u8]) -> (Bench, SourceVm) {
        let Protected {
            bench, vm, shadow, ..
        } = self;
        let standby = StandbyVm::launch(&bench.description, &bench.standby(), &[], shadow)
            .await
            .unwrap();
        sigkill(vm.pid());
        vm.kill().await;
        let (vm, _) = standby.resume_from(state).await.unwrap();
        (bench, vm)
    }
}

/// The guest went on, and its memory is what it wrote there.
async fn goes_on(bench: &Bench, before: &Report) {
    let after = bench.report("standby", before.seq + 5).await;
    assert_eq!(after.run, before.run, "the guest was started anew");
    assert!(after.memory_ok, "{after:?}");
}

async fn a_saved_guest_goes_on(name: &str, release: Release) {
    let mut source = Protected::start(bench(name, release)).await;
    assert_eq!(source.vm.device_state(), Save);
    source.bench.report("source", 3).await;
    source.settle().await;
    let (kind, state) = source.checkpoint().await;
    assert_eq!(kind, Save);
    let before = source.bench.report("source", 0).await;
    let (bench, mut vm) = source.fail_over(&state).await;
    assert!(vm.is_running().await.unwrap());
    goes_on(&bench, &before).await;

    // What was taken over is a source like any other: its first stream brings the head.
    vm.freeze().await.unwrap();
    vm.resume().await.unwrap();
    let mut again = Protected::of(bench, vm).await;
    assert_eq!(again.vm.device_state(), Save);
    assert_eq!(again.checkpoint().await.0, Migrate);
    assert_eq!(again.checkpoint().await.0, Save);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_guest_goes_on_in_the_installed_qemu() {
    a_saved_guest_goes_on("ds-save", Release::Installed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_guest_goes_on_in_qemu_10() {
    a_saved_guest_goes_on("ds-save-10", Release::Ten).await;
}

/// A whole stream of the same instant says what a saved one has to be.
/// The next `stop`, and in a pause the next `cont`, are spelled ahead for QEMU; any other command comes in between.
async fn other_commands_come_between(name: &str, release: Release) {
    let mut protected = Protected::start(bench(name, release)).await;
    for _ in 0..3 {
        protected.checkpoint().await;
        assert!(protected.vm.is_running().await.unwrap());
        protected.checkpoint().await;
        protected.vm.freeze().await.unwrap();
        assert!(!protected.vm.is_running().await.unwrap());
        protected.vm.resume().await.unwrap();
        assert!(protected.vm.is_running().await.unwrap());
        // Given up in the middle of the pause: it stays stopped, with `cont` spelled.
        let _given_up = protected.vm.stop().await.unwrap();
        assert!(!protected.vm.is_running().await.unwrap());
        protected.vm.resume().await.unwrap();
        assert!(protected.vm.is_running().await.unwrap());
    }
    let before = protected.bench.report("source", 0).await;
    let after = protected.bench.report("source", before.seq + 3).await;
    assert!(after.run == before.run && after.memory_ok, "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_commands_come_between_checkpoints_of_the_installed_qemu() {
    other_commands_come_between("between", Release::Installed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_commands_come_between_checkpoints_of_qemu_10() {
    other_commands_come_between("between10", Release::Ten).await;
}

async fn a_saved_stream_is_the_migrated_one(name: &str, release: Release, extra: &[&str]) {
    let mut bench = bench(name, release);
    bench
        .description
        .extra_args
        .extend(extra.iter().map(|arg| (*arg).to_owned()));
    let mut source = Protected::start(bench).await;
    source.bench.report("source", 3).await;
    source.settle().await;
    // A guest that is stopped already is migrated, and does not change in between.
    let (kind, _) = source.checkpoint().await;
    assert_eq!(kind, Save);
    let saved = source.compared().await;
    let migrated = source.compared().await;
    assert_eq!((saved.kind(), migrated.kind()), (Save, Migrate));
    let (saved, migrated) = (saved.into_vec(), migrated.into_vec());
    assert_eq!(saved.len(), migrated.len());
    // What differs: the word for QEMU's state, "running" or "paused" in a field of 100 bytes; and the time of day.
    let section = |name: &[u8]| {
        migrated
            .windows(name.len())
            .position(|w| w == name)
            .unwrap()
    };
    let (state, clock) = (section(b"globalstate"), section(b"mc146818rtc"));
    let differing: Vec<usize> = (0..saved.len())
        .filter(|at| saved[*at] != migrated[*at])
        .filter(|at| !(state..state + 140).contains(at) && !(clock..clock + 200).contains(at))
        .collect();
    assert_eq!(differing, [0; 0]);
    source.vm.resume().await.unwrap();
    // A guest that runs again is saved again.
    assert_eq!(source.checkpoint().await.0, Save);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_stream_is_the_migrated_one_in_the_installed_qemu() {
    a_saved_stream_is_the_migrated_one("ds-same", Release::Installed, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_stream_is_the_migrated_one_in_qemu_10_with_a_network_card() {
    let card = [
        "-netdev",
        "user,id=n",
        "-device",
        "virtio-net-pci,netdev=n,mac=52:54:00:12:34:56",
    ];
    a_saved_stream_is_the_migrated_one("ds-same-10", Release::Ten, &card).await;
}

/// A guest that reboots over and over, in the middle of it under checkpoints; `at` says from which of them a standby goes on.
async fn a_rebooted_guest_reboots_again(name: &str, release: Release, at: DeviceStateKind) {
    let mut bench = bench(name, release);
    // The kernel finds no init, panics and reboots at once.
    bench.description.append = Some("console=ttyS0 panic=-1 rdinit=/missing init=/missing".into());
    let mut source = Protected::start(bench).await;
    let mut events = source.vm.subscribe();
    source.settle().await;
    let mut reset = || {
        std::iter::from_fn(|| events.try_recv().ok())
            .any(|event| matches!(event, VmEvent::Reset { guest: true }))
    };
    reset();
    let mut state = loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let was_reset = reset();
        let (kind, state) = source.checkpoint().await;
        // A reset that came after the question may be in this checkpoint already.
        if kind == Migrate {
            break state;
        }
        assert!(!was_reset, "the head is older than the reset");
    };
    if at == Save {
        state = source.settle().await;
    }
    let (bench, vm) = source.fail_over(&state).await;
    // The standby's firmware finds ROMs and tables that make the kernel start, in the memory that came with the stream.
    let starts = || {
        read(&bench.serial("standby"))
            .matches("Linux version")
            .count()
    };
    eventually("the guest's second start at the standby", || starts() >= 2).await;
    let mut again = Protected::of(bench, vm).await;
    again.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_within_the_firmware_reboots_in_the_installed_qemu() {
    a_rebooted_guest_reboots_again("ds-boot", Release::Installed, Migrate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_after_a_reboot_reboots_in_the_installed_qemu() {
    a_rebooted_guest_reboots_again("ds-reboot", Release::Installed, Save).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_after_a_reboot_reboots_in_qemu_10() {
    a_rebooted_guest_reboots_again("ds-reboot-10", Release::Ten, Save).await;
}

/// Machines whose small RAM blocks can change unseen.
async fn falls_back(name: &str, release: Release, extra: &[&str], block: &str) {
    let mut bench = bench(name, release);
    bench
        .description
        .extra_args
        .extend(extra.iter().map(|arg| (*arg).to_owned()));
    let mut source = Protected::start(bench).await;
    assert_eq!(source.vm.device_state(), Migrate);
    source.bench.report("source", 3).await;
    source.checkpoint().await;
    let (kind, state) = source.checkpoint().await;
    assert_eq!(kind, Migrate);
    let before = source.bench.report("source", 0).await;
    let (mut bench, vm) = source.fail_over(&state).await;
    goes_on(&bench, &before).await;
    // Taken over, it finds out again, and loses no checkpoint by it.
    let mut again = Protected::of(bench, vm).await;
    assert_eq!(again.vm.device_state(), Save);
    assert_eq!(again.checkpoint().await.0, Migrate);
    assert_eq!(again.vm.device_state(), Migrate);
    bench = again.bench;
    again.vm.kill().await;

    bench.description.device_state = DeviceStateChoice::Save;
    let refused = SourceVm::launch(&bench.description, &bench.source(), &[]).await;
    let message = refused.unwrap_err().to_string();
    assert!(
        message.contains(block) && message.contains("set device_state"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn vga_memory_makes_it_fall_back() {
    falls_back(
        "ds-vga",
        Release::Installed,
        &["-device", "VGA"],
        "vga.vram",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vga_memory_makes_it_fall_back_in_qemu_10() {
    falls_back("ds-vga-10", Release::Ten, &["-device", "VGA"], "vga.vram").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flash_makes_it_fall_back() {
    let firmware = [
        "/usr/share/seabios/bios-256k.bin",
        "/usr/share/qemu/bios-256k.bin",
    ];
    let firmware = firmware
        .iter()
        .find(|path| Path::new(path).is_file())
        .unwrap();
    let flash = format!("if=pflash,format=raw,readonly=on,file={firmware}");
    falls_back(
        "ds-flash",
        Release::Installed,
        &["-drive", &flash],
        "system.flash0",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn source_and_standby_need_not_agree_and_choices_hold() {
    for (source_choice, standby_choice, kind) in [
        (DeviceStateChoice::Save, DeviceStateChoice::Migrate, Save),
        (DeviceStateChoice::Migrate, DeviceStateChoice::Save, Migrate),
    ] {
        let mut bench = bench("ds-mixed", Release::Installed);
        bench.description.device_state = source_choice;
        let mut source = Protected::start(bench).await;
        assert_eq!(source.vm.device_state(), kind);
        source.bench.report("source", 3).await;
        for _ in 0..3 {
            source.checkpoint().await;
        }
        let (taken, state) = source.checkpoint().await;
        assert_eq!(taken, kind);
        let before = source.bench.report("source", 0).await;
        source.bench.description.device_state = standby_choice;
        let (bench, vm) = source.fail_over(&state).await;
        goes_on(&bench, &before).await;
        let mut again = Protected::of(bench, vm).await;
        again.checkpoint().await;
        let other = if kind == Save { Migrate } else { Save };
        assert_eq!(again.checkpoint().await.0, other);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_that_is_given_up_at_any_point_leaves_nothing_behind() {
    let mut source = Protected::start(bench("ds-given-up", Release::Installed)).await;
    source.bench.report("source", 3).await;
    source.settle().await;
    for round in 0..40_u64 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let mut stopped = source.vm.stop().await.unwrap();
        let limit = Duration::from_micros(round * 40);
        drop(tokio::time::timeout(limit, stopped.save(&mut source.pages)).await);
        if round % 2 == 0 {
            stopped.resume().await.unwrap();
        }
        source.vm.resume().await.unwrap();
        source.shadow.write_pages(&source.pages).unwrap();
    }
    let (kind, state) = source.checkpoint().await;
    assert_eq!(kind, Save);
    let before = source.bench.report("source", 0).await;
    let (bench, _vm) = source.fail_over(&state).await;
    goes_on(&bench, &before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_stopped_before_is_not_called_running() {
    let mut source = Protected::start(bench("ds-frozen", Release::Installed)).await;
    source.bench.report("source", 3).await;
    source.settle().await;
    source.vm.freeze().await.unwrap();
    assert_eq!(source.checkpoint().await.0, Migrate);
    assert_eq!(source.checkpoint().await.0, Save);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_saves_leak_nothing_and_one_of_them_is_compared() {
    let mut source = Protected::start(bench("ds-many", Release::Installed)).await;
    source.bench.report("source", 3).await;
    source.settle().await;
    let descriptors = format!("/proc/{}/fd", source.vm.pid());
    let open = || std::fs::read_dir(&descriptors).unwrap().count();
    let before = open();
    let mut migrated = 0;
    for _ in 0..4200 {
        migrated += u32::from(source.checkpoint().await.0 == Migrate);
    }
    assert_eq!(migrated, 1);
    assert_eq!((source.vm.device_state(), open()), (Save, before));
}
