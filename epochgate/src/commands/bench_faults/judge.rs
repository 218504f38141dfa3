//! The judgement of a run: the witness says whether disks and memory belong together, the gateway and the processes who has the
//! guest, the log what is committed.

use std::time::Duration;

use anyhow::Context;
use coordinator::report::{Report, now_us};
use nbd_server::control::api::{AttachmentKind, GroupStatus};
use nbd_server::control::client::Client;

use super::busy::{TooBusy, suspected_since};
use super::cells::{Cell, Ending, Fault, Phase, Victim};
use super::inject;
use super::run::{Outcome, until};
use crate::lab::layout::Small;
use crate::lab::process::is_alive;
use crate::lab::site::VM;
use crate::lab::witness::Verdict;
use crate::lab::{Site, Who};

/// Judges a run that has ended so. `before` is the witness's word before the fault.
pub(super) fn judge(
    site: &mut Site,
    cell: &Cell,
    ending: Ending,
    before: &Verdict,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome {
        ending: format!("{ending:?}"),
        ..Outcome::default()
    };
    if !cell.endings().contains(&ending) {
        outcome.problems.push(format!(
            "ended as {ending:?}, allowed: {:?}",
            cell.endings()
        ));
    }
    match ending {
        Ending::Source => at(site, Who::Source, before, &mut outcome)?,
        Ending::Standby => at(site, Who::Standby, before, &mut outcome)?,
        Ending::Down => {}
    }
    owners(site, ending, &mut outcome)?;
    zombies(site, cell, ending, &mut outcome)?;
    epochs(site, ending, &mut outcome)?;
    if !felt(site, cell.fault) {
        ask_for_a_last_word(site, cell.fault)?;
    }
    if !felt(site, cell.fault) {
        outcome
            .problems
            .push("nobody felt the fault: the run says nothing".to_owned());
    }
    if ending == Ending::Down {
        cold_start(site, &mut outcome)?;
    }
    Ok(outcome)
}

/// The witness has gone over all blocks twice since now: the sweep that was under way does not count.
fn at(site: &mut Site, who: Who, before: &Verdict, outcome: &mut Outcome) -> anyhow::Result<()> {
    let mut first = None;
    let mut last = None;
    let well = now_us();
    let what = format!("the witness at the {who:?} to go over all blocks");
    until(site, &what, |site| {
        if suspected_since(site, well) {
            return true;
        }
        let Some(now) = site.serial(who).latest() else {
            return false;
        };
        let from = *first.get_or_insert(now.pass);
        let done = now.pass >= from + 2 || now.run != before.run;
        last = Some(now);
        done
    })?;
    if suspected_since(site, well) {
        return Err(TooBusy.into());
    }
    let verdict = last.context("a verdict")?;
    outcome.checked = verdict.checked.saturating_sub(before.checked);
    outcome.mismatches = verdict.mismatches;
    if verdict.run != before.run {
        outcome
            .problems
            .push("the guest was started anew".to_owned());
    }
    if !verdict.good() {
        outcome
            .problems
            .push(format!("the witness says {verdict:?}"));
    }
    let complaints = site.serial(who).complaints();
    if !complaints.is_empty() {
        outcome
            .problems
            .push(format!("the witness complains: {}", complaints.join("; ")));
    }
    Ok(())
}

fn group(site: &Site) -> anyhow::Result<GroupStatus> {
    let control = site.paths().control();
    crate::runtime::tokio()?.block_on(async {
        let client = Client::connect(&control).await?;
        Ok(client.group(VM).await?)
    })
}

/// Whether the fault was one, where that can be seen.
pub(super) fn felt(site: &Site, fault: Fault) -> bool {
    let said = |text: &str| site.log_text(Who::Gateway).contains(text);
    match fault {
        Fault::Storage(Small::LogFull) => said("no space left"),
        Fault::Storage(Small::ImagesFull) => said("No space left"),
        // Mostly EIO at the flush; ENOSPC comes through where the device is asked for zeros.
        Fault::Storage(Small::ImagesFail) => said("Input/output error") || said("No space left"),
        Fault::Clock(Who::Source | Who::Standby, _) => site.astray_us() > 1_000_000_000,
        _ => true,
    }
}

/// A standby whose clock was stepped when it had resumed the guest has nothing more to report, and so nothing to stamp: what it says
/// when it is stopped shows its clock.
fn ask_for_a_last_word(site: &mut Site, fault: Fault) -> anyhow::Result<()> {
    if let Fault::Clock(who, _) = fault
        && let Some(part) = site.part(who)
    {
        part.stop();
        while site.next_event(Duration::ZERO)?.is_some() {}
    }
    Ok(())
}

/// One owner, and it is the one that goes on.
fn owners(site: &mut Site, ending: Ending, outcome: &mut Outcome) -> anyhow::Result<()> {
    let group = group(site)?;
    let owner = group.owner.clone().unwrap_or_default();
    let expected = match ending {
        Ending::Source => Some("host-a:"),
        Ending::Standby => Some("host-b:"),
        Ending::Down => None,
    };
    if let Some(expected) = expected
        && !owner.starts_with(expected)
    {
        outcome.double_owner = true;
        outcome
            .problems
            .push(format!("the gateway says that {owner} has the disks"));
    }
    let active: Vec<&str> = group
        .attachments
        .iter()
        .filter(|a| a.kind == AttachmentKind::Source && a.connections > 0)
        .map(|a| a.name.as_str())
        .collect();
    if active.len() > 1 {
        outcome.double_owner = true;
        outcome
            .problems
            .push(format!("several sources have the disks open: {active:?}"));
    }
    let resumed = site
        .journal()
        .iter()
        .any(|(_, event)| matches!(event.report, Report::Resumed { .. }));
    if ending == Ending::Source && resumed {
        outcome.double_owner = true;
        outcome.problems.push("the standby went on, too".to_owned());
    }
    Ok(())
}

/// A source that was replaced is gone, its guest too, and if it lived to see it, it says that it was fenced.
fn zombies(
    site: &mut Site,
    cell: &Cell,
    ending: Ending,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    if ending == Ending::Source {
        return Ok(());
    }
    if let Some(pid) = inject::qemu(site, Who::Source) {
        let gone = until(site, "the old QEMU to be gone", |_| !is_alive(pid));
        if let Err(error) = gone {
            outcome.double_owner = true;
            outcome.problems.push(format!("{error:#}"));
        }
    }
    let fenced = site
        .journal()
        .iter()
        .any(|(who, event)| *who == Who::Source && matches!(event.report, Report::Fenced { .. }));
    let wakes = matches!(
        cell.fault,
        Fault::Freeze(Victim::SourceCoordinator | Victim::SourceHost) | Fault::Cut(_) | Fault::Wake
    );
    let dead = cell.phase == Phase::TakingOver;
    if ending == Ending::Standby && wakes && !dead && !fenced {
        outcome
            .problems
            .push("the source that woke does not say that it was fenced".to_owned());
    }
    Ok(())
}

/// Nothing that was reported as committed is gone, and the log is whole.
fn epochs(site: &mut Site, ending: Ending, outcome: &mut Outcome) -> anyhow::Result<()> {
    let mut resumed = None;
    for (_, event) in site.journal() {
        match event.report {
            Report::Committed { epoch, .. } => outcome.committed = outcome.committed.max(epoch.0),
            Report::Resumed { epoch, .. } => resumed = Some(epoch.0),
            _ => {}
        }
    }
    let log = match site.small_disk() {
        Some(small) if site.paths().small == Some(Small::LogFull) => {
            small.inside(&format!("{VM}.epochlog"))
        }
        _ => site.paths().log(),
    };
    let report = epoch_log::inspect::inspect(&log)?;
    let damages = epoch_log::inspect::verify(&log)?.damages;
    if !damages.is_empty() {
        outcome
            .problems
            .push(format!("the log is damaged: {damages:?}"));
    }
    outcome.epoch = match (ending, resumed) {
        (Ending::Standby, Some(epoch)) => epoch,
        _ => report.state.committed.0,
    };
    if outcome.epoch < outcome.committed {
        outcome.lost = true;
        outcome.problems.push(format!(
            "epoch {} was reported as committed, it goes on from {}",
            outcome.committed, outcome.epoch
        ));
    }
    Ok(())
}

/// The VM can be started from its disks.
fn cold_start(site: &mut Site, outcome: &mut Outcome) -> anyhow::Result<()> {
    let so_far = site.journal().len();
    site.start_cold()?;
    let started = until(site, "the VM to be started from its disks", |site| {
        site.journal()[so_far..]
            .iter()
            .any(|(_, event)| matches!(event.report, Report::VmStarted { .. }))
    });
    if let Err(error) = started {
        outcome.problems.push(format!("{error:#}"));
    }
    Ok(())
}
