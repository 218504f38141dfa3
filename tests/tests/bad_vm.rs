//! What a user can get wrong about the VM itself: QEMU, its arguments, its memory. The running VM must not suffer from
//! it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use epochgate_tests::command::epochgate;
use epochgate_tests::site::{Options, Site};

fn site() -> Site {
    let mut site = Site::new(&Options::default());
    site.start_gateway(&[]);
    site
}

#[test]
fn a_missing_qemu_is_named() {
    let site = site();
    let qemu = format!("qemu = \"{}\"", epochgate_tests::paths::qemu());
    site.derive("vm.toml", "bad.toml", &qemu, "qemu = \"/nowhere/qemu\"");
    epochgate(["protect", "--config", &site.file("bad.toml")])
        .with(2)
        .says(&["/nowhere/qemu", "is QEMU installed", "`qemu`"]);
}

#[test]
fn arguments_that_break_protection_are_refused_before_anything_is_touched() {
    let site = site();
    let generation = site.group()["generation"].clone();
    let serial = "extra_args = [";
    let image = site.file("data.img");
    for (args, words) in [
        ("\"-m\", \"1G\"", &["-m", "set memory_mib instead"][..]),
        (
            "\"-object\", \"memory-backend-ram,id=x,size=64M\"",
            &["memory-backend-ram", "set memory_mib"],
        ),
        (
            "\"-mem-path\", \"/tmp\"",
            &["-mem-path", "set ram_dir instead"],
        ),
        (
            "\"-snapshot\"",
            &["-snapshot", "would not reach the gateway"],
        ),
        ("\"-incoming\", \"defer\"", &["-incoming"]),
        (
            &format!("\"-drive\", \"file={image},format=raw,if=virtio\""),
            &["data.img", "let the gateway serve it"],
        ),
        (
            "\"-device\", \"vfio-pci,host=0000:01:00.0\"",
            &["vfio-pci", "remove it"],
        ),
    ] {
        site.derive("vm.toml", "bad.toml", serial, &format!("{serial}{args}, "));
        let ended = epochgate(["protect", "--config", &site.file("bad.toml")]).with(2);
        ended.says(&["extra_args"]);
        ended.says(words);
    }
    assert_eq!(
        site.group()["generation"],
        generation,
        "a wrong configuration reached the gateway"
    );
}

#[test]
fn a_second_source_on_this_host_does_not_disturb_the_first() {
    let mut site = site();
    site.start_source();
    let before = site.serial("source").at_work();
    epochgate(["protect", "--config", &site.file("vm.toml")])
        .with(2)
        .says(&[
            "a source of \"vm1\" already runs on this host",
            "stop it first",
        ]);
    let after = site.serial("source").must_be_content(&before);
    assert!(after.writes > before.writes);
}

#[test]
fn disks_that_the_group_does_not_have_are_named() {
    let site = site();
    let disks = "disks = [\"root\", \"data\"]";
    site.derive(
        "vm.toml",
        "bad.toml",
        disks,
        "disks = [\"root\", \"data\", \"swap\"]",
    );
    epochgate(["protect", "--config", &site.file("bad.toml")])
        .with(2)
        .says(&["\"swap\"", "data, root"]);
}

#[test]
fn a_gateway_that_is_not_there_is_named() {
    let site = Site::new(&Options::default());
    epochgate(["protect", "--config", &site.file("vm.toml")])
        .with(1)
        .says(&["gateway.sock", "epochgate gateway"]);
}
