//! Samples of a real QEMU: what its guest does shows, and what can't be had is missing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use monitor::record::{Labels, Recorder};
use monitor::{Recording, Sample, Sampler, Signal, Source, Watched};
use qemu_glue::{Accelerator, DiskAttachment, Observer, RuntimePlace, SourceVm, VmDescription};

/// Nothing that is awaited here takes this long, also on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// One VM with its directory.
struct Bench {
    vm: SourceVm,
    /// After the VM.
    _dir: tempfile::TempDir,
}

impl Bench {
    /// Boots the test guest, whose witness is told `how`, and waits until that works.
    async fn boot(name: &str, how: &str, disks: &[DiskAttachment]) -> Self {
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest");
        let guest = std::env::var_os("EPOCHGATE_GUEST").map_or(built, PathBuf::from);
        assert!(
            guest.join("vmlinuz").is_file(),
            "there is no test guest in {}: run `make guest`",
            guest.display()
        );
        let dir = tempfile::tempdir().unwrap();
        let mut description = VmDescription::new(name, 128);
        description.accel = Accelerator::Tcg;
        description.kernel = Some(guest.join("vmlinuz"));
        description.initrd = Some(guest.join("initrd.gz"));
        description.append = Some(format!(
            "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check tsc=reliable {how}"
        ));
        let serial = dir.path().join("serial");
        description.extra_args = vec!["-serial".into(), format!("file:{}", serial.display())];
        if let Some(qemu) = std::env::var_os("EPOCHGATE_QEMU") {
            description.qemu = qemu.into();
        }
        let mut vm = SourceVm::launch(&description, &RuntimePlace::source(dir.path()), disks)
            .await
            .unwrap();
        vm.resume().await.unwrap();
        let began = Instant::now();
        while !std::fs::read_to_string(&serial)
            .unwrap_or_default()
            .contains("\nW ")
        {
            assert!(began.elapsed() < PATIENCE, "the guest does not work");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Bench { vm, _dir: dir }
    }

    fn watched(&self) -> Watched {
        Watched::qemu(self.vm.watch_socket(), self.vm.pid())
    }
}

/// Takes a sample every half second until one is as it should be.
async fn until(sampler: &mut Sampler, what: &str, is_so: impl Fn(&Sample) -> bool) -> Sample {
    let began = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let sample = sampler.sample().await;
        if is_so(&sample) {
            return sample;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "no sample shows {what}; the last one is {:?}",
            sample.values
        );
    }
}

/// How much a virtual processor would run if it had a core for itself.
fn demand(sample: &Sample) -> f32 {
    let value = |signal| sample.values.get(signal).unwrap_or(0.0);
    value(Signal::VcpuRunMean) + value(Signal::VcpuWaitMean)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_guest_shows_and_a_stopped_one_does_nothing() {
    let mut busy = Bench::boot("mon-busy", "witness.rate=0", &[]).await;
    let mut watched = busy.watched();
    watched.dirty = Some(busy.vm.watch_dirty_pages().unwrap());
    let mut sampler = Sampler::start(watched).await.unwrap();
    let first = sampler.sample().await.values;
    assert_eq!(
        first.get(Signal::VcpuRunMean),
        None,
        "nothing is known of the time before"
    );
    assert_eq!(first.get(Signal::Running), Some(1.0));

    let sample = until(&mut sampler, "a busy guest", |s| {
        demand(s) > 0.6
            && s.values
                .get(Signal::DirtyRepeat)
                .is_some_and(|repeat| repeat > 0.0)
    })
    .await;
    let value = |signal: Signal| {
        sample
            .values
            .get(signal)
            .unwrap_or_else(|| panic!("{signal} is missing"))
    };
    assert!(value(Signal::DirtyPages) > 100.0 && value(Signal::DirtyShare) < 1.0);
    assert!(value(Signal::DirtyRegions) > 0.0 && value(Signal::DirtyEntropy) > 0.0);
    assert!(value(Signal::MemoryResident) > 0.1);
    assert!(value(Signal::VcpuRunMin) <= value(Signal::VcpuRunMax));
    assert_eq!(value(Signal::EventStop), 0.0);
    // No disk, and nobody who would have counted: that is 0, and this is missing.
    assert_eq!(value(Signal::BlockWriteOps), 0.0);
    for source in [Source::Gateway, Source::Network, Source::Gate, Source::Kvm] {
        assert!(
            !sample.values.has(source),
            "{source} is there: {:?}",
            sample.values
        );
    }

    busy.vm.freeze().await.unwrap();
    let stopped = until(&mut sampler, "the stop", |s| {
        s.values.get(Signal::EventStop) == Some(1.0)
    })
    .await;
    assert_eq!(stopped.values.get(Signal::Running), Some(0.0));
    until(&mut sampler, "that a stopped guest does nothing", |s| {
        demand(s) < 0.02 && s.values.get(Signal::DirtyPages) == Some(0.0)
    })
    .await;
    busy.vm.resume().await.unwrap();
    until(&mut sampler, "that it runs again", |s| {
        s.values.get(Signal::EventResume) == Some(1.0) && s.values.get(Signal::Running) == Some(1.0)
    })
    .await;
    busy.vm.power_down().await.unwrap();
    until(&mut sampler, "the power button", |s| {
        s.values.get(Signal::EventShutdown) >= Some(1.0)
    })
    .await;

    busy.vm.kill().await;
    let gone = until(&mut sampler, "that QEMU is gone", |s| {
        !s.values.has(Source::Qmp)
    })
    .await;
    let sources = Source::ALL.into_iter();
    let there: Vec<Source> = sources.filter(|source| gone.values.has(*source)).collect();
    assert_eq!(there, [Source::Host], "{:?}", gone.values);
}

/// Kills what it has started.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_guest_is_recorded_with_its_marks() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd.sock");
    let mut nbdkit = Command::new("nbdkit");
    nbdkit
        .args(["--foreground", "--unix"])
        .arg(&socket)
        .args(["memory", "32M"]);
    let _server = Server(nbdkit.spawn().unwrap());
    let began = Instant::now();
    while !socket.exists() {
        assert!(began.elapsed() < PATIENCE, "no NBD server");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let disk = DiskAttachment::unix("root", &socket, "any");
    let quiet = Bench::boot("mon-quiet", "witness.rate=20 witness.mem_mib=1", &[disk]).await;

    // QEMU takes one who watches at a time, and the next when that one has left.
    let observer = Observer::connect(quiet.vm.watch_socket()).await.unwrap();
    assert_eq!(observer.vcpus().await.unwrap().len(), 1);
    drop(observer);

    let recorder = Recorder::start(quiet.watched(), Duration::from_millis(250))
        .await
        .unwrap();
    recorder.mark_phase("quiet");
    let mut latest = recorder.latest();
    let mut sample = None;
    let wrote = |sample: &Sample| sample.values.get(Signal::BlockWriteBytes) > Some(0.0);
    while !sample.as_ref().is_some_and(wrote) {
        assert!(began.elapsed() < PATIENCE, "no writes: {sample:?}");
        latest.changed().await.unwrap();
        sample = *latest.borrow_and_update();
    }
    recorder.mark_fault("none_really");
    recorder.mark_fault("a_second_one");
    latest.changed().await.unwrap();
    recorder.mark_fault_over();
    let labels = Labels {
        load: Some("witness".into()),
        seed: Some(3),
        ..Labels::default()
    };
    let recording = recorder.finish(labels).await.unwrap();
    let header = recording.header().clone();
    assert_eq!(
        (header.vm.vcpus, header.vm.memory_mib, header.vm.disks),
        (1, 128, 1)
    );
    assert_eq!(header.host.accelerator, "tcg");
    assert!(header.host.cores > 0 && header.host.qemu.contains('.'));
    assert_eq!(header.load.as_deref(), Some("witness"));
    assert_eq!(
        (header.phases.len(), header.interval_ms, header.seed),
        (1, 250, Some(3))
    );
    let fault = header.fault.unwrap();
    assert_eq!(fault.kind, "none_really");
    let until = fault.until_ms.unwrap();
    assert!(fault.at_ms <= until && until <= recording.samples().last().unwrap().at_ms + 1_000);
    let latency = recording
        .samples()
        .iter()
        .filter_map(|s| s.values.get(Signal::BlockWriteLatency));
    assert!(latency.fold(0.0, f32::max) > 0.0);

    let file = dir.path().join("quiet.egrec");
    recording.save(&file).unwrap();
    assert_eq!(Recording::load(&file).unwrap(), recording);
}
