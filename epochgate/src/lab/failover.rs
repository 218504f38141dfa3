//! One failover from beginning to end: protect, kill, watch the standby take over, let the witness judge.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use coordinator::report::{Report, Stamped};
use serde::Serialize;

use super::witness::Verdict;
use super::{Site, Who};

/// A guest boots in seconds even without KVM; a minute means that something is wrong.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
const STEP_LIMIT: Duration = Duration::from_secs(60);

/// What one failover came to.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    /// The last epoch that the source had reported as committed.
    pub committed: u64,
    /// The epoch from which the guest goes on.
    pub resumed_epoch: u64,
    /// How the standby noticed.
    pub noticed_by: String,
    /// From the kill to the standby's suspicion, in microseconds. None where the source killed itself at a failpoint:
    /// the instant is not known from outside.
    pub detect_us: Option<u64>,
    /// From the suspicion to the guest running, in microseconds.
    pub resume_us: u64,
    /// Its parts: takeover at the gateway, merge, device state and resume.
    pub parts_us: [u64; 3],
    /// From the kill to the guest running, in microseconds.
    pub failover_us: Option<u64>,
    /// Blocks that the witness compared after the failover.
    pub blocks_checked: u64,
    /// Blocks that were not what the guest's memory says.
    pub mismatches: u64,
    /// The witness went on, its table in memory is good, and it saw no I/O error.
    pub witness_good: bool,
    /// What the witness complained about.
    pub complaints: Vec<String>,
}

impl Outcome {
    /// Nothing was lost.
    pub(crate) fn good(&self) -> bool {
        self.mismatches == 0 && self.witness_good && self.resumed_epoch >= self.committed
    }
}

/// Waits until the guest's witness works and the VM is protected. Returns the witness's last word.
pub(crate) fn until_protected(
    site: &mut Site,
    mut progress: impl FnMut(&Report),
) -> anyhow::Result<()> {
    site.wait_for(BOOT_LIMIT, "the VM to be protected", |who, report| {
        if who == Who::Source {
            progress(report);
        }
        matches!(report, Report::Protected { .. })
    })?;
    Ok(())
}

/// Waits until the witness has written at least `writes` blocks: a guest that has done nothing proves nothing.
pub(crate) fn until_witness_works(site: &mut Site, writes: u64) -> anyhow::Result<Verdict> {
    let deadline = Instant::now() + BOOT_LIMIT;
    loop {
        site.next_event(Duration::from_millis(20))?;
        if let Some(verdict) = site.serial(Who::Source).latest()
            && verdict.writes >= writes
        {
            site.measure_from_now();
            ensure!(
                verdict.good(),
                "the witness is not content before anything was killed: {verdict:?}"
            );
            return Ok(verdict);
        }
        if site.ended(Who::Source) {
            bail!("the source ended early:\n{}", site.log_tail(Who::Source));
        }
        if Instant::now() > deadline {
            bail!(
                "the guest's witness does not work; its serial line says:\n{}",
                site.serial(Who::Source).text()
            );
        }
    }
}

/// After the source was killed at `killed_at` (or killed itself): waits for the guest to go on and for the witness's
/// verdict over a whole sweep that began afterwards.
pub(crate) fn judge(
    site: &mut Site,
    before: &Verdict,
    killed_at: Option<u64>,
    mut progress: impl FnMut(&Stamped),
) -> anyhow::Result<Outcome> {
    let resumed = conclusion(site)?;
    progress(&resumed);
    let Report::Resumed {
        epoch,
        takeover_us,
        merge_us,
        resume_us,
    } = &resumed.report
    else {
        bail!(
            "the standby did not continue the guest: {:?}",
            resumed.report
        );
    };
    let parts_us = [*takeover_us, *merge_us, *resume_us];
    let resume_total: u64 = parts_us.iter().sum();
    let suspected_at = resumed.t_us.saturating_sub(resume_total);
    let verdict = after_a_whole_sweep(site, before)?;
    let complaints = site.serial(Who::Standby).complaints();
    Ok(Outcome {
        committed: site.seen().committed,
        resumed_epoch: epoch.0,
        noticed_by: site.seen().noticed_by.clone(),
        detect_us: killed_at.map(|at| suspected_at.saturating_sub(at)),
        resume_us: resume_total,
        parts_us,
        failover_us: killed_at.map(|at| resumed.t_us.saturating_sub(at)),
        blocks_checked: verdict.checked.saturating_sub(before.checked),
        mismatches: verdict.mismatches,
        witness_good: verdict.good() && verdict.run == before.run && complaints.is_empty(),
        complaints,
    })
}

/// Waits until the standby resumed the guest or gave up. It may have done so before anyone asked.
fn conclusion(site: &mut Site) -> anyhow::Result<Stamped> {
    let deadline = Instant::now() + STEP_LIMIT;
    loop {
        if let Some(event) = &site.seen().conclusion {
            return Ok(event.clone());
        }
        site.next_event(Duration::from_millis(20))?;
        if site.ended(Who::Standby) || Instant::now() > deadline {
            bail!(
                "the standby did not continue the guest:\n{}",
                site.log_tail(Who::Standby)
            );
        }
    }
}

/// The witness's word after a sweep over all blocks that began after the failover.
fn after_a_whole_sweep(site: &mut Site, before: &Verdict) -> anyhow::Result<Verdict> {
    let deadline = Instant::now() + STEP_LIMIT;
    let mut first: Option<Verdict> = None;
    loop {
        site.next_event(Duration::from_millis(20))?;
        if let Some(now) = site.serial(Who::Standby).latest() {
            let first = first.get_or_insert_with(|| now.clone());
            // The sweep that was under way does not count; the next one does. A witness that was restarted has
            // another run, and is reported as it is.
            if now.pass >= first.pass + 2 || now.run != before.run {
                return Ok(now);
            }
        }
        if Instant::now() > deadline {
            bail!(
                "the witness said nothing conclusive after the failover; serial line:\n{}\nstandby:\n{}",
                site.serial(Who::Standby).text(),
                site.log_tail(Who::Standby)
            );
        }
    }
}
