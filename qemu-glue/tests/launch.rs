//! Starting QEMU: what is refused, what is said when it fails, and what is left behind (nothing).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::{Bench, MEMORY_MIB, eventually, is_alive, sigkill};
use qemu_glue::{
    Accelerator, DiskAttachment, Error, GuestRam, Role, SourceVm, StandbyVm, TrackerChoice,
    VmDescription,
};

const HOLDER: &str = "EPOCHGATE_TEST_HOLDER";

#[tokio::test(flavor = "multi_thread")]
async fn qemu_leaves_the_content_of_a_standbys_ram_as_it_is() {
    let bench = Bench::new("kept", TrackerChoice::Auto);
    let d = &bench.description;
    let ram =
        Arc::new(GuestRam::create(&d.ram_dir, &d.name, Role::Standby, d.memory_bytes()).unwrap());
    // All of it, so that a ROM or a kernel that QEMU puts into RAM at its start can't hide.
    let page = |n: u64| [u8::try_from(n % 251).unwrap() + 1; 4096];
    let pages = ram.len() / qemu_glue::PAGE_SIZE;
    for n in 0..pages {
        ram.write(n * qemu_glue::PAGE_SIZE, &page(n)).unwrap();
    }
    let standby = StandbyVm::launch(d, &bench.standby(), &[], Arc::clone(&ram))
        .await
        .unwrap();
    let changed: Vec<u64> = (0..pages)
        .filter(|n| ram.page(*n).unwrap() != page(*n))
        .collect();
    assert_eq!(changed, [0; 0]);
    let path = ram.path().to_owned();
    drop(ram);
    assert!(path.exists(), "the standby still needs it");
    standby.kill().await;
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_behind() {
    let bench = Bench::new("tidy", TrackerChoice::Auto);
    let mut vm = SourceVm::launch(&bench.description, &bench.source(), &[])
        .await
        .unwrap();
    vm.start_tracking().await.unwrap();
    vm.resume().await.unwrap();
    let (pid, ram) = (vm.pid(), vm.ram().path().to_owned());
    assert!(is_alive(pid) && ram.exists());
    drop(vm);
    assert!(!is_alive(pid) && !ram.exists());
    let left: Vec<_> = std::fs::read_dir(bench.dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["tidy-source.serial"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_dies_with_its_owner() {
    if std::env::var_os(HOLDER).is_some() {
        let bench = Bench::new("orphan", TrackerChoice::Auto);
        let vm = SourceVm::launch(&bench.description, &bench.source(), &[])
            .await
            .unwrap();
        println!(
            "\nheld {} {} {}",
            vm.pid(),
            vm.ram().path().display(),
            bench.dir.path().display()
        );
        std::future::pending::<()>().await;
    }
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_qemu_dies_with_its_owner", "--nocapture"])
        .env(HOLDER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let held = lines
        .find_map(|line| line.strip_prefix("held ").map(str::to_owned))
        .unwrap();
    let held: Vec<&str> = held.split(' ').collect();
    let (pid, ram) = (held[0].parse().unwrap(), PathBuf::from(held[1]));
    assert!(is_alive(pid) && ram.exists());
    let in_use = GuestRam::remove_stale(ram.parent().unwrap()).unwrap();
    assert!(!in_use.contains(&ram), "it is still held");
    sigkill(holder.id());
    holder.wait().unwrap();
    eventually("the end of QEMU", || !is_alive(pid)).await;
    let removed = GuestRam::remove_stale(ram.parent().unwrap()).unwrap();
    assert!(removed.contains(&ram) && !ram.exists(), "{removed:?}");
    std::fs::remove_dir_all(held[2]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_does_not_start_says_why() {
    let mut bench = Bench::new("broken", TrackerChoice::Auto);
    bench
        .description
        .extra_args
        .extend(["-device", "no-such-device"].map(String::from));
    let error = SourceVm::launch(&bench.description, &bench.source(), &[])
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("'no-such-device' is not a valid device model name"),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .starts_with("QEMU of VM \"broken\" ended (exit status 1)"),
        "{error}"
    );

    let mut bench = Bench::new("missing", TrackerChoice::Auto);
    bench.description.qemu = "/nowhere/qemu".into();
    let error = SourceVm::launch(&bench.description, &bench.source(), &[])
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "can't start /nowhere/qemu: is QEMU installed and is the `qemu` key right?"
    );

    let bench = Bench::new("no-disk", TrackerChoice::Auto);
    let disk = DiskAttachment::unix("root", bench.dir.path().join("nobody.sock"), "g/root");
    let error = SourceVm::launch(&bench.description, &bench.source(), &[disk])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("nobody.sock"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_writes_to_its_nbd_disk() {
    let bench = Bench::new("disk", TrackerChoice::Auto);
    let socket = bench.dir.path().join("nbd.sock");
    let mut server = Command::new("nbdkit")
        .args(["--foreground", "--unix"])
        .arg(&socket)
        .args(["memory", "32M"])
        .spawn()
        .unwrap();
    eventually("the NBD server's socket", || socket.exists()).await;
    let disks = [DiskAttachment::unix("root", &socket, "any")];
    let mut vm = SourceVm::launch(&bench.description, &bench.source(), &disks)
        .await
        .unwrap();
    vm.resume().await.unwrap();
    let mut seq = 0;
    loop {
        let report = bench.report("source", seq).await;
        if report.writes > 0 {
            break;
        }
        seq = report.seq + 1;
    }
    vm.kill().await;
    server.kill().unwrap();
    server.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_is_tried_before_it_is_used() {
    let mut bench = Bench::new("auto", TrackerChoice::Auto);
    bench.description.accel = Accelerator::Auto;
    let mut vm = SourceVm::launch(&bench.description, &bench.source(), &[])
        .await
        .unwrap();
    vm.resume().await.unwrap();
    // Whatever was chosen: the guest runs on it.
    bench.report("source", 1).await;
}

#[test]
fn ram_needs_space() {
    let bytes = 1 << 60;
    let error = GuestRam::create("/dev/shm".as_ref(), "huge", Role::Source, bytes).unwrap_err();
    assert!(
        matches!(
            error,
            Error::RamSpace {
                need_mib: 0x100_0000_0000,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("set ram_dir"), "{error}");
}

#[test]
fn bad_descriptions_are_refused_with_advice() {
    let good = VmDescription::new("vm", MEMORY_MIB);
    good.validate(&[]).unwrap();
    type Change = fn(&mut VmDescription);
    let cases: &[(Change, &str)] = &[
        (|d| d.name = "a/b".into(), "name \"a/b\" must be"),
        (|d| d.name = String::new(), "name \"\" must be"),
        (|d| d.memory_mib = 0, "memory_mib is 0"),
        (|d| d.cpus = 0, "cpus is 0"),
        (
            |d| d.kernel = Some("/nowhere/vmlinuz".into()),
            "kernel /nowhere/vmlinuz is not a readable file",
        ),
        (|d| d.append = Some("quiet".into()), "need a kernel"),
        (
            |d| d.machine = "pc,memory-backend=x".into(),
            "machine sets memory-backend",
        ),
        (
            |d| extra(d, "-m 512"),
            "extra_args must not contain -m: set memory_mib instead",
        ),
        (
            |d| extra(d, "--incoming tcp:0:1"),
            "extra_args must not contain --incoming",
        ),
        (|d| extra(d, "-qmp stdio"), "holds its own QMP connection"),
        (|d| extra(d, "-snapshot"), "would not reach the gateway"),
        (
            |d| extra(d, "-object memory-backend-ram,id=x,size=1G"),
            "must be the one shared file",
        ),
        (
            |d| extra(d, "-object memory-backend-file,id=x,size=1G,share=on"),
            "must be the one shared file",
        ),
        (
            |d| extra(d, "-drive file=a.img,format=raw"),
            "let the gateway serve it",
        ),
        (|d| extra(d, "-hda a.img"), "let the gateway serve it"),
        (|d| extra(d, "-device vfio-pci,host=1"), "can't be tracked"),
        (
            |d| {
                extra(d, "-device vhost-user-fs-pci,chardev=c");
                d.dirty_tracker = TrackerChoice::Pagemap;
            },
            "set dirty_tracker = \"hash\"",
        ),
    ];
    let mut harmless = good.clone();
    extra(
        &mut harmless,
        "-cdrom a.iso -drive file=b.iso,media=cdrom -drive if=pflash,file=vars.fd",
    );
    harmless.validate(&[]).unwrap();
    for (change, expected) in cases {
        let mut description = good.clone();
        change(&mut description);
        let message = description.validate(&[]).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let twice = [
        DiskAttachment::unix("a", "/s", "x"),
        DiskAttachment::unix("a", "/s", "y"),
    ];
    let message = good.validate(&twice).unwrap_err().to_string();
    assert!(
        message.contains("two disks have the same id: \"a\""),
        "{message}"
    );
}

fn extra(description: &mut VmDescription, args: &str) {
    description.extra_args = args.split(' ').map(String::from).collect();
}
