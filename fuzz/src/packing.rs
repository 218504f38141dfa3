//! Packed frames of the checkpoint channel: what was packed comes back as it was, whatever was sent before; what was altered or never
//! packed is refused, or is a frame exactly as long as it says.
//!
//! Input: a byte that chooses compression and size of the caches, then records, one for each frame: what it is and how it is altered
//! (1 byte), epoch (1), length (1), so many bytes. See `content`, `altered` and `made_up`.

use std::sync::OnceLock;

use bytes::Bytes;
use coordinator::checkpoint::{Pages, Range, page_payloads};
use coordinator::checkpoint_channel::{Frame, Kind, MAX_PAYLOAD_BYTES, Stamp, VmId};
use coordinator::packing::{Compression, Packer, Unpacker};
use nbd_server::{Epoch, Generation};

const PAGE: usize = 4096;
/// The guest's RAM: a few pages, so that the same ones come again.
const RAM: u64 = 16 * PAGE as u64;
/// Most frames of one input.
const MOST_FRAMES: usize = 8;
/// Most pages of one frame.
const MOST_PAGES: usize = 2;
/// Numbers before the body of a packed frame.
const HEADER: usize = 12;

/// Runs one input.
pub fn run(data: &[u8]) {
    let Some((&how, mut input)) = data.split_first() else {
        return;
    };
    let cached = usize::from(how >> 4);
    let mut packer = Packer::new(compression(how), cached);
    let mut channel = Channel {
        unpacker: Unpacker::new(cached),
        agreed: true,
    };
    for _ in 0..MOST_FRAMES {
        let Some((&[op, epoch, len], rest)) = input.split_first_chunk::<3>() else {
            break;
        };
        let (bytes, rest) = rest.split_at(rest.len().min(len.into()));
        input = rest;
        let epoch = Epoch(u64::from(epoch % 4));
        let arrived = if op & 3 == 3 {
            channel.agreed = false;
            channel.take(&made_up(op, epoch, bytes))
        } else {
            let frame = content(op, epoch, bytes);
            let packed = packer.pack(frame.clone());
            assert_eq!(Some(packed.kind), packed_kind(frame.kind));
            channel.carry(&frame, packed, op >> 2, bytes)
        };
        if !arrived {
            // The connection ends, and with it what both ends know of each other.
            break;
        }
    }
}

/// That of others takes most of the time and is not what is looked at, so it is rare. The other bits are the size of the caches.
fn compression(how: u8) -> Compression {
    match how {
        0x40 => Compression::Zstd,
        how if how % 16 < 2 => Compression::Lz4,
        _ => Compression::None,
    }
}

fn packed_kind(kind: Kind) -> Option<Kind> {
    match kind {
        Kind::BasePages => Some(Kind::PackedBase),
        Kind::Pages => Some(Kind::PackedPages),
        Kind::Device => Some(Kind::PackedDevice),
        _ => None,
    }
}

/// The end that receives.
struct Channel {
    unpacker: Unpacker,
    /// All was sent as it was packed, so that both ends know the same.
    agreed: bool,
}

impl Channel {
    /// Brings a frame over, altered or not. False: it was refused.
    fn carry(&mut self, frame: &Frame, packed: Frame, how: u8, bytes: &[u8]) -> bool {
        match altered(packed.clone(), how, bytes) {
            Way::Whole if self.agreed => {
                let arrived = self.unpacker.unpack(packed);
                assert_eq!(arrived.as_ref(), Ok(frame));
                true
            }
            Way::Whole => self.take(&packed),
            Way::Lost => {
                self.agreed = false;
                true
            }
            Way::Altered(other) => {
                self.agreed = false;
                self.take(&other)
            }
            Way::Twice => {
                self.agreed = false;
                self.take(&packed) && self.take(&packed)
            }
        }
    }

    /// Takes a frame that may be anything. False: it was refused.
    fn take(&mut self, packed: &Frame) -> bool {
        let frame = match self.unpacker.unpack(packed.clone()) {
            Ok(frame) => frame,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return false;
            }
        };
        assert_eq!(packed_kind(frame.kind), Some(packed.kind));
        assert_eq!((frame.stamp, frame.epoch), (packed.stamp, packed.epoch));
        let said = u32::from_le_bytes(packed.payload[4..8].try_into().unwrap());
        assert_eq!(frame.payload.len() as u64, u64::from(said));
        assert!(frame.payload.len() as u64 <= MAX_PAYLOAD_BYTES);
        if frame.kind != Kind::Device {
            // As the standby does: they may be no pages.
            let _ = Pages::decode(frame.payload, RAM);
        }
        true
    }
}

fn frame(kind: Kind, epoch: Epoch, payload: impl Into<Bytes>) -> Frame {
    static STAMP: OnceLock<Stamp> = OnceLock::new();
    let stamp = STAMP.get_or_init(|| Stamp {
        vm: VmId::of("vm1"),
        generation: Generation(1),
    });
    Frame::new(kind, *stamp, epoch, payload)
}

/// A frame as a source has it: device state is the bytes themselves, of pages each two bytes make one.
fn content(op: u8, epoch: Epoch, bytes: &[u8]) -> Frame {
    let kind = match op & 3 {
        0 => Kind::Pages,
        1 => Kind::BasePages,
        _ => return frame(Kind::Device, epoch, bytes.to_vec()),
    };
    let mut ranges: Vec<Range> = Vec::new();
    let mut data = Vec::new();
    for &[place, what] in bytes.as_chunks::<2>().0.iter().take(MOST_PAGES) {
        let page = page(what);
        // Some are cut on one side or the other.
        let part = match place >> 4 {
            cut @ 1..=4 => usize::from(cut) * 100..PAGE,
            cut @ 5..=7 => 0..PAGE - usize::from(cut) * 100,
            _ => 0..PAGE,
        };
        let offset = usize::from(place & 15) * PAGE + part.start;
        ranges.push((offset as u64, part.len() as u64));
        data.extend_from_slice(&page[part]);
    }
    let payload = page_payloads(&ranges, &data).pop();
    // Pages of nothing: a table without entries.
    frame(kind, epoch, payload.unwrap_or_else(|| vec![0; 8].into()))
}

/// A page: zeros, or one of a few that compress badly, as it is or with a little or much of it changed.
fn page(what: u8) -> Vec<u8> {
    if what == 0 {
        return vec![0; PAGE];
    }
    let mut page = noise()[usize::from(what & 3)].clone();
    let changed = [0, 1, 200, 257, 1000, 2100, 4000, 4096][usize::from(what >> 2 & 7)];
    let with = what >> 5;
    page[..changed].iter_mut().for_each(|byte| *byte ^= with);
    page
}

fn noise() -> &'static [Vec<u8>; 4] {
    static NOISE: OnceLock<[Vec<u8>; 4]> = OnceLock::new();
    NOISE.get_or_init(|| {
        [1_u64, 2, 3, 4].map(|seed| {
            let word = |at: u64| xxhash_rust::xxh3::xxh3_64_with_seed(&at.to_le_bytes(), seed);
            (0..PAGE as u64 / 8)
                .flat_map(|at| word(at).to_le_bytes())
                .collect()
        })
    })
}

/// What becomes of a frame on its way.
enum Way {
    Whole,
    Lost,
    Twice,
    Altered(Frame),
}

/// Alters a packed frame: a bit, its end, one of its numbers, its kind, its epoch.
fn altered(packed: Frame, how: u8, bytes: &[u8]) -> Way {
    let arg = |at: usize| usize::from(bytes.get(at).copied().unwrap_or_default());
    let mut payload = packed.payload.to_vec();
    let mut other = packed.clone();
    match how {
        1 | 2 => {
            // Among the numbers, the table and what stands for the pieces; or anywhere.
            let most = if how == 1 { 80 } else { payload.len() };
            let at = (arg(0) << 8 | arg(1)) % payload.len().min(most);
            payload[at] ^= 1 << (arg(2) % 8);
        }
        3 => payload.truncate((arg(0) << 8 | arg(1)) % payload.len()),
        4 => {
            let at = arg(0) % 3 * 4;
            let now = u32::from_le_bytes(payload[at..at + 4].try_into().unwrap());
            payload[at..at + 4].copy_from_slice(&claim(arg(1), now).to_le_bytes());
        }
        5 => return Way::Lost,
        6 => return Way::Twice,
        7 => {
            other.kind = packed_kind([Kind::BasePages, Kind::Pages, Kind::Device][arg(0) % 3])
                .expect("a kind that is packed");
        }
        8 => other.epoch = Epoch(arg(0) as u64 % 4),
        _ => return Way::Whole,
    }
    other.payload = payload.into();
    Way::Altered(other)
}

/// A number in the place of `now`.
fn claim(what: usize, now: u32) -> u32 {
    match what % 10 {
        0 => 0,
        1 => now.wrapping_add(1),
        2 => now.wrapping_sub(1),
        3 => 8 << 20,
        4 => (8 << 20) + 1,
        5 => 16 << 20,
        6 => (16 << 20) + 1,
        7 => u32::MAX,
        8 => now.wrapping_mul(2),
        _ => what as u32 >> 4,
    }
}

/// A frame that nobody packed: what it claims comes first (4 bytes), the rest is its body, whatever compression it names.
fn made_up(op: u8, epoch: Epoch, bytes: &[u8]) -> Frame {
    let kind = [Kind::PackedBase, Kind::PackedPages, Kind::PackedDevice][usize::from(op >> 2) % 3];
    let codec = u32::from(op >> 5 & 3);
    let (claims, body) = bytes.split_at(bytes.len().min(4));
    let length = body.len() as u32;
    let (raw, length) = match *claims {
        // A small length of the payload, and the true one of the body.
        [a, b, 0, 0] => (u32::from_le_bytes([a, b, 0, 0]), length),
        [a, b, 0, d] => (claim(a.into(), length), claim(b.into(), u32::from(d) * 64)),
        [a, b, c, d] => (
            u32::from_le_bytes([a, b, c & 1, 0]),
            claim(d.into(), length),
        ),
        _ => (0, length),
    };
    let mut payload = Vec::with_capacity(HEADER + body.len());
    for number in [codec, raw, length] {
        payload.extend_from_slice(&number.to_le_bytes());
    }
    payload.extend_from_slice(body);
    frame(kind, epoch, payload)
}
