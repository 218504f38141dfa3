//! The reference: what a plain heartbeat sees. It asks the guest each second, by an interface of its own. Kept beside the recording for the
//! comparison with such a heartbeat, and never among the signals.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::http;

/// Port of the program that answers as long as the guest runs programs at all.
pub const BEAT: u16 = 7000;
/// Port of the lab's application.
pub const APP: u16 = 8080;

/// From one question to the next, and the longest time for an answer.
const PERIOD: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(3);

/// One question and its answer.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// When it was asked.
    pub at: Instant,
    /// Milliseconds until `beat` answered; None: not in time.
    pub beat_ms: Option<f64>,
    /// The same of the application's `/ping`.
    pub app_ms: Option<f64>,
}

/// A probe at work.
#[derive(Debug)]
pub struct Probe {
    answers: Arc<Mutex<Vec<Answer>>>,
    task: JoinHandle<()>,
}

impl Probe {
    /// Asks from now on, at these ports of this machine.
    pub fn start(beat: u16, app: u16) -> Self {
        let answers = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&answers);
        let task = tokio::spawn(async move {
            let mut ticks = interval(PERIOD);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                ticks.tick().await;
                let kept = Arc::clone(&kept);
                // An answer that is late does not hold the next question up.
                tokio::spawn(async move {
                    let at = Instant::now();
                    let (beat_ms, app_ms) = tokio::join!(ask(beat, "/"), ask(app, "/ping"));
                    kept.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(Answer {
                            at,
                            beat_ms,
                            app_ms,
                        });
                });
            }
        });
        Self { answers, task }
    }

    /// What it has got so far, in the order of the questions.
    pub fn answers(&self) -> Vec<Answer> {
        let mut answers = self
            .answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        answers.sort_by_key(|answer| answer.at);
        answers
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The answers as text, with milliseconds since `begun`: a line each, `-` for none.
pub fn to_tsv(answers: &[Answer], begun: Instant) -> String {
    let mut text = "at_ms\tbeat_ms\tapp_ms\n".to_owned();
    let show = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.1}"));
    for answer in answers {
        let at_ms = answer.at.saturating_duration_since(begun).as_millis();
        let _ = writeln!(
            text,
            "{at_ms}\t{}\t{}",
            show(answer.beat_ms),
            show(answer.app_ms)
        );
    }
    text
}

async fn ask(port: u16, path: &str) -> Option<f64> {
    let begun = Instant::now();
    let got = timeout(PATIENCE, http::get(&format!("127.0.0.1:{port}"), path)).await;
    matches!(got, Ok(Ok(answer)) if answer.status == 200)
        .then(|| begun.elapsed().as_secs_f64() * 1000.0)
}
