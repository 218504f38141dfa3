//! Who owns a group, what may be written, sealed and committed, and when: every such decision is made here and nowhere
//! else. A pure state machine: no locks, no files, no clock. It knows neither data nor connections.
//!
//! The driver feeds it [`Input`]s and carries out, in order, the [`Effect`]s that come back. Where a decision must be
//! durable before it takes effect, the machine has [`Barriers::outstanding`] log operations; the driver performs them and
//! reports with [`Input::LogDone`], and only then the effects come. [`Input::Advance`] lets the machine take the steps that
//! it wants to take by itself (draining, settling).
//!
//! ```text
//!               attach                        seal                    record durable
//!   any phase ─────────▶ Backlog ─▶ Through ────────▶ Switching ────────────────────▶ Held ─┐ seal, commit
//!                                  ▲  ▲  (sync mode)        ▲              (async mode)  ▲  └─┘
//!                       first write│  │applied              │seal                       │ sync, detach
//!   any phase ──takeover─▶ Dormant─┘  └───────── Draining ◀─────────────────────────────┘
//!   restart, abort with a holder ─▶ Reserved
//! ```
//!
//! Two windows need care, as a gateway that dies in them takes acknowledged writes with it, and must know so when it
//! starts again. From the first seal to the first commit, and while draining, the log says "async, no holder": memory of
//! earlier epochs is void, yet a restart fences the owner. After a takeover the log says "async, the holder is the owner"
//! until the new owner's first write: until then disk E is untouched, so a takeover whose answer was lost can simply be
//! asked for again, even across a restart.
//!
//! A group that [always holds](Holds::Always) is the same but for what the gate does in sync mode: it holds there as well, and commits by
//! itself, in the log's sync mode. The first seal comes when everything before it is committed, so its epoch is empty here, too. A restart
//! that has lost what was held fences the owner, unless the machine failed: that takes unflushed writes in any sync mode.
//!
//! Requests may come twice, and late. Commits are called by their epoch, takeovers by who asks; seals and drains, which an owner makes
//! again and again in one generation, by their [`Protection`]: a seal that comes after the drain that gave it up, or a drain that comes
//! after the owner has begun anew, is refused. That is not remembered over a restart: what was sent to a process dies with it.

use std::collections::VecDeque;

mod durable;
mod requests;
#[cfg(test)]
mod tests;
mod words;

use epoch_log::{Epoch, Generation, Holder, LogState, Mode};

use super::refusal::Refusal;
pub use words::{
    Admission, Effect, Ending, FlushRule, Gate, Holds, Input, LogOp, LogOutcome, Protection,
    SealNumber,
};

/// Most epochs that are sealed and not committed: far more than a pipeline needs, so only a runaway caller meets it.
pub const MAX_SEALED: u64 = 1024;
/// Most standbys parked at the same time; the oldest is forgotten for a new one. A VM has one or two.
pub const MAX_PARKED: usize = 16;
/// Fenced ids that are remembered, for a clear answer; older ones are unknown, and refused as such.
pub const MAX_FENCED: usize = 256;
/// Longest owner or standby id, in bytes: it must fit into an NBD export name and into a record of the log.
pub const MAX_ID_BYTES: usize = 128;

/// Whether `id` can be an owner or standby id: 1 to [`MAX_ID_BYTES`] of ASCII letters, digits, `-`, `_`, `.` and `:`.
/// It becomes part of an export name (`group/disk@id`), of the log and of messages.
pub fn valid_id(id: &str) -> bool {
    (1..=MAX_ID_BYTES).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'))
}

/// Where a group stands. See the drawing at the head of the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Sync mode.
    Through,
    /// Sync mode, when the committed epochs are applied.
    Backlog,
    /// A standby has taken over and nothing has been written yet.
    Dormant {
        /// Somebody wants to.
        wanted: bool,
    },
    /// The first epoch is sealed; writes wait for the record that says so.
    Switching,
    /// Async mode.
    Held,
    /// Back to sync mode.
    Draining {
        /// And then the owner goes.
        release: bool,
    },
    /// Only a takeover or a cold start leads on.
    Reserved,
}

/// What the outstanding log operations are for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Purpose {
    Commit,
    Attach,
    Takeover,
    Abort,
    Release,
    Restart,
    Switch,
    StartDraining {
        release: bool,
        protection: Option<Protection>,
    },
    Settle,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Pending {
    purpose: Purpose,
    ops: Vec<LogOp>,
}

/// Why there is no memory to take over with, when there is no holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum NoMemory {
    NeverWas,
    StaleSince(Epoch),
}

/// What a process that is gone has left beside its log, in memory that outlived it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Left {
    /// Its generation.
    pub generation: Generation,
    /// The newest epoch that it had sealed.
    pub sealed: Epoch,
    /// It held writes that are not committed: an epoch that is sealed may be empty.
    pub held: bool,
    /// The standbys that it had let in.
    pub parked: Vec<String>,
}

/// The state machine of one group's authority.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Barriers {
    generation: Generation,
    /// Why the generation last rose.
    reason: &'static str,
    owner: Option<String>,
    mode: Mode,
    committed: Epoch,
    applied: Epoch,
    /// The newest sealed epoch, or `committed`.
    sealed: Epoch,
    /// The epoch whose commit says that what went through before it is in the images.
    first_held: Option<Epoch>,
    /// The owner's protections up to this one are over: drained, or followed by a later one.
    over: Protection,
    phase: Phase,
    no_memory: NoMemory,
    holds: Holds,
    parked: VecDeque<String>,
    fenced: VecDeque<String>,
    pending: Option<Pending>,
    broken: bool,
}

impl Barriers {
    /// The machine of a group whose log says `state`, with all committed epochs applied, and of which nothing else is left. There may be log
    /// operations [`outstanding`](Self::outstanding) at once.
    pub fn recover(state: &LogState, ending: Ending, holds: Holds) -> Self {
        let mut this = Self::of(state, holds);
        let holder = state.mode.holder().map(|holder| &holder.standby);
        // What was held in sync mode is lost, and its guest runs on.
        let held = holds == Holds::Always && ending == Ending::Died;
        if this.mode == Mode::Sync && this.owner.is_some() && !held {
            this.phase = this.sync_phase();
        } else if holder.is_some() && holder == this.owner.as_ref() {
            this.phase = Phase::Dormant { wanted: false };
        } else {
            let lost = this.owner.is_some() || this.mode != Mode::Sync && ending != Ending::Closed;
            let raise = lost.then_some(LogOp::RaiseGeneration {
                owner: None,
                reason: "the gateway was restarted and the open epoch is lost",
            });
            let ops = raise.into_iter().chain(this.ops_without_owner()).collect();
            this.begin(Purpose::Restart, ops);
        }
        this
    }

    /// The machine of a group that goes on where an earlier process was, which has left its memory: the open epoch and all sealed ones are
    /// there. Nothing changes hands. None if that does not apply, as the group held nothing, or the memory is not of this generation: then
    /// [`Barriers::recover`].
    pub fn resume(state: &LogState, holds: Holds, left: &Left) -> Option<Self> {
        let mut this = Self::of(state, holds);
        let held = match (&state.mode, &state.owner) {
            (Mode::Sync, owner) => owner.is_some() && (holds == Holds::Always || left.held),
            // A standby that has taken over and not written yet holds nothing.
            (Mode::Async { holder }, Some(owner)) => holder
                .as_ref()
                .is_none_or(|holder| holder.standby != *owner),
            (Mode::Async { holder }, None) => holder.is_none() && holds != Holds::Protected,
        };
        if !held || left.generation != state.generation {
            return None;
        }
        this.sealed = left.sealed.max(state.committed);
        this.phase = match state.mode {
            Mode::Async { .. } => Phase::Held,
            Mode::Sync if holds == Holds::Always => Phase::Through,
            Mode::Sync => {
                // It held always, and this one does not: all of it goes to the images first.
                this.sealed = this.sealed.next();
                Phase::Draining { release: false }
            }
        };
        // Whether it still is to be recorded is not known; to flush the images once more is never wrong.
        this.first_held = Some(this.committed.next());
        this.parked.extend(left.parked.iter().cloned());
        if let Some(holder) = state.mode.holder()
            && !this.parked.contains(&holder.standby)
        {
            this.parked.push_back(holder.standby.clone());
        }
        Some(this)
    }

    fn of(state: &LogState, holds: Holds) -> Self {
        let no_memory = if state.committed == Epoch(0) {
            NoMemory::NeverWas
        } else {
            NoMemory::StaleSince(state.committed)
        };
        Self {
            generation: state.generation,
            reason: "it had that generation when the gateway started",
            owner: state.owner.clone(),
            mode: state.mode.clone(),
            committed: state.committed,
            applied: state.applied,
            sealed: state.committed,
            first_held: None,
            over: Protection::default(),
            phase: Phase::Reserved,
            no_memory,
            holds,
            parked: VecDeque::new(),
            fenced: VecDeque::new(),
            pending: None,
            broken: false,
        }
    }

    /// The current generation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The active source.
    pub fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    /// The standby that holds the memory of the last committed epoch.
    pub fn holder(&self) -> Option<&Holder> {
        self.mode.holder()
    }

    /// The newest committed epoch.
    pub fn committed(&self) -> Epoch {
        self.committed
    }

    /// The newest epoch that the images hold.
    pub fn applied(&self) -> Epoch {
        self.applied
    }

    /// The newest sealed epoch; the newest committed one if none is.
    pub fn sealed(&self) -> Epoch {
        self.sealed
    }

    /// The standbys that are let in.
    pub fn parked(&self) -> impl Iterator<Item = &str> {
        self.parked.iter().map(String::as_str)
    }

    /// Where the group stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The epoch that takes writes: all later seals give it this number or a higher one.
    pub fn open(&self) -> Option<Epoch> {
        let takes = matches!(self.phase, Phase::Held | Phase::Switching);
        (takes || self.commits_by_itself()).then(|| self.sealed.next())
    }

    /// When it holds writes.
    pub fn holds(&self) -> Holds {
        self.holds
    }

    /// Whether the group holds writes, and seals and commits by itself.
    pub fn commits_by_itself(&self) -> bool {
        match self.phase {
            Phase::Held => self.owner.is_none(),
            Phase::Through => self.holds == Holds::Always,
            _ => false,
        }
    }

    /// The log operations that must be durable before anything else is decided.
    pub fn outstanding(&self) -> Option<&[LogOp]> {
        self.pending.as_ref().map(|pending| pending.ops.as_slice())
    }

    /// What writes do now.
    pub fn gate(&self) -> Gate {
        let changes_hands = self
            .pending
            .as_ref()
            .is_some_and(|pending| pending.purpose.changes_hands());
        match self.phase {
            _ if self.broken => Gate::Broken,
            _ if changes_hands => Gate::Closed,
            Phase::Through | Phase::Held if self.commits_by_itself() => {
                Gate::Held(FlushRule::SelfCommits)
            }
            Phase::Through => Gate::Through,
            Phase::Held => Gate::Held(match self.holder() {
                Some(_) => FlushRule::Free,
                None => FlushRule::Waits,
            }),
            _ => Gate::Closed,
        }
    }

    /// Who may open an attachment: `None` is the plain name, otherwise the instance behind the `@`.
    pub fn admit(&self, instance: Option<&str>) -> Result<Admission, Refusal> {
        let Some(id) = instance else {
            let writable = self.owner.is_none() && self.phase != Phase::Reserved;
            return Ok(Admission::Plain { writable });
        };
        if self.owner.as_deref() == Some(id) {
            return Ok(Admission::Source);
        }
        if self.parked.iter().any(|parked| parked == id) {
            return Ok(Admission::Parked);
        }
        Err(if self.is_fenced(id) {
            self.used(id)
        } else {
            Refusal::UnknownInstance { id: id.to_owned() }
        })
    }

    /// Decides about `input`. On a refusal nothing has changed.
    pub fn step(&mut self, input: Input) -> Result<Vec<Effect>, Refusal> {
        if let Input::LogDone { done, outcome } = input {
            return Ok(self.log_done(done, outcome));
        }
        if self.broken && !matches!(input, Input::Advance | Input::WriteWaits) {
            return Err(Refusal::Broken);
        }
        match input {
            Input::Seal { generation } => self.seal(generation),
            Input::SealAs { generation, number } => self.seal_as(generation, number),
            Input::SelfSeal => self.self_seal(),
            Input::Park { standby } => self.park(standby),
            Input::Applied { epoch } => Ok(self.applied_to(epoch)),
            Input::WriteWaits => {
                if let Phase::Dormant { wanted } = &mut self.phase {
                    *wanted = true;
                }
                Ok(Vec::new())
            }
            Input::Advance => Ok(self.advance()),
            _ if self.pending.is_some() => Err(Refusal::Busy),
            Input::AttachSource { owner } => self.attach(owner),
            Input::Commit {
                generation,
                epoch,
                standby,
            } => self.commit(generation, epoch, standby),
            Input::DrainToSync {
                generation,
                protection,
            } => self.drain(generation, protection, false),
            Input::Detach { generation } => self.drain(generation, None, true),
            Input::Takeover { standby } => self.takeover(standby),
            Input::Abort { generation } => self.abort(generation),
            Input::LogDone { .. } => Ok(Vec::new()),
        }
    }

    /// What the log must still say when nobody owns the group.
    fn ops_without_owner(&self) -> Option<LogOp> {
        match self.mode {
            // The holder may still take over.
            Mode::Async { holder: Some(_) } => None,
            _ => self.mode_op(self.mode_without_owner()),
        }
    }

    fn mode_without_owner(&self) -> Mode {
        match self.holds {
            Holds::Protected => Mode::Sync,
            Holds::Alone | Holds::Always => Mode::Async { holder: None },
        }
    }

    fn mode_op(&self, mode: Mode) -> Option<LogOp> {
        (self.mode != mode).then_some(LogOp::SetMode(mode))
    }

    fn sync_phase(&self) -> Phase {
        // Who holds writes need not wait for the images.
        if self.applied == self.committed || self.holds == Holds::Always {
            Phase::Through
        } else {
            Phase::Backlog
        }
    }

    pub(super) fn check_generation(&self, given: Generation) -> Result<(), Refusal> {
        if given == self.generation {
            return Ok(());
        }
        Err(Refusal::Fenced {
            given,
            current: self.generation,
            reason: self.reason.to_owned(),
        })
    }

    pub(super) fn check_owner(&self, given: Generation) -> Result<(), Refusal> {
        self.check_generation(given)?;
        if self.owner.is_some() {
            Ok(())
        } else {
            Err(Refusal::NoOwner)
        }
    }

    /// Whether a request that belongs to `protection` comes too late.
    fn check_not_over(&self, protection: Option<Protection>) -> Result<(), Refusal> {
        match protection {
            Some(given) if given <= self.over => Err(Refusal::Overtaken {
                given,
                over: self.over,
            }),
            _ => Ok(()),
        }
    }

    /// `protection` and all before it are over.
    fn give_up(&mut self, protection: Option<Protection>) {
        self.over = self.over.max(protection.unwrap_or_default());
    }

    fn is_fenced(&self, id: &str) -> bool {
        self.fenced.iter().any(|fenced| fenced == id)
    }

    fn used(&self, id: &str) -> Refusal {
        Refusal::UsedId { id: id.to_owned() }
    }
}

impl Purpose {
    /// The generation rises, so nobody may write until it has.
    fn changes_hands(&self) -> bool {
        matches!(
            self,
            Self::Attach | Self::Takeover | Self::Abort | Self::Release | Self::Restart
        )
    }
}

fn check_id(id: &str) -> Result<(), Refusal> {
    if valid_id(id) {
        Ok(())
    } else {
        Err(Refusal::BadId { id: id.to_owned() })
    }
}
