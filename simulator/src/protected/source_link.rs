//! A source's side of the checkpoint channel: `link`, and the first copy of `vm_task`.

use bytes::{Bytes, BytesMut};
use coordinator::checkpoint::page_payloads;
use coordinator::checkpoint_channel::{
    Frame, HEADER_BYTES, Header, Kind, Stamp as FrameStamp, VmId,
};
use coordinator::commit::{Event as Told, Phase};
use nbd_server::{Epoch, Generation};
use rand::Rng;

use super::guest::{PAGE, RAM};
use super::hosts::Host;
use super::network::{A, B, Link, Message, Node, Process};
use super::queue::Timer;
use super::world::World;
use crate::Violation;
use crate::gateway::GROUP;
use crate::planted::Planted;

/// Between two looks for a standby.
pub(super) const SEEK_AGAIN: u64 = 20_000;
/// Pieces of the first copy.
const BASE_PIECES: usize = 3;

impl World<'_> {
    pub(super) fn say(&mut self, node: Node, kind: Kind, epoch: Epoch, payload: Bytes) {
        if let Some(source) = self.source(node)
            && let Some(link) = source.link
        {
            let frame = Frame::new(kind, stamp_of(source.generation), epoch, payload);
            self.send_frame(node, link, &frame);
        }
    }

    /// Sends a frame to the other end of a link.
    pub fn send_frame(&mut self, node: Node, link: u32, frame: &Frame) {
        let Some(ends) = self.links.get(&link).filter(|link| !link.broken) else {
            return;
        };
        let (to, process) = if ends.source.0 == node {
            ends.standby
        } else {
            ends.source
        };
        let mut wire = BytesMut::with_capacity(HEADER_BYTES + frame.payload.len());
        wire.extend_from_slice(&frame.header());
        wire.extend_from_slice(&frame.payload);
        if self.damage && frame.kind != Kind::Heartbeat {
            self.damage = false;
            let at = self.random.random_range(0..wire.len());
            wire[at] ^= 1 << self.random.random_range(0..8);
            self.trace.note(
                self.now,
                format_args!("a frame is damaged: {:?}", frame.kind),
            );
        }
        let bytes = wire.freeze();
        self.send(node, to, process, Message::Frame { link, bytes });
    }

    /// Closes the link of a source.
    pub fn close_link_of(&mut self, node: Node) {
        if let Some(source) = self.source(node)
            && let Some(link) = source.link.take()
        {
            self.close(node, link);
        }
    }

    /// Closes a link: the other end hears of it.
    pub fn close(&mut self, node: Node, link: u32) {
        let Some(ends) = self.links.get(&link) else {
            return;
        };
        let (to, process) = if ends.source.0 == node {
            ends.standby
        } else {
            ends.source
        };
        if !ends.broken {
            self.send(node, to, process, Message::Closed { link });
        }
    }

    pub(super) fn seek(&mut self, node: Node) {
        let link = self.fresh_link();
        let other = A + B - node;
        let to = self.process_of(other);
        let Some(source) = self.source(node) else {
            return;
        };
        let wanted = source.seeking
            && source.link.is_none()
            && source.greeted.is_none()
            && *source.machine.phase() == Phase::Unprotected;
        if !wanted {
            return;
        }
        let process = source.process;
        let Some(to) = to else {
            self.later(node, process, SEEK_AGAIN, Timer::Seek);
            return;
        };
        source.greeted = Some(link);
        let stamp = stamp_of(source.generation);
        self.links.insert(
            link,
            Link {
                source: (node, process),
                standby: (other, to),
                broken: false,
            },
        );
        self.send(node, other, to, Message::Hello { link, stamp });
        // Nobody answers a greeting that is lost.
        self.later(node, process, 200_000, Timer::Heartbeat(link));
    }

    pub(super) fn joined(
        &mut self,
        node: Node,
        link: u32,
        standby: String,
    ) -> Result<(), Violation> {
        let now = self.now;
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        if source.greeted != Some(link) || source.link.is_some() {
            self.close(node, link);
            return Ok(());
        }
        source.greeted = None;
        source.seeking = false;
        source.link = Some(link);
        source.last_heard = now;
        let process = source.process;
        let beat = self.suspicion / 4;
        self.later(node, process, beat, Timer::Heartbeat(link));
        self.tell(node, Told::StandbyJoined { standby })
    }

    pub(super) fn base_piece(&mut self, node: Node, link: u32) -> Result<(), Violation> {
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        if source.link != Some(link) || !matches!(source.machine.phase(), Phase::Filling { .. }) {
            return Ok(());
        }
        let process = source.process;
        let piece = (RAM / PAGE).div_ceil(BASE_PIECES) * PAGE;
        let from = source.base * piece;
        let to = (from + piece).min(RAM);
        let data = source.vm.memory.bytes()[from..to].to_vec();
        source.base += 1;
        let last = source.base == BASE_PIECES;
        let stamp = stamp_of(source.generation);
        for payload in page_payloads(&[(from as u64, (to - from) as u64)], &data) {
            let frame = Frame::new(Kind::BasePages, stamp, Epoch(0), payload);
            self.send_frame(node, link, &frame);
        }
        if last {
            return self.tell(node, Told::BaseSent);
        }
        self.later(node, process, 500, Timer::Base(link));
        Ok(())
    }

    pub(super) fn frame_at_source(
        &mut self,
        node: Node,
        link: u32,
        wire: &Bytes,
    ) -> Result<(), Violation> {
        let now = self.now;
        let broken = self.links.get(&link).is_none_or(|link| link.broken);
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        if source.link != Some(link) || broken {
            return Ok(());
        }
        source.last_heard = now;
        match decode(wire) {
            Some(frame) if frame.kind == Kind::Commit1Ack => {
                let epoch = frame.epoch;
                if self.makes(Planted::ReleaseOnCommit1) {
                    self.release(node, Some(epoch))?;
                }
                self.tell(node, Told::Commit1Acked { epoch })
            }
            Some(frame) if frame.kind == Kind::Heartbeat => Ok(()),
            _ => self.standby_lost(node),
        }
    }

    /// A heartbeat, and a look whether the other side gave one.
    pub fn heartbeat(&mut self, node: Node, process: Process, link: u32) -> Result<(), Violation> {
        let (now, suspicion) = (self.now, self.suspicion);
        let beat = suspicion / 4;
        let stamp;
        match &mut self.hosts[node] {
            Host::Source(source) if source.greeted == Some(link) => {
                source.greeted = None;
                self.later(node, process, 100, Timer::Seek);
                return Ok(());
            }
            Host::Source(source) if source.link == Some(link) => {
                if now - source.last_heard > suspicion {
                    self.trace.reach("standby suspected");
                    return self.standby_lost(node);
                }
                stamp = stamp_of(source.generation);
            }
            Host::Standby(standby) => match &standby.session {
                Some(session) if session.link == link && session.takeover.is_none() => {
                    if now - session.last_heard > suspicion {
                        self.trace.reach("source suspected");
                        return self.source_lost(node);
                    }
                    stamp = session.stamp;
                }
                _ => return Ok(()),
            },
            _ => return Ok(()),
        }
        self.later(node, process, beat, Timer::Heartbeat(link));
        let frame = Frame::new(Kind::Heartbeat, stamp, Epoch(0), Bytes::new());
        self.send_frame(node, link, &frame);
        Ok(())
    }
}

/// What is on every frame.
pub fn stamp_of(generation: Generation) -> FrameStamp {
    FrameStamp {
        vm: VmId::of(GROUP),
        generation,
    }
}

/// A frame from the wire, if it is one.
pub fn decode(wire: &Bytes) -> Option<Frame> {
    let mut head = [0; HEADER_BYTES];
    head.copy_from_slice(wire.get(..HEADER_BYTES)?);
    let header = Header::decode(&head).ok()?;
    header.with_payload(wire.slice(HEADER_BYTES..)).ok()
}
