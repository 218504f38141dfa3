//! One run of a cell: a site with a guest that has booted before, the fault, what becomes of it, and the judgement.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use coordinator::report::{Report, now_us};
use nbd_server::failpoint;
use rand::Rng;
use rand::rngs::StdRng;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::busy::{self, TooBusy};
use super::cells::{self, Cell, Ending, Fault, Phase, Victim};
use super::cost::Meter;
use super::{inject, judge};
use crate::cli::LabArgs;
use crate::lab::layout::Layout;
use crate::lab::process::is_alive;
use crate::lab::site::is_interruption;
use crate::lab::{Site, Who, clock};

/// Silence after which a peer is suspected. On a busy machine a process may well sleep for a second.
const SUSPICION_MS: u64 = 2000;
/// Silence of the gateway after which the source gives the VM up. Longer than a fault that passes.
const PATIENCE_MS: u64 = 6000;
/// What stays until it is answered, stays so long at most: a cut until the guest goes on elsewhere, storage that fails until
/// somebody has met that.
const FOR_GOOD_MS: u64 = 20_000;
/// A fault that nobody answers with a takeover or by going on without protection lasts this long at most.
const LONGEST_MS: u64 = 3000;
/// Whatever is waited for. A machine with ten times the work that it can do still comes so far.
pub(super) const STEP_LIMIT: Duration = Duration::from_secs(120);
/// An epoch that is committed so long after a fault is over shows that the source is well.
const WELL_US: u64 = 250_000;
/// Answers of before the fault that may still arrive when the network is well again: more than are ever in flight.
const LATE_COMMITS: usize = 4;
/// What the gateway passes for several epochs at once.
const APPLIER: [&str; 3] = [
    "gateway-during-apply",
    "gateway-after-apply",
    "gateway-after-mark-applied",
];
/// A standby that says nothing for so long has nothing to go on from.
const QUIET_US: u64 = 700_000;

/// The site of all cells. Small disks, of which the witness uses a small part, so that its sweeps are short; a small table in
/// memory, so that it soon verifies all of it; and a guest whose free memory is zero, so that there is less to copy.
pub(super) fn layout(saved: &Path) -> Layout {
    Layout {
        disk_bytes: 4 << 20,
        suspicion_ms: SUSPICION_MS,
        patience_ms: PATIENCE_MS,
        append: "witness.blocks=192 witness.mem_mib=1 witness.dirty=2 witness.report_ms=50 init_on_free=1"
            .to_owned(),
        saved: Some(saved.to_owned()),
        networked: false,
        small: None,
        nas: false,
    }
}

/// What a run came to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// Where the guest was in the end: `Standby`, `Source` or `Down`.
    pub ending: String,
    /// The last epoch that the source had reported as committed.
    pub committed: u64,
    /// The last committed epoch in the end, or the one that the standby went on from.
    pub epoch: u64,
    /// Blocks that the witness compared afterwards.
    pub checked: u64,
    /// Those that were not what memory says.
    pub mismatches: u64,
    /// Whether more than one had the guest.
    pub double_owner: bool,
    /// Whether an epoch that was reported as committed is gone.
    pub lost: bool,
    /// What else was not as it must be.
    pub problems: Vec<String>,
}

impl Outcome {
    pub(super) fn good(&self) -> bool {
        self.mismatches == 0 && !self.double_owner && !self.lost && self.problems.is_empty()
    }
}

/// What a run needs from its surroundings.
#[derive(Debug, Clone)]
pub(super) struct Ground<'a> {
    pub lab: &'a LabArgs,
    /// The guest that has booted.
    pub saved: &'a Path,
    /// A path that nobody else uses: the failpoint counts once it exists.
    pub go: &'a Path,
    pub keep: bool,
}

impl Ground<'_> {
    /// Where a clock that is stepped reads its offset.
    fn clock_file(&self) -> PathBuf {
        self.go.with_extension("clock")
    }
}

/// Runs `cell` once.
pub(super) fn run(
    ground: &Ground<'_>,
    cell: &Cell,
    rng: &mut StdRng,
    meter: &mut Meter,
) -> anyhow::Result<Outcome> {
    let _ = std::fs::remove_file(ground.go);
    let layout = Layout {
        networked: cell.networked(),
        small: cell.small(),
        ..layout(ground.saved)
    };
    let mut env = failpoint_of(cell, ground.go, rng);
    if let Fault::Clock(who, _) = cell.fault {
        let library = clock::library().map_err(|why| anyhow::anyhow!(why))?;
        clock::step(&ground.clock_file(), 0)?;
        env.extend(clock::environment(who, &library, &ground.clock_file()));
    }
    let mut site = Site::with(ground.lab, &layout, env)?;
    meter.ends("site", &mut site);
    let result = play(&mut site, ground, cell, rng, meter);
    let _ = std::fs::remove_file(ground.go);
    // Whoever still sleeps must hear of the end.
    inject::signal(&mut site, Victim::SourceHost, Signal::CONT);
    inject::signal(&mut site, Victim::StandbyAndGateway, Signal::CONT);
    let bad = match &result {
        Ok(outcome) => !outcome.good(),
        Err(error) => !is_interruption(error) && !error.is::<TooBusy>(),
    };
    if ground.keep
        && bad
        && let Some(kept) = site.keep()
    {
        eprintln!("epochgate: {}: kept {}", cell.name(), kept.display());
    }
    site.kill_all();
    drop(site);
    if matches!(cell.fault, Fault::Clock(..)) {
        clock::clean();
    }
    meter.over("tear-down");
    result
}

/// The environment that stops a part at the cell's failpoint.
fn failpoint_of(cell: &Cell, go: &Path, rng: &mut StdRng) -> Vec<(Who, String, String)> {
    let cells::Instant::At(who, point) = cell.instant else {
        return Vec::new();
    };
    let hit = match cell.phase {
        // Several epochs are applied together.
        Phase::Running if APPLIER.contains(&point) => rng.random_range(1..4),
        Phase::Running => rng.random_range(1..9),
        Phase::FirstCopy => rng.random_range(1..6),
        Phase::TakingOver | Phase::TakingOverFromSleeper => 1,
    };
    vec![
        (
            who,
            failpoint::VARIABLE.to_owned(),
            format!("{point}:{hit}:stop"),
        ),
        (who, failpoint::WHEN.to_owned(), go.display().to_string()),
    ]
}

fn play(
    site: &mut Site,
    ground: &Ground<'_>,
    cell: &Cell,
    rng: &mut StdRng,
    meter: &mut Meter,
) -> anyhow::Result<Outcome> {
    let there = come_to_the_instant(site, ground, cell, rng, meter);
    drain(site)?;
    if !busy::begins_silent(cell) && busy::suspected_since(site, 0) {
        return Err(TooBusy.into());
    }
    there?;
    // From when on nothing keeps anybody silent.
    let mut well = if busy::silences(cell) { u64::MAX } else { 0 };
    let outcome = suffer(site, ground, cell, rng, meter, &mut well);
    let bad = outcome.as_ref().map_or(true, |outcome| !outcome.good());
    if bad && busy::suspected_since(site, well) {
        return Err(TooBusy.into());
    }
    outcome
}

/// The fault, what becomes of it, and the judgement.
fn suffer(
    site: &mut Site,
    ground: &Ground<'_>,
    cell: &Cell,
    rng: &mut StdRng,
    meter: &mut Meter,
    well: &mut u64,
) -> anyhow::Result<Outcome> {
    let before = site
        .serial(Who::Source)
        .latest()
        .context("the witness spoke before")?;
    let at = now_us();
    inject::inject(site, cell.fault, &ground.clock_file())?;
    if let cells::Instant::At(who, _) = cell.instant
        && !sleeps(cell.fault, who)
    {
        inject::go_on(site, who);
    }
    let mut since = 0;
    hold(site, cell.fault, at, rng)?;
    drain(site)?;
    let so_far = site.journal().len();
    if inject::undo(site, cell.fault)? {
        // Only what the new standby says counts.
        since = so_far;
    }
    let over = now_us();
    meter.ends("fault", site);
    let ending = settle(site, since, over)?;
    meter.ends("settle", site);
    *well = now_us().min(*well);
    let judged = judge::judge(site, cell, ending, &before);
    meter.ends("judge", site);
    judged
}

/// Starts the guest, and the standby that is to protect it.
fn start(site: &mut Site, ground: &Ground<'_>, cell: &Cell) -> anyhow::Result<()> {
    let goes_on = |site: &mut Site| site.serial(Who::Source).latest().is_some();
    let what = "the guest to go on at its source";
    if cell.phase == Phase::FirstCopy {
        // The fault comes within the copy: the guest must be there before.
        site.start_source(&[])?;
        until(site, what, goes_on)?;
        std::fs::write(ground.go, "")?;
        return site.start_standby();
    }
    // The other way round the source would find nobody, and try again after a while.
    site.launch_standby()?;
    site.start_source(&[])?;
    until(site, "the VM to be protected", |site| {
        site.journal()
            .iter()
            .filter(|(_, event)| matches!(event.report, Report::Committed { .. }))
            .count()
            > 3
    })?;
    until(site, what, goes_on)
}

fn come_to_the_instant(
    site: &mut Site,
    ground: &Ground<'_>,
    cell: &Cell,
    rng: &mut StdRng,
    meter: &mut Meter,
) -> anyhow::Result<()> {
    start(site, ground, cell)?;
    meter.ends("start", site);
    let within_an_epoch = matches!(cell.instant, cells::Instant::At(..));
    // A failpoint of an epoch comes after a random number of them anyway.
    if !(within_an_epoch && matches!(cell.phase, Phase::Running | Phase::FirstCopy)) {
        wait(site, rng.random_range(0..200))?;
    }
    if cell.phase != Phase::FirstCopy {
        std::fs::write(ground.go, "")?;
    }
    match cell.phase {
        Phase::TakingOver => inject::kill(site, Victim::SourceHost),
        Phase::TakingOverFromSleeper => inject::signal(site, Victim::SourceHost, Signal::STOP),
        Phase::Running | Phase::FirstCopy => {}
    }
    if let cells::Instant::At(who, point) = cell.instant {
        inject::until_stopped(site, who, point)?;
    }
    meter.ends("instant", site);
    Ok(())
}

/// Whether the fault keeps this part from going on.
fn sleeps(fault: Fault, who: Who) -> bool {
    match fault {
        Fault::Freeze(victim) | Fault::Kill(victim) => victim.parts().contains(&who),
        Fault::Restart => who == Who::Gateway,
        _ => false,
    }
}

/// Lets a fault last until somebody has answered it, or for a while; a killed part stays away for a moment.
fn hold(site: &mut Site, fault: Fault, at: u64, rng: &mut StdRng) -> anyhow::Result<()> {
    if !inject::lasts(fault) {
        return wait(site, rng.random_range(0..200));
    }
    let longest = match fault {
        Fault::CutForGood(_) | Fault::Storage(_) => FOR_GOOD_MS,
        _ => rng.random_range(SUSPICION_MS + 300..=LONGEST_MS),
    };
    let longest = Instant::now() + Duration::from_millis(longest);
    while Instant::now() < longest {
        site.next_event(Duration::from_millis(5))?;
        if let Fault::Storage(_) = fault {
            // Whatever the guest gives back meanwhile is taken, too.
            site.small_disk().context("a small disk")?.fill()?;
            if judge::felt(site, fault) {
                break;
            }
        }
        let answered = site.journal().iter().any(|(_, event)| {
            event.t_us > at
                && matches!(
                    event.report,
                    Report::Resumed { .. } | Report::Discarded { .. } | Report::Unprotected { .. }
                )
        });
        if answered {
            break;
        }
    }
    wait(site, rng.random_range(0..400))
}

/// Waits until it is clear where the guest goes on. `since` is where the events of the present standby begin, `over` when the
/// fault was over.
fn settle(site: &mut Site, since: usize, over: u64) -> anyhow::Result<Ending> {
    let deadline = Instant::now() + STEP_LIMIT;
    loop {
        if let Some(ending) = ending(site, since, over) {
            return Ok(ending);
        }
        site.next_event(Duration::from_millis(10))?;
        if Instant::now() > deadline {
            let tails = [Who::Source, Who::Standby, Who::Gateway]
                .map(|who| format!("{who:?}:\n{}", site.log_tail(who)));
            bail!(
                "nobody went on within {} s after the fault\n{}",
                STEP_LIMIT.as_secs(),
                tails.join("\n")
            );
        }
    }
}

fn ending(site: &mut Site, since: usize, over: u64) -> Option<Ending> {
    let source_gone = site.ended(Who::Source);
    // It ends soon after its QEMU does.
    let standby_gone = site.ended(Who::Standby)
        || inject::qemu(site, Who::Standby).is_some_and(|pid| !is_alive(pid));
    let journal = site.journal();
    let standby = || {
        journal[since.min(journal.len())..]
            .iter()
            .filter(|(who, _)| *who == Who::Standby)
    };
    let resumed = standby().any(|(_, event)| matches!(event.report, Report::Resumed { .. }));
    let quiet = |t_us: u64| now_us().saturating_sub(t_us.max(over)) > QUIET_US;
    if resumed && !standby_gone {
        return source_gone.then_some(Ending::Standby);
    }
    if source_gone {
        let idle = match standby().next_back() {
            None => standby_gone && quiet(over),
            Some((_, event)) => {
                quiet(event.t_us)
                    && (standby_gone
                        || matches!(
                            event.report,
                            Report::Listening { .. } | Report::Discarded { .. }
                        ))
            }
        };
        return idle.then_some(Ending::Down);
    }
    let protected = journal
        .iter()
        .rev()
        .find_map(|(_, event)| match event.report {
            Report::Protected { .. } => Some(true),
            Report::StandbyLost { .. } | Report::Unprotected { .. } | Report::Fenced { .. } => {
                Some(false)
            }
            _ => None,
        });
    let committed = journal.iter().rev().filter(|(_, event)| {
        matches!(event.report, Report::Committed { .. }) && event.t_us > over + WELL_US
    });
    let well = committed.count() > LATE_COMMITS;
    (protected == Some(true) && well).then_some(Ending::Source)
}

/// Takes all events that are there.
fn drain(site: &mut Site) -> anyhow::Result<()> {
    while site.next_event(Duration::ZERO)?.is_some() {}
    Ok(())
}

fn wait(site: &mut Site, ms: u64) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_millis(ms);
    while Instant::now() < end {
        site.next_event(Duration::from_millis(1))?;
    }
    Ok(())
}

/// Waits for a condition.
pub(super) fn until(
    site: &mut Site,
    what: &str,
    mut there: impl FnMut(&mut Site) -> bool,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + STEP_LIMIT;
    while !there(site) {
        site.next_event(Duration::from_millis(5))?;
        if Instant::now() > deadline {
            bail!(
                "waited {} s in vain for {what}; source:\n{}\nstandby:\n{}\ngateway:\n{}",
                STEP_LIMIT.as_secs(),
                site.log_tail(Who::Source),
                site.log_tail(Who::Standby),
                site.log_tail(Who::Gateway)
            );
        }
    }
    Ok(())
}
