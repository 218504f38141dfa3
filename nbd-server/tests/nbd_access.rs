//! Who may attach what, seen by libnbd's and QEMU's tools.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod nbd_common;

use std::path::Path;

use nbd_common::{run, run_well};
use nbd_server::access::{AccessRule, Rights};
use nbd_server::gateway::{ExportConfig, Gateway, GatewayConfig};
use nbd_server::group::{DiskConfig, GroupConfig};

const SIZE: u64 = 1 << 20;

fn rule(client: &str, export: &str, rights: Rights) -> AccessRule {
    AccessRule {
        client: client.to_owned(),
        export: export.to_owned(),
        rights,
    }
}

fn me() -> String {
    format!("uid:{}", rustix::process::getuid().as_raw())
}

fn image(dir: &Path, name: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(SIZE).unwrap();
    path
}

/// Two exports and a group whose disk has a second name.
fn gateway(dir: &Path, access: Vec<AccessRule>) -> Gateway {
    let export = |name: &str| ExportConfig {
        name: name.to_owned(),
        image: image(dir, name),
        read_only: false,
        ..ExportConfig::default()
    };
    let disk = DiskConfig {
        name: "root".to_owned(),
        image: image(dir, "root"),
        read_only: false,
        export: Some("system".to_owned()),
    };
    Gateway::start(&GatewayConfig {
        listen: vec![
            format!("unix:{}", dir.join("nbd.sock").display()),
            "tcp:127.0.0.1:0".to_owned(),
        ],
        access,
        groups: vec![GroupConfig::new("vm", dir.join("log"), vec![disk])],
        exports: vec![export("open"), export("other")],
        ..GatewayConfig::default()
    })
    .unwrap()
}

fn refused(uri: &str) {
    let output = run("qemu-img", &["info", uri]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{uri}");
    assert!(said.contains("access rules"), "{uri}: {said}");
}

#[test]
fn users_at_a_unix_socket_get_what_their_rule_says() {
    let dir = tempfile::tempdir().unwrap();
    let rules = vec![
        rule("uid:4294967294", "other", Rights::ReadWrite),
        rule(&me(), "open", Rights::ReadOnly),
        rule("ip:127.0.0.0/8", "other", Rights::ReadWrite),
    ];
    let gateway = gateway(dir.path(), rules);
    let [unix, tcp] = gateway.addresses() else {
        panic!("two addresses")
    };
    run_well("nbdinfo", &["--is", "read-only", &unix.uri("open")]);
    let open = unix.uri("open");
    let write = run("qemu-io", &["-f", "raw", "-c", "write 0 4k", &open]);
    assert!(!write.status.success(), "a read-only right lets a write in");
    run_well(
        "qemu-io",
        &["-r", "-f", "raw", "-c", "read -P 0 0 4k", &open],
    );
    for export in ["other", "vm/root", "vm/root@x", "system", "none", ""] {
        refused(&unix.uri(export));
    }
    run_well(
        "qemu-io",
        &["-f", "raw", "-c", "write 0 4k", &tcp.uri("other")],
    );
    refused(&tcp.uri("open"));
    let list = |uri: &str| run_well("nbdinfo", &["--list", "--json", uri]);
    let seen = list(&unix.uri(""));
    assert!(
        seen.contains("\"open\"") && !seen.contains("\"other\"") && !seen.contains("root"),
        "{seen}"
    );
    gateway.shutdown();
}

#[test]
fn a_second_name_leads_around_no_rule() {
    for (forbidden, allowed) in [("vm/root", "open"), ("system", "open"), ("vm/*", "other")] {
        let dir = tempfile::tempdir().unwrap();
        let rules = vec![
            rule("*", forbidden, Rights::None),
            rule("*", "*", Rights::ReadWrite),
        ];
        let gateway = gateway(dir.path(), rules);
        let unix = &gateway.addresses()[0];
        for export in ["vm/root", "vm/root@someone", "system"] {
            refused(&unix.uri(export));
        }
        run_well("nbdinfo", &[&unix.uri(allowed)]);
        gateway.shutdown();
    }
}
