//! NBD over vsock: within a guest, as the machine that runs the tests may have no transport for vsock. What the guest does is written in
//! tests/guest/vsock-init; it says on its serial line how that went.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

use epochgate_tests::command::{epochgate, run_well};
use epochgate_tests::paths;
use epochgate_tests::process::Process;
use epochgate_tests::site::{make_image, tempdir, vm_lock};

#[test]
fn an_image_is_copied_both_ways_over_vsock_and_cids_have_their_rights() {
    let _alone = vm_lock();
    let dir = tempdir();
    let initrd = dir.path().join("initrd");
    let script = paths::workspace().join("tests/guest/vsock-initrd.sh");
    let guest = paths::guest();
    run_well(
        script.to_str().unwrap(),
        [guest.as_path(), paths::epochgate(), &initrd],
    );
    let serial = dir.path().join("serial.log");
    let mut qemu = Command::new(paths::qemu());
    qemu.args([
        "-accel",
        "tcg",
        "-smp",
        "2",
        "-m",
        "1024",
        "-nodefaults",
        "-vga",
        "none",
    ])
    .args(["-display", "none", "-no-reboot", "-serial"])
    .arg(format!("file:{}", serial.display()))
    .arg("-kernel")
    .arg(guest.join("vmlinuz"))
    .arg("-initrd")
    .arg(&initrd)
    .args(["-append", &paths::cmdline()]);
    let ended = Process::start("qemu", dir.path(), qemu).wait();
    let said = std::fs::read(&serial).unwrap();
    let said = String::from_utf8_lossy(&said);
    assert!(ended.success(), "QEMU ended with {ended}:\n{said}");
    assert!(said.contains("VSOCK good"), "the guest says:\n{said}");
    assert!(said.contains("listening address=vsock:*:10809"), "{said}");
}

#[test]
fn a_vsock_address_that_is_none_is_the_users_mistake() {
    let dir = tempdir();
    let image = dir.path().join("image");
    make_image(&image, 1 << 20);
    let image = image.display().to_string();
    for wrong in ["10809", "x:10809", "2:x", "2:10809:1", "4294967295:1"] {
        epochgate(["serve", &image, "--vsock", wrong])
            .with(2)
            .says(&[wrong, "vsock:*:10809"]);
    }
}
