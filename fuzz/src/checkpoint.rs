//! The checkpoint channel: frames out of bytes, a checkpoint out of frames, pages out of a payload, the greetings. Whatever comes, nothing
//! panics; what was sent whole arrives as it was; what was altered anywhere on its way is refused; a checkpoint is complete exactly
//! when COMMIT 1 says so.
//!
//! Input: a byte that chooses what is driven, then its bytes: see [`run`].

use std::future::Future;
use std::io::Cursor;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use coordinator::channel_io::{ChannelError, read_frame};
use coordinator::checkpoint::{Incoming, Pages, Range, page_payloads};
use coordinator::checkpoint_channel::{Frame, HEADER_BYTES, Kind, Stamp, VmId};
use coordinator::handshake::{Hello, Welcome, decode};
use nbd_server::{Epoch, Generation};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncRead;
use xxhash_rust::xxh3::xxh3_64;

/// The guest's RAM: small, so that ranges beyond it are found soon.
const RAM: u64 = 1 << 20;

const KINDS: [Kind; 15] = [
    Kind::Hello,
    Kind::Welcome,
    Kind::Refused,
    Kind::BasePages,
    Kind::Pages,
    Kind::Device,
    Kind::Commit1,
    Kind::Commit1Ack,
    Kind::Commit3,
    Kind::Heartbeat,
    Kind::Yield,
    Kind::End,
    Kind::PackedBase,
    Kind::PackedPages,
    Kind::PackedDevice,
];

/// Runs one input.
pub fn run(data: &[u8]) {
    let Some((&what, rest)) = data.split_first() else {
        return;
    };
    match what % 6 {
        0 => raw_stream(rest),
        1 | 2 => scripted_stream(rest),
        3 => pages(rest),
        4 => comes_back::<Hello>(rest),
        _ => comes_back::<Welcome>(rest),
    }
}

/// Bytes of a stranger: frames are read until one is none.
fn raw_stream(data: &[u8]) {
    let mut reader = reader(data.to_vec());
    let mut left = data;
    while let Ok(frame) = next(&mut reader) {
        let (header, rest) = left.split_at(HEADER_BYTES);
        assert_eq!(frame.header(), header, "a header that means another one");
        let (payload, rest) = rest.split_at(frame.payload.len());
        assert_eq!(frame.payload, payload);
        left = rest;
    }
}

/// A source that sends what the input says, and something between it and the standby that alters a frame.
///
/// Records: kind and how it is altered (1 byte), epoch (1), length (1), so many bytes.
fn scripted_stream(mut input: &[u8]) {
    let mut sent: Vec<Frame> = Vec::new();
    let mut wire = Vec::new();
    let mut altered = false;
    while let Some((&[op, epoch, len], rest)) = input.split_first_chunk::<3>() {
        let (bytes, rest) = rest.split_at(rest.len().min(len.into()));
        input = rest;
        let kind = KINDS[usize::from(op & 15) % KINDS.len()];
        let payload = payload(kind, op & 0x80 != 0, bytes, &sent);
        let frame = Frame::new(kind, stamp(), Epoch(u64::from(epoch % 4)), payload);
        let start = wire.len();
        wire.extend_from_slice(&frame.header());
        wire.extend_from_slice(&frame.payload);
        altered = alter(op >> 4 & 7, bytes, &mut wire, start);
        if altered {
            break;
        }
        sent.push(frame);
    }
    let mut reader = reader(wire);
    for frame in &sent {
        let arrived = next(&mut reader).expect("a frame that was sent whole");
        assert_eq!(&arrived, frame);
    }
    let last = next(&mut reader).map(|frame| frame.kind);
    match last {
        Err(ChannelError::Closed) => {}
        Err(ChannelError::Frame(_)) if altered => {}
        other => panic!("{other:?} at the end, altered: {altered}"),
    }
    assemble(sent);
}

/// What a frame of this kind holds: something that fits the kind, or the input's own bytes.
fn payload(kind: Kind, raw: bool, bytes: &[u8], sent: &[Frame]) -> Bytes {
    match kind {
        Kind::BasePages | Kind::Pages if !raw => {
            let ranges: Vec<Range> = bytes
                .chunks_exact(2)
                .map(|pair| (u64::from(pair[0]) * 4104, u64::from(pair[1]) * 5))
                .filter(|range| range.1 > 0)
                .collect();
            let len: u64 = ranges.iter().map(|range| range.1).sum();
            let data: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let mut payloads = page_payloads(&ranges, &data);
            payloads.pop().unwrap_or_default()
        }
        Kind::Commit1 if !raw => {
            let begin = sent
                .iter()
                .rposition(|frame| frame.kind == Kind::Commit1)
                .map_or(0, |at| at + 1);
            tally(&sent[begin..])
        }
        _ => Bytes::copy_from_slice(bytes),
    }
}

/// Number, length and checksum of frames, as the head of `coordinator/src/checkpoint.rs` has it.
fn tally(frames: &[Frame]) -> Bytes {
    let parts = frames.iter().filter(|frame| is_part(frame.kind));
    let (mut count, mut bytes, mut sums) = (0_u64, 0, Vec::new());
    for part in parts {
        count += 1;
        bytes += part.payload.len() as u64;
        sums.extend_from_slice(&xxh3_64(&part.payload).to_le_bytes());
    }
    let numbers = [count, bytes, xxh3_64(&sums)];
    numbers.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn is_part(kind: Kind) -> bool {
    matches!(kind, Kind::Pages | Kind::Device)
}

/// Alters the frame that begins at `start`. True: it is none any more.
fn alter(how: u8, bytes: &[u8], wire: &mut Vec<u8>, start: usize) -> bool {
    let arg = usize::from(bytes.first().copied().unwrap_or_default());
    let frame = &mut wire[start..];
    match how {
        1 => frame[arg % HEADER_BYTES] ^= 1 << (arg % 8),
        2 if frame.len() > HEADER_BYTES => {
            let at = HEADER_BYTES + arg % (frame.len() - HEADER_BYTES);
            frame[at] ^= 1 << (arg % 8);
        }
        3 => {
            let keep = start + arg % frame.len();
            wire.truncate(keep);
        }
        // By somebody who knows the checksum: the version, the kind, the length.
        4 => forge(frame, 4, &(3 + arg as u16).to_le_bytes()),
        5 => forge(frame, 6, &(16 + arg as u16).to_le_bytes()),
        6 => {
            let len = (frame.len() - HEADER_BYTES) as u64;
            let claimed = [len + 1, (8 << 20) + 1, u64::MAX, 1 << 63][arg % 4];
            forge(frame, 40, &claimed.to_le_bytes());
        }
        _ => return false,
    }
    true
}

fn forge(frame: &mut [u8], at: usize, bytes: &[u8]) {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    let sum = xxh3_64(&frame[..56]);
    frame[56..64].copy_from_slice(&sum.to_le_bytes());
}

/// What the standby makes of the frames.
fn assemble(frames: Vec<Frame>) {
    let mut under_way: Option<(Incoming, Vec<Frame>)> = None;
    for frame in frames {
        if frame.kind == Kind::Commit1 {
            let (incoming, parts) = under_way
                .take()
                .unwrap_or_else(|| (Incoming::new(frame.epoch, RAM), Vec::new()));
            let expected = parts.iter().all(|part| part.epoch == frame.epoch)
                && frame.payload == tally(&parts)
                && parts
                    .iter()
                    .any(|part| part.kind == Kind::Device && !part.payload.is_empty());
            let complete = incoming.complete(&frame);
            assert_eq!(complete.is_ok(), expected, "{complete:?}");
            if let Ok(checkpoint) = complete {
                let devices = parts.iter().filter(|part| part.kind == Kind::Device);
                let devices: Vec<u8> = devices.flat_map(|part| part.payload.to_vec()).collect();
                assert_eq!(checkpoint.device_state, devices);
                checkpoint.pages.iter().for_each(inside);
            }
            continue;
        }
        let (incoming, parts) =
            under_way.get_or_insert_with(|| (Incoming::new(frame.epoch, RAM), Vec::new()));
        if incoming.take(frame.clone()).is_ok() {
            assert!(is_part(frame.kind), "{:?} is no part", frame.kind);
            parts.push(frame);
        } else {
            // The standby drops it all and closes the channel.
            return;
        }
    }
}

/// Pages of a payload: those that a source made, and any other.
fn pages(data: &[u8]) {
    let payload = Bytes::copy_from_slice(data);
    let Ok(pages) = Pages::decode(payload, RAM) else {
        return;
    };
    inside(&pages);
    let ranges: Vec<Range> = pages
        .iter()
        .map(|(offset, bytes)| (offset, bytes.len() as u64))
        .collect();
    let content: Vec<u8> = pages.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect();
    let again: Vec<Pages> = page_payloads(&ranges, &content)
        .into_iter()
        .map(|payload| Pages::decode(payload, RAM).expect("what was made of pages"))
        .collect();
    let not_empty = |part: &(u64, &[u8])| !part.1.is_empty();
    let before: Vec<_> = pages.iter().filter(not_empty).collect();
    let after: Vec<_> = again.iter().flat_map(Pages::iter).collect();
    assert_eq!(before, after);
}

fn inside(pages: &Pages) {
    for (offset, bytes) in pages.iter() {
        assert!(offset + bytes.len() as u64 <= RAM, "beyond the guest's RAM");
    }
}

/// A greeting that can be read is the same after it was written and read again.
fn comes_back<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(json: &[u8]) {
    let Ok(value) = decode::<T>(json) else {
        return;
    };
    let written = serde_json::to_vec(&value).expect("what was read can be written");
    let again: T = decode(&written).expect("what was written can be read");
    assert_eq!(value, again);
}

fn stamp() -> Stamp {
    Stamp {
        vm: VmId::of("vm1"),
        generation: Generation(1),
    }
}

type Reader = Pin<Box<dyn AsyncRead + Send>>;

fn reader(wire: Vec<u8>) -> Reader {
    Box::pin(Cursor::new(wire))
}

/// The next frame. Memory is always ready.
fn next(reader: &mut Reader) -> Result<Frame, ChannelError> {
    let mut reading = std::pin::pin!(read_frame(reader));
    match reading
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(frame) => frame,
        Poll::Pending => panic!("it waits for bytes that are there"),
    }
}
