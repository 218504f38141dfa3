//! The gateway's process: its turns, its crashes and its starts, what arrives at it, and where its group stands. What is asked of it is in
//! `control` and `disks`.

use coordinator::commit::Phase as SourcePhase;
use nbd_server::Generation;
use nbd_server::group::barriers::{Gate, Phase};
use rand::Rng;

use super::control::Reply;
use super::disks::Flushing;
use super::hosts::Host;
use super::network::{A, B, DiskOutcome, GATEWAY, Message, Node, Process};
use super::queue::Event;
use super::world::World;
use crate::blocks::{PLACES, UNIT, fill};
use crate::past::keep;
use crate::planted::Planted;
use crate::{Violation, violation};

impl World<'_> {
    /// A turn of committer or applier.
    pub fn gateway_turn(&mut self) -> Result<(), Violation> {
        let Some(gateway) = &mut self.gateway else {
            return Ok(());
        };
        let commits = gateway.turn(self.now, &mut self.random);
        let error = gateway.stepped.last_error();
        self.trace.note(
            self.now,
            format_args!(
                "turn {} {}",
                if commits { "commit" } else { "apply" },
                error.unwrap_or_default()
            ),
        );
        self.after_change()
    }

    /// Something may have changed at the gateway.
    pub fn after_change(&mut self) -> Result<(), Violation> {
        if self.storage.disk.is_dead() {
            let power = self.power_next();
            return self.crash_gateway(power);
        }
        self.observe()?;
        self.answer_requests()?;
        self.answer_flushes()?;
        self.answer_guests()?;
        self.tell_events();
        if self.random.random_ratio(1, 100) {
            self.ledger.check_images(&self.storage.image_stamps())?;
        }
        if self.storage.keeps_history() && self.random.random_ratio(1, 400) {
            self.check_past(16)?;
            self.keep_past()?;
        }
        Ok(())
    }

    /// The thread that keeps the history in its bounds has a turn.
    fn keep_past(&mut self) -> Result<(), Violation> {
        let Some(gateway) = &self.gateway else {
            return Ok(());
        };
        if keep(&self.storage, gateway) {
            self.trace.reach("history trimmed or thinned");
        }
        if self.storage.disk.is_dead() {
            let power = self.power_next();
            return self.crash_gateway(power);
        }
        Ok(())
    }

    /// What is kept is what it was; one of `share` epochs is read.
    pub(super) fn check_past(&mut self, share: u32) -> Result<(), Violation> {
        let Some(gateway) = &self.gateway else {
            return Ok(());
        };
        let (past, random) = (&mut self.ledger.past, &mut self.random);
        let read = past.check(&self.storage, gateway, || random.random_ratio(1, share))?;
        self.trace.reach_times("kept epoch read", read);
        Ok(())
    }

    /// Looks where the group stands.
    pub fn observe(&mut self) -> Result<(), Violation> {
        let Some(gateway) = &self.gateway else {
            return Ok(());
        };
        let now = gateway.stepped.standing();
        if now != self.ledger.standing {
            self.look_again = 0;
            let (phase, gate) = (now.phase, now.gate);
            self.trace.note(
                self.now,
                format_args!(
                    "generation {} sealed {} committed {} applied {} {phase:?} {gate:?}",
                    now.generation, now.sealed, now.committed, now.applied
                ),
            );
            if now.committed > self.ledger.standing.committed {
                self.trace.reach("committed");
            }
            let cut = now.sealed > self.ledger.standing.sealed;
            self.ledger.observe(now)?;
            self.check_mode()?;
            if cut && self.makes(Planted::ApplyBeforeRecord) {
                self.scribble_cut();
            }
        }
        Ok(())
    }

    /// The group is in the mode that its owner knows of: nothing that was given up turns it.
    fn check_mode(&self) -> Result<(), Violation> {
        let (generation, phase) = (self.ledger.standing.generation, self.ledger.standing.phase);
        if self.storage.keeps_history() && self.ledger.standing.gate == Gate::Through {
            return violation!("history: a write would go through to the images");
        }
        let owner = self.hosts.iter().find_map(|host| match host {
            // One that has not attached yet owns nothing.
            Host::Source(source)
                if source.generation == generation && generation > Generation(0) =>
            {
                Some(&source.machine)
            }
            _ => None,
        });
        let Some(source) = owner else {
            return Ok(());
        };
        let unasked = match phase {
            Phase::Held | Phase::Switching => {
                matches!(
                    source.phase(),
                    SourcePhase::Unprotected | SourcePhase::Filling { .. }
                )
            }
            Phase::Draining { release: false } => {
                !matches!(source.phase(), SourcePhase::Draining | SourcePhase::Over)
            }
            Phase::Through | Phase::Backlog => source.protected(),
            _ => false,
        };
        if unasked {
            return violation!(
                "given up is given up: the group is in {phase:?}, and its source in {:?}",
                source.phase()
            );
        }
        Ok(())
    }

    /// A planted mistake: the cut is in the images at once.
    fn scribble_cut(&mut self) {
        let mut unit = vec![0; UNIT];
        for place in 0..PLACES {
            fill(self.ledger.live[place], place, &mut unit);
            self.storage.scribble(place, &unit);
        }
    }

    /// The process is gone, with all that it held.
    pub fn crash_gateway(&mut self, power: bool) -> Result<(), Violation> {
        if self.gateway.is_none() {
            return Ok(());
        }
        let kind = if power {
            "gateway-power"
        } else {
            "gateway-kill"
        };
        self.trace.fault(self.now, kind, format_args!(""));
        let waiting = std::mem::take(&mut self.waiting);
        self.subscriptions.clear();
        self.attached.clear();
        let pending = std::mem::take(&mut self.pending);
        let flushing = std::mem::take(&mut self.flushing);
        self.gateway = None;
        self.forget_turn();
        if power {
            let lost = self.ledger.power_lost() || self.loses_unflushed();
            self.storage.power_loss();
            if lost || matches!(self.ledger.standing.gate, Gate::Through) {
                // A guest in sync mode may have lost what it had not flushed: it is started again.
                self.give_up_vms("its disk lost what was not flushed")?;
            }
        } else {
            self.storage.disk.process_ends();
        }
        self.incarnation += 1;
        for pending in pending {
            self.unanswered(pending);
        }
        let flushing = flushing.into_iter().map(Flushing::of);
        for (from, process, request) in waiting.into_iter().chain(flushing) {
            let outcome = DiskOutcome::Lost;
            self.send(GATEWAY, from, process, Message::Done { request, outcome });
        }
        // Who listens finds the stream closed; who waits for a disk finds the connection closed.
        for node in [A, B] {
            self.gateway_gone(node);
        }
        let after = self.random.random_range(500..40_000);
        self.at(self.now + after, Event::StartGateway);
        Ok(())
    }

    /// Whether the power would take what the group holds in sync mode, and its owner would go on.
    fn loses_unflushed(&self) -> bool {
        self.storage.keeps_memory() && self.holds_unflushed()
    }

    /// Whether the group holds writes in sync mode.
    fn holds_unflushed(&self) -> bool {
        let sync = matches!(
            self.ledger.standing.phase,
            Phase::Through | Phase::Draining { release: true }
        );
        self.storage.keeps_history() && sync && !self.ledger.uncommitted().is_empty()
    }

    /// The process starts.
    pub fn start_gateway(&mut self) -> Result<(), Violation> {
        if self.gateway.is_some() {
            return Ok(());
        }
        match self.storage.start(self.now) {
            Ok(gateway) => {
                self.trace.reach("gateway restart");
                let (before, held) = (self.ledger.standing.generation, self.holds_unflushed());
                self.gateway = Some(gateway);
                self.observe()?;
                if held && self.ledger.standing.generation > before {
                    self.trace.reach("fenced for what it had not flushed");
                } else if held {
                    self.trace.reach("restart with what was not flushed");
                }
                self.ledger.check_images(&self.storage.image_stamps())?;
                if self.storage.keeps_history() {
                    self.check_past(4)?;
                }
                Ok(())
            }
            Err(error) if self.storage.disk.is_dead() || self.storage.disk.figures().1 > 0 => {
                self.trace
                    .note(self.now, format_args!("the group does not open: {error:?}"));
                let power = self.storage.disk.is_dead() && self.power_next();
                self.storage.disk.process_ends();
                self.storage.disk.heal();
                let through = matches!(self.ledger.standing.gate, Gate::Through);
                if power && !through && !self.loses_unflushed() {
                    self.ledger.power_lost();
                    self.storage.power_loss();
                }
                self.at(self.now + 3_000, Event::StartGateway);
                Ok(())
            }
            Err(error) => violation!("the group does not open: {error:?}"),
        }
    }

    /// A crash between two changes is of the power, or only of the process.
    pub fn power_next(&mut self) -> bool {
        self.random.random_bool(0.5) && !self.storage_failed
    }

    /// Something arrives at the gateway.
    pub fn gateway_receives(
        &mut self,
        from: Node,
        process: Process,
        incarnation: u32,
        message: Message,
    ) -> Result<(), Violation> {
        let gone = self.gateway.is_none();
        match message {
            // A connection that a living process makes anew reaches whatever gateway there is.
            Message::Ask { number, .. } if gone || incarnation != self.incarnation => {
                let reply = Reply::Unreachable;
                self.send(GATEWAY, from, process, Message::Reply { number, reply });
                Ok(())
            }
            Message::Disk { request } if gone || incarnation != self.incarnation => {
                let outcome = DiskOutcome::Lost;
                self.send(GATEWAY, from, process, Message::Done { request, outcome });
                Ok(())
            }
            Message::Ask { number, ask } => {
                self.poke();
                self.asked(from, process, number, ask)?;
                self.after_change()
            }
            Message::Disk { request } => {
                self.poke();
                self.serve(from, process, request)?;
                self.after_change()
            }
            _ => Ok(()),
        }
    }

    /// Something was asked: the threads of the group look soon.
    pub(super) fn poke(&mut self) {
        if let Some(gateway) = &mut self.gateway {
            gateway.poke(self.now, &mut self.random);
        }
    }
}
