//! `epochgate top`: the status, again and again, with rates. What it shows is what `epochgate status` is told.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

use coordinator::report::{State, Status};
use monitor::judge::Health;
use monitor::watch::Now;
use nbd_server::control::api::{GroupStatus, ModeName};

use super::status::Everything;
use crate::cli::TopArgs;
use crate::output::{bytes, millis};
use crate::runtime;

/// Moves to the upper left corner and clears what is below (ECMA-48, CUP and ED).
const CLEAR: &str = "\x1b[H\x1b[J";

pub(crate) fn run(args: &TopArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut stop = runtime.block_on(async { runtime::stop_signals() })?;
    let is_screen = std::io::stdout().is_terminal();
    let mut before: Option<(Instant, Counters)> = None;
    loop {
        let page = match Everything::ask(&args.status) {
            Ok(everything) => {
                let (now, counters) = (Instant::now(), Counters::of(&everything));
                let since = before
                    .as_ref()
                    .map(|(at, counters)| (now.duration_since(*at).as_secs_f64(), counters));
                let page = page(&everything, &counters, since);
                before = Some((now, counters));
                page
            }
            // A gateway that was named and is restarted comes back.
            Err(error) => format!("{error:#}\n"),
        };
        let clear = if is_screen { CLEAR } else { "" };
        let mut out = std::io::stdout().lock();
        // Whoever read has seen enough.
        if write!(out, "{clear}{page}")
            .and_then(|()| out.flush())
            .is_err()
        {
            return Ok(ExitCode::SUCCESS);
        }
        drop(out);
        let ended = runtime.block_on(async {
            tokio::time::timeout(args.every, stop.changed())
                .await
                .is_ok()
        });
        if ended {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// What rates are made of.
#[derive(Debug, Default)]
struct Counters {
    /// The newest epoch of each role of each VM.
    epochs: HashMap<(String, String), u64>,
    /// Reads, writes, bytes read and bytes written of each group.
    groups: HashMap<String, [u64; 4]>,
}

impl Counters {
    fn of(everything: &Everything) -> Self {
        let epochs = everything.vms.iter().filter_map(|status| {
            let epoch = status.committed?.0;
            Some(((status.vm.clone(), status.role.clone()), epoch))
        });
        let groups = everything
            .gateway
            .iter()
            .flat_map(|gateway| &gateway.groups);
        Self {
            epochs: epochs.collect(),
            groups: groups
                .map(|group| (group.name.clone(), sums(group)))
                .collect(),
        }
    }
}

fn sums(group: &GroupStatus) -> [u64; 4] {
    group.disks.iter().fold([0; 4], |sums, disk| {
        let of = [disk.reads, disk.writes, disk.bytes_read, disk.bytes_written];
        std::array::from_fn(|at| sums[at] + of[at])
    })
}

/// `since`: the counters that were there so many seconds ago.
fn page(everything: &Everything, counters: &Counters, since: Option<(f64, &Counters)>) -> String {
    let mut page = String::new();
    if everything.vms.is_empty() && everything.health.is_empty() && everything.gateway.is_none() {
        page.push_str("nothing runs here\n");
    }
    if !everything.vms.is_empty() {
        page.push_str(&format!(
            "{:<16} {:<8} {:<14} {:>12} {:>8} {:>9} {:>12}  {}\n",
            "VM", "ROLE", "STATE", "EPOCH", "EPOCHS/S", "PAUSE", "CHECKPOINT", "HEALTH"
        ));
    }
    for status in &everything.vms {
        let key = (status.vm.clone(), status.role.clone());
        let epochs = since.and_then(|(seconds, before)| {
            let grown = counters
                .epochs
                .get(&key)?
                .checked_sub(*before.epochs.get(&key)?)?;
            Some(per_second(grown, seconds))
        });
        page.push_str(&line_of(status, epochs, &everything.health));
    }
    // Those that nobody protects here.
    let others = everything
        .health
        .iter()
        .filter(|now| !everything.vms.iter().any(|status| status.vm == now.vm));
    for now in others {
        page.push_str(&format!("{:<16} watched only: {}\n", now.vm, in_short(now)));
    }
    let groups = everything
        .gateway
        .iter()
        .flat_map(|gateway| &gateway.groups);
    for (number, group) in groups.enumerate() {
        if number == 0 {
            page.push_str(&format!(
                "\n{:<16} {:<6} {:>9} {:>11} {:>9} {:>11} {:>11} {:>8}  {}\n",
                "GROUP",
                "MODE",
                "READS/S",
                "READ/S",
                "WRITES/S",
                "WRITTEN/S",
                "HELD",
                "BACKLOG",
                "TROUBLE"
            ));
        }
        let rates = since.and_then(|(seconds, before)| {
            let (now, then) = (
                counters.groups.get(&group.name)?,
                before.groups.get(&group.name)?,
            );
            Some(std::array::from_fn(|at| {
                per_second(now[at].saturating_sub(then[at]), seconds)
            }))
        });
        page.push_str(&line_of_group(group, rates));
    }
    page
}

fn per_second(count: u64, seconds: f64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "shown with few digits")]
    let count = count as f64;
    count / seconds.max(1e-3)
}

fn or_dash<T>(value: Option<T>, shown: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), shown)
}

fn line_of(status: &Status, epochs: Option<f64>, health: &[Now]) -> String {
    let state = match status.state {
        State::Idle => "waits",
        State::Unprotected => "NOT PROTECTED",
        State::Filling => "first copy",
        State::Protected => "protected",
        State::Receiving => "receives",
        State::TakingOver => "takes over",
        State::Ended => "ended",
    };
    let runs_here = matches!(
        status.state,
        State::Unprotected | State::Filling | State::Protected
    );
    let health = health.iter().find(|now| runs_here && now.vm == status.vm);
    format!(
        "{:<16} {:<8} {state:<14} {:>12} {:>8} {:>9} {:>12}  {}\n",
        status.vm,
        status.role,
        or_dash(status.committed, |epoch| epoch.to_string()),
        or_dash(epochs, |epochs| format!("{epochs:.1}")),
        or_dash(status.pause_us, |pause| format!(
            "{:.1} ms",
            millis(pause.total)
        )),
        or_dash(status.wire_bytes, bytes),
        or_dash(health, in_short),
    )
}

fn in_short(now: &Now) -> String {
    if let Some(lost) = &now.lost {
        return format!("can't be seen: {lost}");
    }
    let name = match now.health {
        Health::Faulty => "FAULTY",
        health => health.name(),
    };
    let Some(opinion) = &now.opinion else {
        return name.to_owned();
    };
    let mut text = format!("{name} {:.2}", opinion.score);
    if now.health == Health::Faulty
        && let Some(kind) = &opinion.kind
    {
        text.push_str(&format!(" {kind}"));
    }
    text
}

fn line_of_group(group: &GroupStatus, rates: Option<[f64; 4]>) -> String {
    let mode = match group.mode {
        ModeName::Sync => "sync",
        ModeName::Async => "async",
    };
    let rate = |at: usize| or_dash(rates.map(|rates| rates[at]), |rate| format!("{rate:.0}"));
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shown with a unit"
    )]
    let amount = |at: usize| or_dash(rates.map(|rates| rates[at]), |rate| bytes(rate as u64));
    format!(
        "{:<16} {mode:<6} {:>9} {:>11} {:>9} {:>11} {:>11} {:>8}  {}\n",
        group.name,
        rate(0),
        amount(2),
        rate(1),
        amount(3),
        bytes(group.bytes_held),
        group.backlog,
        group.last_error.as_deref().unwrap_or("-"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_rates_and_health() {
        let mut status = Status::new("source", "vm1");
        status.state = State::Protected;
        status.committed = Some(nbd_server::Epoch(140));
        let mut now = Now::new("vm1", 0);
        now.health = Health::Faulty;
        let everything = Everything {
            vms: vec![status],
            health: vec![now, Now::new("other", 0)],
            gateway: None,
        };
        let counters = Counters::of(&everything);
        let mut before = Counters::of(&everything);
        before.epochs.values_mut().for_each(|epoch| *epoch = 100);
        let first = page(&everything, &counters, None);
        assert!(
            first.contains("protected") && !first.contains("20.0"),
            "{first}"
        );
        let second = page(&everything, &counters, Some((2.0, &before)));
        for words in [
            "vm1",
            "20.0",
            "FAULTY",
            "other            watched only: unknown",
        ] {
            assert!(second.contains(words), "{words} is not in\n{second}");
        }
    }
}
