//! The watch of a real QEMU: a verdict, an action that needs its QMP socket, and the watch that goes on afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use monitor::Watched;
use monitor::actions::carry_out::Hands;
use monitor::actions::{Action, ActionsConfig, Reach};
use monitor::features::FEATURES_VERSION;
use monitor::judge::{Health, Rule};
use monitor::model::{
    Classifier, Header, Method, Model, Node, Novelty, Thresholds, Training, Tree, Trees,
};
use monitor::signals::SIGNALS_VERSION;
use monitor::watch::{Event, Now, Options, Orders, Outcome, Tell, Told, watch_vm};
use nbd_server::group::history::TimeSpan;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Nothing that is awaited here takes this long: 40 s of a VM must be known before it is judged.
const PATIENCE: Duration = Duration::from_secs(150);

/// One that calls every VM faulty.
fn pessimist() -> Model {
    let tree = Tree::new(vec![Node {
        value: 0.9,
        split: None,
    }]);
    let trees = Trees {
        base: 0.0,
        scale: 1.0,
        trees: vec![tree.unwrap()],
    };
    let header = Header {
        features_version: FEATURES_VERSION,
        signals_version: SIGNALS_VERSION,
        method: Method::Forest,
        features: vec!["cpu.demand.level".to_owned()],
        kinds: Vec::new(),
        verdict: Thresholds {
            threshold: 0.5,
            alarm: 0.7,
            k: 2,
            n: 3,
        },
        training: Training::default(),
    };
    let novelty = Novelty {
        mean: vec![0.0],
        scale: vec![1.0],
        known: vec![vec![0.0]],
        threshold: f32::MAX,
    };
    Model::new(header, Classifier::Trees(trees), Vec::new(), novelty).unwrap()
}

fn qemu(dir: &std::path::Path) -> Child {
    let socket = |name: &str| format!("unix:{},server=on,wait=off", dir.join(name).display());
    Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-display", "none", "-accel", "tcg", "-S"])
        .args(["-qmp", &socket("watched"), "-qmp", &socket("other")])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

fn shell(script: &str) -> Action {
    Action::Command {
        run: ["sh", "-c", script].map(str::to_owned).to_vec(),
    }
}

/// The watch of a VM by one who calls it faulty.
struct Watch {
    told: mpsc::UnboundedReceiver<Told>,
    at_present: watch::Receiver<Now>,
    stop: watch::Sender<u32>,
    _again: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Watch {
    fn start(socket: PathBuf, pid: u32, faulty: &[Action]) -> Self {
        let options = Options {
            interval: Duration::from_millis(200),
            rule: Rule {
                windows: 2,
                of: 3,
                ..Rule::default()
            },
            actions: ActionsConfig {
                faulty: faulty.to_vec(),
                patience: TimeSpan(1_000),
                rest: TimeSpan(0),
                ..ActionsConfig::default()
            },
            hands: Hands {
                epochgate: "/bin/false".into(),
                reach: Reach {
                    vm: "vm1".to_owned(),
                    ..Reach::default()
                },
                limit: Duration::from_secs(30),
            },
        };
        let (now, at_present) = watch::channel(Now::new("vm1", 0));
        let (events, told) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(0);
        let (again, anew) = watch::channel(0);
        let orders = Orders {
            stop: stopped,
            anew,
        };
        let task = tokio::spawn(watch_vm(
            move || Watched::qemu(&socket, pid),
            Arc::new(pessimist()),
            options,
            Tell { now, events },
            orders,
        ));
        Self {
            told,
            at_present,
            stop,
            _again: again,
            task,
        }
    }

    async fn stop(self) {
        self.stop.send(1).unwrap();
        timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }
}

async fn next(events: &mut mpsc::UnboundedReceiver<Told>) -> Event {
    let told = timeout(PATIENCE, events.recv()).await;
    told.expect("an event in time")
        .expect("the watch goes on")
        .event
}

#[tokio::test]
async fn who_acts_gets_the_socket_and_the_watch_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut vm = qemu(dir.path());
    let other = loop {
        match UnixStream::connect(dir.path().join("other")).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let mut other = BufReader::new(other);
    let hello = b"{\"execute\":\"qmp_capabilities\"}\n";
    other.write_all(hello).await.unwrap();

    let note = dir.path().join("note");
    let pid = vm.id().unwrap();
    let command = shell(&format!("cat > {}", note.display()));
    let actions = [Action::Notify, Action::PinHealthy, command, Action::Restart];
    let mut watch = Watch::start(dir.path().join("watched"), pid, &actions);
    let told = &mut watch.told;

    let watched = Event::Watching { pid: Some(pid) };
    assert_eq!(next(told).await, watched);
    let Event::Verdict(verdict) = next(told).await else {
        panic!("a verdict comes first");
    };
    assert_eq!(
        (verdict.health, verdict.sound_until_ms),
        (Health::Faulty, None)
    );
    let mut seen = Vec::new();
    for _ in 0..3 {
        match next(told).await {
            Event::Action {
                action, outcome, ..
            } => seen.push((action, outcome)),
            event => panic!("{event:?}"),
        }
    }
    // There is no sound moment, so nothing is pinned.
    let wanted = [
        ("pin_healthy", Outcome::HeldBack),
        ("command", Outcome::Done),
        ("restart", Outcome::Done),
    ];
    assert_eq!(seen, wanted);
    let note: serde_json::Value = serde_json::from_slice(&std::fs::read(note).unwrap()).unwrap();
    assert_eq!(note["verdict"]["health"], "faulty");
    let mut line = String::new();
    while !line.contains("\"RESET\"") {
        line.clear();
        let read = timeout(PATIENCE, other.read_line(&mut line)).await;
        assert!(read.unwrap().unwrap() > 0, "QEMU was not reset");
    }
    // It was let go of, and is watched again: what it did before says nothing of it.
    assert!(matches!(next(told).await, Event::Lost { .. }));
    assert_eq!(watch.at_present.borrow().health, Health::Unknown);
    assert_eq!(next(told).await, watched);
    assert_eq!(watch.at_present.borrow().lost, None);

    vm.kill().await.unwrap();
    let Event::Lost { reason } = next(told).await else {
        panic!("a QEMU that has ended is lost");
    };
    assert!(reason.contains("ended"), "{reason}");
    let figures = watch.at_present.borrow().figures.clone();
    assert_eq!((figures.lost, figures.verdicts["faulty"]), (2, 1));
    watch.stop().await;
}

#[tokio::test]
async fn what_is_being_done_is_finished_before_the_watch_ends() {
    let dir = tempfile::tempdir().unwrap();
    let vm = qemu(dir.path());
    let socket = dir.path().join("watched");
    while UnixStream::connect(&socket).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let note = dir.path().join("note");
    let slow = shell(&format!("sleep 2; touch {}", note.display()));
    let mut watch = Watch::start(socket, vm.id().unwrap(), &[slow]);
    while !matches!(next(&mut watch.told).await, Event::Verdict(_)) {}
    watch.stop().await;
    assert!(note.exists());
}
