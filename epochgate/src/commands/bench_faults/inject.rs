//! Doing a fault to a running site, and undoing it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use coordinator::report::Report;
use rustix::process::Signal;

use super::cells::{Cut, Fault, Step, Victim};
use super::run::STEP_LIMIT;
use crate::lab::network::Host;
use crate::lab::process::{is_alive, signal_pid, state};
use crate::lab::{Site, Who, clock};

/// In seconds.
const HOUR: i32 = 3600;

/// Waits until a part has stopped itself at its failpoint.
pub(super) fn until_stopped(site: &mut Site, who: Who, point: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + STEP_LIMIT;
    let pid = site.part(who).context("a part that was started")?.pid();
    while state(pid) != Some('T') {
        site.next_event(Duration::from_millis(1))?;
        if !is_alive(pid) || Instant::now() > deadline {
            bail!("{who:?} did not come to {point}:\n{}", site.log_tail(who));
        }
    }
    Ok(())
}

/// Lets a part that stands at a failpoint go on.
pub(super) fn go_on(site: &mut Site, who: Who) {
    if let Some(part) = site.part(who) {
        part.signal(Signal::CONT);
    }
}

/// Process id of a part's QEMU.
pub(super) fn qemu(site: &Site, who: Who) -> Option<u32> {
    site.journal()
        .iter()
        .rev()
        .find_map(|(from, event)| match &event.report {
            Report::VmStarted { pid, .. } if who == Who::Source && *from == who => Some(*pid),
            Report::SourceJoined { pid, .. } if who == Who::Standby && *from == who => Some(*pid),
            _ => None,
        })
}

/// Sends a signal to all processes of a victim.
pub(super) fn signal(site: &mut Site, victim: Victim, signal: Signal) {
    if let Some(pid) = victim.qemu().and_then(|who| qemu(site, who)) {
        signal_pid(pid, signal);
    }
    for &who in victim.parts() {
        if let Some(part) = site.part(who) {
            part.signal(signal);
        }
    }
}

/// Kills all processes of a victim and waits for their ends.
pub(super) fn kill(site: &mut Site, victim: Victim) {
    signal(site, victim, Signal::KILL);
    for &who in victim.parts() {
        if let Some(part) = site.part(who) {
            part.kill();
        }
    }
}

/// The same, as with its machine: what a gateway held in memory is gone.
fn lose(site: &mut Site, victim: Victim) -> anyhow::Result<()> {
    kill(site, victim);
    if victim.parts().contains(&Who::Gateway) {
        site.forget_held()?;
    }
    Ok(())
}

fn victim_of(host: Host) -> Victim {
    match host {
        Host::Source => Victim::SourceHost,
        Host::Standby => Victim::StandbyHost,
        Host::Storage => Victim::Gateway,
    }
}

/// Does it.
pub(super) fn inject(site: &mut Site, fault: Fault, clock_file: &Path) -> anyhow::Result<()> {
    match fault {
        Fault::Kill(victim) => lose(site, victim)?,
        Fault::Restart => kill(site, Victim::Gateway),
        Fault::Freeze(victim) => signal(site, victim, Signal::STOP),
        Fault::PowerOff(host) => {
            cut(site, Cut::Isolate(host))?;
            lose(site, victim_of(host))?;
        }
        Fault::Cut(way) | Fault::CutForGood(way) => cut(site, way)?,
        Fault::Storage(_) => site.small_disk().context("a small disk")?.fill()?,
        Fault::Clock(_, to) => {
            let seconds = match to {
                Step::Forward => HOUR,
                Step::Back => -HOUR,
            };
            clock::step(clock_file, seconds)?;
        }
        Fault::Wake => signal(site, Victim::SourceHost, Signal::CONT),
    }
    Ok(())
}

fn cut(site: &Site, way: Cut) -> anyhow::Result<()> {
    let network = site.network().context("a network")?;
    match way {
        Cut::OneWay(from, to) => network.cut(from, to),
        Cut::Link(a, b) => {
            network.cut(a, b)?;
            network.cut(b, a)
        }
        Cut::Isolate(host) => {
            for other in Host::ALL.into_iter().filter(|other| *other != host) {
                network.cut(host, other)?;
                network.cut(other, host)?;
            }
            Ok(())
        }
    }
}

/// Whether it lasts until it is undone.
pub(super) fn lasts(fault: Fault) -> bool {
    !matches!(
        fault,
        Fault::Kill(_) | Fault::Restart | Fault::Clock(..) | Fault::Wake
    )
}

/// Undoes it, or starts again what should always run. Returns whether a new standby was started.
pub(super) fn undo(site: &mut Site, fault: Fault) -> anyhow::Result<bool> {
    match fault {
        Fault::Kill(victim) => return start_again(site, victim),
        Fault::Restart => return start_again(site, Victim::Gateway),
        Fault::Freeze(victim) => signal(site, victim, Signal::CONT),
        Fault::PowerOff(host) => {
            site.network().context("a network")?.heal()?;
            return start_again(site, victim_of(host));
        }
        Fault::Cut(_) | Fault::CutForGood(_) => site.network().context("a network")?.heal()?,
        Fault::Storage(_) => site.small_disk().context("a small disk")?.free()?,
        // A clock that was set stays as it is.
        Fault::Clock(..) | Fault::Wake => {}
    }
    Ok(false)
}

fn start_again(site: &mut Site, victim: Victim) -> anyhow::Result<bool> {
    let mut standby = false;
    for &who in victim.parts() {
        match who {
            Who::Gateway => site.start_gateway()?,
            Who::Standby => {
                site.launch_standby()?;
                standby = true;
            }
            Who::Source => {}
        }
    }
    Ok(standby)
}
