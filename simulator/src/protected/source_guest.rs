//! The guest of a source: what it writes, reads and sends, and the output gate before it.

use coordinator::commit::Phase;
use nbd_server::Epoch;
use rand::Rng;

use super::guest::{Request, What};
use super::network::{GATEWAY, Message, Node};
use super::queue::Timer;
use super::world::World;
use crate::blocks::{CLEARED, DISKS, UNITS};
use crate::{Violation, violation};

impl World<'_> {
    pub(super) fn guest_acts(&mut self, node: Node) -> Result<(), Violation> {
        self.vm_seen = self.now;
        let busy = self.random.random_ratio(1, 3);
        let pause = self
            .random
            .random_range(if busy { 50..400 } else { 300..3_000 });
        let kind = self.random.random_range(0..20);
        let count = self.random.random_range(1..=4);
        let disk = self.random.random_range(0..DISKS);
        let place = disk * UNITS + self.random.random_range(0..=UNITS - count);
        let fresh: u64 = self.random.random();
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        let process = source.process;
        if source.vm.stopped || source.ending {
            return Ok(());
        }
        self.later(node, process, pause, Timer::Guest);
        let number = self.number();
        let stamp = self.ledger.fresh() | if kind == 0 { CLEARED } else { 0 };
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        let vm = &mut source.vm;
        let what = match kind {
            0..10 => What::Write { stamp },
            10..13 => What::Read,
            13 => What::Flush,
            14..17 => {
                let at = usize::try_from(fresh % 4096).unwrap_or_default();
                vm.memory.scribble(at, fresh);
                return Ok(());
            }
            _ => {
                let before = vm.memory.sent();
                let packet = vm.memory.send(fresh);
                self.ledger.sent(packet, before);
                return self.packet(node, packet);
            }
        };
        let count = if what == What::Flush { 0 } else { count };
        if vm.requests.len() >= 4 || !vm.is_free(place, count) {
            return Ok(());
        }
        let request = Request {
            number,
            place,
            count,
            what,
        };
        vm.requests.insert(number, request);
        self.send(node, GATEWAY, process, Message::Disk { request });
        Ok(())
    }

    /// A packet waits for its epoch, or leaves at once if nothing protects the VM.
    pub(super) fn packet(&mut self, node: Node, packet: (u64, u64)) -> Result<(), Violation> {
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        let holds = matches!(
            source.machine.phase(),
            Phase::Protecting { .. } | Phase::Draining
        );
        if holds {
            source.output.push(packet);
            return Ok(());
        }
        let generation = source.generation;
        self.ledger.sees(generation, packet)
    }

    pub(super) fn release(&mut self, node: Node, epoch: Option<Epoch>) -> Result<(), Violation> {
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        let generation = source.generation;
        let mut leaving = Vec::new();
        while let Some((first, packets)) = source.held.front()
            && epoch.is_none_or(|epoch| *first <= epoch)
        {
            leaving.push((*first, packets.clone()));
            source.held.pop_front();
        }
        let open = if epoch.is_none() {
            std::mem::take(&mut source.output)
        } else {
            Vec::new()
        };
        for (epoch, packets) in leaving {
            let fenced = generation < self.ledger.cold_since;
            if !packets.is_empty()
                && !fenced
                && !self.ledger.is_committed(generation, epoch)
                && self.ledger.standing.generation == generation
            {
                return violation!("5: packets of epoch {epoch} leave before its record");
            }
            for packet in packets {
                self.ledger.sees(generation, packet)?;
            }
        }
        for packet in open {
            self.ledger.sees(generation, packet)?;
        }
        Ok(())
    }
}
