//! The gateway: the shipping machine of a group, with what its driver keeps around it. On disk are the state of the log,
//! the data of committed epochs and one image; the process holds open and sealed epochs. A log operation is durable or it
//! has not happened; a crash may come behind any of them. The decisions are all in `Barriers` and `LogState`.

use std::collections::BTreeSet;

use epoch_log::{LogState, Mode};
use nbd_server::group::Refusal;
use nbd_server::group::barriers::{
    Barriers, Effect, Ending, Gate, Holds, Input, LogOp, LogOutcome, Phase, SealNumber,
};
use nbd_server::{Epoch, Generation};

use crate::history::History;
use crate::host::Request;
use crate::mutation::Mutation;
use crate::remains::Remains;
use crate::rules::Rule;

/// How it goes on while a request is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Course {
    /// Without a fault.
    Good,
    /// The gateway's host dies when so many log operations (1 or more) are durable.
    Crash(u8),
    /// The gateway's process dies when so many are; with 0 behind the cut of a seal.
    Die(u8),
    /// After so many the log is full, for one operation.
    Full(u8),
}

/// What else must be known to judge an operation of the log.
#[derive(Debug)]
pub struct Judge<'a> {
    /// Who holds which memory, complete and verified, of epochs that are not committed.
    pub acked: &'a BTreeSet<(String, Epoch, History)>,
    /// The mistake that is made, if any.
    pub mutation: Option<Mutation>,
    /// The first rule that was broken.
    pub verdict: &'a mut Option<Rule>,
}

impl Judge<'_> {
    pub(crate) fn broken(&mut self, rule: Rule) {
        self.verdict.get_or_insert(rule);
    }

    pub(crate) fn mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }
}

/// Why a request was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum No {
    /// The gateway is down, or went down.
    Silent,
    /// The course does not apply: there is no such log operation.
    NeverSo,
    /// The generation is over.
    Fenced,
    /// Try again.
    Busy,
    /// The log is full.
    Full,
    /// Against the rules.
    Refused,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// Done.
    Done,
    /// It waits at the gate, or for the gateway.
    Waits,
    /// The attachment is not of the current owner.
    Refused,
}

/// The process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Running {
    /// The shipping machine.
    pub barriers: Barriers,
    /// What the open epoch holds.
    pub open: Option<History>,
    /// What a reader of each sealed epoch sees.
    pub sealed: Vec<(Epoch, History)>,
    /// Drains that are answered when they are done.
    pub draining: BTreeSet<Request>,
}

/// Disks and process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Gateway {
    /// What the log says, durably.
    pub log: LogState,
    /// The image.
    pub image: History,
    /// What the newest committed epoch shows, if the image does not have it yet.
    unapplied: Option<History>,
    /// The disk that a recovery would find: the newest committed epoch, or what went through later.
    pub durable: History,
    /// The process, if it runs.
    pub running: Option<Running>,
    /// What the last one has left, if it does not.
    pub remains: Option<Remains>,
}

/// Counts log operations and strikes as the course says.
struct Ops {
    course: Course,
    done: u8,
    struck: bool,
}

impl Ops {
    fn new(course: Course) -> Self {
        let struck = course == Course::Good;
        let done = 0;
        Self {
            course,
            done,
            struck,
        }
    }
}

impl Gateway {
    /// A gateway with an empty group.
    pub fn new() -> Self {
        let log = LogState::new();
        let running = Running::recovered(&log);
        Self {
            log,
            image: History::default(),
            unapplied: None,
            durable: History::default(),
            running: Some(running),
            remains: None,
        }
    }

    /// What the owner's guest reads.
    pub fn view(&self) -> History {
        let held = self.running.as_ref().and_then(|running| {
            running
                .open
                .or(running.sealed.last().map(|(_, last)| *last))
        });
        held.or(self.unapplied).unwrap_or(self.image)
    }

    /// Its host dies.
    pub fn crash(&mut self) {
        self.running = None;
        self.remains = None;
    }

    /// A write of an attachment of `generation`.
    pub fn write(&mut self, next: History, generation: Generation, judge: &mut Judge<'_>) -> Write {
        let current = self.log.generation;
        let Some(running) = &mut self.running else {
            return Write::Waits;
        };
        let fenced =
            generation != running.barriers.generation() || running.barriers.owner().is_none();
        if fenced && !judge.mutated(Mutation::NoFenceOnWrites) {
            return Write::Refused;
        }
        match running.barriers.gate() {
            Gate::Through => {
                self.image = next;
                self.durable = next;
            }
            Gate::Held(_) => running.open = Some(next),
            Gate::Closed => return Write::Waits,
            Gate::Broken => return Write::Refused,
        }
        if generation != current {
            judge.broken(Rule::Fencing);
        }
        Write::Done
    }

    /// Whether a write has to say that it waits.
    pub fn wants_to_know_of_writes(&self, generation: Generation) -> bool {
        self.running.as_ref().is_some_and(|running| {
            running.barriers.generation() == generation
                && running.barriers.phase() == Phase::Dormant { wanted: false }
        })
    }

    /// Decides about `input`, as the committer does: what is outstanding first, then the request, then what it made
    /// outstanding.
    pub fn ask(
        &mut self,
        input: Input,
        claimed: Option<Generation>,
        course: Course,
        judge: &mut Judge<'_>,
    ) -> Result<(Generation, Epoch), No> {
        let mut ops = Ops::new(course);
        let outcome = self.decide(input, claimed, &mut ops, judge);
        if !ops.struck {
            return Err(No::NeverSo);
        }
        outcome
    }

    fn decide(
        &mut self,
        input: Input,
        claimed: Option<Generation>,
        ops: &mut Ops,
        judge: &mut Judge<'_>,
    ) -> Result<(Generation, Epoch), No> {
        self.perform_outstanding(ops, judge)?;
        let stale = claimed.is_some_and(|generation| generation != self.log.generation);
        let before = stale.then(|| self.running.clone());
        self.feed(input, judge)?;
        if before.is_some_and(|before| before != self.running) {
            judge.broken(Rule::Fencing);
        }
        self.perform_outstanding(ops, judge)?;
        let running = self.running.as_ref().ok_or(No::Silent)?;
        Ok((running.barriers.generation(), running.barriers.committed()))
    }

    /// The cut, by its number. Answered when async mode is recorded.
    pub fn seal(
        &mut self,
        generation: Generation,
        number: SealNumber,
        course: Course,
        judge: &mut Judge<'_>,
    ) -> Result<Epoch, No> {
        let input = Input::SealAs {
            generation: self.generation_of_seal(generation, judge),
            number: SealNumber {
                protection: number
                    .protection
                    .filter(|_| !judge.mutated(Mutation::NoProtectionInSeal)),
                ..number
            },
        };
        if course == Course::Good && judge.mutated(Mutation::AnswerSealEarly) {
            self.feed(input, judge)?;
            return self.sealed();
        }
        let mut ops = Ops::new(course);
        let stale = generation != self.log.generation;
        let before = stale.then(|| self.running.clone());
        self.feed(input, judge)?;
        if before.is_some_and(|before| before != self.running) {
            judge.broken(Rule::Fencing);
        }
        let epoch = self.sealed()?;
        if course == Course::Die(0) {
            self.die();
            return Err(No::Silent);
        }
        let outcome = self.perform_outstanding(&mut ops, judge);
        if !ops.struck {
            return Err(No::NeverSo);
        }
        outcome.map(|()| epoch)
    }

    fn sealed(&self) -> Result<Epoch, No> {
        let running = self.running.as_ref().ok_or(No::Silent)?;
        Ok(running.barriers.sealed())
    }

    fn generation_of_seal(&self, claimed: Generation, judge: &Judge<'_>) -> Generation {
        match &self.running {
            Some(running) if judge.mutated(Mutation::NoGenerationInSeal) => {
                running.barriers.generation()
            }
            _ => claimed,
        }
    }

    /// The steps that nobody asked for.
    pub fn settle(&mut self, course: Course, judge: &mut Judge<'_>) -> Result<(), No> {
        let mut ops = Ops::new(course);
        let outcome = self.settle_with(&mut ops, judge);
        if !ops.struck {
            return Err(No::NeverSo);
        }
        outcome
    }

    fn settle_with(&mut self, ops: &mut Ops, judge: &mut Judge<'_>) -> Result<(), No> {
        loop {
            self.perform_outstanding(ops, judge)?;
            self.feed(Input::Advance, judge)?;
            let running = self.running.as_ref().ok_or(No::Silent)?;
            if running.barriers.outstanding().is_none() {
                return Ok(());
            }
        }
    }

    /// The applier has brought all committed epochs into the image, durably, and the log says so.
    pub fn apply(&mut self, judge: &mut Judge<'_>) {
        let quiet = self
            .running
            .as_ref()
            .is_some_and(|running| running.barriers.outstanding().is_none());
        if !quiet || self.log.applied == self.log.committed {
            return;
        }
        self.apply_all();
        let epoch = self.log.applied;
        // Never refused.
        let _ = self.feed(Input::Applied { epoch }, judge);
    }

    fn apply_all(&mut self) {
        if let Some(newest) = self.unapplied.take() {
            self.image = newest;
        }
        self.log.applied = self.log.committed;
    }

    /// Starts again: what is committed is applied, what was open is lost.
    pub fn restart(&mut self, course: Course, judge: &mut Judge<'_>) -> Result<(), No> {
        if self.running.is_some() {
            return Err(No::NeverSo);
        }
        self.apply_all();
        if judge.mutated(Mutation::NoFenceAtRestart) {
            self.log.mode = Mode::Sync;
        }
        self.running = Some(self.resumed(judge));
        self.settle(course, judge)
    }

    /// Lets a standby in.
    pub fn park(&mut self, standby: &str, judge: &mut Judge<'_>) -> Result<(), No> {
        let standby = standby.to_owned();
        self.feed(Input::Park { standby }, judge)
    }

    fn feed(&mut self, input: Input, judge: &mut Judge<'_>) -> Result<(), No> {
        let running = self.running.as_mut().ok_or(No::Silent)?;
        let input = without_numbers(input, &running.barriers, judge);
        let effects = running
            .barriers
            .step(input)
            .map_err(|refusal| match refusal {
                Refusal::Fenced { .. } => No::Fenced,
                Refusal::Busy => No::Busy,
                _ => No::Refused,
            })?;
        for effect in effects {
            self.carry_out(&effect, judge);
        }
        Ok(())
    }

    fn carry_out(&mut self, effect: &Effect, judge: &Judge<'_>) {
        let shown = self.view();
        let committed = self.log.committed;
        let Some(running) = &mut self.running else {
            return;
        };
        match effect {
            Effect::Seal(epoch) => {
                running.sealed.push((*epoch, shown));
                running.open = None;
                if judge.mutated(Mutation::ApplyBeforeRecord) {
                    self.image = shown;
                }
            }
            Effect::DropUncommitted => {
                running.open = None;
                running.sealed.retain(|(epoch, _)| *epoch <= committed);
            }
            // The gate and the generation are read from the machine; the rest frees memory or cuts connections.
            Effect::Gate(_)
            | Effect::Committed(_)
            | Effect::Applied(_)
            | Effect::Generation { .. }
            | Effect::Forget(_) => {}
        }
    }

    fn perform_outstanding(&mut self, ops: &mut Ops, judge: &mut Judge<'_>) -> Result<(), No> {
        let running = self.running.as_ref().ok_or(No::Silent)?;
        let Some(list) = running.barriers.outstanding().map(<[LogOp]>::to_vec) else {
            return Ok(());
        };
        let mut done = 0;
        for op in &list {
            if !ops.struck && ops.course == Course::Full(ops.done) {
                ops.struck = true;
                let outcome = LogOutcome::Retry;
                self.feed(Input::LogDone { done, outcome }, judge)?;
                return Err(No::Full);
            }
            self.perform(op, judge);
            done += 1;
            ops.done += 1;
            if !ops.struck && ops.course == Course::Crash(ops.done) {
                ops.struck = true;
                self.crash();
                return Err(No::Silent);
            }
            if !ops.struck && ops.course == Course::Die(ops.done) {
                ops.struck = true;
                self.die();
                return Err(No::Silent);
            }
        }
        let outcome = LogOutcome::Done;
        self.feed(Input::LogDone { done, outcome }, judge)
    }

    fn perform(&mut self, op: &LogOp, judge: &mut Judge<'_>) {
        match op {
            LogOp::SyncImages => {}
            LogOp::Commit { epoch, standby } => {
                if !judge.mutated(Mutation::CommittedBeforeRecord) {
                    self.write_record(*epoch, standby.as_deref(), judge);
                }
            }
            LogOp::RaiseGeneration { owner, .. } => {
                if !judge.mutated(Mutation::GenerationNotDurable) {
                    self.log = self.log.raising(owner.as_deref());
                }
            }
            LogOp::SetMode(mode) => {
                let forgets = self.log.mode.holder().is_some() && mode.holder().is_none();
                if !(forgets && judge.mutated(Mutation::SyncModeNotRecorded)) {
                    self.log.mode = mode.clone();
                }
            }
        }
    }

    fn write_record(&mut self, epoch: Epoch, standby: Option<&str>, judge: &mut Judge<'_>) {
        let Some(running) = &mut self.running else {
            return;
        };
        let Some(at) = running
            .sealed
            .iter()
            .position(|(sealed, _)| *sealed == epoch)
        else {
            judge.broken(Rule::OneCommitPoint);
            return;
        };
        let (_, shown) = running.sealed.remove(at);
        if let Some(standby) = standby
            && !judge.acked.contains(&(standby.to_owned(), epoch, shown))
        {
            judge.broken(Rule::HeldFirst);
        }
        match self.log.committing(epoch, standby) {
            Ok(log) => self.log = log,
            // A standby that holds older memory is still named.
            Err(_) => judge.broken(Rule::HeldFirst),
        }
        self.unapplied = Some(shown);
        self.durable = shown;
    }
}

impl Default for Gateway {
    fn default() -> Self {
        Self::new()
    }
}

impl Running {
    pub(crate) fn recovered(log: &LogState) -> Self {
        Self {
            barriers: Barriers::recover(log, Ending::Died, Holds::Protected),
            open: None,
            sealed: Vec::new(),
            draining: BTreeSet::new(),
        }
    }
}

/// What a gateway makes of a request that does not look at all its numbers.
fn without_numbers(input: Input, barriers: &Barriers, judge: &Judge<'_>) -> Input {
    match input {
        Input::Commit { epoch, standby, .. } if judge.mutated(Mutation::NoGenerationInCommit) => {
            Input::Commit {
                generation: barriers.generation(),
                epoch,
                standby,
            }
        }
        Input::DrainToSync { generation, .. } if judge.mutated(Mutation::NoProtectionInDrain) => {
            Input::DrainToSync {
                generation,
                protection: None,
            }
        }
        other => other,
    }
}
