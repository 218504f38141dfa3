//! One checkpoint as it travels: the dirty pages and the device state of one paused instant, cut into frames at the
//! source, put together and verified at the standby.
//!
//! On their way the frames are packed, and restored before anything here sees them ([`packing`](crate::packing)).
//!
//! Pure: it turns page sets into frames and frames into a [`Checkpoint`]; it knows no socket and no RAM file.
//!
//! Payload of a `Pages` or `BasePages` frame, all numbers little-endian:
//!
//! ```text
//! ├ count u64 ┼ count × (offset u64, length u64) ┼ the bytes of all ranges, one after another ┤
//! ```
//!
//! Payload of a `Device` frame: the next piece of QEMU's device state. Payload of a `Commit1` frame:
//!
//! ```text
//! ├ frames u64 ┼ payload bytes u64 ┼ xxh3 over the xxh3 of each payload, in order u64 ┤
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use nbd_server::Epoch;
use qemu_glue::PageSet;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::checkpoint_channel::{Frame, Kind, MAX_PAYLOAD_BYTES, Stamp};

/// A range of guest RAM: (offset, length) in bytes.
pub type Range = (u64, u64);

/// The ranges of a page set, as they go into frames.
pub(crate) fn ranges(pages: &PageSet) -> Vec<Range> {
    pages.ranges.iter().map(|r| (r.offset, r.len)).collect()
}

/// Payload bytes that one frame of pages is filled up to. Below [`MAX_PAYLOAD_BYTES`], so that table and data fit.
const FRAME_TARGET_BYTES: u64 = 4 << 20;

/// Why the frames of a checkpoint do not make a checkpoint. The standby drops what it buffered of it and closes the
/// channel; what it had merged or verified before stays good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// A frame of pages contradicts itself.
    #[error("a frame of pages is malformed: {0}")]
    Pages(&'static str),
    /// A range outside the guest's RAM.
    #[error(
        "a page range at {offset} of {length} bytes lies outside the guest's RAM of {ram} bytes"
    )]
    OutOfRam {
        /// Where it starts, in bytes.
        offset: u64,
        /// Its length in bytes.
        length: u64,
        /// Size of the guest's RAM in bytes.
        ram: u64,
    },
    /// Frames of two checkpoints are mixed.
    #[error("a frame of epoch {found} came inside the checkpoint of epoch {expected}")]
    Mixed {
        /// The epoch under way.
        expected: Epoch,
        /// The epoch of the frame.
        found: Epoch,
    },
    /// COMMIT 1 does not agree with what arrived.
    #[error("checkpoint {epoch} is not complete: {what} differ from what COMMIT 1 says")]
    Incomplete {
        /// Its epoch.
        epoch: Epoch,
        /// What differs.
        what: &'static str,
    },
    /// More than a checkpoint of this VM can be.
    #[error(
        "checkpoint {epoch} is larger than {limit} bytes, more than this VM's RAM and devices can be"
    )]
    TooLarge {
        /// Its epoch.
        epoch: Epoch,
        /// The bound in bytes.
        limit: u64,
    },
}

/// The pages of one frame, checked against the size of the guest's RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages {
    ranges: Vec<Range>,
    data: Bytes,
}

impl Pages {
    /// Decodes the payload of a `Pages` or `BasePages` frame; every range lies inside `ram_bytes`.
    pub fn decode(payload: Bytes, ram_bytes: u64) -> Result<Self, CheckpointError> {
        let malformed = CheckpointError::Pages;
        let word = |at: usize| -> Option<u64> {
            let bytes = payload.get(at..at.checked_add(8)?)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let count = word(0).ok_or(malformed("its length is missing"))?;
        if count > MAX_PAYLOAD_BYTES / 16 {
            return Err(malformed("it claims more ranges than fit a frame"));
        }
        let count = usize::try_from(count).map_err(|_| malformed("too many ranges"))?;
        let mut ranges = Vec::with_capacity(count.min(payload.len() / 16));
        let mut total = 0u64;
        for i in 0..count {
            let (Some(offset), Some(length)) = (word(8 + i * 16), word(16 + i * 16)) else {
                return Err(malformed("its table is cut short"));
            };
            if offset.checked_add(length).is_none_or(|end| end > ram_bytes) {
                return Err(CheckpointError::OutOfRam {
                    offset,
                    length,
                    ram: ram_bytes,
                });
            }
            total = total.saturating_add(length);
            ranges.push((offset, length));
        }
        let data = payload.slice(8 + count * 16..);
        if data.len() as u64 != total {
            return Err(malformed("its data is not as long as its table says"));
        }
        Ok(Self { ranges, data })
    }

    /// Each range's offset in guest RAM with its bytes.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut at = 0usize;
        self.ranges.iter().map(move |&(offset, length)| {
            let start = at;
            at += usize::try_from(length).unwrap_or(usize::MAX);
            (offset, &self.data[start..at])
        })
    }
}

/// Cuts pages into the payloads of frames. `data` holds the bytes of all `ranges`, one after another.
pub fn page_payloads(ranges: &[Range], data: &[u8]) -> Vec<Bytes> {
    let mut payloads = Vec::new();
    let (mut table, mut start, mut end) = (Vec::new(), 0usize, 0usize);
    let mut close = |table: &mut Vec<Range>, from: usize, to: usize| {
        if table.is_empty() {
            return;
        }
        let mut payload = BytesMut::with_capacity(8 + table.len() * 16 + (to - from));
        payload.put_u64_le(table.len() as u64);
        for (offset, length) in table.drain(..) {
            payload.put_u64_le(offset);
            payload.put_u64_le(length);
        }
        payload.put_slice(&data[from..to]);
        payloads.push(payload.freeze());
    };
    for &(mut offset, mut length) in ranges {
        while length > 0 {
            let filled = (end - start + table.len() * 16) as u64;
            if filled + 16 >= FRAME_TARGET_BYTES {
                close(&mut table, start, end);
                start = end;
                continue;
            }
            let piece = length.min(FRAME_TARGET_BYTES - filled - 16);
            table.push((offset, piece));
            end += usize::try_from(piece).unwrap_or(usize::MAX);
            offset += piece;
            length -= piece;
        }
    }
    close(&mut table, start, end);
    payloads
}

/// All frames of checkpoint `epoch`, COMMIT 1 last.
pub fn frames(
    stamp: Stamp,
    epoch: Epoch,
    ranges: &[Range],
    data: &[u8],
    device_state: Bytes,
) -> Vec<Frame> {
    let pages = page_payloads(ranges, data)
        .into_iter()
        .map(|payload| Frame::new(Kind::Pages, stamp, epoch, payload));
    let piece = usize::try_from(FRAME_TARGET_BYTES).unwrap_or(usize::MAX);
    let device = (0..device_state.len()).step_by(piece).map(|at| {
        let part = device_state.slice(at..device_state.len().min(at + piece));
        Frame::new(Kind::Device, stamp, epoch, part)
    });
    let mut frames: Vec<Frame> = pages.chain(device).collect();
    let mut tally = Tally::default();
    for frame in &frames {
        tally.add(&frame.payload);
    }
    frames.push(Frame::new(Kind::Commit1, stamp, epoch, tally.encode()));
    frames
}

/// Length and checksum of a checkpoint, counted on both sides.
#[derive(Debug, Default, Clone)]
struct Tally {
    frames: u64,
    bytes: u64,
    chain: Xxh3Chain,
}

#[derive(Clone)]
struct Xxh3Chain(Box<Xxh3>);

impl Default for Xxh3Chain {
    fn default() -> Self {
        Self(Box::new(Xxh3::new()))
    }
}

impl std::fmt::Debug for Xxh3Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0.digest())
    }
}

impl Tally {
    fn add(&mut self, payload: &[u8]) {
        self.frames += 1;
        self.bytes += payload.len() as u64;
        self.chain.0.update(&xxh3_64(payload).to_le_bytes());
    }

    fn encode(&self) -> Bytes {
        let mut payload = BytesMut::with_capacity(24);
        payload.put_u64_le(self.frames);
        payload.put_u64_le(self.bytes);
        payload.put_u64_le(self.chain.0.digest());
        payload.freeze()
    }
}

/// A checkpoint that is complete and verified.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its dirty pages.
    pub pages: Vec<Pages>,
    /// QEMU's device state, opaque.
    pub device_state: Vec<u8>,
    /// Payload bytes that came over the channel for it.
    pub bytes: u64,
}

/// A checkpoint that is still arriving.
#[derive(Debug)]
pub struct Incoming {
    epoch: Epoch,
    ram_bytes: u64,
    tally: Tally,
    pages: Vec<Pages>,
    device_state: Vec<u8>,
}

impl Incoming {
    /// Begins the checkpoint of `epoch` for a guest with `ram_bytes` of RAM.
    pub fn new(epoch: Epoch, ram_bytes: u64) -> Self {
        Self {
            epoch,
            ram_bytes,
            tally: Tally::default(),
            pages: Vec::new(),
            device_state: Vec::new(),
        }
    }

    /// Takes a `Pages` or `Device` frame.
    pub fn take(&mut self, frame: Frame) -> Result<(), CheckpointError> {
        self.check_epoch(frame.epoch)?;
        self.tally.add(&frame.payload);
        // Every page once, its table (16 bytes for 4096), and the device state with the RAM of small devices.
        let limit = self.ram_bytes + self.ram_bytes / 128 + (256 << 20);
        if self.tally.bytes > limit {
            return Err(CheckpointError::TooLarge {
                epoch: self.epoch,
                limit,
            });
        }
        match frame.kind {
            Kind::Pages => self
                .pages
                .push(Pages::decode(frame.payload, self.ram_bytes)?),
            Kind::Device => self.device_state.extend_from_slice(&frame.payload),
            _ => return Err(CheckpointError::Pages("it is not a part of a checkpoint")),
        }
        Ok(())
    }

    /// Takes the `Commit1` frame: the checkpoint is complete if length and checksum are what the source says.
    pub fn complete(self, commit1: &Frame) -> Result<Checkpoint, CheckpointError> {
        self.check_epoch(commit1.epoch)?;
        let expected = self.tally.encode();
        let incomplete = |what| CheckpointError::Incomplete {
            epoch: self.epoch,
            what,
        };
        if commit1.payload.len() != expected.len() || commit1.payload[..16] != expected[..16] {
            return Err(incomplete("number and length of the frames"));
        }
        if commit1.payload[16..] != expected[16..] {
            return Err(incomplete("the checksums"));
        }
        if self.device_state.is_empty() {
            return Err(incomplete("the device state, which is missing,"));
        }
        Ok(Checkpoint {
            epoch: self.epoch,
            pages: self.pages,
            device_state: self.device_state,
            bytes: self.tally.bytes,
        })
    }

    fn check_epoch(&self, found: Epoch) -> Result<(), CheckpointError> {
        if found == self.epoch {
            return Ok(());
        }
        Err(CheckpointError::Mixed {
            expected: self.epoch,
            found,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
    use super::*;
    use crate::checkpoint_channel::VmId;
    use nbd_server::Generation;
    use proptest::prelude::*;

    const RAM: u64 = 32 << 20;

    fn stamp() -> Stamp {
        Stamp {
            vm: VmId::of("vm1"),
            generation: Generation(1),
        }
    }

    fn sample() -> Vec<Frame> {
        // Larger than one frame, so that a range is split.
        let ranges = [(0, 4096), (8192, 9 << 20)];
        let data: Vec<u8> = (0..(9 << 20) + 4096u32).map(|i| (i % 251) as u8).collect();
        frames(
            stamp(),
            Epoch(5),
            &ranges,
            &data,
            Bytes::from_static(b"devices"),
        )
    }

    fn assemble(frames: &[Frame]) -> Result<Checkpoint, CheckpointError> {
        let (commit1, parts) = frames.split_last().unwrap();
        let mut incoming = Incoming::new(Epoch(5), RAM);
        for part in parts {
            incoming.take(part.clone())?;
        }
        incoming.complete(commit1)
    }

    #[test]
    fn a_checkpoint_survives_the_channel() {
        let checkpoint = assemble(&sample()).unwrap();
        assert_eq!(checkpoint.device_state, b"devices");
        let mut ram = vec![0u8; 16 << 20];
        for pages in &checkpoint.pages {
            for (offset, bytes) in pages.iter() {
                ram[offset as usize..][..bytes.len()].copy_from_slice(bytes);
            }
        }
        assert_eq!(ram[4095], (4095 % 251) as u8);
        assert_eq!(ram[4096], 0);
        assert_eq!(ram[8192 + (9 << 20) - 1], (((9 << 20) + 4095) % 251) as u8);
    }

    #[test]
    fn a_missing_a_doubled_and_a_swapped_frame_are_found() {
        let good = sample();
        let mut missing = good.clone();
        missing.remove(1);
        let mut doubled = good.clone();
        doubled.insert(1, good[1].clone());
        let mut swapped = good.clone();
        swapped.swap(0, 1);
        for bad in [missing, doubled, swapped] {
            assert!(matches!(
                assemble(&bad),
                Err(CheckpointError::Incomplete { .. })
            ));
        }
    }

    #[test]
    fn frames_of_two_checkpoints_do_not_mix() {
        let mut frames = sample();
        frames[1].epoch = Epoch(6);
        assert!(matches!(
            assemble(&frames),
            Err(CheckpointError::Mixed { .. })
        ));
    }

    #[test]
    fn a_checkpoint_without_device_state_is_refused() {
        let frames = frames(stamp(), Epoch(5), &[(0, 4)], b"page", Bytes::new());
        assert!(matches!(
            assemble(&frames),
            Err(CheckpointError::Incomplete { .. })
        ));
    }

    #[test]
    fn a_range_outside_ram_is_refused() {
        let payload = page_payloads(&[(RAM - 2, 4)], b"page").remove(0);
        assert!(matches!(
            Pages::decode(payload, RAM),
            Err(CheckpointError::OutOfRam { .. })
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(payload in proptest::collection::vec(any::<u8>(), 0..200), count in 0u64..8) {
            let _ = Pages::decode(Bytes::from(payload.clone()), RAM);
            let mut plausible = count.to_le_bytes().to_vec();
            plausible.extend(payload);
            let _ = Pages::decode(Bytes::from(plausible), RAM);
        }

        #[test]
        fn any_page_set_comes_back_whole(ranges in proptest::collection::vec((0u64..1000, 1u64..5000), 0..40)) {
            let total: u64 = ranges.iter().map(|r| r.1).sum();
            let data: Vec<u8> = (0..total).map(|i| (i % 253) as u8).collect();
            let mut back = Vec::new();
            for payload in page_payloads(&ranges, &data) {
                for (_, bytes) in Pages::decode(payload, RAM).unwrap().iter() {
                    back.extend_from_slice(bytes);
                }
            }
            prop_assert_eq!(back, data);
        }
    }
}
