//! From the opinions on single windows to verdicts on a VM: k of n windows must agree, both ways. Plain values in, plain values out; knows
//! neither models nor what is done about a verdict.
//!
//! ```text
//!   opinion on each window ──▶ the last n of them ──▶ k are against it: faulty, or strange     ─▶ verdict, when it changes
//!                                                 └─▶ k are for it:     healthy
//!
//!   no window against it for the *margin*  ─▶  *sound* until the margin before now  ─▶  the time to go back to
//! ```
//!
//! A window is against a VM from the alarm threshold on; against one that is faulty already from a lower one on, so that a fault whose score goes
//! up and down is one fault and not many.
//!
//! A fault is there before it shows: while it begins the windows still look well. So the time to go back to lies before the last window
//! that speaks for the VM, by the margin.

use std::collections::VecDeque;

use nbd_server::group::history::TimeSpan;
use serde::{Deserialize, Serialize};

/// So long a verdict stands before it is worth doing something to a VM, unless somebody wants it otherwise.
pub const LASTING: TimeSpan = TimeSpan(15_000);

/// What a model thinks of one window of samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Opinion {
    /// Where the window begins and ends, in milliseconds since 1970.
    pub from_ms: u64,
    /// As `from_ms`.
    pub to_ms: u64,
    /// How much speaks for a fault, from 0 to 1.
    pub score: f64,
    /// From which score on it is against a VM.
    pub threshold: f64,
    /// From which score on it is against a VM that is faulty already, if that is lower.
    pub still_faulty: f64,
    /// Nothing like it was in what the model has learned from.
    pub strange: bool,
    /// How much of what the model knows was measured, from 0 to 1.
    pub confidence: f64,
    /// Which fault it looks like most.
    pub kind: Option<String>,
    /// What speaks for it most, in words, most of all first.
    pub reasons: Vec<String>,
}

/// How a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Too little is known yet, or too little was measured.
    Unknown,
    /// Nothing is wrong that the model knows of.
    Healthy,
    /// The model has never seen anything like it.
    Strange,
    /// Something is wrong with it.
    Faulty,
}

impl Health {
    /// In one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Strange => "strange",
            Self::Faulty => "faulty",
        }
    }
}

/// How many windows make a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// So many windows must agree.
    pub windows: usize,
    /// Of so many.
    pub of: usize,
    /// From this score on a window is against a VM, from 0 to 1; none: as the model says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alarm: Option<f64>,
    /// Windows of which less than this share of what the model knows was measured do not count, from 0 to 1.
    pub least_confidence: f64,
    /// A VM is taken for sound until so long before the last window that speaks for it: longer than faults take to show.
    pub margin: TimeSpan,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            windows: 4,
            of: 5,
            alarm: None,
            least_confidence: 0.5,
            margin: TimeSpan(30_000),
        }
    }
}

impl Rule {
    /// `k` of `n` windows, as a model says, and otherwise as usual.
    #[must_use]
    pub fn k_of_n(k: u32, n: u32) -> Self {
        let count = |x: u32| usize::try_from(x).unwrap_or(usize::MAX);
        Self {
            windows: count(k),
            of: count(n),
            ..Self::default()
        }
    }

    /// The first thing that is wrong, in words.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self) -> Result<(), String> {
        if self.windows == 0 || self.windows > self.of || self.of > MOST_WINDOWS {
            return Err(format!(
                "the verdict takes 'windows' of 'of': from 1 to 'of', which is at most {MOST_WINDOWS}, and not {} of {}",
                self.windows, self.of
            ));
        }
        if self.windows * 2 <= self.of {
            return Err(format!(
                "{} of {} windows could speak for two verdicts at once: take more than half",
                self.windows, self.of
            ));
        }
        if self
            .alarm
            .is_some_and(|alarm| !(0.0..=1.0).contains(&alarm))
        {
            return Err("alarm is between 0 and 1".to_owned());
        }
        if !(0.0..=1.0).contains(&self.least_confidence) {
            return Err("least_confidence is between 0 and 1".to_owned());
        }
        Ok(())
    }
}

/// Most windows that are looked at for a verdict.
const MOST_WINDOWS: usize = 1000;

/// How a VM is, from some moment on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// How it is.
    pub health: Health,
    /// End of the window with which that was clear, in milliseconds since 1970.
    pub at_ms: u64,
    /// The mean score of the windows that agree.
    pub score: f64,
    /// The mean confidence of the windows that agree.
    pub confidence: f64,
    /// Which fault it looks like: the word of most windows that agree.
    pub kind: Option<String>,
    /// Of the newest window that agrees.
    pub reasons: Vec<String>,
    /// The last moment before which nothing speaks against it, in milliseconds since 1970.
    pub sound_until_ms: Option<u64>,
}

/// The judge of one VM.
#[derive(Debug)]
pub struct Judge {
    rule: Rule,
    windows: VecDeque<Opinion>,
    health: Health,
    /// Since when no window speaks against it.
    sound_since_ms: Option<u64>,
    sound_until_ms: Option<u64>,
}

impl Judge {
    /// One that knows nothing yet.
    #[must_use]
    pub fn new(rule: Rule) -> Self {
        Self {
            rule,
            windows: VecDeque::with_capacity(rule.of.min(MOST_WINDOWS)),
            health: Health::Unknown,
            sound_since_ms: None,
            sound_until_ms: None,
        }
    }

    /// How the VM is.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health
    }

    /// The last moment before which nothing speaks against the VM, in milliseconds since 1970.
    #[must_use]
    pub fn sound_until_ms(&self) -> Option<u64> {
        self.sound_until_ms
    }

    /// The VM was stopped, set back or started anew: what was seen before says nothing of it. When it was sound stays.
    pub fn forget(&mut self) {
        self.windows.clear();
        self.health = Health::Unknown;
        self.sound_since_ms = None;
    }

    /// One more window. A verdict if it changes how the VM is.
    pub fn hear(&mut self, opinion: Opinion) -> Option<Verdict> {
        self.windows.push_back(opinion);
        while self.windows.len() > self.rule.of {
            self.windows.pop_front();
        }
        let health = self.weigh();
        self.note_sound(health);
        if health == self.health {
            return None;
        }
        self.health = health;
        Some(self.verdict())
    }

    fn says(&self, opinion: &Opinion) -> Health {
        let from = match self.health {
            Health::Faulty => opinion.still_faulty.min(opinion.threshold),
            _ => opinion.threshold,
        };
        if opinion.confidence < self.rule.least_confidence || !opinion.score.is_finite() {
            Health::Unknown
        } else if opinion.score >= from {
            Health::Faulty
        } else if opinion.strange {
            Health::Strange
        } else {
            Health::Healthy
        }
    }

    /// Takes down until when the VM is sound. That never goes back.
    fn note_sound(&mut self, health: Health) {
        let newest = self.windows.back().map(|window| window.to_ms);
        if health != Health::Healthy || !self.all_sound() {
            self.sound_since_ms = None;
            return;
        }
        self.sound_since_ms = self.sound_since_ms.or(newest);
        let until = newest.map(|newest| newest.saturating_sub(self.rule.margin.0));
        if until >= self.sound_since_ms {
            self.sound_until_ms = self.sound_until_ms.max(until);
        }
    }

    fn all_sound(&self) -> bool {
        self.windows.len() == self.rule.of
            && self
                .windows
                .iter()
                .all(|window| self.says(window) == Health::Healthy)
    }

    /// What enough of the last windows say. Without enough for anything it stays as it was, but what nobody can see any more is unknown.
    fn weigh(&self) -> Health {
        let count = |health| {
            let windows = self.windows.iter();
            windows.filter(|window| self.says(window) == health).count()
        };
        [
            Health::Faulty,
            Health::Strange,
            Health::Healthy,
            Health::Unknown,
        ]
        .into_iter()
        .find(|health| count(*health) >= self.rule.windows)
        .unwrap_or_else(|| {
            // A fault that looks strange in some windows is one all the same.
            let against = count(Health::Faulty) + count(Health::Strange);
            if against >= self.rule.windows && self.health != Health::Faulty {
                Health::Strange
            } else {
                self.health
            }
        })
    }

    fn verdict(&self) -> Verdict {
        let agree: Vec<&Opinion> = self
            .windows
            .iter()
            .filter(|window| self.says(window) == self.health)
            .collect();
        let mean = |of: fn(&Opinion) -> f64| {
            #[allow(clippy::cast_precision_loss)]
            let count = agree.len().max(1) as f64;
            agree.iter().map(|window| of(window)).sum::<f64>() / count
        };
        Verdict {
            health: self.health,
            at_ms: self.windows.back().map_or(0, |window| window.to_ms),
            score: mean(|window| window.score),
            confidence: mean(|window| window.confidence),
            kind: most_named(&agree),
            reasons: agree
                .last()
                .map(|window| window.reasons.clone())
                .unwrap_or_default(),
            sound_until_ms: self.sound_until_ms,
        }
    }
}

/// The kind that most name; of several the one that was named last.
fn most_named(opinions: &[&Opinion]) -> Option<String> {
    let kinds = || {
        opinions
            .iter()
            .filter_map(|opinion| opinion.kind.as_deref())
    };
    kinds()
        .max_by_key(|kind| kinds().filter(|other| other == kind).count())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests;
