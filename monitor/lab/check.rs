//! Does each load and each fault do what it says? Runs each for a short time and looks from outside and, by its shell, from inside.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep};

use crate::faults::{FAULTS, Fault};
use crate::loads::{self, LOADS, Load};
use crate::plan;
use crate::spec::{Size, Spec};
use crate::stand::Stand;
use crate::vm::{Tools, tail};

/// What was seen of a VM in a stretch of time.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// Cores that QEMU took.
    pub cpu: f64,
    /// Requests of all disks, a second.
    pub reads: f64,
    /// The same.
    pub writes: f64,
    /// KiB a second that the guest sent.
    pub sent: f64,
    /// The same that it got.
    pub got: f64,
    /// Of the probe's questions, those that were answered: by the guest, by its application.
    pub beat: f64,
    /// The same of the application.
    pub app: f64,
    /// Answers of clients that were good, and that were not.
    pub good: u64,
    /// The same.
    pub bad: u64,
}

/// Counters at an instant.
#[derive(Debug, Clone, Copy)]
struct Counters {
    at: Instant,
    cpu_ticks: u64,
    reads: u64,
    writes: u64,
    sent: u64,
    got: u64,
    good: u64,
    bad: u64,
}

async fn count(stand: &mut Stand) -> anyhow::Result<Counters> {
    let pid = stand.vm.pid().context("QEMU is gone")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("QEMU is gone")?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let field = |n: usize| {
        fields
            .get(n)
            .and_then(|text| text.parse::<u64>().ok())
            .unwrap_or(0)
    };
    // What the host receives from a tap, the guest has sent. /sys shows another namespace.
    let devices = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let line = devices
        .lines()
        .find_map(|line| line.trim().strip_prefix(&format!("{}:", stand.vm.tap())));
    let counters: Vec<u64> = line
        .unwrap_or_default()
        .split_whitespace()
        .map(|word| word.parse().unwrap_or(0))
        .collect();
    let net = |n: usize| counters.get(n).copied().unwrap_or(0);
    let (sent, got) = (net(0), net(8));
    let blocks = stand
        .vm
        .qmp()
        .await?
        .execute("query-blockstats", serde_json::json!({}))
        .await?;
    let sum = |name: &str| {
        blocks
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|disk| disk["stats"][name].as_u64())
            .sum()
    };
    Ok(Counters {
        at: Instant::now(),
        cpu_ticks: field(11) + field(12),
        reads: sum("rd_operations"),
        writes: sum("wr_operations"),
        sent,
        got,
        good: stand.clients.counts.good.load(Ordering::Relaxed),
        bad: stand.clients.counts.bad.load(Ordering::Relaxed),
    })
}

/// Looks at a VM for so long.
async fn look(stand: &mut Stand, time: Duration) -> anyhow::Result<Seen> {
    let before = count(stand).await?;
    sleep(time).await;
    let after = count(stand).await?;
    let seconds = (after.at - before.at).as_secs_f64();
    let rate = |from: u64, to: u64| to.saturating_sub(from) as f64 / seconds;
    // Questions of the end may still be answered.
    let asked: Vec<_> = stand
        .probe
        .answers()
        .into_iter()
        .filter(|a| a.at >= before.at)
        .collect();
    let share = |good: usize| good as f64 / asked.len().max(1) as f64;
    Ok(Seen {
        cpu: rate(before.cpu_ticks, after.cpu_ticks) / 100.0,
        reads: rate(before.reads, after.reads),
        writes: rate(before.writes, after.writes),
        sent: rate(before.sent, after.sent) / 1024.0,
        got: rate(before.got, after.got) / 1024.0,
        beat: share(asked.iter().filter(|a| a.beat_ms.is_some()).count()),
        app: share(asked.iter().filter(|a| a.app_ms.is_some()).count()),
        good: after.good - before.good,
        bad: after.bad - before.bad,
    })
}

/// Prints one line for each load and fault whose name begins with one of `names` (all, if there are none). Returns whether all did what
/// they say.
pub async fn check(tools: &Tools, names: &[String], parallel: usize) -> anyhow::Result<bool> {
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    let mut jobs: Vec<(Load, Option<Fault>)> = LOADS
        .iter()
        .filter(|load| wanted(load.name))
        .map(|load| (*load, None))
        .collect();
    let beside = *loads::named("log").context("there is a load `log`")?;
    jobs.extend(
        FAULTS
            .iter()
            .filter(|fault| wanted(fault.name))
            .map(|fault| (beside, Some(*fault))),
    );
    println!(
        "{:<16}{:<5}{:>6}{:>7}{:>7}{:>8}{:>8}{:>6}{:>6}{:>7}{:>6}  evidence",
        "kind", "", "cores", "reads", "writes", "KiB out", "KiB in", "beat", "app", "good", "bad"
    );
    let mut tasks = tokio::task::JoinSet::new();
    let mut queue = jobs.into_iter().enumerate();
    let mut good = true;
    loop {
        while tasks.len() < parallel {
            let Some((number, (load, fault))) = queue.next() else {
                break;
            };
            let tools = tools.clone();
            tasks.spawn(async move {
                let name = fault.map_or(load.name, |fault| fault.name);
                (name, one(&tools, number, load, fault).await)
            });
        }
        match tasks.join_next().await {
            None => return Ok(good),
            Some(ended) => {
                let (name, result) = ended?;
                match result {
                    Ok((seen, true, evidence)) => print(name, "ok", &seen, &evidence),
                    Ok((seen, false, evidence)) => {
                        good = false;
                        print(name, "NOT", &seen, &evidence);
                    }
                    Err(error) => {
                        good = false;
                        println!("{name:<16}FAILED {error:#}");
                    }
                }
            }
        }
    }
}

fn print(name: &str, verdict: &str, s: &Seen, evidence: &str) {
    println!(
        "{name:<16}{verdict:<5}{:>6.2}{:>7.1}{:>7.1}{:>8.0}{:>8.0}{:>6.2}{:>6.2}{:>7}{:>6}  {evidence}",
        s.cpu, s.reads, s.writes, s.sent, s.got, s.beat, s.app, s.good, s.bad
    );
}

async fn one(
    tools: &Tools,
    number: usize,
    load: Load,
    fault: Option<Fault>,
) -> anyhow::Result<(Seen, bool, String)> {
    let mut random = StdRng::seed_from_u64(number as u64);
    let size = Size {
        cpus: 2,
        memory_mib: 256,
    };
    let spec = plan::spec(number, load, fault, size, &mut random);
    let mut stand = Stand::start(tools, &spec, u32::try_from(number % 250)?).await?;
    let result = judge(&mut stand, &spec, load, fault).await;
    let console = tail(&stand.vm.console());
    stand.vm.stop().await;
    result.with_context(|| format!("console: {console}"))
}

/// How long to wait for an effect, on a host with other work. Most are there at once.
const PATIENCE: Duration = Duration::from_secs(240);

async fn judge(
    stand: &mut Stand,
    spec: &Spec,
    load: Load,
    fault: Option<Fault>,
) -> anyhow::Result<(Seen, bool, String)> {
    sleep(Duration::from_secs(8)).await;
    let before = stand.vm.console().len();
    if let Some(planned) = &spec.fault {
        stand.inject(&planned.way).await?;
        sleep(Duration::from_secs(5)).await;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = look(stand, Duration::from_secs(12)).await?;
        let (good, evidence) = match fault {
            None => expected_of_load(load.name, &seen, &stand.vm.console()),
            Some(fault) => {
                if let Some(shell) = &mut stand.shell {
                    // A guest that is too ill for that does not answer.
                    let _ = shell.run("look", Duration::from_secs(8)).await;
                }
                let status = stand
                    .vm
                    .qmp()
                    .await?
                    .execute("query-status", serde_json::json!({}))
                    .await?;
                let status = status["status"].as_str().unwrap_or_default().to_owned();
                let console = stand.vm.console();
                expected_of_fault(
                    fault.name,
                    &seen,
                    console.get(before..).unwrap_or_default(),
                    &status,
                )
            }
        };
        if good || Instant::now() > deadline {
            return Ok((seen, good, evidence));
        }
    }
}

fn expected_of_load(name: &str, s: &Seen, console: &str) -> (bool, String) {
    let works = s.beat > 0.9;
    let starts = console.matches("guest-up").count();
    let (good, what) = match name {
        "boot" => (starts >= 2, format!("{starts} starts")),
        "idle" => (works && s.cpu < 0.4, "quiet".into()),
        "night" => (works, "quiet but for its jobs".into()),
        "compile" | "cpu" | "crunch" | "memory" | "memory_stream" | "pipes" => {
            (s.cpu > 0.1, "busy".into())
        }
        "db_write" | "disk_random" | "app" => (s.writes > 1.0, "writes".into()),
        "db_read" => (s.cpu > 0.05, "queries".into()),
        "disk_sequential" => (s.reads > 1.0, "reads".into()),
        "backup" => (s.reads + s.writes > 1.0, "reads and writes".into()),
        "web" | "download" => (s.good > 0 && s.sent > s.got, "sends".into()),
        "upload" => (s.got > s.sent && s.got > 50.0, "receives".into()),
        _ => (s.cpu > 0.01, "works".into()),
    };
    (good && (works || name == "boot" || s.cpu > 0.5), what)
}

fn expected_of_fault(name: &str, s: &Seen, said: &str, status: &str) -> (bool, String) {
    let field = |key: &str| -> Option<&str> {
        let at = said
            .rfind("LOOK ")
            .and_then(|_| said.rfind(&format!("{key}=")))?;
        said.get(at + key.len() + 1..)?.split_whitespace().next()
    };
    let number = |key: &str| {
        field(key)
            .and_then(|text| text.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let (silent, app_silent, alive) = (s.beat < 0.2, s.app < 0.2, s.beat > 0.8);
    // A kernel that stays says so once more at the end.
    let panics = said.matches("Kernel panic").count() - said.matches("end Kernel panic").count();
    match name {
        "kernel_panic" => (panics == 1 && silent, format!("{panics} panic")),
        "panic_loop" => (
            panics >= 2,
            format!(
                "{panics} panics, {} starts",
                said.matches("guest-up").count()
            ),
        ),
        "hard_lockup" | "soft_lockup" => {
            let reported = said.contains("soft lockup") || said.contains("stall");
            (silent || reported, format!("reported: {reported}"))
        }
        "fork_bomb" => {
            let tasks = field("tasks").unwrap_or("?").to_owned();
            (
                s.beat < 0.8
                    || tasks
                        .split('/')
                        .nth(1)
                        .is_some_and(|n| n.parse().is_ok_and(|n: u64| n > 500)),
                format!("tasks {tasks}"),
            )
        }
        "leak" => (
            said.contains("Out of memory"),
            format!("{} kills", said.matches("Out of memory").count()),
        ),
        "swap_storm" => (
            number("swapped") > 2_000,
            format!("{} pages swapped out", number("swapped")),
        ),
        "deadlock" | "livelock" | "stopped" | "frozen" | "disk_hangs" => (
            app_silent && (alive || name != "deadlock"),
            format!("{} clients wait in vain", s.bad),
        ),
        "spin" => {
            let load = field("load").unwrap_or("?");
            let busy = load.parse::<f64>().is_ok_and(|load| load > 1.0);
            (busy && alive, format!("{load} tasks want to run"))
        }
        "disk_fails" => (status == "io-error", format!("VM is {status}")),
        // Newer kernels go on calling it mounted for writing.
        "read_only" => (
            said.contains("EXT4-fs error") && s.bad > 0 && s.good == 0,
            format!("{} clients are told of an error", s.bad),
        ),
        "disk_full" => (
            number("free") <= 1 && (s.app < 0.8 || s.bad > 0),
            format!("{} MiB free", number("free")),
        ),
        "network_dead" => (
            silent && app_silent && s.good == 0,
            format!("shell answers: {}", field("load").is_some()),
        ),
        "crash_loop" => (app_silent && alive, "application away".into()),
        "runaway_log" => (
            s.writes > 1.0 || number("free") <= 1,
            format!("{} MiB free", number("free")),
        ),
        "zombies" => {
            // Those that are dead count as tasks.
            let tasks =
                field("tasks").and_then(|tasks| tasks.split('/').nth(1)?.parse::<u64>().ok());
            (
                tasks.is_some_and(|tasks| tasks > 500),
                format!("{tasks:?} tasks, {} zombies", number("zombies")),
            )
        }
        _ => (false, "unknown".into()),
    }
}
