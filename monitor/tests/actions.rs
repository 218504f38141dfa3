//! Actions on the real thing: programs, a server, QEMU.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use monitor::actions::carry_out::{ActionError, Hands};
use monitor::actions::{Action, Reach};
use monitor::judge::{Health, Verdict};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, UnixStream};
use tokio::process::{Child, Command};

fn verdict() -> Verdict {
    Verdict {
        health: Health::Faulty,
        at_ms: 1_764_000_000_000,
        score: 0.9,
        confidence: 1.0,
        kind: Some("leak".to_owned()),
        reasons: vec!["the guest's memory grows".to_owned()],
        sound_until_ms: Some(1_763_999_990_000),
    }
}

fn hands(reach: Reach) -> Hands {
    Hands {
        epochgate: "/bin/false".into(),
        reach: Reach {
            vm: "vm1".to_owned(),
            ..reach
        },
        limit: Duration::from_secs(20),
    }
}

fn shell(script: &str) -> Action {
    Action::Command {
        run: ["sh", "-c", script].map(str::to_owned).to_vec(),
    }
}

#[tokio::test]
async fn a_program_is_told_the_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("told");
    let script = format!(
        "{{ echo $EPOCHGATE_VM $EPOCHGATE_VERDICT $EPOCHGATE_KIND; cat; }} > {}",
        file.display()
    );
    hands(Reach::default())
        .carry_out(&shell(&script), &verdict())
        .await
        .unwrap();
    let told = std::fs::read_to_string(file).unwrap();
    let (first, json) = told.split_once('\n').unwrap();
    assert_eq!(first, "vm1 faulty leak");
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(json["vm"], "vm1");
    assert_eq!(json["verdict"]["reasons"][0], "the guest's memory grows");
}

#[tokio::test]
async fn what_a_program_complains_of_is_said() {
    let hands = hands(Reach::default());
    // More than is kept, so that it must be let go.
    let script = "echo no such host >&2; head -c 300000 /dev/zero >&2; exit 3";
    let error = hands.carry_out(&shell(script), &verdict()).await;
    assert!(
        matches!(&error, Err(ActionError::Program { status, said, .. }) if status.code() == Some(3) && said.starts_with("no such host")),
        "{error:?}"
    );
    let nowhere = Action::Command {
        run: vec!["/nowhere/at/all".to_owned()],
    };
    let error = hands.carry_out(&nowhere, &verdict()).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    // A pin by a program that always fails.
    assert!(
        hands
            .carry_out(&Action::PinHealthy, &verdict())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_program_that_hangs_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let hands = Hands {
        limit: Duration::from_millis(500),
        ..hands(Reach::default())
    };
    let script = format!("echo $$ > {}; exec sleep 1000", file.display());
    let error = hands.carry_out(&shell(&script), &verdict()).await;
    assert!(
        matches!(error, Err(ActionError::TooLong { .. })),
        "{error:?}"
    );
    let pid = std::fs::read_to_string(file).unwrap();
    let process = PathBuf::from(format!("/proc/{}/cmdline", pid.trim()));
    for _ in 0..100 {
        if std::fs::read(&process).unwrap_or_default().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it runs on");
}

/// A server that answers one request with `answer`; what it was sent.
async fn answers(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = String::new();
        while !request.ends_with("\"vm\":\"vm1\"}") {
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "{request}");
            request.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        request
    });
    (url, served)
}

#[tokio::test]
async fn a_webhook_gets_the_verdict() {
    let (url, served) = answers("HTTP/1.1 204 No Content\r\n\r\n").await;
    let action = Action::Webhook { url };
    hands(Reach::default())
        .carry_out(&action, &verdict())
        .await
        .unwrap();
    let request = served.await.unwrap();
    assert!(request.starts_with("POST /hook HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("\"health\":\"faulty\""), "{request}");

    let (url, served) = answers("HTTP/1.1 403 Forbidden\r\n\r\n").await;
    let action = Action::Webhook { url };
    let error = hands(Reach::default()).carry_out(&action, &verdict()).await;
    assert!(
        matches!(&error, Err(ActionError::Refused { said, .. }) if said.contains("403")),
        "{error:?}"
    );
    served.await.unwrap();
}

fn qemu(dir: &Path) -> Child {
    let socket = |name: &str| {
        let path = dir.join(name);
        format!("unix:{},server=on,wait=off", path.display())
    };
    Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-display", "none", "-accel", "tcg", "-S"])
        .args(["-qmp", &socket("ours"), "-qmp", &socket("other")])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_vm_is_reset() {
    let dir = tempfile::tempdir().unwrap();
    let mut vm = qemu(dir.path());
    let mut stream = loop {
        match UnixStream::connect(dir.path().join("other")).await {
            Ok(stream) => break stream,
            Err(error) => assert!(vm.try_wait().unwrap().is_none(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    stream
        .write_all(b"{\"execute\":\"qmp_capabilities\"}\n")
        .await
        .unwrap();
    let mut lines = BufReader::new(stream).lines();
    while !lines.next_line().await.unwrap().unwrap().contains("return") {}
    let hands = hands(Reach {
        qmp: Some(dir.path().join("ours")),
        ..Reach::default()
    });
    hands.carry_out(&Action::Restart, &verdict()).await.unwrap();
    while !lines.next_line().await.unwrap().unwrap().contains("RESET") {}
    vm.kill().await.unwrap();
}
