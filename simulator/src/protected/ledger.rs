//! The reference: what the disks, the standby's memory and the outside world may show. It learns what has happened from outside, and
//! knows nothing of how the parts come to it.

use std::collections::{BTreeMap, BTreeSet};

use nbd_server::group::barriers::{FlushRule, Gate};
use nbd_server::group::stepped::Standing;
use nbd_server::{Epoch, Generation};

use crate::blocks::{CLEARED, PLACES, Stamp, shown};
use crate::past::Past;
use crate::{Violation, violation};

/// One cut through all disks.
#[derive(Debug, Clone)]
pub struct Cut {
    /// What the disks hold.
    pub table: Vec<Stamp>,
    /// What stands for the memory of that moment, if it was captured.
    pub memory: Option<u64>,
}

/// To which epoch a write belongs; none went through to the image.
type Home = Option<(Generation, Epoch)>;

/// The reference.
#[derive(Debug)]
pub struct Ledger {
    cuts: BTreeMap<(Generation, Epoch), Cut>,
    /// By stamp without its flag.
    homes: Vec<Home>,
    /// What the owner's writes have made of the disks.
    pub live: Vec<Stamp>,
    /// What a recovery finds: one of these, newest last.
    pub view: Vec<Vec<Stamp>>,
    /// What a recovery after a power loss finds.
    flushed: Vec<Vec<Stamp>>,
    /// The newest epoch that was committed in a generation that is over.
    last_of: BTreeMap<Generation, Epoch>,
    /// Where the gateway stood when somebody looked last.
    pub standing: Standing,
    /// Who has verified which memory.
    pub verified: BTreeSet<(String, Generation, Epoch, u64)>,
    /// The packet before each packet.
    before: BTreeMap<u64, (u64, u64)>,
    /// The last packet that the outside world has seen.
    pub seen: (u64, u64),
    /// The generation of the last cold start.
    pub cold_since: Generation,
    /// The committed epochs, for a group that keeps them.
    pub past: Past,
}

impl Ledger {
    /// The reference of a group that is empty.
    pub fn new(standing: Standing) -> Self {
        Self {
            cuts: BTreeMap::new(),
            homes: vec![None],
            live: vec![0; PLACES],
            view: vec![vec![0]; PLACES],
            flushed: vec![vec![0]; PLACES],
            last_of: BTreeMap::new(),
            standing,
            verified: BTreeSet::new(),
            before: BTreeMap::new(),
            seen: (0, 0),
            cold_since: Generation(0),
            past: Past::default(),
        }
    }

    /// A stamp that was never given out.
    pub fn fresh(&mut self) -> Stamp {
        self.homes.push(None);
        (self.homes.len() - 1) as Stamp
    }

    /// A write is at the gateway: in the open epoch or, `through`, in the image.
    pub fn wrote(&mut self, place: usize, stamp: Stamp, through: bool) {
        self.live[place] = stamp;
        if through {
            self.view[place] = vec![stamp];
            self.flushed[place].push(stamp);
        } else {
            let home = (self.standing.generation, self.standing.sealed.next());
            let number = usize::try_from(stamp & !CLEARED).unwrap_or(usize::MAX);
            self.homes[number] = Some(home);
        }
    }

    /// A write may be in the image, or a part of it.
    pub fn may_have_written(&mut self, place: usize, stamp: Stamp) {
        self.view[place].push(stamp);
        self.flushed[place].push(stamp);
    }

    /// The images are durable.
    pub fn images_synced(&mut self) {
        for (flushed, view) in self.flushed.iter_mut().zip(&self.view) {
            flushed.clone_from(view);
        }
    }

    /// The power is gone. True if something may be lost that a guest was told is written.
    pub fn power_lost(&mut self) -> bool {
        let lost = self.flushed.iter().any(|flushed| flushed.len() > 1);
        self.view.clone_from(&self.flushed);
        lost
    }

    /// Whether a power loss would take nothing.
    pub fn is_flushed(&self) -> bool {
        self.flushed.iter().all(|flushed| flushed.len() == 1)
    }

    /// The epochs that are not committed and have something of what the disks hold.
    pub fn uncommitted(&self) -> BTreeSet<(Generation, Epoch)> {
        let numbers = self.live.iter().map(|stamp| stamp & !CLEARED);
        let homes = numbers.filter_map(|number| {
            let number = usize::try_from(number).unwrap_or(usize::MAX);
            self.homes.get(number).copied().flatten()
        });
        homes
            .filter(|(generation, epoch)| !self.is_committed(*generation, *epoch))
            .collect()
    }

    /// The cut of `epoch`.
    pub fn cut(&self, generation: Generation, epoch: Epoch) -> Option<&Cut> {
        self.cuts.get(&(generation, epoch))
    }

    /// The memory of a cut was captured.
    pub fn captured(&mut self, generation: Generation, epoch: Epoch, memory: u64) {
        if let Some(cut) = self.cuts.get_mut(&(generation, epoch)) {
            cut.memory = Some(memory);
        }
    }

    /// The gateway stands here now, running or recovered.
    pub fn observe(&mut self, now: Standing) -> Result<(), Violation> {
        let before = std::mem::replace(&mut self.standing, now.clone());
        let last = if now.generation == before.generation {
            now.sealed
        } else if before.gate == Gate::Held(FlushRule::SelfCommits) {
            // A group that commits by itself may seal and commit at once, and die.
            now.committed
        } else {
            before.sealed
        };
        for epoch in before.sealed.0 + 1..=last.0 {
            let table = self.live.clone();
            let memory = None;
            let key = (before.generation, Epoch(epoch));
            self.cuts.insert(key, Cut { table, memory });
        }
        if now.committed < before.committed {
            return violation!(
                "3: epoch {} was committed, now it is {}",
                before.committed,
                now.committed
            );
        }
        for epoch in before.committed.0 + 1..=now.committed.0 {
            self.committed(before.generation, Epoch(epoch), &now)?;
        }
        if now.generation < before.generation {
            return violation!("6: the generation fell to {}", now.generation);
        }
        if now.generation > before.generation {
            self.last_of.insert(before.generation, now.committed);
            for (live, view) in self.live.iter_mut().zip(&self.view) {
                *live = view.last().copied().unwrap_or_default();
            }
            self.verified
                .retain(|(_, generation, ..)| *generation >= before.generation);
            self.cuts
                .retain(|(generation, _), _| *generation >= before.generation);
        } else {
            let keep = Epoch(now.committed.0.saturating_sub(1));
            self.cuts.retain(|(_, epoch), _| *epoch >= keep);
        }
        Ok(())
    }

    fn committed(
        &mut self,
        generation: Generation,
        epoch: Epoch,
        now: &Standing,
    ) -> Result<(), Violation> {
        let Some(cut) = self.cuts.get(&(generation, epoch)) else {
            return violation!("3: epoch {epoch} of generation {generation} was never cut");
        };
        if let (Some(memory), Some(holder)) = (cut.memory, &now.holder) {
            let held = (holder.standby.clone(), generation, epoch, memory);
            if holder.since <= epoch && !self.verified.contains(&held) {
                return violation!(
                    "4: epoch {epoch} is committed, and {} does not hold its memory",
                    holder.standby
                );
            }
        }
        self.past.committed(epoch, &cut.table);
        for ((view, flushed), stamp) in self.view.iter_mut().zip(&mut self.flushed).zip(&cut.table)
        {
            *view = vec![*stamp];
            *flushed = vec![*stamp];
        }
        Ok(())
    }

    /// Whether an epoch of a generation is committed for good.
    pub fn is_committed(&self, generation: Generation, epoch: Epoch) -> bool {
        let last = self.last_of.get(&generation);
        epoch <= self.standing.committed && last.is_none_or(|last| epoch <= *last)
    }

    /// The images must show nothing that is not committed.
    pub fn check_images(&self, found: &[[Option<Stamp>; 2]]) -> Result<(), Violation> {
        for (place, sectors) in found.iter().enumerate() {
            for sector in sectors {
                let Some(stamp) = sector else {
                    return violation!("2: the image has bytes at {place} that nobody wrote");
                };
                let number = usize::try_from(*stamp).unwrap_or(usize::MAX);
                let Some(home) = self.homes.get(number) else {
                    return violation!("2: the image shows {stamp:x} at {place}");
                };
                if let Some((generation, epoch)) = home
                    && !self.is_committed(*generation, *epoch)
                {
                    return violation!(
                        "2: the image shows {stamp:x} at {place}, of epoch {epoch} of generation {generation}; \
                         committed is {}",
                        self.standing.committed
                    );
                }
            }
        }
        Ok(())
    }

    /// What somebody reads who boots from the disks must be what a recovery may find; it is the truth from then on.
    pub fn settle(&mut self, found: &[[Option<Stamp>; 2]]) -> Result<Vec<usize>, Violation> {
        let mut torn = Vec::new();
        for (place, sectors) in found.iter().enumerate() {
            let allowed = &self.view[place];
            for sector in sectors {
                if !allowed.iter().any(|stamp| Some(shown(*stamp)) == *sector) {
                    return violation!(
                        "7: unit {place} shows {sectors:?}, and may show one of {allowed:?}"
                    );
                }
            }
            if sectors[0] != sectors[1] {
                torn.push(place);
                continue;
            }
            let fits = |stamp: &&Stamp| Some(shown(**stamp)) == sectors[0];
            let truth = allowed.iter().rev().find(fits).copied().unwrap_or_default();
            self.live[place] = truth;
            self.view[place] = vec![truth];
        }
        Ok(torn)
    }

    /// A packet is sent, after the packet `before`.
    pub fn sent(&mut self, packet: (u64, u64), before: (u64, u64)) {
        self.before.insert(packet.1, before);
    }

    /// Whether `later` comes from a guest that remembers `earlier`.
    fn remembers(&self, mut later: (u64, u64), earlier: (u64, u64)) -> bool {
        while later.0 > earlier.0 {
            match self.before.get(&later.1) {
                Some(before) => later = *before,
                None => return false,
            }
        }
        later == earlier
    }

    /// A packet reaches the outside world.
    pub fn sees(&mut self, generation: Generation, packet: (u64, u64)) -> Result<(), Violation> {
        // What a VM sends that a cold start has fenced, and that has not heard of it, nobody promises to remember.
        if generation < self.cold_since {
            return Ok(());
        }
        if self.remembers(packet, self.seen) {
            self.seen = packet;
        } else if !self.remembers(self.seen, packet) {
            return violation!(
                "5: the outside world has seen packet {:?}, and now {packet:?} of another history",
                self.seen
            );
        }
        Ok(())
    }

    /// A guest goes on from memory in which `packet` is the last.
    pub fn resumes(&self, packet: (u64, u64)) -> Result<(), Violation> {
        if self.remembers(packet, self.seen) {
            return Ok(());
        }
        violation!(
            "5: the guest goes on after packet {packet:?}, and the outside world has seen {:?}",
            self.seen
        )
    }
}
