//! What is packed comes back byte for byte, whatever was sent before; what nobody packed is refused.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use bytes::Bytes;
use nbd_server::Generation;
use proptest::prelude::*;

use super::*;
use crate::checkpoint::page_payloads;
use crate::checkpoint_channel::{Stamp, VmId};

const WAYS: [Compression; 3] = [Compression::None, Compression::Lz4, Compression::Zstd];

fn frame(kind: Kind, epoch: u64, payload: impl Into<Bytes>) -> Frame {
    let stamp = Stamp {
        vm: VmId::of("vm1"),
        generation: Generation(1),
    };
    Frame::new(kind, stamp, Epoch(epoch), payload)
}

fn pages(ranges: &[(u64, u64)], data: &[u8]) -> Bytes {
    let mut payloads = page_payloads(ranges, data);
    assert_eq!(payloads.len(), 1);
    payloads.remove(0)
}

/// A page that compresses badly.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..PAGE).map(|_| next()).collect()
}

#[test]
fn a_page_that_changed_a_little_costs_little_and_one_that_did_not_next_to_nothing() {
    for way in [Compression::Lz4, Compression::Zstd] {
        let (mut packer, mut unpacker) = (Packer::new(way, 16), Unpacker::new(16));
        let mut page = noise(1);
        let mut sizes = Vec::new();
        for epoch in 1..=3 {
            let frame = frame(Kind::Pages, epoch, pages(&[(8 * 4096, 4096)], &page));
            let packed = packer.pack(frame.clone());
            sizes.push(packed.payload.len());
            assert_eq!(unpacker.unpack(packed).unwrap(), frame);
            if epoch == 1 {
                page[100..108].fill(7);
            }
        }
        assert!(
            sizes[0] > 4096 && sizes[1] < 100 && sizes[2] < 60,
            "{sizes:?}"
        );
    }
}

#[test]
fn device_state_is_sent_as_a_difference() {
    let (mut packer, mut unpacker) = (Packer::new(Compression::Lz4, 0), Unpacker::new(0));
    let mut state: Vec<u8> = (0..20).flat_map(noise).collect();
    for epoch in 1..=4 {
        // Two frames for each checkpoint, and a state that grows.
        state.extend_from_slice(&epoch.to_string().into_bytes());
        let (one, two) = state.split_at(50_000);
        for piece in [one, two] {
            let frame = frame(Kind::Device, epoch, piece.to_vec());
            let packed = packer.pack(frame.clone());
            assert!(
                epoch == 1 || packed.payload.len() < 1000,
                "{}",
                packed.payload.len()
            );
            assert_eq!(unpacker.unpack(packed).unwrap(), frame);
        }
    }
}

#[test]
fn the_first_copy_is_no_past() {
    let (mut packer, mut unpacker) = (Packer::new(Compression::Lz4, 16), Unpacker::new(16));
    let payload = pages(&[(0, 4096)], &noise(1));
    let base = packer.pack(frame(Kind::BasePages, 0, payload.clone()));
    unpacker.unpack(base).unwrap();
    let packed = packer.pack(frame(Kind::Pages, 1, payload.clone()));
    assert!(packed.payload.len() > 4096);
    assert_eq!(unpacker.unpack(packed).unwrap().payload, payload);
}

#[test]
fn other_frames_stay_as_they_are() {
    let mut packer = Packer::new(Compression::Lz4, 16);
    for kind in [Kind::Commit1, Kind::Heartbeat, Kind::Yield] {
        let frame = frame(kind, 1, b"as it is".to_vec());
        assert_eq!(packer.pack(frame.clone()), frame);
    }
}

#[test]
fn a_difference_to_nothing_is_refused() {
    let mut packer = Packer::new(Compression::Lz4, 16);
    let payload = pages(&[(0, 4096)], &noise(1));
    packer.pack(frame(Kind::Pages, 1, payload.clone()));
    let packed = packer.pack(frame(Kind::Pages, 2, payload));
    assert_eq!(Unpacker::new(16).unpack(packed), Err(Unpackable::Unknown));
}

#[test]
fn a_claim_of_more_than_there_is_is_refused_before_it_costs_memory() {
    let mut body = 1_u64.to_le_bytes().to_vec();
    body.extend(0_u64.to_le_bytes());
    body.extend(u64::MAX.to_le_bytes());
    let mut payload = Vec::new();
    for number in [0, 4096, body.len() as u32] {
        payload.extend(number.to_le_bytes());
    }
    payload.extend(&body);
    let bomb = frame(Kind::PackedPages, 1, payload);
    assert_eq!(Unpacker::new(16).unpack(bomb), Err(Unpackable::Damaged));
}

#[test]
fn what_compresses_best_comes_back() {
    for way in WAYS {
        let (mut packer, mut unpacker) = (Packer::new(way, 0), Unpacker::new(0));
        let frame = frame(Kind::Device, 1, vec![7; MAX_PAYLOAD_BYTES as usize]);
        let packed = packer.pack(frame.clone());
        assert_eq!(unpacker.unpack(packed).unwrap(), frame);
    }
}

proptest! {
    #[test]
    fn any_history_comes_back(
        way in 0..WAYS.len(),
        cache in 0..6_usize,
        epochs in proptest::collection::vec(proptest::collection::vec((0..8_u64, 0..4_u64, 0..3_u8), 1..6), 1..12),
    ) {
        let (mut packer, mut unpacker) = (Packer::new(WAYS[way], cache), Unpacker::new(cache));
        for (epoch, writes) in (1..).zip(epochs) {
            let mut data = Vec::new();
            let mut ranges = Vec::new();
            for (page, seed, change) in writes {
                let mut content = if seed == 0 { vec![0; PAGE] } else { noise(seed) };
                content[..usize::from(change)].fill(0xee);
                // Some pieces are not whole pages.
                let cut = usize::from(change == 2) * 100;
                ranges.push((page * PAGE as u64 + cut as u64, (PAGE - cut) as u64));
                data.extend_from_slice(&content[cut..]);
            }
            let sent = frame(Kind::Pages, epoch, pages(&ranges, &data));
            let arrived = unpacker.unpack(packer.pack(sent.clone())).unwrap();
            prop_assert_eq!(arrived, sent);
        }
    }

    #[test]
    fn no_bytes_make_unpacking_panic(
        kind in 0..3_usize,
        payload in proptest::collection::vec(any::<u8>(), 0..200),
        header in (0..4_u32, 0..300_u32, 0..300_u32),
        count in 0..4_u64,
    ) {
        let kind = [Kind::PackedBase, Kind::PackedPages, Kind::PackedDevice][kind];
        let mut plausible: Vec<u8> = [header.0, header.1, header.2].iter().flat_map(|n| n.to_le_bytes()).collect();
        plausible.extend(count.to_le_bytes());
        plausible.extend(&payload);
        let mut unpacker = Unpacker::new(4);
        let _ = unpacker.unpack(frame(kind, 1, payload));
        let _ = unpacker.unpack(frame(kind, 1, plausible));
    }
}
