//! The thread that moves old history to the cold store, one piece after another, and removes there what nobody needs. The store may be slow or
//! away for as long as it likes: nobody waits for this thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use super::cold::ColdSide;
use super::{GroupHistory, now_ms};
use crate::group::error::with_sources;

/// How often it looks.
const PAUSE: Duration = Duration::from_secs(1);
/// It looks less often while the store fails, up to this.
const MOST: Duration = Duration::from_secs(60);
/// So long a stop waits for what the store is asked; then it is given up.
const GRACE: Duration = Duration::from_secs(2);

/// The thread. Dropping it ends it.
#[derive(Debug)]
pub struct Cooler {
    /// Dropped to stop.
    stop: Option<Sender<()>>,
    stopping: Arc<AtomicBool>,
    /// Closed at its end.
    done: Receiver<()>,
    cold: Arc<ColdSide>,
    thread: Option<JoinHandle<()>>,
}

impl Cooler {
    /// Starts to move the old history of the group `name` to `cold`.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(name: &str, history: GroupHistory, cold: &Arc<ColdSide>) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let (end, done) = mpsc::channel::<()>();
        let stopping = Arc::new(AtomicBool::new(false));
        let (group, flag, side) = (name.to_owned(), Arc::clone(&stopping), Arc::clone(cold));
        let run = move || {
            let _end = end;
            let go_on = || !flag.load(Ordering::Relaxed);
            let (mut pause, mut failed) = (PAUSE, PAUSE);
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let cooled = history
                    .past
                    .cool(now_ms(), &side.cooling, &history.retention, &go_on);
                match cooled {
                    Ok(done) => {
                        (pause, failed) = (PAUSE, PAUSE);
                        if !done.is_nothing() {
                            pause = Duration::ZERO;
                        }
                        if side.note(None).is_some() {
                            tracing::info!(group, "the cold storage of the history works again");
                        }
                    }
                    Err(_) if !go_on() => {}
                    Err(error) => {
                        pause = failed;
                        failed = (failed * 2).min(MOST);
                        let why = format!(
                            "old history can't go to cold storage: {}",
                            with_sources(&error)
                        );
                        // Once: it is tried again and again.
                        if side.note(Some(why.clone())).is_none() {
                            tracing::warn!(group, "{why}; trying again");
                        }
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name(format!("cold {name}"))
            .spawn(run)?;
        Ok(Self {
            stop: Some(stop),
            stopping,
            done,
            cold: Arc::clone(cold),
            thread: Some(thread),
        })
    }
}

impl Drop for Cooler {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.stop = None;
        if self.done.recv_timeout(GRACE) == Err(RecvTimeoutError::Timeout) {
            self.cold.store.close();
        }
        if let Some(thread) = self.thread.take() {
            // A panic of it has been reported by itself.
            drop(thread.join());
        }
    }
}
