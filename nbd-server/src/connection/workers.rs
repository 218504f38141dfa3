//! The threads for what has to wait for storage: shared by all connections of a server, started on demand, bounded in all and per
//! connection. They know nothing of NBD.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// An idle thread ends after this long: a burst should not start threads again and again, a quiet server should hold none.
const IDLE: Duration = Duration::from_secs(10);
/// Exports are called on this stack; nothing here keeps buffers on it.
const STACK: usize = 512 << 10;

type Job = Box<dyn FnOnce() + Send>;

/// The threads of one server.
pub struct Workers {
    max_threads: usize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<(Arc<Lane>, Job)>,
    threads: usize,
    idle: usize,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers")
            .field("max_threads", &self.max_threads)
            .finish_non_exhaustive()
    }
}

impl Workers {
    /// At most `max_threads` threads. With none, whoever has something to be done does it.
    pub fn new(max_threads: usize) -> Arc<Self> {
        Arc::new(Self {
            max_threads,
            state: Mutex::new(State::default()),
            wake: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(self: &Arc<Self>, lane: Arc<Lane>, job: Job) {
        if self.max_threads == 0 {
            run(self, &lane, job);
            return;
        }
        let mut state = self.lock();
        state.queue.push_back((lane, job));
        if state.queue.len() <= state.idle || state.threads >= self.max_threads {
            drop(state);
            self.wake.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        let workers = Arc::clone(self);
        let spawned = std::thread::Builder::new()
            .name("nbd-worker".into())
            .stack_size(STACK)
            .spawn(move || workers.work());
        if let Err(error) = spawned {
            tracing::warn!(%error, "cannot start another worker thread");
            let mut state = self.lock();
            state.threads -= 1;
            if state.threads == 0 {
                // Nobody else would ever take it: the caller does the work.
                let next = state.queue.pop_front();
                drop(state);
                if let Some((lane, job)) = next {
                    run(self, &lane, job);
                }
            }
        }
    }

    fn work(self: Arc<Self>) {
        let mut state = self.lock();
        loop {
            if let Some((lane, job)) = state.queue.pop_front() {
                drop(state);
                run(&self, &lane, job);
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let (mut woken, timeout) = self
                .wake
                .wait_timeout(state, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            woken.idle -= 1;
            if timeout.timed_out() && woken.queue.is_empty() {
                woken.threads -= 1;
                return;
            }
            state = woken;
        }
    }
}

/// A job that panics has dropped what it held, which cuts its connection; the thread and its other connections go on.
fn run(workers: &Arc<Workers>, lane: &Arc<Lane>, job: Job) {
    if catch_unwind(AssertUnwindSafe(job)).is_err() {
        tracing::error!("a request panicked; its connection is cut");
    }
    if let Some(next) = lane.finished() {
        workers.enqueue(Arc::clone(lane), next);
    }
}

/// The share of one connection: so many jobs at once, the others wait in order.
pub struct Lane {
    workers: Arc<Workers>,
    max_running: usize,
    state: Mutex<LaneState>,
}

#[derive(Default)]
struct LaneState {
    running: usize,
    waiting: VecDeque<Job>,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane")
            .field("max_running", &self.max_running)
            .finish_non_exhaustive()
    }
}

impl Lane {
    /// A share of at most `max_running` threads, at least one.
    pub fn new(workers: Arc<Workers>, max_running: usize) -> Arc<Self> {
        Arc::new(Self {
            workers,
            max_running: max_running.max(1),
            state: Mutex::new(LaneState::default()),
        })
    }

    /// Has the job done, soon or when others of this lane are done.
    pub fn submit(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) {
        let job: Job = Box::new(job);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.running >= self.max_running {
            state.waiting.push_back(job);
            return;
        }
        state.running += 1;
        drop(state);
        self.workers.enqueue(Arc::clone(self), job);
    }

    fn finished(&self) -> Option<Job> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let next = state.waiting.pop_front();
        if next.is_none() {
            state.running -= 1;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_lane_never_runs_more_than_its_share_and_loses_no_job() {
        let workers = Workers::new(8);
        let lane = Lane::new(Arc::clone(&workers), 3);
        let running = Arc::new(AtomicUsize::new(0));
        let (done, finished) = mpsc::channel();
        for _ in 0..200 {
            let (running, done) = (Arc::clone(&running), done.clone());
            lane.submit(move || {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                std::thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
                done.send(now).unwrap();
            });
        }
        drop(done);
        let counts: Vec<usize> = finished.iter().collect();
        assert_eq!(counts.len(), 200);
        assert!(counts.iter().all(|&now| now <= 3));
    }

    #[test]
    fn a_job_that_panics_takes_nothing_with_it() {
        let lane = Lane::new(Workers::new(1), 1);
        lane.submit(|| panic!("on purpose"));
        let (done, finished) = mpsc::channel();
        lane.submit(move || done.send(()).unwrap());
        finished.recv().unwrap();
    }

    #[test]
    fn without_threads_the_caller_does_the_work() {
        let lane = Lane::new(Workers::new(0), 1);
        let caller = std::thread::current().id();
        let (done, finished) = mpsc::channel();
        for _ in 0..3 {
            let done = done.clone();
            lane.submit(move || done.send(std::thread::current().id()).unwrap());
        }
        assert_eq!(finished.try_iter().collect::<Vec<_>>(), [caller; 3]);
    }

    #[test]
    fn a_stuck_lane_leaves_threads_to_others() {
        let workers = Workers::new(2);
        let stuck = Lane::new(Arc::clone(&workers), 1);
        let (release, wait) = mpsc::channel::<()>();
        stuck.submit(move || wait.recv().unwrap());
        stuck.submit(|| {});
        let (done, finished) = mpsc::channel();
        Lane::new(workers, 1).submit(move || done.send(()).unwrap());
        finished.recv().unwrap();
        release.send(()).unwrap();
    }
}
