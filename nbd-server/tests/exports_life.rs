//! Exports over their life: added, resized, removed and reloaded while QEMU's own client is attached.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod life_common;

use std::path::Path;

use life_common::{Running, Shell, image, length, qemu_io};
use nbd_server::control::api::ErrorKind;
use nbd_server::control::client::ControlError;
use nbd_server::group::{DiskConfig, GroupConfig};
use nbd_server::{ExportConfig, GatewayConfig};

const MIB: u64 = 1 << 20;

fn refusal<T: std::fmt::Debug>(outcome: Result<T, ControlError>) -> (ErrorKind, String) {
    let error = outcome.unwrap_err();
    (error.kind().expect("a refusal"), error.to_string())
}

fn export(name: &str, image: &Path) -> ExportConfig {
    ExportConfig {
        name: name.to_owned(),
        image: image.to_owned(),
        read_only: false,
        ..ExportConfig::default()
    }
}

#[tokio::test]
async fn an_export_comes_and_goes_while_the_gateway_runs() {
    let running = Running::new(&[("first", 4 * MIB)]);
    let client = running.client().await;
    let image = image(running.dir(), "second", 8 * MIB);

    let added = running.add(&client, &export("second", &image)).await;
    assert_eq!((added.size, added.connections), (8 * MIB, 0));
    qemu_io(
        &running.uri("second"),
        &["write -P 5 0 64k", "read -P 5 0 64k"],
    );
    let names: Vec<_> = client.exports().await.unwrap();
    let names: Vec<_> = names.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["first", "second"]);

    let taken = refusal(client.add_export(&export("second", &image)).await);
    assert_eq!(taken.0, ErrorKind::Refused, "{taken:?}");
    let locked = refusal(client.add_export(&export("third", &image)).await);
    assert_eq!(locked.0, ErrorKind::BadImage);
    assert!(locked.1.contains("in use"), "{locked:?}");
    let missing = running.dir().join("missing");
    let missing = refusal(client.add_export(&export("third", &missing)).await);
    assert_eq!(missing.0, ErrorKind::BadImage);
    assert!(
        missing.1.contains("truncate -s"),
        "says what to do: {missing:?}"
    );
    let bad = refusal(client.add_export(&export("a/b", &image)).await);
    assert_eq!(bad.0, ErrorKind::BadRequest, "{bad:?}");

    client.remove_export("second", false).await.unwrap();
    let gone = refusal(client.remove_export("second", false).await);
    assert_eq!(gone.0, ErrorKind::UnknownExport);
    assert!(gone.1.contains("this gateway has: first"), "{gone:?}");
    let output = qemu_io_fails(&running.uri("second"));
    assert!(output.contains("no export"), "{output}");
    // Its image is free again, and holds what was written.
    running.add(&client, &export("", &image)).await;
    qemu_io(&running.uri(""), &["read -P 5 0 64k"]);
    client.remove_export("", false).await.unwrap();
}

fn qemu_io_fails(uri: &str) -> String {
    let output = life_common::qemu_io_output(uri, &["read 0 512"]);
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn an_export_that_is_in_use_goes_only_by_force() {
    let running = Running::new(&[("disk", 4 * MIB)]);
    let client = running.client().await;
    let mut shell = Shell::open(&running.uri("disk"));
    assert!(shell.ask("write -P 7 0 1M").contains("wrote"));

    let (kind, message) = refusal(client.remove_export("disk", false).await);
    assert_eq!(kind, ErrorKind::Refused);
    assert!(
        message.contains("1 connections") && message.contains("--force"),
        "{message}"
    );
    assert!(
        shell.ask("read -P 7 0 1M").contains("read 1048576"),
        "nothing has changed"
    );

    client.remove_export("disk", true).await.unwrap();
    assert!(client.exports().await.unwrap().is_empty());
    assert!(
        shell.ask("read 0 4k").contains("failed"),
        "its connection has ended"
    );
    shell.end();
    // Nothing holds the image any more.
    let image = running.dir().join("disk");
    running.add(&client, &export("disk", &image)).await;
    qemu_io(&running.uri("disk"), &["read -P 7 0 1M"]);
}

#[tokio::test]
async fn a_disk_grows_and_shrinks_under_its_clients() {
    let running = Running::new(&[("disk", 4 * MIB)]);
    let image = running.dir().join("disk");
    let client = running.client().await;
    let mut early = Shell::open(&running.uri("disk"));
    early.ask("write -P 1 0 4M");

    let grown = client.resize_export("disk", 6 * MIB, false).await.unwrap();
    assert_eq!((grown.size, length(&image)), (6 * MIB, 6 * MIB));
    qemu_io(
        &running.uri("disk"),
        &["read -P 0 4M 2M", "write -P 2 5M 1M"],
    );
    assert!(
        early.ask("read -P 1 0 4M").contains("read 4194304"),
        "goes on"
    );

    let (kind, message) = refusal(client.resize_export("disk", 2 * MIB, false).await);
    assert_eq!(kind, ErrorKind::Refused);
    assert!(message.contains("--shrink"), "{message}");
    let shrunk = client.resize_export("disk", 2 * MIB, true).await.unwrap();
    assert_eq!((shrunk.size, length(&image)), (2 * MIB, 2 * MIB));
    // The early client still believes in 4 MiB. What is there works; beyond is an error, and never makes the file longer.
    assert!(early.ask("read -P 1 0 2M").contains("read 2097152"));
    assert!(early.ask("read 2M 64k").contains("Invalid argument"));
    for change in [
        "write -P 9 3M 64k",
        "write -P 9 2097120 64",
        "write -z 3M 64k",
    ] {
        let said = early.ask(change);
        assert!(said.contains("No space left"), "{change}: {said}");
    }
    assert!(early.ask("discard 3M 64k").contains("Invalid argument"));
    assert_eq!(length(&image), 2 * MIB);
    assert!(early.ask("write -P 3 1M 1M").contains("wrote 1048576"));
    early.end();

    client.resize_export("disk", 4 * MIB, false).await.unwrap();
    qemu_io(
        &running.uri("disk"),
        &["read -P 3 1M 1M", "read -P 0 2M 2M"],
    );
    let (kind, _) = refusal(client.resize_export("nothing", MIB, false).await);
    assert_eq!(kind, ErrorKind::UnknownExport);
    let (kind, message) = refusal(client.resize_export("vm/root", MIB, true).await);
    assert_eq!(kind, ErrorKind::Refused);
    assert!(message.contains("disk of a group"), "{message}");
}

#[tokio::test]
async fn a_reload_brings_about_what_differs_and_nothing_else() {
    let running = Running::new(&[
        ("stays", MIB),
        ("goes", MIB),
        ("renamed", MIB),
        ("sealed", MIB),
    ]);
    let client = running.client().await;
    let mut config = running.config.clone();
    let by_hand = image(running.dir(), "by-hand", MIB);
    running.add(&client, &export("by-hand", &by_hand)).await;
    let mut stays = Shell::open(&running.uri("stays"));
    let mut goes = Shell::open(&running.uri("goes"));
    stays.ask("write -P 1 0 4k");

    config.exports.retain(|export| export.name != "goes");
    for export in &mut config.exports {
        match export.name.as_str() {
            "renamed" => export.name = "new-name".to_owned(),
            "sealed" => export.read_only = true,
            _ => {}
        }
    }
    config
        .exports
        .push(export("added", &image(running.dir(), "added", 3 * MIB)));
    config
        .groups
        .push(group(&running, &image(running.dir(), "root", MIB)));
    let reloaded = running.reload(&config).unwrap();
    assert_eq!(reloaded.added, ["added", "new-name", "vm"]);
    assert_eq!(reloaded.removed, ["goes", "renamed"]);
    assert_eq!(reloaded.changed, ["sealed"]);
    assert!(
        stays.ask("read -P 1 0 4k").contains("read 4096"),
        "undisturbed"
    );
    assert!(goes.ask("read 0 4k").contains("failed"));
    let exports = client.exports().await.unwrap();
    let names: Vec<_> = exports
        .iter()
        .map(|e| (e.name.as_str(), e.read_only))
        .collect();
    let expected = [
        ("added", false),
        ("by-hand", false),
        ("new-name", false),
        ("sealed", true),
        ("stays", false),
    ];
    assert_eq!(names, expected);
    qemu_io(
        &running.uri("vm/root"),
        &["write -P 4 0 4k", "flush", "read -P 4 0 4k"],
    );
    assert!(client.status().await.unwrap().reload.unwrap().ok);
    assert_eq!(
        running.reload(&config).unwrap().to_string(),
        "nothing has changed"
    );
}

fn group(running: &Running, image: &Path) -> GroupConfig {
    let disk = DiskConfig {
        name: "root".to_owned(),
        image: image.to_owned(),
        read_only: false,
        export: None,
    };
    GroupConfig::new("vm", running.dir().join("vm.epochlog"), vec![disk])
}

#[tokio::test]
async fn a_reload_that_can_not_be_changes_nothing() {
    let running = Running::new(&[("disk", MIB), ("other", MIB)]);
    let client = running.client().await;
    let names = async || {
        let exports = client.exports().await.unwrap();
        exports.into_iter().map(|e| e.name).collect::<Vec<_>>()
    };
    let mut shell = Shell::open(&running.uri("disk"));
    let mut config = running.config.clone();
    config.exports.remove(0);
    config
        .exports
        .push(export("new", &running.dir().join("missing")));
    let error = running.reload(&config).unwrap_err();
    assert!(
        error.contains("export 'new'") && error.contains("does not exist"),
        "{error}"
    );
    assert_eq!(names().await, ["disk", "other"]);
    // The mistake shows only after the old one has gone: it comes back.
    let mut config = running.config.clone();
    config.exports[1].name = "renamed".to_owned();
    std::fs::write(running.dir().join("vm.epochlog"), b"not a directory").unwrap();
    let disk = config.exports[1].image.clone();
    config.groups.push(group(&running, &disk));
    config.exports.remove(1);
    running.reload(&config).unwrap_err();
    assert_eq!(names().await, ["disk", "other"]);
    qemu_io(&running.uri("other"), &["write 0 4k"]);
    let unread = running
        .gateway()
        .reload(Err("line 3 is not right".to_owned()));
    assert_eq!(unread.unwrap_err(), "line 3 is not right");
    let reload = client.status().await.unwrap().reload.unwrap();
    assert!(
        !reload.ok && reload.message.contains("line 3"),
        "{reload:?}"
    );
    assert!(
        shell.ask("read 0 4k").contains("read 4096"),
        "undisturbed by all of it"
    );
}

#[tokio::test]
async fn a_group_goes_only_when_nobody_uses_it() {
    let mut running = Running::new(&[("disk", MIB)]);
    let without = running.config.clone();
    let mut with = without.clone();
    with.groups
        .push(group(&running, &image(running.dir(), "root", MIB)));
    running.restart(&with);
    let client = running.client().await;
    let generation = client.attach("vm", "host:1").await.unwrap().generation;
    let error = running.reload(&without).unwrap_err();
    assert!(
        error.contains("host:1") && error.contains("owns it"),
        "{error}"
    );
    client.detach("vm", generation).await.unwrap();
    let mut shell = Shell::open(&running.uri("vm/root"));
    shell.ask("write -P 6 0 4k");
    let error = running.reload(&without).unwrap_err();
    assert!(error.contains("1 connections"), "{error}");
    shell.end();
    // The gateway notices the end of a connection on its own thread.
    while running
        .gateway()
        .group("vm")
        .is_some_and(|g| !g.status().attachments.is_empty())
    {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    with.groups[0].memory_budget_mib = 77;
    assert_eq!(running.reload(&with).unwrap().changed, ["vm"]);
    assert_eq!(client.group("vm").await.unwrap().budget, 77 * MIB);
    assert_eq!(running.reload(&without).unwrap().removed, ["vm"]);
    assert!(running.gateway().group("vm").is_none());
    let image = with.groups[0].disks[0].image.clone();
    running.add(&client, &export("root", &image)).await;
    qemu_io(&running.uri("root"), &["read -P 6 0 4k"]);
}

#[tokio::test]
async fn an_empty_gateway_waits_for_exports() {
    let running = Running::new(&[]);
    let client = running.client().await;
    let image = image(running.dir(), "disk", MIB);
    running.add(&client, &export("disk", &image)).await;
    qemu_io(&running.uri("disk"), &["write -P 1 0 4k"]);
    let nothing = GatewayConfig {
        control: None,
        ..running.config.clone()
    };
    assert!(
        nothing
            .check()
            .unwrap_err()
            .to_string()
            .contains("nothing to serve")
    );
}

#[tokio::test]
async fn an_export_past_the_page_cache_is_an_ordinary_one_to_clients() {
    let running = Running::new(&[]);
    let client = running.client().await;
    // The temporary directory may be in memory, where there is no O_DIRECT.
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let direct = ExportConfig {
        direct: true,
        ..export("direct", &image(dir.path(), "direct", 8 * MIB))
    };
    running.add(&client, &direct).await;
    let uri = running.uri("direct");
    qemu_io(
        &uri,
        &[
            "write -P 3 1M 2M",
            "read -P 3 1M 2M",
            "write -z 2M 1M",
            "flush",
        ],
    );
    // QEMU makes whole blocks of what is none, as it has been told the block size.
    qemu_io(
        &uri,
        &[
            "write -P 4 100 300",
            "read -P 4 100 300",
            "read -P 3 1M 1M",
            "read -P 0 2M 1M",
        ],
    );
    let odd = ExportConfig {
        direct: true,
        ..export("odd", &image(dir.path(), "odd", 8 * MIB + 100))
    };
    let (kind, message) = refusal(client.add_export(&odd).await);
    assert_eq!(kind, ErrorKind::BadImage);
    assert!(message.contains("no multiple of"), "{message}");
}
