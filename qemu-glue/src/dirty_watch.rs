//! Watches what a guest writes without copying it: for a VM that nobody protects. A thread looks once per window.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::dirty_pages::{DirtyTracker, TrackerKind};
use crate::dirty_window::{DirtySummary, DirtyWindow};
use crate::error::{Error, Result};

/// The watch; it ends when this is dropped.
#[derive(Debug)]
pub struct DirtyWatch {
    latest: Arc<Mutex<Option<DirtySummary>>>,
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl DirtyWatch {
    /// Watches by this tracker, which nobody else uses.
    ///
    /// # Errors
    /// The tracker does not work, or reads all memory at each look, which costs more than watching is worth.
    pub(crate) fn start(mut tracker: Box<dyn DirtyTracker>, ram_bytes: u64) -> Result<Self> {
        if tracker.kind() != TrackerKind::Pagemap {
            return Err(Error::Tracker {
                kind: tracker.kind(),
                problem: "it reads all memory at each look, too much for watching only".into(),
                source: None,
            });
        }
        tracker.start()?;
        let latest = Arc::new(Mutex::new(None));
        let (stop, stopped) = channel::<()>();
        let told = Arc::clone(&latest);
        let watch = move || {
            let mut window = DirtyWindow::new(ram_bytes, Instant::now());
            let mut found = Vec::new();
            while stopped.recv_timeout(DirtyWindow::LENGTH) == Err(RecvTimeoutError::Timeout) {
                found.clear();
                // Most likely QEMU is gone. What was found last gets old, and that shows.
                if let Err(error) = tracker.scan(&mut found) {
                    tracing::warn!(%error, "dirty pages are not watched any more");
                    return;
                }
                window.add(&found);
                if let Some(summary) = window.end(Instant::now()) {
                    *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(summary);
                }
            }
        };
        let thread = std::thread::Builder::new().name("dirty-watch".into());
        let thread = thread.spawn(watch).map_err(Error::tracker(
            TrackerKind::Pagemap,
            "can't start its thread",
        ))?;
        Ok(DirtyWatch {
            latest,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The last window that is over; None before the first.
    pub fn latest(&self) -> Option<DirtySummary> {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DirtyWatch {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}
