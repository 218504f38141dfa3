//! The one thread that touches a group's log: whatever must be durable is done here, one after the other.
//!
//! After a seal it appends the epoch's data in the background, in steps, so that a commit that comes meanwhile doesn't
//! wait for a long append of a later epoch. COMMIT 2 is then a flush of the data and the commit record.

mod self_commit;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use epoch_log::{Epoch, EpochLog};
use tokio::sync::oneshot;

use super::appender::Appender;
use super::barriers::{Gate, Holds, Input, LogOp, LogOutcome, Phase};
use super::error::{GroupError, Part, with_sources};
use super::shared::{Answer, Job, Order, Reply, Shared};
use super::stepping::Next;
use crate::export::IoError;
use crate::failpoint;
use self_commit::is_full;

/// Pause before something that failed for lack of space is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// Longest wait for the images when the gateway stops in order; what is not applied by then is applied at the next start.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// The committer.
#[derive(Debug)]
pub struct Committer {
    shared: Arc<Shared>,
    log: EpochLog,
    jobs: Receiver<Job>,
    inbox: VecDeque<Job>,
    interval: Duration,
    appender: Appender,
    /// Not before this is what failed tried again.
    retry_at: Option<Instant>,
    next_self_commit: Instant,
    /// When the commit that is being carried out was asked for.
    commit_asked: Instant,
    /// Applied, but the log does not say so yet.
    applied: Option<Epoch>,
    drain_waiters: Vec<(Input, Reply)>,
    flushers: Vec<oneshot::Sender<Result<(), IoError>>>,
    stop: Option<Instant>,
    /// When the turn began: a turn has one time.
    now: Instant,
}

/// How a committer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Everything is done: the log can be closed.
    Orderly,
    /// At once.
    Abandoned,
}

impl Committer {
    /// A committer that owns `log`. `interval`: how often a group commits by itself, if it does.
    pub fn new(
        shared: Arc<Shared>,
        log: EpochLog,
        jobs: Receiver<Job>,
        interval: Duration,
        now: Instant,
    ) -> Self {
        Self {
            shared,
            log,
            jobs,
            inbox: VecDeque::new(),
            interval,
            appender: Appender::default(),
            retry_at: None,
            next_self_commit: now + interval,
            commit_asked: now,
            applied: None,
            drain_waiters: Vec::new(),
            flushers: Vec::new(),
            stop: None,
            now,
        }
    }

    /// Does what the barriers want done before anyone is let in.
    ///
    /// # Errors
    /// What the log said.
    pub fn start(&mut self) -> Result<(), GroupError> {
        // A group that does not start leaves what it found to the next try.
        self.prepare().inspect_err(|_| self.shared.arena().leave())
    }

    fn prepare(&mut self) -> Result<(), GroupError> {
        if self.shared.core().barriers.holds() != Holds::Protected {
            // From here on a commit vouches for all that the disks hold, and a FLUSH does not look at the images. A process before this one may
            // have written to them itself, and been killed.
            self.perform(&LogOp::SyncImages)?;
        }
        self.settle()?;
        let mut core = self.shared.core();
        let generation = core.barriers.generation();
        for disk in &self.shared.disks {
            let mut state = disk.lock();
            state.generation = generation;
            state.set_gate(core.barriers.gate());
        }
        self.shared.arena().set_generation(generation);
        // Nobody listened, and nobody was attached.
        core.entries.clear();
        Ok(())
    }

    /// Works until it is told to stop.
    pub fn run(mut self) {
        let mut next = self.turn(Instant::now());
        loop {
            next = match next {
                Ok(Next::Wait(Some(until)) | Next::Pause(until)) => {
                    let patience = until.saturating_duration_since(Instant::now());
                    match self.jobs.recv_timeout(patience) {
                        Ok(job) => self.take(job, Instant::now()),
                        Err(RecvTimeoutError::Timeout) => self.turn(Instant::now()),
                        // The group is gone without a word.
                        Err(RecvTimeoutError::Disconnected) => Err(End::Abandoned),
                    }
                }
                Ok(_) => self.turn(Instant::now()),
                Err(end) => return self.end(end),
            }
        }
    }

    /// One turn of [`Committer::run`], which never waits for anything but the storage.
    pub fn step_once(mut self, now: Instant) -> (Option<Self>, Next) {
        match self.turn(now) {
            Ok(next) => (Some(self), next),
            Err(end) => {
                self.end(end);
                (None, Next::Over)
            }
        }
    }

    /// What is due in the background, then one job.
    fn turn(&mut self, now: Instant) -> Result<Next, End> {
        self.now = now;
        self.background();
        if self.may_stop() {
            return Err(End::Orderly);
        }
        while let Ok(job) = self.jobs.try_recv() {
            match job {
                Job::Flush(flusher) => self.flushers.push(flusher),
                job => self.inbox.push_back(job),
            }
        }
        if let Some(job) = self.inbox.pop_front() {
            return self.take(job, now);
        }
        if self.retry_at.is_none() && (!self.flushers.is_empty() || !self.appender.is_idle()) {
            return Ok(Next::Turn);
        }
        Ok(Next::Wait(Some(
            self.retry_at.unwrap_or(self.next_self_commit),
        )))
    }

    fn take(&mut self, job: Job, now: Instant) -> Result<Next, End> {
        self.now = now;
        match job {
            Job::Stop { orderly: false } => return Err(End::Abandoned),
            Job::Stop { orderly: true } => self.begin_stop(),
            job => self.handle(job),
        }
        Ok(Next::Turn)
    }

    fn end(self, end: End) {
        match end {
            End::Orderly => self.close(),
            End::Abandoned => self.abandon(),
        }
    }

    /// What nobody asked for and is due.
    fn background(&mut self) {
        self.shared.budget.slabs().trim(self.now);
        if self.retry_at.is_some_and(|at| self.now < at) {
            return;
        }
        self.retry_at = None;
        if self.settle().is_err() || self.note_applied().is_err() {
            self.retry_later();
        }
        self.answer_drained();
        if !self.flushers.is_empty() {
            self.flush();
        } else if self.now >= self.next_self_commit && self.self_commit().is_err() {
            self.retry_later();
        }
        // Until the next retry an append that found no space rests; a commit tries again at once.
        if self.retry_at.is_none() && self.appender.step(&mut self.log, Epoch(u64::MAX)).is_err() {
            self.retry_later();
        }
    }

    fn retry_later(&mut self) {
        self.retry_at = Some(self.now + RETRY);
        // A self-commit that failed is due again; if it was something else, one more does no harm.
        self.next_self_commit = self.now;
        self.hurry();
    }

    fn handle(&mut self, job: Job) {
        match job {
            Job::Request {
                input,
                reply,
                asked,
            } => self.request(input, reply, asked),
            Job::Sealed => self.appender.follow(&self.shared.core()),
            Job::Flush(flusher) => self.flushers.push(flusher),
            Job::Pressure => {
                // Before it looks: what presses while it commits presses again.
                self.shared.listen_to_pressure();
                if self.self_commit().is_err() {
                    self.retry_later();
                }
            }
            Job::WriteWaits => {
                // Never refused.
                let _ = self.step(Input::WriteWaits);
            }
            Job::Applied(epoch) => {
                self.applied = Some(epoch);
                // Applying freed nothing yet; saying so may free segments.
                self.retry_at = None;
            }
            Job::Stop { .. } => {}
        }
    }

    fn request(&mut self, input: Input, reply: Reply, asked: Instant) {
        let drains = matches!(input, Input::DrainToSync { .. } | Input::Detach { .. });
        match self.decide(input.clone(), asked) {
            Ok(_) if drains => self.drain_waiters.push((input, reply)),
            // The caller may be gone.
            outcome => drop(reply.send(outcome)),
        }
    }

    fn decide(&mut self, input: Input, asked: Instant) -> Result<Answer, GroupError> {
        self.perform_outstanding()?;
        match input {
            // What clients of a group without a source were told is written, shall be there when the VM starts.
            Input::AttachSource { .. } => self.self_commit()?,
            Input::SelfSeal => {
                self.self_commit()?;
                return Ok(self.answer());
            }
            _ => {}
        }
        self.step(input)?;
        self.commit_asked = asked;
        self.perform_outstanding()?;
        Ok(self.answer())
    }

    fn answer(&self) -> Answer {
        let core = self.shared.core();
        Answer {
            generation: core.barriers.generation(),
            committed: core.barriers.committed(),
        }
    }

    fn step(&self, input: Input) -> Result<(), GroupError> {
        let mut core = self.shared.core();
        Ok(self.shared.step(&mut core, input)?)
    }

    /// Carries out outstanding log operations and the steps that the barriers take by themselves, until there are none.
    fn settle(&mut self) -> Result<(), GroupError> {
        loop {
            self.perform_outstanding()?;
            self.step(Input::Advance)?;
            if self.shared.core().barriers.outstanding().is_none() {
                return Ok(());
            }
        }
    }

    fn perform_outstanding(&mut self) -> Result<(), GroupError> {
        let ops = match self.shared.core().barriers.outstanding() {
            Some(ops) => ops.to_vec(),
            None => return Ok(()),
        };
        let mut done = 0;
        let mut failure = None;
        for op in &ops {
            match self.perform(op) {
                Ok(()) => done += 1,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        let outcome = match &failure {
            None => LogOutcome::Done,
            Some(error) if is_full(error) => LogOutcome::Retry,
            Some(_) => LogOutcome::Broken,
        };
        self.step(Input::LogDone { done, outcome })?;
        self.appender.follow(&self.shared.core());
        let Some(error) = failure else {
            self.shared.clear_error(Part::Log);
            return Ok(());
        };
        if outcome == LogOutcome::Retry {
            self.hurry();
        }
        if outcome == LogOutcome::Retry && ops.iter().any(|op| matches!(op, LogOp::SetMode(_))) {
            // A switch to async mode that is taken back must leave nothing behind.
            self.log.abort()?;
        }
        self.shared.note_error(Part::Log, with_sources(&error));
        for (_, waiter) in self.drain_waiters.drain(..) {
            drop(waiter.send(Err(error.clone())));
        }
        if outcome == LogOutcome::Broken {
            self.fail_flushers(IoError::Io);
        }
        Err(error)
    }

    fn perform(&mut self, op: &LogOp) -> Result<(), GroupError> {
        match op {
            LogOp::SyncImages => {
                for disk in self.shared.disks.iter().filter(|disk| !disk.read_only) {
                    disk.image.sync().map_err(|e| {
                        let path = disk.image.path().display();
                        GroupError::Image(format!(
                            "the image {path} can't be flushed: {e}; check its storage"
                        ))
                    })?;
                }
                Ok(())
            }
            LogOp::Commit { epoch, standby } => self.commit(*epoch, standby.as_deref()),
            LogOp::RaiseGeneration { owner, reason } => {
                failpoint::hit("gateway-before-generation");
                self.log.raise_generation(owner.as_deref(), reason)?;
                failpoint::hit("gateway-after-generation");
                // What was appended for the last owner is void, also in the log.
                self.appender.forget();
                Ok(())
            }
            LogOp::SetMode(mode) => Ok(self.log.set_mode(mode.clone())?),
        }
    }

    fn commit(&mut self, epoch: Epoch, standby: Option<&str>) -> Result<(), GroupError> {
        self.appender.follow(&self.shared.core());
        while self.appender.step(&mut self.log, epoch)? {}
        self.log.sync_data()?;
        failpoint::hit("gateway-after-data-sync");
        failpoint::hit("gateway-before-commit-record");
        let generation = self.log.state().generation;
        self.log.commit(generation, epoch, standby)?;
        failpoint::hit("gateway-after-commit-record");
        let blocks = self.appender.committed(epoch);
        self.count_commit(epoch, blocks);
        Ok(())
    }

    fn count_commit(&self, epoch: Epoch, blocks: u64) {
        let core = self.shared.core();
        let cut = core.cuts.iter().find(|cut| cut.epoch == epoch);
        let bytes = cut.map_or(0, |cut| cut.data_bytes());
        let took = self.commit_asked.elapsed();
        self.shared.commits.committed(took, bytes, blocks);
    }

    fn note_applied(&mut self) -> Result<(), GroupError> {
        let Some(epoch) = self.applied else {
            return Ok(());
        };
        if let Err(error) = self.log.mark_applied(epoch) {
            self.shared.note_error(Part::Log, with_sources(&error));
            // What could only not free its segments is tried again: the images have the epoch, and its memory can go.
            if self.log.is_poisoned() {
                self.applied = None;
                // Whoever waits for the images would wait for ever.
                self.step(Input::LogDone {
                    done: 0,
                    outcome: LogOutcome::Broken,
                })?;
            }
            return Err(error.into());
        }
        failpoint::hit("gateway-after-mark-applied");
        self.applied = None;
        self.step(Input::Applied { epoch })?;
        self.settle()
    }

    fn answer_drained(&mut self) {
        let draining = matches!(
            self.shared.core().barriers.phase(),
            Phase::Draining { .. } | Phase::Backlog
        );
        if draining {
            self.hurry();
            return;
        }
        for (input, waiter) in std::mem::take(&mut self.drain_waiters) {
            // Another owner may have come meanwhile: asking again tells the caller. A detached one is always fenced.
            let again = match input {
                Input::DrainToSync { .. } => self.step(input),
                _ => Ok(()),
            };
            let answer = self.answer();
            drop(waiter.send(again.map(|()| answer)));
        }
    }

    /// Somebody waits for the images, or for the space that the log gives back once they have everything.
    fn hurry(&self) {
        let behind = {
            let barriers = &self.shared.core().barriers;
            barriers.applied() < barriers.committed()
        };
        if behind {
            // If the applier is gone, so is the gateway soon.
            let _ = self.shared.apply.send(Order::Hurry);
        }
    }

    fn begin_stop(&mut self) {
        // From here on the gate stays closed, see `Shared::perform`.
        for disk in &self.shared.disks {
            disk.lock().set_gate(Gate::Closed);
        }
        self.flush();
        self.hurry();
        self.stop = Some(self.now + STOP_PATIENCE);
    }

    fn may_stop(&self) -> bool {
        let Some(deadline) = self.stop else {
            return false;
        };
        let barriers = &self.shared.core().barriers;
        barriers.applied() == barriers.committed()
            || self.shared.has_error(Part::Image)
            || self.shared.has_error(Part::Log)
            || self.now >= deadline
    }

    /// The orderly end. Under a source in async mode the open epoch goes with the process, so the log is not closed in
    /// order: the next start fences the source.
    fn close(mut self) {
        let (lossless, name) = {
            let core = self.shared.core();
            let barriers = &core.barriers;
            let holds = matches!(
                barriers.phase(),
                Phase::Held | Phase::Switching | Phase::Draining { .. }
            );
            let lossy = holds && barriers.owner().is_some()
                || barriers.sealed() > barriers.committed()
                || self.shared.holds_writes();
            (!lossy, self.shared.name.clone())
        };
        self.fail_flushers(IoError::Shutdown);
        if lossless {
            self.shared.arena().remove();
        } else {
            self.shared.arena().leave();
        }
        if lossless && let Err(error) = self.log.close_clean() {
            tracing::warn!(
                group = name,
                "the epoch log was not closed in order: {}",
                with_sources(&error)
            );
        }
    }

    fn abandon(mut self) {
        self.shared.arena().leave();
        self.fail_flushers(IoError::Shutdown);
    }
}
