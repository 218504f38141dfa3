//! What is encoded decodes to the same, and nothing that is read can do harm.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::*;
use crate::{DiskIdentity, Epoch, ExtentKind, Generation, Holder, LogState, Mode};

fn key() -> SegmentKey {
    SegmentKey {
        log_id: [7; 16],
        salt: 0x1234,
        segment: 3,
    }
}

fn at(offset: u64) -> Position {
    Position { segment: 3, offset }
}

fn number() -> impl Strategy<Value = u64> {
    0..=crate::limits::MAX_NUMBER
}

fn state() -> impl Strategy<Value = LogState> {
    let id = prop::option::of("[a-z]{1,128}");
    (
        number(),
        id.clone(),
        any::<bool>(),
        id,
        number(),
        number(),
        number(),
    )
        .prop_map(|(generation, owner, asynchronous, standby, since, a, b)| {
            let holder = standby.map(|standby| Holder {
                standby,
                since: Epoch(since),
            });
            LogState {
                generation: Generation(generation),
                owner,
                mode: if asynchronous {
                    Mode::Async { holder }
                } else {
                    Mode::Sync
                },
                committed: Epoch(a.max(b)),
                applied: Epoch(a.min(b)),
            }
        })
}

fn state_record() -> impl Strategy<Value = StateRecord> {
    let kinds = [
        StateKind::Commit,
        StateKind::Generation,
        StateKind::Mode,
        StateKind::Applied,
        StateKind::Void,
        StateKind::Opened,
        StateKind::CleanStop,
    ];
    (
        prop::sample::select(kinds.to_vec()),
        number(),
        state(),
        any::<[u64; 3]>(),
        "[a-z ]{0,80}",
    )
        .prop_map(|(kind, sequence, state, [records, bytes, sum], reason)| {
            let chain = Chain {
                records,
                bytes,
                sum,
            };
            StateRecord {
                kind,
                sequence,
                state,
                chain,
                reason,
            }
        })
}

proptest! {
    #[test]
    fn state_records_come_back_from_either_copy(record in state_record(), sector in 0_u64..1000) {
        let offset = sector * 512;
        let bytes = encode_state(&key(), offset, &record);
        prop_assert_eq!(bytes.len() as u64, STATE_RECORD_BYTES);
        for (copy, start) in [(0, 0), (1, 4096)] {
            let copy_bytes = &bytes[start..start + 512];
            prop_assert_eq!(peek_header_len(copy_bytes), Some(512));
            let found = Record::decode(copy_bytes, &key(), at(offset), copy);
            prop_assert_eq!(found, Some(Record::State(record.clone())));
            // Nowhere else, in no other log, and not as the other copy.
            prop_assert_eq!(Record::decode(copy_bytes, &key(), at(offset + 512), copy), None);
            prop_assert_eq!(Record::decode(copy_bytes, &key(), at(offset), 1 - copy), None);
            for other in [
                SegmentKey { salt: 1, ..key() },
                SegmentKey { log_id: [8; 16], ..key() },
            ] {
                prop_assert_eq!(Record::decode(copy_bytes, &other, at(offset), copy), None);
            }
        }
    }

    #[test]
    fn any_flipped_bit_of_a_record_is_noticed(record in state_record(), bit in 0_usize..512 * 8) {
        let mut bytes = encode_state(&key(), 0, &record);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(Record::decode(&bytes[..512], &key(), at(0), 0), None);
    }

    #[test]
    fn data_records_come_back(
        entries in prop::collection::vec((any::<u16>(), 0_u8..4, any::<u64>(), 1_u64..1000), 0..60),
        epoch in number(),
    ) {
        let kinds = [ExtentKind::Data, ExtentKind::Zero, ExtentKind::Trim, ExtentKind::Hole];
        let extents: Vec<ExtentEntry> = entries.into_iter()
            .map(|(disk, kind, offset, len)| ExtentEntry { disk, kind: kinds[usize::from(kind)], offset, len })
            .collect();
        let payload_len = extents.iter().filter(|it| it.kind == ExtentKind::Data).map(|it| it.len).sum();
        let fields = DataFields {
            generation: Generation(5), epoch: Epoch(epoch), sequence: 9, payload_len, payload_sum: 77,
        };
        let (bytes, header_sum) = encode_data(&key(), 512, &fields, &extents);
        prop_assert_eq!(peek_header_len(&bytes), Some(bytes.len()));
        let Some(Record::Data(found)) = Record::decode(&bytes, &key(), at(512), 0) else {
            return Err(TestCaseError::fail("not decoded"));
        };
        prop_assert_eq!((found.header_sum, found.epoch, found.payload_len), (header_sum, Epoch(epoch), payload_len));
        prop_assert_eq!(found.extents, extents);
    }

    #[test]
    fn headers_come_back_from_either_copy(
        state in state(),
        disks in prop::collection::vec(("[a-z]{1,64}", any::<u64>(), any::<u64>()), 1..100),
        flip in any::<prop::sample::Index>(),
    ) {
        let disks = disks.into_iter().map(|(name, size, file_id)| DiskIdentity { name, size, file_id }).collect();
        let header = SegmentHeader { key: key(), group: "vm".to_owned(), disks, sequence: 4, state };
        let mut bytes = header.encode();
        let start = bytes.len() as u64;
        prop_assert_eq!(SegmentHeader::decode(&bytes, 3), Ok((header.clone(), start)));
        prop_assert_eq!(SegmentHeader::decode(&bytes, 4), Err(HeaderError::Invalid));
        let bit = flip.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(SegmentHeader::decode(&bytes, 3), Ok((header, start)));
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..2048), record in any::<bool>()) {
        let magic = if record { b"EPGRECO1" } else { b"EPGSEGM1" };
        if let Some(start) = bytes.get_mut(..8) {
            start.copy_from_slice(magic);
        }
        prop_assert!(SegmentHeader::decode(&bytes, 3).is_err());
        prop_assert_eq!(Record::decode(&bytes, &key(), at(0), 0), None);
        let _len = peek_header_len(&bytes);
    }
}

#[test]
fn numbers_that_leave_no_room_for_others_are_none() {
    let most = crate::limits::MAX_NUMBER;
    for (sequence, generation, readable) in [
        (most, most, true),
        (most + 1, 1, false),
        (1, most + 1, false),
    ] {
        let record = StateRecord {
            kind: StateKind::Generation,
            sequence,
            state: LogState {
                generation: Generation(generation),
                ..LogState::new()
            },
            chain: Chain::default(),
            reason: String::new(),
        };
        let bytes = encode_state(&key(), 0, &record);
        let found = Record::decode(&bytes[..512], &key(), at(0), 0);
        assert_eq!(found.is_some(), readable, "{sequence} {generation}");
    }
}

#[test]
fn a_newer_version_is_told_from_damage() {
    let header = SegmentHeader {
        key: key(),
        group: "vm".to_owned(),
        disks: vec![],
        sequence: 0,
        state: LogState::new(),
    };
    let mut bytes = header.encode();
    bytes[16] = 2;
    let sum = xxhash_rust::xxh3::xxh3_64(&bytes[16..512]);
    bytes[8..16].copy_from_slice(&sum.to_le_bytes());
    bytes[4096..].fill(0);
    assert_eq!(
        SegmentHeader::decode(&bytes, 3),
        Err(HeaderError::Version(2))
    );
}
