//! The history of one VM's channels: the newest values as they are, older ones once a second, and figures of both.

use std::collections::VecDeque;

use super::channels::CHANNELS;

/// Lengths in milliseconds.
const QUICK: u64 = 5_000;
pub(super) const WINDOW: u64 = 15_000;
pub(super) const RECENT: u64 = 20_000;
const PAST: u64 = 320_000;
/// Between two values of the past.
const PAST_STEP: u64 = 1_000;
/// The past changes slowly: its figures are made anew this often.
const REFRESH: u64 = 5_000;
/// So much past is needed.
const ENOUGH: u64 = 20_000;
/// Events count for so long.
const EVENTS: u64 = 30_000;

/// Below this a standard deviation is nothing.
const STILL: f32 = 0.02;

/// What a channel looked like in its last minutes.
#[derive(Debug, Clone, Copy, Default)]
struct Usual {
    median: f32,
    spread: f32,
}

#[derive(Debug, Clone)]
struct Row {
    at_ms: u64,
    values: Vec<Option<f32>>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Oldest first, at most [`EVENTS`] long.
    recent: VecDeque<Row>,
    /// Oldest first, in the time of [`History::clock`]; nothing of the last [`RECENT`] is used of it.
    past: VecDeque<Row>,
    usual: Vec<Option<Usual>>,
    usual_at: Option<u64>,
    /// The past is not added to, and does not grow old.
    hold: bool,
    /// For so long it was held, in milliseconds.
    held: u64,
    last_ms: Option<u64>,
}

impl History {
    /// From now on the past stays as it is, or is added to again.
    pub(super) fn hold(&mut self, hold: bool) {
        self.hold = hold;
    }

    /// Time of the past: it stands still while that is held.
    fn clock(&self, at_ms: u64) -> u64 {
        at_ms.saturating_sub(self.held)
    }

    pub(super) fn push(&mut self, at_ms: u64, values: Vec<Option<f32>>) {
        let last_ms = self.last_ms.replace(at_ms).unwrap_or(at_ms);
        if self.hold {
            self.held += at_ms.saturating_sub(last_ms);
        }
        let clock = self.clock(at_ms);
        let due = |last: &Row| clock.saturating_sub(last.at_ms) >= PAST_STEP;
        if self.past.back().is_none_or(due) {
            let values = values.clone();
            self.past.push_back(Row {
                at_ms: clock,
                values,
            });
        }
        self.recent.push_back(Row { at_ms, values });
        let drop_older = |rows: &mut VecDeque<Row>, age: u64, now: u64| {
            while rows.front().is_some_and(|row| row.at_ms + age < now) {
                rows.pop_front();
            }
        };
        drop_older(&mut self.recent, EVENTS, at_ms);
        drop_older(&mut self.past, PAST, clock);
        if self.usual_at.is_none_or(|last| last + REFRESH <= clock) {
            self.refresh(clock);
        }
    }

    /// Whether there is enough past to compare with.
    pub(super) fn is_ready(&self, at_ms: u64) -> bool {
        self.past
            .front()
            .is_some_and(|row| row.at_ms + RECENT + ENOUGH <= self.clock(at_ms))
    }

    fn refresh(&mut self, clock: u64) {
        self.usual_at = Some(clock);
        let until = clock.saturating_sub(RECENT);
        let mut values = Vec::with_capacity(self.past.len());
        let rows = || self.past.iter().take_while(|row| row.at_ms < until);
        self.usual = (0..CHANNELS.len())
            .map(|channel| {
                values.clear();
                values.extend(rows().filter_map(|row| row.values[channel]));
                if values.is_empty() {
                    return None;
                }
                // Of pieces as long as the window, as a slow change is not what is meant.
                let length = usize::try_from(WINDOW / PAST_STEP).unwrap_or(usize::MAX);
                let mut spreads: Vec<f32> = values.chunks(length).map(deviation).collect();
                Some(Usual {
                    median: median(&mut values),
                    spread: median(&mut spreads),
                })
            })
            .collect();
    }

    /// The values of a channel that are younger than `from` and not younger than `to`.
    fn between(&self, channel: usize, now: u64, from: u64, to: u64) -> impl Iterator<Item = f32> {
        self.recent
            .iter()
            .rev()
            .map(move |row| (now.saturating_sub(row.at_ms), row))
            .skip_while(move |(age, _)| *age < to)
            .take_while(move |(age, _)| *age < from)
            .filter_map(move |(_, row)| row.values.get(channel).copied().flatten())
    }

    /// Figures of a channel; None if it has no value now.
    pub(super) fn figures(&self, channel: usize, now: u64) -> Option<Figures> {
        let level = mean(self.between(channel, now, QUICK, 0))?;
        let before = mean(self.between(channel, now, WINDOW, QUICK));
        let window: Vec<f32> = self.between(channel, now, WINDOW, 0).collect();
        let spread = deviation(&window);
        let usual = self.usual.get(channel).copied().flatten();
        Some(Figures {
            level,
            slope: before.map_or(0.0, |before| level - before),
            spread,
            change: usual.map_or(0.0, |usual| level - usual.median),
            calm: usual.map_or(0.0, |usual| {
                ((spread + STILL) / (usual.spread + STILL)).ln()
            }),
        })
    }

    /// How many events there were of late.
    pub(super) fn events(&self, channel: usize, now: u64) -> f32 {
        self.between(channel, now, EVENTS, 0)
            .sum::<f32>()
            .max(0.0)
            .ln_1p()
    }
}

/// Of one channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Figures {
    pub level: f32,
    pub change: f32,
    pub slope: f32,
    pub spread: f32,
    pub calm: f32,
}

#[allow(clippy::cast_precision_loss, reason = "some hundred values at most")]
fn mean(values: impl Iterator<Item = f32>) -> Option<f32> {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f32)
}

fn deviation(values: &[f32]) -> f32 {
    let Some(middle) = mean(values.iter().copied()) else {
        return 0.0;
    };
    mean(values.iter().map(|value| (value - middle).powi(2))).map_or(0.0, f32::sqrt)
}

/// Sorts them for it.
fn median(values: &mut [f32]) -> f32 {
    values.sort_unstable_by(f32::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
