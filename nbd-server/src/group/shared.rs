//! What the threads of a group share, and how the effects that the barriers decide on reach disks and connections.
//!
//! Locks, always in this order: the core, the disks by number, and last the bell, the errors and the channels.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use epoch_log::{Epoch, Generation};
use tokio::sync::{broadcast, oneshot};

use super::arena::{Arena, Home};
use super::barriers::{Barriers, Effect, Gate, Input};
use super::bell::Bell;
use super::budget::Budget;
use super::disk::{Disk, Layer, Rights};
use super::error::{GroupError, Part};
use super::history::{GroupHistory, now_ms};
use super::overlay::{Overlay, Stack};
use super::refusal::Refusal;
use crate::control::api::{AttachmentKind, Event};
use crate::export::{Cutter, IoError};
use crate::failpoint;
use crate::metrics::CommitMeter;

/// Events that a slow reader may be behind before it is told to look again.
const EVENTS: usize = 64;

/// Where the group stands after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The current generation.
    pub generation: Generation,
    /// The newest committed epoch.
    pub committed: Epoch,
}

/// Where a request is answered.
pub type Reply = oneshot::Sender<Result<Answer, GroupError>>;

/// Work for the committer.
#[derive(Debug)]
pub enum Job {
    /// A request that may need the log.
    Request {
        /// What is to be decided.
        input: Input,
        /// Who waits for it.
        reply: Reply,
        /// Since when.
        asked: Instant,
    },
    /// An epoch is sealed: its data can go to the log.
    Sealed,
    /// A client of a group that commits by itself wants everything durable.
    Flush(oneshot::Sender<Result<(), IoError>>),
    /// A client wants to write while writes wait.
    WriteWaits,
    /// A group that commits by itself holds much: commit now.
    Pressure,
    /// The applier is done with this epoch.
    Applied(Epoch),
    /// Stop; in order (commit what a group without a source holds, close the log) or at once.
    Stop {
        /// In order.
        orderly: bool,
    },
}

/// Work for the applier.
#[derive(Debug)]
pub enum Order {
    /// Bring this committed epoch into the images.
    Apply(Arc<Cut>),
    /// Somebody waits for the images: do not wait for further epochs.
    Hurry,
    /// Stop.
    Stop,
}

/// One sealed epoch over all disks.
#[derive(Debug)]
pub struct Cut {
    /// The epoch.
    pub epoch: Epoch,
    /// What was written in it, by disk.
    pub overlays: Vec<Arc<Overlay>>,
    /// When it was cut, in milliseconds since 1970.
    pub sealed_ms: u64,
}

impl Cut {
    /// Bytes of guest data in it.
    pub fn data_bytes(&self) -> u64 {
        self.overlays.iter().map(|o| o.data_bytes()).sum()
    }

    /// Puts what it has on top of `stacks`, one for each disk.
    pub fn stack<'a>(&'a self, stacks: &mut [Stack<'a>]) {
        for (stack, overlay) in stacks.iter_mut().zip(&self.overlays) {
            stack.push(overlay);
        }
    }
}

/// One open connection.
#[derive(Debug)]
pub struct Entry {
    /// The instance behind the `@`.
    pub instance: Option<String>,
    /// What the connection may do.
    pub rights: Arc<Rights>,
    /// Ends it.
    pub cutter: Cutter,
    /// It reads the past: whoever owns the group is nothing to it.
    pub past: bool,
}

impl Entry {
    /// What kind of attachment it is now.
    pub fn kind(&self) -> AttachmentKind {
        match &self.instance {
            Some(_) if self.past => AttachmentKind::Past,
            None => AttachmentKind::Plain,
            Some(_) if self.rights.is_parked() => AttachmentKind::Parked,
            Some(_) => AttachmentKind::Source,
        }
    }
}

/// What the core's lock guards.
#[derive(Debug)]
pub struct Core {
    /// All decisions.
    pub barriers: Barriers,
    /// Sealed and committed epochs whose memory is still held, oldest first.
    pub cuts: VecDeque<Arc<Cut>>,
    /// Open connections.
    pub entries: BTreeMap<u64, Entry>,
    /// Number of the next connection.
    pub next_entry: u64,
}

impl Core {
    /// Nobody is connected.
    pub fn new(barriers: Barriers, cuts: VecDeque<Arc<Cut>>) -> Self {
        Self {
            barriers,
            cuts,
            entries: BTreeMap::new(),
            next_entry: 0,
        }
    }
}

/// What the threads of a group share.
#[derive(Debug)]
pub struct Shared {
    /// The group's name.
    pub name: String,
    /// Its disks.
    pub disks: Vec<Arc<Disk>>,
    /// Its past, if it is kept.
    pub history: Option<GroupHistory>,
    /// The memory that epochs may hold.
    pub budget: Arc<Budget>,
    /// Rings when waiting requests may look again.
    pub bell: Arc<Bell>,
    /// The way to the committer.
    pub jobs: Sender<Job>,
    /// The way to the applier.
    pub apply: Sender<Order>,
    /// The way to the owner.
    pub events: broadcast::Sender<Event>,
    /// What commits take.
    pub commits: Arc<CommitMeter>,
    /// No request waits any more.
    pub stopping: AtomicBool,
    /// The owner has been told that memory is short, in this epoch.
    pressed: AtomicBool,
    core: Mutex<Core>,
    errors: Mutex<BTreeMap<Part, String>>,
}

impl Shared {
    /// Puts the parts together. Nothing is open yet: the gate is closed.
    pub fn new(
        name: String,
        disks: Vec<Arc<Disk>>,
        budget: Arc<Budget>,
        bell: Arc<Bell>,
        core: Core,
        jobs: Sender<Job>,
        apply: Sender<Order>,
    ) -> Self {
        Self {
            name,
            disks,
            history: None,
            budget,
            bell,
            jobs,
            apply,
            events: broadcast::channel(EVENTS).0,
            commits: Arc::default(),
            stopping: AtomicBool::new(false),
            pressed: AtomicBool::new(false),
            core: Mutex::new(core),
            errors: Mutex::default(),
        }
    }

    /// The same, whose past is kept.
    pub fn with_history(self, history: Option<GroupHistory>) -> Self {
        Self { history, ..self }
    }

    /// The core.
    pub fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides about `input` and carries out what follows.
    pub fn step(&self, core: &mut Core, input: Input) -> Result<(), Refusal> {
        let mut parks = matches!(input, Input::Park { .. });
        for effect in core.barriers.step(input)? {
            parks |= matches!(effect, Effect::Generation { .. });
            self.perform(core, effect);
        }
        if parks {
            self.arena().set_parked(core.barriers.parked());
        }
        Ok(())
    }

    /// Whether the open epoch has anything.
    pub fn holds_writes(&self) -> bool {
        self.disks.iter().any(|disk| !disk.open_is_empty())
    }

    /// The memory that the epochs lie in.
    pub fn arena(&self) -> &Arena {
        self.budget.slabs().arena()
    }

    /// Empty overlays of `epoch` for all disks.
    fn fresh(&self, epoch: Epoch) -> Vec<Overlay> {
        let homes = (0..self.disks.len()).map(|disk| Home {
            epoch,
            disk: u16::try_from(disk).unwrap_or(u16::MAX),
        });
        homes.map(|home| Overlay::new(&self.budget, home)).collect()
    }

    fn perform(&self, core: &mut Core, effect: Effect) {
        match effect {
            Effect::Gate(gate) => {
                let gate = if self.is_stopping() {
                    Gate::Closed
                } else {
                    gate
                };
                for disk in &self.disks {
                    disk.lock().set_gate(gate);
                }
                self.bell.ring();
            }
            Effect::Seal(epoch) => self.seal(core, epoch),
            Effect::DropUncommitted => {
                let committed = core.barriers.committed();
                self.arena().restart(core.barriers.generation(), committed);
                for (disk, open) in self.disks.iter().zip(self.fresh(committed.next())) {
                    let mut state = disk.lock();
                    state.open = open;
                    state.layers.retain(|layer| layer.epoch <= committed);
                }
                core.cuts.retain(|cut| cut.epoch <= committed);
            }
            Effect::Committed(epoch) => {
                for disk in &self.disks {
                    disk.lock().committed = epoch;
                }
                if let Some(cut) = core.cuts.iter().find(|cut| cut.epoch == epoch) {
                    // If the applier is gone, so is the gateway soon; the log has the epoch.
                    let _ = self.apply.send(Order::Apply(Arc::clone(cut)));
                }
            }
            Effect::Applied(epoch) => {
                for disk in &self.disks {
                    disk.lock().layers.retain(|layer| layer.epoch > epoch);
                }
                core.cuts.retain(|cut| cut.epoch > epoch);
                self.bell.ring();
            }
            Effect::Generation { generation, owner } => self.change_hands(core, generation, owner),
            Effect::Forget(standby) => {
                core.entries.retain(|_, entry| {
                    let forgotten = entry.instance.as_ref() == Some(&standby);
                    if forgotten {
                        entry.rights.forget();
                        entry.cutter.cut();
                    }
                    !forgotten
                });
            }
        }
    }

    /// One cut through all disks: no write is in the epoch on one disk and after it on another.
    fn seal(&self, core: &mut Core, epoch: Epoch) {
        let fresh = self.fresh(epoch.next());
        let mut states: Vec<_> = self.disks.iter().map(|disk| disk.lock()).collect();
        let overlays = states
            .iter_mut()
            .zip(fresh)
            .map(|(state, fresh)| {
                let overlay = Arc::new(std::mem::replace(&mut state.open, fresh));
                state.layers.push_back(Layer {
                    epoch,
                    overlay: Arc::clone(&overlay),
                });
                overlay
            })
            .collect();
        // With all locks held: the cut is the same for a gateway that comes after this one.
        self.arena().set_sealed(epoch);
        drop(states);
        core.cuts.push_back(Arc::new(Cut {
            epoch,
            overlays,
            sealed_ms: now_ms(),
        }));
        self.budget.unrelieve();
        self.listen_to_pressure();
        failpoint::hit("gateway-after-seal");
        self.tell(Job::Sealed);
    }

    fn change_hands(&self, core: &mut Core, generation: Generation, owner: Option<String>) {
        let mut states: Vec<_> = self.disks.iter().map(|disk| disk.lock()).collect();
        for state in &mut states {
            state.generation = generation;
        }
        core.entries.retain(|_, entry| {
            if entry.past {
                return true;
            }
            if !entry.rights.is_parked() {
                entry.cutter.cut();
                return false;
            }
            if owner.is_some() && entry.instance == owner {
                entry.rights.promote(generation);
            }
            true
        });
        drop(states);
        self.bell.ring();
        // Nobody listening is fine.
        let _ = self.events.send(Event::Fenced { generation, owner });
    }

    /// Cuts all connections, whatever they are; nobody must be able to come.
    pub fn send_away(&self) {
        let core = self.core();
        for entry in core.entries.values() {
            entry.cutter.cut();
        }
        let generation = core.barriers.generation().next();
        // Whoever follows the events has lost the group.
        let _ = self.events.send(Event::Fenced {
            generation,
            owner: None,
        });
    }

    /// Enters a connection; returns its number.
    pub fn enter(&self, core: &mut Core, entry: Entry) -> u64 {
        let number = core.next_entry;
        core.next_entry += 1;
        core.entries.insert(number, entry);
        number
    }

    /// Sends a job to the committer. When that has stopped, nobody waits for the job.
    pub fn tell(&self, job: Job) {
        let _ = self.jobs.send(job);
    }

    /// The held memory is more than half of the budget: says so to whom it concerns, until it is heard.
    pub fn press(&self, owned: bool) {
        if self.pressed.swap(true, Ordering::Relaxed) {
            return;
        }
        if owned {
            let event = Event::Pressure {
                bytes_held: self.budget.held(),
                budget: self.budget.limit(),
            };
            let _ = self.events.send(event);
        } else {
            self.tell(Job::Pressure);
        }
    }

    /// The next press is heard again.
    pub fn listen_to_pressure(&self) {
        self.pressed.store(false, Ordering::Relaxed);
    }

    /// Whether requests that would have to wait shall end.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Ends all waiting.
    pub fn stop_waiting(&self) {
        self.stopping.store(true, Ordering::Release);
        self.bell.ring();
    }

    /// Notes that a part fails, for the status; says it in the log once.
    pub fn note_error(&self, part: Part, message: String) {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        if errors.get(&part) != Some(&message) {
            tracing::error!(group = self.name, "{message}");
            errors.insert(part, message);
        }
    }

    /// Notes that a part works again.
    pub fn clear_error(&self, part: Part) {
        self.errors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&part);
    }

    /// What fails now.
    pub fn last_error(&self) -> Option<String> {
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        (!errors.is_empty()).then(|| errors.values().cloned().collect::<Vec<_>>().join("; "))
    }

    /// Whether a part fails now.
    pub fn has_error(&self, part: Part) -> bool {
        self.errors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(&part)
    }
}
