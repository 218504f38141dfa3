//! The thread that keeps a history in its bounds: trims and thins what is due, a little at a time. It decides nothing about what is kept. Where
//! what is old goes elsewhere, another thread sees to that.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use super::cooler::Cooler;
use super::{GroupHistory, now_ms};
use crate::group::error::with_sources;

/// How often it looks.
const PAUSE: Duration = Duration::from_secs(1);

/// The thread. Dropping it ends it, after what it has begun.
#[derive(Debug)]
pub struct Keeper {
    /// Dropped to stop.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Moves what is old.
    _cooler: Option<Cooler>,
}

impl Keeper {
    /// Starts to keep `history`, of the group `name`.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(name: &str, history: GroupHistory) -> io::Result<Self> {
        let cold = history.cold.clone();
        let cooler = cold.map(|cold| Cooler::start(name, history.clone(), &cold));
        let cooler = cooler.transpose()?;
        let (stop, stopped) = mpsc::channel::<()>();
        let group = name.to_owned();
        let run = move || {
            let mut failed = false;
            let mut pause = PAUSE;
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                pause = PAUSE;
                match history.past.maintain(now_ms(), &history.retention) {
                    Ok(done) => {
                        failed = false;
                        if done.for_space {
                            tracing::warn!(
                                group,
                                oldest = done.oldest.map(|epoch| epoch.0),
                                "the disk is nearly full: the oldest part of the history goes before its time{}",
                                although(&history)
                            );
                        }
                        if done.thawed {
                            tracing::info!(
                                group,
                                "the time is over in which the history was frozen: what is due goes again"
                            );
                        }
                        if !done.is_nothing() {
                            pause = Duration::ZERO;
                        }
                    }
                    Err(error) => {
                        // Once: it is tried again each time.
                        if !failed {
                            tracing::warn!(
                                group,
                                "the history can't be trimmed: {}",
                                with_sources(&error)
                            );
                        }
                        failed = true;
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name(format!("keep {name}"))
            .spawn(run)?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
            _cooler: cooler,
        })
    }
}

/// What somebody wanted who must not be disappointed in silence.
pub fn although(history: &GroupHistory) -> &'static str {
    match history.past.frozen() {
        Some(_) => ", although it is frozen",
        None => "",
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic of it has been reported by itself.
            drop(thread.join());
        }
    }
}
