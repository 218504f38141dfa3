//! What one network interface of the guest has sent, and how far it may leave: a queue of framed packets with a line in it.
//! Pure values: no socket, no clock, no epochs.
//!
//! A frame is what QEMU's `filter-redirector` sends and takes (net/filter-mirror.c): the length as 4 bytes in network order,
//! then the packet, with its vnet header if the interface has one. It is passed on untouched.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

/// Largest packet that QEMU has in flight (NET_BUFSIZE in its include/net/net.h).
const PACKET_LIMIT: usize = 4096 + 65536;
/// Size of one piece of the queue.
const CHUNK: usize = 64 << 10;
/// Pieces that are kept for the next packets.
const SPARE: usize = 16;
/// Pieces that one write takes.
const SLICES: usize = 16;

/// The stream is not made of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a packet of {0} bytes can't be: the stream from QEMU is out of step")]
pub(crate) struct BadFrame(pub(crate) usize);

/// Where the next byte belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Into the length, of which so many bytes are here.
    Length { bytes: [u8; 4], have: usize },
    /// Into the packet, of which so many bytes are missing.
    Packet { missing: usize, dropped: bool },
}

const NEW_FRAME: Next = Next::Length {
    bytes: [0; 4],
    have: 0,
};

/// The queue of one interface. Positions count bytes of the stream from its beginning.
#[derive(Debug)]
pub(crate) struct Lane {
    chunks: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    /// Bytes of the first chunk that have left.
    gone: usize,
    next: Next,
    queued: u64,
    /// End of the last whole packet.
    whole: u64,
    free: u64,
    left: u64,
    limit: u64,
    packets: u64,
    dropped: u64,
}

impl Lane {
    /// An empty queue that holds at most `limit` bytes, frames included.
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            chunks: VecDeque::new(),
            spare: Vec::new(),
            gone: 0,
            next: NEW_FRAME,
            queued: 0,
            whole: 0,
            free: 0,
            left: 0,
            limit,
            packets: 0,
            dropped: 0,
        }
    }

    /// Takes what the guest sent, in pieces of any size. A packet that does not fit below the limit is dropped and counted.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> Result<(), BadFrame> {
        while !bytes.is_empty() {
            match &mut self.next {
                Next::Length {
                    bytes: length,
                    have,
                } => {
                    let count = bytes.len().min(4 - *have);
                    let (now, later) = bytes.split_at(count);
                    length[*have..*have + count].copy_from_slice(now);
                    *have += count;
                    bytes = later;
                    if *have == 4 {
                        let length = *length;
                        self.begin(length)?;
                    }
                }
                Next::Packet { missing, dropped } => {
                    let count = bytes.len().min(*missing);
                    let (now, later) = bytes.split_at(count);
                    *missing -= count;
                    bytes = later;
                    let (over, dropped) = (*missing == 0, *dropped);
                    if !dropped {
                        self.push(now);
                    }
                    if over {
                        self.end(dropped);
                    }
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, length: [u8; 4]) -> Result<(), BadFrame> {
        let missing = u32::from_be_bytes(length) as usize;
        if missing == 0 || missing > PACKET_LIMIT {
            return Err(BadFrame(missing));
        }
        let dropped = self.held() + 4 + missing as u64 > self.limit;
        if !dropped {
            self.push(&length);
        }
        self.next = Next::Packet { missing, dropped };
        Ok(())
    }

    fn end(&mut self, dropped: bool) {
        self.next = NEW_FRAME;
        if dropped {
            self.dropped += 1;
        } else {
            self.packets += 1;
            self.whole = self.queued;
        }
    }

    fn push(&mut self, mut bytes: &[u8]) {
        self.queued += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = self.chunks.back().map_or(0, |c| CHUNK - c.len());
            if room == 0 {
                let fresh = self.spare.pop();
                self.chunks
                    .push_back(fresh.unwrap_or_else(|| Vec::with_capacity(CHUNK)));
                continue;
            }
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            if let Some(chunk) = self.chunks.back_mut() {
                chunk.extend_from_slice(now);
            }
            bytes = later;
        }
    }

    /// Bytes of the packets that came, dropped ones left out.
    pub(crate) fn bytes(&self) -> u64 {
        self.whole.saturating_sub(4 * self.packets)
    }

    /// Position behind the last packet that is here as a whole.
    pub(crate) fn whole(&self) -> u64 {
        self.whole
    }

    /// Lets everything up to `position` leave. Never takes back what was freed before.
    pub(crate) fn free(&mut self, position: u64) {
        self.free = self.free.max(position.min(self.whole));
    }

    /// Whether all that may leave has left.
    pub(crate) fn is_settled(&self) -> bool {
        self.left == self.free
    }

    /// Writes what may leave, until nothing is left of it or `write` would block. Says whether all of it has left.
    pub(crate) fn leave(
        &mut self,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<bool> {
        while !self.is_settled() {
            let mut allowed = usize::try_from(self.free - self.left).unwrap_or(usize::MAX);
            let mut slices = Vec::with_capacity(SLICES);
            let mut skip = self.gone;
            for chunk in self.chunks.iter().take(SLICES) {
                let bytes = &chunk[skip..];
                skip = 0;
                let count = bytes.len().min(allowed);
                slices.push(IoSlice::new(&bytes[..count]));
                allowed -= count;
                if allowed == 0 {
                    break;
                }
            }
            match write(&slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn advance(&mut self, count: usize) {
        self.left += count as u64;
        self.gone += count;
        while let Some(first) = self.chunks.front() {
            // The last chunk may still grow: it goes when it is full.
            if self.gone < first.len() || (self.chunks.len() == 1 && first.len() < CHUNK) {
                break;
            }
            self.gone -= first.len();
            let Some(mut chunk) = self.chunks.pop_front() else {
                break;
            };
            if self.spare.len() < SPARE {
                chunk.clear();
                self.spare.push(chunk);
            }
        }
    }

    /// Bytes that wait.
    pub(crate) fn held(&self) -> u64 {
        self.queued - self.left
    }

    /// Packets taken so far, without those that were dropped.
    pub(crate) fn packets(&self) -> u64 {
        self.packets
    }

    /// Packets dropped so far, because the queue was full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn frame(byte: u8, len: usize) -> Vec<u8> {
        let mut frame = u32::try_from(len).unwrap().to_be_bytes().to_vec();
        frame.extend(std::iter::repeat_n(byte, len));
        frame
    }

    /// What leaves, with writes of at most `most` bytes.
    fn leaves(lane: &mut Lane, most: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let all = lane.leave(|slices| {
            let mut room = most;
            for slice in slices {
                let count = slice.len().min(room);
                out.extend_from_slice(&slice[..count]);
                room -= count;
            }
            Ok(most - room)
        });
        assert!(all.unwrap());
        out
    }

    #[test]
    fn nothing_leaves_before_it_is_freed_and_then_in_order() {
        for piece in [1, 3, 7, 100, 1 << 20] {
            let mut lane = Lane::new(1 << 20);
            let (one, two) = ([frame(1, 60), frame(2, 1500)].concat(), frame(3, 65_242));
            one.chunks(piece).for_each(|c| lane.take(c).unwrap());
            let mark = lane.whole();
            two.chunks(piece).for_each(|c| lane.take(c).unwrap());
            assert_eq!(leaves(&mut lane, piece), Vec::<u8>::new());
            lane.free(mark);
            assert_eq!(leaves(&mut lane, piece), one);
            assert_eq!(lane.held(), two.len() as u64);
            lane.free(lane.whole());
            assert_eq!(leaves(&mut lane, piece), two);
            assert_eq!((lane.held(), lane.packets(), lane.dropped()), (0, 3, 0));
        }
    }

    #[test]
    fn half_a_packet_never_leaves() {
        let mut lane = Lane::new(1 << 20);
        let whole = frame(1, 60);
        let half = frame(2, 60);
        lane.take(&whole).unwrap();
        lane.take(&half[..30]).unwrap();
        lane.free(u64::MAX);
        assert_eq!(leaves(&mut lane, 1000), whole);
        lane.take(&half[30..]).unwrap();
        assert_eq!(leaves(&mut lane, 1000), Vec::<u8>::new());
        lane.free(u64::MAX);
        assert_eq!(leaves(&mut lane, 1000), half);
    }

    #[test]
    fn what_does_not_fit_is_dropped_as_whole_packets_and_counted() {
        let mut lane = Lane::new(200);
        for byte in 1..=5 {
            lane.take(&frame(byte, 60)).unwrap();
        }
        assert_eq!((lane.packets(), lane.dropped()), (3, 2));
        lane.free(lane.whole());
        let kept = [frame(1, 60), frame(2, 60), frame(3, 60)].concat();
        assert_eq!(leaves(&mut lane, 50), kept);
        lane.take(&frame(6, 60)).unwrap();
        lane.free(lane.whole());
        assert_eq!(leaves(&mut lane, 50), frame(6, 60));
    }

    #[test]
    fn chunks_are_used_again() {
        let mut lane = Lane::new(64 << 20);
        for round in 0..200 {
            let packet = frame(u8::try_from(round).unwrap(), 60_000);
            lane.take(&packet).unwrap();
            lane.free(lane.whole());
            assert_eq!(leaves(&mut lane, 4096), packet);
            assert!(lane.chunks.len() + lane.spare.len() <= 3);
        }
    }

    #[test]
    fn a_stream_out_of_step_is_an_error() {
        let mut lane = Lane::new(1 << 20);
        assert_eq!(lane.take(&[0, 0, 0, 0]), Err(BadFrame(0)));
        let mut lane = Lane::new(1 << 20);
        assert_eq!(lane.take(b"GET /"), Err(BadFrame(0x4745_5420)));
    }
}
