//! What a group starts with: what an earlier process has left in memory, or nothing.
//!
//! The log decides what is committed, the memory adds what was held above that; [`Barriers::resume`] says whether the two belong together.
//! Where they don't, the group starts as after a failure of the machine: what was held is gone, and whoever wrote it is fenced.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use epoch_log::{Epoch, EpochLog, LogState};

use super::arena::{self, Arena, Found, Home, Kept};
use super::barriers::{Barriers, Ending, Left};
use super::bell::Bell;
use super::budget::Budget;
use super::disk::{Held, Layer};
use super::history::now_ms;
use super::open::{GroupConfig, OpenError};
use super::overlay::{NotRevived, Overlay};
use super::shared::Cut;

/// What a group starts with.
pub struct Start {
    /// Who may do what.
    pub barriers: Barriers,
    /// Sealed epochs that are not committed, oldest first.
    pub cuts: VecDeque<Arc<Cut>>,
    /// The same by disk, with what is open.
    pub held: Vec<Held>,
    /// The memory.
    pub budget: Arc<Budget>,
}

/// Why what was left can't be used.
#[derive(Debug, thiserror::Error)]
enum Useless {
    #[error("it can't be mapped")]
    Map(#[from] io::Error),
    #[error(transparent)]
    Record(#[from] NotRevived),
    #[error("it has writes to disk number {0}, which the group does not have")]
    Disk(u16),
}

/// What the group of `config` starts with, whose log is open and brought into its images, disks of these `sizes`.
///
/// # Errors
/// [`OpenError::Memory`].
pub fn start(
    config: &GroupConfig,
    log: &EpochLog,
    clean: bool,
    sizes: Vec<u64>,
    bell: &Arc<Bell>,
) -> Result<Start, OpenError> {
    let (arena, found) = open(config, log)?;
    let limit = config.memory_budget_mib.saturating_mul(1 << 20);
    let budget = Budget::new(limit, Arc::clone(bell), Arc::clone(&arena));
    let state = log.state();
    let ending = ending(config, clean, &found);
    let anew = |budget| anew(config, state, ending, sizes.len(), budget);
    let useless = |why| {
        tracing::warn!(
            group = config.name,
            why,
            "the memory that an earlier gateway has left can't be used"
        );
    };
    let kept = match found {
        Found::Kept(kept) => kept,
        Found::Useless(why) => {
            useless(why);
            return Ok(anew(budget));
        }
        Found::OtherStart => {
            useless("the machine was started since");
            return Ok(anew(budget));
        }
        Found::Nothing => return Ok(anew(budget)),
    };
    let left = Left {
        generation: kept.generation,
        sealed: kept.sealed,
        held: kept
            .slabs
            .iter()
            .any(|slab| slab.home.epoch > state.committed),
        parked: kept.parked.clone().unwrap_or_default(),
    };
    let Some(barriers) = Barriers::resume(state, config.holds(), &left) else {
        forget(&arena, &kept);
        return Ok(anew(budget));
    };
    match revive(
        &budget,
        &kept,
        barriers.committed(),
        barriers.sealed(),
        &sizes,
    ) {
        Ok((cuts, held)) => {
            arena.set_sealed(barriers.sealed());
            let bytes = budget.held();
            tracing::info!(
                group = config.name,
                sealed = %barriers.sealed(),
                bytes,
                "goes on with what an earlier gateway held"
            );
            Ok(Start {
                barriers,
                cuts,
                held,
                budget,
            })
        }
        Err(error) => {
            tracing::error!(
                group = config.name,
                %error,
                "the memory that an earlier gateway has left can't be used"
            );
            Ok(self::anew(
                config,
                state,
                ending_of(clean, Ending::Died),
                sizes.len(),
                budget,
            ))
        }
    }
}

/// How the process before ended, should nobody be able to go on with what was found.
fn ending(config: &GroupConfig, clean: bool, found: &Found) -> Ending {
    let kept_nowhere = config.epoch_memory.as_os_str().is_empty();
    ending_of(
        clean,
        match found {
            Found::Nothing if kept_nowhere => Ending::Died,
            Found::Useless(_) => Ending::Died,
            // A tmpfs goes with its machine.
            Found::Nothing | Found::OtherStart => Ending::MachineFailed,
            // It is of a generation that is over, and with it was void what it held.
            Found::Kept(_) => Ending::MachineFailed,
        },
    )
}

fn ending_of(clean: bool, otherwise: Ending) -> Ending {
    if clean { Ending::Closed } else { otherwise }
}

fn open(config: &GroupConfig, log: &EpochLog) -> Result<(Arc<Arena>, Found), OpenError> {
    if config.epoch_memory.as_os_str().is_empty() {
        let arena = Arena::unnamed().map_err(|e| OpenError::Start {
            group: config.name.clone(),
            what: format!("no memory for epochs can be had: {e}"),
        })?;
        return Ok((arena, Found::Nothing));
    }
    let path = config
        .epoch_memory
        .join(arena::file_name(&config.name, log.id()));
    Arena::open(&path, log.id()).map_err(|source| OpenError::Memory {
        group: config.name.clone(),
        source,
    })
}

/// Nothing is held.
fn anew(
    config: &GroupConfig,
    state: &LogState,
    ending: Ending,
    disks: usize,
    budget: Arc<Budget>,
) -> Start {
    let barriers = Barriers::recover(state, ending, config.holds());
    let committed = barriers.committed();
    // Of the generation only when the group has started: what that takes, such as fencing whoever has lost writes, may fail, and then the next
    // try must not take this memory for what was held.
    budget.slabs().arena().restart_void(committed);
    let held = (0..disks).map(|disk| Held {
        committed,
        sealed: VecDeque::new(),
        open: Overlay::new(&budget, home(committed.next(), disk)),
    });
    Start {
        held: held.collect(),
        barriers,
        cuts: VecDeque::new(),
        budget,
    }
}

fn forget(arena: &Arena, kept: &Kept) {
    for slab in &kept.slabs {
        arena.forget_kept(slab);
    }
}

/// The epochs above `committed`, as they were.
fn revive(
    budget: &Arc<Budget>,
    kept: &Kept,
    committed: Epoch,
    sealed: Epoch,
    sizes: &[u64],
) -> Result<(VecDeque<Arc<Cut>>, Vec<Held>), Useless> {
    let pool = budget.slabs();
    let mut slabs: BTreeMap<Home, Vec<_>> = BTreeMap::new();
    for slab in &kept.slabs {
        if slab.home.epoch <= committed {
            pool.arena().forget_kept(slab);
            continue;
        }
        if usize::from(slab.home.disk) >= sizes.len() {
            return Err(Useless::Disk(slab.home.disk));
        }
        let slot = pool.arena().take_kept(slab)?;
        let of_home = slabs.entry(slab.home).or_default();
        of_home.push(pool.adopt(slot, slab.used));
    }
    let mut overlay = |epoch: Epoch, disk: usize| {
        let home = home(epoch, disk);
        let size = sizes.get(disk).copied().unwrap_or(0);
        Overlay::revive(budget, home, size, slabs.remove(&home).unwrap_or_default())
    };
    let mut cuts = VecDeque::new();
    for epoch in (committed.0 + 1..=sealed.0).map(Epoch) {
        let overlays: Result<Vec<_>, _> = (0..sizes.len())
            .map(|disk| overlay(epoch, disk).map(Arc::new))
            .collect();
        let overlays = overlays?;
        cuts.push_back(Arc::new(Cut {
            epoch,
            overlays,
            // Nearly: nobody has written down when.
            sealed_ms: now_ms(),
        }));
    }
    let held = (0..sizes.len()).map(|disk| {
        let layers = cuts.iter().filter_map(|cut| {
            Some(Layer {
                epoch: cut.epoch,
                overlay: Arc::clone(cut.overlays.get(disk)?),
            })
        });
        Ok(Held {
            committed,
            sealed: layers.collect(),
            open: overlay(sealed.next(), disk)?,
        })
    });
    let held: Result<Vec<_>, NotRevived> = held.collect();
    Ok((cuts.clone(), held?))
}

fn home(epoch: Epoch, disk: usize) -> Home {
    Home {
        epoch,
        disk: u16::try_from(disk).unwrap_or(u16::MAX),
    }
}
