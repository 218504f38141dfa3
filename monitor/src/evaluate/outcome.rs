//! What came out of one fold: windows, verdicts, delays.

use std::collections::BTreeMap;

use crate::features;
use crate::judge::{Health, Judge, LASTING, Opinion, Rule};
use crate::learn::metrics::Counts;
use crate::learn::{Label, Run};

/// One fold, judged by one rival.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// What was left out.
    pub fold: String,
    /// Of windows.
    pub counts: Counts,
    /// Of windows: score, and whether it is faulty.
    pub scored: Vec<(f32, bool)>,
    /// Verdicts while there was no fault.
    pub false_alarms: u64,
    /// Of those, the ones that last long enough for something to be done to a VM.
    pub false_actions: u64,
    /// Time without a fault in which windows were judged.
    pub normal_ms: u64,
    /// For each fault with its kind, the seconds until the verdict; None: it was not found.
    pub delays: Vec<(String, Option<f64>)>,
    /// Faults whose verdict lasts so long.
    pub acted_on: usize,
    /// Windows by (true kind, said kind).
    pub kinds: BTreeMap<(String, String), u64>,
    /// Each recording.
    pub lines: Vec<TimeLine>,
}

/// One recording, judged.
#[derive(Debug, Clone)]
pub struct TimeLine {
    /// Its name.
    pub name: String,
    /// Its load.
    pub load: String,
    /// Its kind of fault.
    pub fault: Option<String>,
    /// How much CPU the guest wants on average, in the unit of that feature: to tell busy guests from idle ones.
    pub demand: f32,
    /// Seconds from the fault to the verdict; None: there was no fault, or it was not found.
    pub found: Option<f64>,
    /// Seconds, score, whether there is a verdict.
    pub points: Vec<(f64, f32, bool)>,
    /// When its fault began, in seconds.
    pub fault_at: Option<f64>,
    /// From this score on windows count for a verdict.
    pub alarm: f32,
}

#[allow(clippy::cast_precision_loss, reason = "times in a recording")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

/// The mean of what is measured of CPU; 0 of no window.
#[allow(clippy::cast_precision_loss, reason = "windows of a recording")]
fn demand(run: &Run) -> f32 {
    let Some(column) = features::named("cpu.demand.level") else {
        return 0.0;
    };
    let values = run.rows.iter().filter_map(|row| row.values.get(column));
    values.sum::<f32>() / run.rows.len().max(1) as f32
}

/// A score alone, as a judge hears it.
fn opinion(at_ms: u64, score: f32, alarm: f32, threshold: f32) -> Opinion {
    Opinion {
        from_ms: at_ms.saturating_sub(features::WINDOW_MS),
        to_ms: at_ms,
        score: score.into(),
        threshold: alarm.into(),
        still_faulty: threshold.into(),
        strange: false,
        confidence: 1.0,
        kind: None,
        reasons: Vec::new(),
    }
}

impl Outcome {
    pub(super) fn new(fold: &str) -> Self {
        Self {
            fold: fold.to_owned(),
            ..Self::default()
        }
    }

    /// Counts one recording.
    pub(super) fn judge(
        &mut self,
        run: &Run,
        scored: &[(f32, Label)],
        threshold: f32,
        alarm: f32,
        k: u32,
        n: u32,
    ) {
        let mut judge = Judge::new(Rule::k_of_n(k, n));
        let (mut was_ill, mut found) = (false, None);
        // Since when it is ill, and whether something would have been done about it.
        let (mut ill_since_ms, mut acts, mut acted_on) = (None, false, false);
        let mut points = Vec::with_capacity(scored.len());
        let mut last_ms = None;
        for (row, (score, label)) in run.rows.iter().zip(scored) {
            judge.hear(opinion(row.at_ms, *score, alarm, threshold));
            let is_ill = judge.health() == Health::Faulty;
            let since_fault = run.fault_at_ms.and_then(|at| row.at_ms.checked_sub(at));
            if is_ill && !was_ill {
                match (*label, since_fault) {
                    (Label::Normal, _) => self.false_alarms += 1,
                    (_, Some(delay)) if found.is_none() => found = Some(seconds(delay)),
                    _ => {}
                }
            }
            was_ill = is_ill;
            if !is_ill {
                (ill_since_ms, acts) = (None, false);
            } else {
                let since = *ill_since_ms.get_or_insert(row.at_ms);
                if !acts && row.at_ms.saturating_sub(since) >= LASTING.0 {
                    acts = true;
                    match *label {
                        Label::Normal => self.false_actions += 1,
                        _ => acted_on |= since_fault.is_some(),
                    }
                }
            }
            points.push((seconds(row.at_ms), *score, is_ill));
            if *label != Label::Between {
                let faulty = *label == Label::Faulty;
                self.counts.add(faulty, *score >= threshold);
                self.scored.push((*score, faulty));
            }
            if *label == Label::Normal {
                // A gap in a recording is not watched time.
                let step = last_ms.map_or(0, |last| row.at_ms.saturating_sub(last));
                self.normal_ms += step.min(u64::from(run.interval_ms) * 3);
            }
            last_ms = Some(row.at_ms);
        }
        if let Some(kind) = &run.fault {
            self.delays.push((kind.clone(), found));
            self.acted_on += usize::from(acted_on);
        }
        self.lines.push(TimeLine {
            name: run.name.clone(),
            load: run.load.clone(),
            fault: run.fault.clone(),
            demand: demand(run),
            found,
            points,
            fault_at: run.fault_at_ms.map(seconds),
            alarm,
        });
    }
}
