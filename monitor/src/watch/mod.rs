//! Watches a VM that runs: from samples to verdicts, and what is done about them. Decides nothing by itself: the model judges windows, the judge
//! passes verdicts, the guard says what may be done, the hands do it.
//!
//! ```text
//!   Sampler ─▶ Extractor ─▶ Model ─▶ Opinion ─▶ Judge ─▶ Verdict ─▶ Guard ─▶ Hands
//!      │ each interval   ◀─ hold, while it is faulty ─┘     │         │        │
//!      └────────────────────────────────────────────────── Now ───────┴────── Told
//! ```
//!
//! What touches the VM (a restart, a rewind, a switchover) is waited for, and the VM is looked for anew afterwards: what it did before says
//! nothing of it then, and whoever acts needs the QMP socket. Everything else is done beside the watching.

mod figures;
mod one;
mod settings;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::actions::ActionsConfig;
use crate::actions::carry_out::Hands;
use crate::judge::{Health, Opinion, Rule, Verdict};
use crate::model::Model;
use crate::sample::Watched;

pub use figures::Figures;
pub use settings::Settings;

/// How a VM is watched.
#[derive(Debug, Clone)]
pub struct Options {
    /// Between two samples.
    pub interval: Duration,
    /// What makes a verdict.
    pub rule: Rule,
    /// What is done about it.
    pub actions: ActionsConfig,
    /// What does it.
    pub hands: Hands,
}

/// How a VM is now, for whoever asks. `epochgate status` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Now {
    /// Its name.
    pub vm: String,
    /// How it is.
    pub health: Health,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// The newest opinion, if there is one yet.
    pub opinion: Option<Opinion>,
    /// Sources that the model listens to and that say nothing.
    pub missing: Vec<String>,
    /// The moment to go back to, if something is wrong: nothing spoke against it then, nor for a while after it. Milliseconds since 1970.
    pub sound_until_ms: Option<u64>,
    /// The VM can't be reached: why.
    pub lost: Option<String>,
    /// What has happened since the watch began.
    pub figures: Figures,
}

impl Now {
    /// Before anything is known.
    #[must_use]
    pub fn new(vm: &str, since_ms: u64) -> Self {
        Self {
            vm: vm.to_owned(),
            health: Health::Unknown,
            since_ms,
            opinion: None,
            missing: Vec::new(),
            sound_until_ms: None,
            lost: None,
            figures: Figures::default(),
        }
    }
}

/// Something that is worth a line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Told {
    /// When, in milliseconds since 1970.
    pub t_ms: u64,
    /// The VM.
    pub vm: String,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// The VM is watched from now on.
    Watching {
        /// Process id of its QEMU.
        pid: Option<u32>,
    },
    /// The VM can't be reached; it is looked for again.
    Lost {
        /// Why.
        reason: String,
    },
    /// How the VM is has changed.
    Verdict(Verdict),
    /// Something was done about a verdict, or was not.
    Action {
        /// What.
        action: &'static str,
        /// What came of it.
        outcome: Outcome,
        /// Why it failed or was not done.
        reason: Option<String>,
    },
}

/// What came of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was tried.
    Failed,
    /// The guard held it back.
    HeldBack,
    /// It would have been done, were it not a dry run.
    Would,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Done, Self::Failed, Self::HeldBack, Self::Would];

    /// As in events and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::HeldBack => "held_back",
            Self::Would => "would",
        }
    }
}

/// Where a watch tells what it sees.
#[derive(Debug, Clone)]
pub struct Tell {
    /// How things stand.
    pub now: watch::Sender<Now>,
    /// What happens. Nobody need listen.
    pub events: mpsc::UnboundedSender<Told>,
}

/// What a watch is told.
#[derive(Debug)]
pub struct Orders {
    /// Above 0: stop. What is being done about the VM is finished first; above 1: it is not.
    pub stop: watch::Receiver<u32>,
    /// Whenever it changes: the VM is well as it is, and what it did before says nothing of it.
    pub anew: watch::Receiver<u64>,
}

/// Watches a VM until it is told to stop; waits for one that is not there.
pub async fn watch_vm(
    watched: impl Fn() -> Watched,
    model: Arc<Model>,
    options: Options,
    tell: Tell,
    orders: Orders,
) {
    one::One::new(model, options, tell, orders)
        .run(watched)
        .await;
}
