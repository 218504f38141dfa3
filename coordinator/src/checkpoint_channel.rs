//! The checkpoint channel: how a checkpoint travels from the source to its standby.
//!
//! Pure: bytes in, frames out, and back. It knows no socket (`channel_io` does that), no QEMU and no gateway.
//!
//! The order of messages, the paper's "buffered migration" and its three commits (section 4 and 5 of the paper):
//!
//! ```text
//! source                                   standby
//!   Hello  ───────────────────────────────▶  checks version, VM, machine; starts its QEMU
//!   ◀───────────────────────────── Welcome   (or Refused, with the reason)
//!   BasePages …  ─────────────────────────▶  straight into the RAM image: nothing is held yet
//!   Pages(N) … Device(N) … Commit1(N)  ───▶  buffered; length and checksums verified
//!   ◀───────────────────────── Commit1Ack(N)
//!   (COMMIT 2: the gateway makes record N durable)
//!   Commit3(N)  ──────────────────────────▶  merged into the RAM image
//!   Heartbeat at any time, in both directions
//!   Yield ─────────────────────────────────▶  take over now: the source has stopped its VM
//!   End ───────────────────────────────────▶  the VM ended as planned; forget it
//! ```
//!
//! Pages and device state travel packed, as `PackedBase`, `PackedPages` and `PackedDevice` ([`packing`](crate::packing)).
//!
//! Every frame starts with this header, all numbers little-endian:
//!
//! ```text
//!   0        4        6        8                 24           32        40         48         56        64
//!   ├─ magic ─┼ version ┼─ kind ─┼─ VM (xxh3-128) ─┼ generation ┼─ epoch ─┼─ length ─┼─ xxh3 of ─┼ xxh3 of ┤
//!   │ "EPCH"  │   u16   │  u16   │    of its name  │    u64     │   u64   │   u64    │  payload  │ 0..56   │
//! ```
//!
//! Rule for changing it: any change of the header or of a payload raises [`VERSION`]; both sides must have the same
//! version, and say so clearly if they do not. There is no negotiation: source and standby are one binary.

use std::fmt;

use bytes::Bytes;
use nbd_server::{Epoch, Generation};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// Version of the frames and their payloads.
pub const VERSION: u16 = 2;
/// Size of a frame header in bytes.
pub const HEADER_BYTES: usize = 64;
/// Largest payload of one frame in bytes. Larger page sets are sent in several frames; the bound keeps what a
/// damaged or hostile length field can make the reader allocate small.
pub const MAX_PAYLOAD_BYTES: u64 = 8 << 20;

const MAGIC: [u8; 4] = *b"EPCH";

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Kind {
    /// Source to standby, first: who I am and which machine this is (JSON).
    Hello = 1,
    /// Standby to source: ready to receive (JSON).
    Welcome = 2,
    /// Standby to source: the reason why not (UTF-8).
    Refused = 3,
    /// Pages of the first copy, merged at once.
    BasePages = 4,
    /// Dirty pages of one checkpoint, buffered.
    Pages = 5,
    /// Device state of one checkpoint, buffered.
    Device = 6,
    /// COMMIT 1: checkpoint N is complete; carries how much it must be.
    Commit1 = 7,
    /// The standby has checkpoint N, complete and verified.
    Commit1Ack = 8,
    /// COMMIT 3: record N is durable; merge.
    Commit3 = 9,
    /// I am alive.
    Heartbeat = 10,
    /// The source has stopped its VM for good; take over now (UTF-8 reason).
    Yield = 11,
    /// The VM ended as planned (UTF-8 reason).
    End = 12,
    /// [`Kind::BasePages`], packed (see [`packing`](crate::packing)).
    PackedBase = 13,
    /// [`Kind::Pages`], packed.
    PackedPages = 14,
    /// [`Kind::Device`], packed.
    PackedDevice = 15,
}

impl Kind {
    fn from_wire(value: u16) -> Option<Self> {
        use Kind::*;
        [
            Hello,
            Welcome,
            Refused,
            BasePages,
            Pages,
            Device,
            Commit1,
            Commit1Ack,
            Commit3,
            Heartbeat,
            Yield,
            End,
            PackedBase,
            PackedPages,
            PackedDevice,
        ]
        .into_iter()
        .find(|kind| *kind as u16 == value)
    }
}

/// The VM a frame belongs to: a hash of its name, so that a header has a fixed size.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VmId(u128);

impl VmId {
    /// The id of the VM with this name.
    pub fn of(name: &str) -> Self {
        Self(xxh3_128(name.as_bytes()))
    }
}

impl fmt::Debug for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VmId({:032x})", self.0)
    }
}

/// What is the same for every frame that one side sends over one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The VM.
    pub vm: VmId,
    /// The generation of the group in which the source runs.
    pub generation: Generation,
}

/// A frame that has been checked: right magic and version, length within bounds, both checksums good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is for.
    pub kind: Kind,
    /// VM and generation.
    pub stamp: Stamp,
    /// The epoch that it belongs to; zero where it belongs to none.
    pub epoch: Epoch,
    /// Its content.
    pub payload: Bytes,
}

/// The header of a frame whose payload has not arrived yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    kind: Kind,
    stamp: Stamp,
    epoch: Epoch,
    length: usize,
    payload_xxh3: u64,
}

/// Why bytes from the channel are not a frame. Each of them ends the connection: what was buffered of an unfinished
/// checkpoint is dropped, what is committed stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not this protocol at all.
    #[error(
        "the peer does not speak the checkpoint channel; is this the standby's `listen` address?"
    )]
    NotAFrame,
    /// The header's own checksum is wrong.
    #[error("a frame header on the checkpoint channel was altered on its way")]
    HeaderAltered,
    /// Another version.
    #[error(
        "the peer speaks version {theirs} of the checkpoint channel, this side version {VERSION}; install the same epochgate on both hosts"
    )]
    Version {
        /// What the peer speaks.
        theirs: u16,
    },
    /// An unknown kind of frame.
    #[error("a frame of the unknown kind {0} came over the checkpoint channel")]
    Kind(u16),
    /// The length field is out of bounds.
    #[error(
        "a frame on the checkpoint channel claims {length} bytes; at most {MAX_PAYLOAD_BYTES} are allowed"
    )]
    TooLong {
        /// What the header says.
        length: u64,
    },
    /// The payload does not have its checksum.
    #[error("the content of a {kind:?} frame of epoch {epoch} was altered on its way")]
    PayloadAltered {
        /// The frame's kind.
        kind: Kind,
        /// The frame's epoch.
        epoch: Epoch,
    },
}

impl Header {
    /// Checks and decodes a header.
    ///
    /// The version is looked at before the checksum, so that another version says so instead of looking like damage.
    pub fn decode(raw: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        if raw[..4] != MAGIC {
            return Err(FrameError::NotAFrame);
        }
        let theirs = u16_at(raw, 4);
        if theirs != VERSION {
            return Err(FrameError::Version { theirs });
        }
        if xxh3_64(&raw[..56]) != u64_at(raw, 56) {
            return Err(FrameError::HeaderAltered);
        }
        let kind = u16_at(raw, 6);
        let kind = Kind::from_wire(kind).ok_or(FrameError::Kind(kind))?;
        let length = u64_at(raw, 40);
        if length > MAX_PAYLOAD_BYTES {
            return Err(FrameError::TooLong { length });
        }
        let vm = u128::from(u64_at(raw, 8)) | u128::from(u64_at(raw, 16)) << 64;
        Ok(Self {
            kind,
            stamp: Stamp {
                vm: VmId(vm),
                generation: Generation(u64_at(raw, 24)),
            },
            epoch: Epoch(u64_at(raw, 32)),
            length: usize::try_from(length).map_err(|_| FrameError::TooLong { length })?,
            payload_xxh3: u64_at(raw, 48),
        })
    }

    /// How many bytes of payload follow.
    pub fn payload_len(&self) -> usize {
        self.length
    }

    /// Joins the header with its payload, which must have the length and the checksum that the header says.
    pub fn with_payload(self, payload: Bytes) -> Result<Frame, FrameError> {
        if payload.len() != self.length || xxh3_64(&payload) != self.payload_xxh3 {
            return Err(FrameError::PayloadAltered {
                kind: self.kind,
                epoch: self.epoch,
            });
        }
        Ok(Frame {
            kind: self.kind,
            stamp: self.stamp,
            epoch: self.epoch,
            payload,
        })
    }
}

impl Frame {
    /// A frame with a payload of at most [`MAX_PAYLOAD_BYTES`].
    pub fn new(kind: Kind, stamp: Stamp, epoch: Epoch, payload: impl Into<Bytes>) -> Self {
        let payload = payload.into();
        debug_assert!(payload.len() as u64 <= MAX_PAYLOAD_BYTES);
        Self {
            kind,
            stamp,
            epoch,
            payload,
        }
    }

    /// The header as it goes on the wire, in front of the payload.
    pub fn header(&self) -> [u8; HEADER_BYTES] {
        let mut raw = [0; HEADER_BYTES];
        raw[..4].copy_from_slice(&MAGIC);
        raw[4..6].copy_from_slice(&VERSION.to_le_bytes());
        raw[6..8].copy_from_slice(&(self.kind as u16).to_le_bytes());
        raw[8..24].copy_from_slice(&self.stamp.vm.0.to_le_bytes());
        raw[24..32].copy_from_slice(&self.stamp.generation.0.to_le_bytes());
        raw[32..40].copy_from_slice(&self.epoch.0.to_le_bytes());
        raw[40..48].copy_from_slice(&(self.payload.len() as u64).to_le_bytes());
        raw[48..56].copy_from_slice(&xxh3_64(&self.payload).to_le_bytes());
        let sum = xxh3_64(&raw[..56]);
        raw[56..64].copy_from_slice(&sum.to_le_bytes());
        raw
    }

    /// Size on the wire in bytes.
    pub fn wire_len(&self) -> u64 {
        (HEADER_BYTES + self.payload.len()) as u64
    }
}

fn u16_at(raw: &[u8; HEADER_BYTES], at: usize) -> u16 {
    u16::from_le_bytes([raw[at], raw[at + 1]])
}

fn u64_at(raw: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&raw[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn frame(payload: &[u8]) -> Frame {
        let stamp = Stamp {
            vm: VmId::of("vm1"),
            generation: Generation(7),
        };
        Frame::new(Kind::Pages, stamp, Epoch(42), payload.to_vec())
    }

    #[test]
    fn a_frame_survives_the_wire() {
        let sent = frame(b"pages");
        let header = Header::decode(&sent.header()).unwrap();
        assert_eq!(header.payload_len(), 5);
        assert_eq!(header.with_payload(sent.payload.clone()), Ok(sent));
    }

    #[test]
    fn another_version_says_so() {
        let mut raw = frame(b"").header();
        raw[4] = 9;
        assert_eq!(Header::decode(&raw), Err(FrameError::Version { theirs: 9 }));
    }

    #[test]
    fn a_truncated_or_altered_payload_is_refused() {
        let sent = frame(b"pages");
        let header = Header::decode(&sent.header()).unwrap();
        for altered in [&b"pagez"[..], b"page", b"pages!"] {
            assert_eq!(
                header.with_payload(Bytes::copy_from_slice(altered)),
                Err(FrameError::PayloadAltered {
                    kind: Kind::Pages,
                    epoch: Epoch(42)
                })
            );
        }
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_anything_is_allocated() {
        let mut raw = frame(b"").header();
        raw[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
        let sum = xxh3_64(&raw[..56]);
        raw[56..].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(
            Header::decode(&raw),
            Err(FrameError::TooLong { length: u64::MAX })
        );
    }

    proptest! {
        #[test]
        fn no_header_bit_can_flip_unseen(bit in 0usize..HEADER_BYTES * 8) {
            let mut raw = frame(b"pages").header();
            raw[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Header::decode(&raw).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(raw in proptest::array::uniform32(any::<u8>())) {
            let mut header = [0; HEADER_BYTES];
            header[..32].copy_from_slice(&raw);
            let _ = Header::decode(&header);
        }
    }
}
