//! A whole gateway: the control API over its real socket, and QEMU's own client at the disks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod group_common;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output};

use group_common::Site;
use nbd_server::control::api::{AttachmentKind, ErrorKind, Event, ModeName};
use nbd_server::control::client::{Client, ControlError};
use nbd_server::group::GroupMode;
use nbd_server::{Epoch, Gateway, GatewayConfig, Generation};

struct Running {
    site: Site,
    gateway: Option<Gateway>,
}

impl Running {
    fn new(mode: GroupMode, disks: &[&str]) -> Self {
        let mut this = Self {
            site: Site::new(mode, disks),
            gateway: None,
        };
        this.start();
        this
    }

    fn start(&mut self) {
        let config = GatewayConfig {
            control: Some(self.control()),
            listen: vec![format!("unix:{}", self.nbd().display())],
            groups: vec![self.site.config.clone()],
            ..GatewayConfig::default()
        };
        // A child that another test forks holds our locks until it becomes qemu-io.
        self.gateway = loop {
            match Gateway::start(&config) {
                Ok(gateway) => break Some(gateway),
                Err(error) if format!("{error:?}").contains("Locked") => {}
                Err(error) if format!("{error:?}").contains("InUse") => {}
                Err(error) => panic!("{error:?}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
    }

    fn control(&self) -> PathBuf {
        self.site.dir.path().join("control.sock")
    }

    fn nbd(&self) -> PathBuf {
        self.site.dir.path().join("nbd.sock")
    }

    /// Runs qemu-io commands on an export.
    fn qemu_io(&self, export: &str, commands: &[&str]) -> Output {
        let uri = format!("nbd+unix:///{export}?socket={}", self.nbd().display());
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw"]);
        for line in commands {
            command.args(["-c", line]);
        }
        command
            .arg(uri)
            .output()
            .expect("qemu-io of the package qemu-utils")
    }

    fn qemu_io_ok(&self, export: &str, commands: &[&str]) {
        let output = self.qemu_io(export, commands);
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && !text.contains("failed"),
            "{commands:?}: {text}"
        );
    }
}

fn kind<T: std::fmt::Debug>(outcome: Result<T, ControlError>) -> ErrorKind {
    outcome.unwrap_err().kind().expect("a refusal")
}

#[tokio::test]
async fn a_vm_lives_through_its_gateway() {
    let running = Running::new(GroupMode::Sync, &["root", "data"]);
    let mode = std::fs::metadata(running.control())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(
        mode & 0o777,
        0o600,
        "the control socket is its owner's alone"
    );
    let client = Client::connect(running.control()).await.unwrap();

    let parked = client.park("vm", "standby-1").await.unwrap();
    assert_eq!(parked.exports["data"], "vm/data@standby-1");
    let attached = client.attach("vm", "source-1").await.unwrap();
    assert_eq!(
        client.attach("vm", "source-1").await.unwrap(),
        attached,
        "asked again, answered again"
    );
    let generation = attached.generation;
    let mut events = client.events("vm", generation).await.unwrap();
    assert_eq!(
        events.next().await.unwrap(),
        Some(Event::Subscribed { generation })
    );

    let source = &attached.exports["root"];
    running.qemu_io_ok(source, &["write -P 1 0 64k", "flush", "read -P 1 0 64k"]);
    let first = client.seal("vm", generation).await.unwrap();
    assert!(first.empty_first);
    let log = epoch_log::inspect::inspect(&running.site.config.log).unwrap();
    assert_eq!(
        log.state.mode,
        epoch_log::Mode::Async { holder: None },
        "recorded before it is answered"
    );
    assert_eq!(
        client
            .commit("vm", generation, first.epoch, "standby-1")
            .await
            .unwrap(),
        first.epoch
    );
    running.qemu_io_ok(
        source,
        &[
            "write -P 2 0 64k",
            "write -z 64k 64k",
            "discard 128k 64k",
            "flush",
        ],
    );
    let standby = &parked.exports["root"];
    running.qemu_io_ok(standby, &["read -P 1 0 64k"]);
    let second = client.seal("vm", generation).await.unwrap();
    assert_eq!((second.epoch, second.bytes), (Epoch(2), 64 << 10));
    client.relieve("vm", generation).await.unwrap();
    client
        .commit("vm", generation, second.epoch, "standby-1")
        .await
        .unwrap();
    client
        .commit("vm", generation, second.epoch, "standby-1")
        .await
        .unwrap();
    running.qemu_io_ok(standby, &["read -P 2 0 64k"]);
    let refused = running.qemu_io(standby, &["write -P 9 0 64k"]);
    assert!(
        String::from_utf8_lossy(&refused.stdout).contains("not permitted"),
        "{refused:?}"
    );

    let status = client.group("vm").await.unwrap();
    assert_eq!(
        (status.mode, status.owner.as_deref()),
        (ModeName::Async, Some("source-1"))
    );
    assert_eq!(
        (status.holder.as_deref(), status.holder_since),
        (Some("standby-1"), Some(Epoch(1)))
    );
    assert_eq!((status.committed, status.open), (Epoch(2), Some(Epoch(3))));
    assert_eq!(client.status().await.unwrap().groups.len(), 1);

    assert_eq!(
        kind(client.takeover("vm", "standby-2").await),
        ErrorKind::OtherHolder
    );
    let taken = client.takeover("vm", "standby-1").await.unwrap();
    assert_eq!(taken.epoch, Epoch(2));
    assert_eq!(client.takeover("vm", "standby-1").await.unwrap(), taken);
    let fenced = Event::Fenced {
        generation: taken.generation,
        owner: Some("standby-1".into()),
    };
    assert_eq!(events.next().await.unwrap(), Some(fenced));
    assert_eq!(events.next().await.unwrap(), None, "and nothing after that");
    let error = client.seal("vm", generation).await.unwrap_err();
    assert!(error.is_fenced(), "{error}");
    assert!(
        !running.qemu_io(source, &["read 0 64k"]).status.success(),
        "the source is out"
    );
    running.qemu_io_ok(
        standby,
        &[
            "write -P 3 0 64k",
            "flush",
            "read -P 3 0 64k",
            "read -P 0 64k 128k",
        ],
    );
    assert_eq!(
        kind(client.takeover("vm", "standby-1").await),
        ErrorKind::MemoryStale
    );
    let generation = taken.generation;
    assert_eq!(client.sync("vm", generation, None).await.unwrap(), Epoch(2));
    client.detach("vm", generation).await.unwrap();
    running.qemu_io_ok("vm/root", &["read -P 3 0 64k", "write -P 4 0 64k"]);
}

#[tokio::test]
async fn a_takeover_works_on_the_connections_that_are_parked() {
    let running = Running::new(GroupMode::Sync, &["root"]);
    let client = Client::connect(running.control()).await.unwrap();
    client.park("vm", "b").await.unwrap();
    let generation = client.attach("vm", "a").await.unwrap().generation;
    let sealed = client.seal("vm", generation).await.unwrap();
    client
        .commit("vm", generation, sealed.epoch, "b")
        .await
        .unwrap();
    let uri = |id: &str| {
        format!(
            "nbd+unix:///vm/root@{id}?socket={}",
            running.nbd().display()
        )
    };
    let open = |id: &str| {
        Command::new("qemu-io")
            .args(["-f", "raw", &uri(id)])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let (mut old, mut new) = (open("a"), open("b"));
    loop {
        let status = client.group("vm").await.unwrap();
        let has = |kind| {
            status
                .attachments
                .iter()
                .any(|attachment| attachment.kind == kind)
        };
        if has(AttachmentKind::Source) && has(AttachmentKind::Parked) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    client.takeover("vm", "b").await.unwrap();
    old.stdin
        .take()
        .unwrap()
        .write_all(b"write -P 7 0 4k\nq\n")
        .unwrap();
    new.stdin
        .take()
        .unwrap()
        .write_all(b"write -P 8 0 4k\nread -P 8 0 4k\nflush\nq\n")
        .unwrap();
    let (old, new) = (
        old.wait_with_output().unwrap(),
        new.wait_with_output().unwrap(),
    );
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text(&old).contains("write failed"), "{old:?}");
    assert!(
        text(&new).contains("wrote 4096/4096") && !text(&new).contains("failed"),
        "{new:?}"
    );
    let expected = vec![8; group_common::BLOCK];
    assert_eq!(running.site.image_block(0, 0), expected);
}

#[tokio::test]
async fn errors_say_what_is_wrong() {
    let running = Running::new(GroupMode::Sync, &["root"]);
    let client = Client::connect(running.control()).await.unwrap();
    let error = client.group("vn").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no group 'vn'; this gateway has: vm"
    );
    assert_eq!(error.kind(), Some(ErrorKind::UnknownGroup));
    assert_eq!(
        kind(client.attach("vm", "a/b").await),
        ErrorKind::BadRequest
    );
    assert_eq!(
        kind(client.takeover("vm", "b").await),
        ErrorKind::NoCheckpoint
    );
    assert_eq!(
        kind(client.seal("vm", Generation(0)).await),
        ErrorKind::Refused
    );
    assert_eq!(
        kind(client.events("vm", Generation(7)).await),
        ErrorKind::Fenced
    );
    for request in [
        "POST /v1/groups/vm/seal HTTP/1.1\r\nhost: g\r\ncontent-length: 3\r\n\r\n{]}",
        "GET /v2/status HTTP/1.1\r\nhost: g\r\n\r\n",
        "GET /v1/groups/vm/events HTTP/1.1\r\nhost: g\r\n\r\n",
    ] {
        let mut socket = UnixStream::connect(running.control()).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        let mut reply = [0; 1024];
        let length = socket.read(&mut reply).unwrap();
        let reply = String::from_utf8_lossy(&reply[..length]);
        assert!(
            reply.starts_with("HTTP/1.1 400") && reply.contains("bad_request"),
            "{reply}"
        );
    }
    assert!(matches!(
        Client::connect(running.site.dir.path().join("nothing")).await,
        Err(ControlError::Unreachable { .. })
    ));
}

#[tokio::test]
async fn a_client_and_its_vm_find_a_restarted_gateway_again() {
    let mut running = Running::new(GroupMode::Sync, &["root"]);
    let client = Client::connect(running.control()).await.unwrap();
    let generation = client.attach("vm", "a").await.unwrap().generation;
    let mut events = client.events("vm", generation).await.unwrap();
    events.next().await.unwrap();
    running.gateway.take().unwrap().shutdown();
    assert_eq!(events.next().await.unwrap(), None);
    assert!(matches!(
        client.status().await,
        Err(ControlError::Unreachable { .. })
    ));
    running.start();
    // In sync mode nothing was lost: the source goes on.
    running.qemu_io_ok("vm/root@a", &["write -P 1 0 4k"]);
    let sealed = client.seal("vm", generation).await.unwrap();
    client
        .commit("vm", generation, sealed.epoch, "b")
        .await
        .unwrap();
    running.gateway.take().unwrap().shutdown();
    running.start();
    // In async mode the open epoch was lost with the gateway. A seal is never sent twice, so a request that may be finds
    // the new connection first.
    client.group("vm").await.unwrap();
    let error = client.seal("vm", generation).await.unwrap_err();
    assert!(
        error.is_fenced() && error.to_string().contains("restarted"),
        "{error}"
    );
    assert!(
        !running
            .qemu_io("vm/root@a", &["read 0 4k"])
            .status
            .success()
    );
    assert_eq!(
        client.takeover("vm", "b").await.unwrap().epoch,
        sealed.epoch
    );
}

#[tokio::test]
async fn pressure_reaches_the_owner() {
    let mut running = Running::new(GroupMode::Sync, &["root"]);
    running.gateway.take().unwrap().shutdown();
    running.site.config.memory_budget_mib = 1;
    running.start();
    let client = Client::connect(running.control()).await.unwrap();
    let generation = client.attach("vm", "a").await.unwrap().generation;
    let sealed = client.seal("vm", generation).await.unwrap();
    client
        .commit("vm", generation, sealed.epoch, "b")
        .await
        .unwrap();
    let mut events = client.events("vm", generation).await.unwrap();
    events.next().await.unwrap();
    running.qemu_io_ok("vm/root@a", &["write -P 1 0 600k"]);
    assert!(matches!(
        events.next().await.unwrap(),
        Some(Event::Pressure {
            budget: 1_048_576,
            ..
        })
    ));
    running.gateway.take().unwrap().shutdown();
}
