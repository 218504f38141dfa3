//! What the rules take and what they refuse.

use proptest::prelude::*;

use super::*;
use crate::export::{BlockSize, IoError};
use crate::protocol::command_flag;

#[test]
fn ranges_beyond_the_end_have_the_errors_of_the_protocol() {
    let rules = rules(false, false);
    for (kind, error) in [
        (command::READ, IoError::Inval),
        (command::WRITE, IoError::NoSpace),
        (command::TRIM, IoError::Inval),
        (command::WRITE_ZEROES, IoError::NoSpace),
    ] {
        for (offset, length) in [
            (SIZE, 1),
            (SIZE - 1, 2),
            (u64::MAX, 1),
            (u64::MAX, u32::MAX),
        ] {
            let request = request(kind, 0, offset, length);
            assert_eq!(rules.check(&request, &[]), Err(error), "{request:?}");
        }
        assert!(rules.check(&request(kind, 0, SIZE - 1, 1), &[]).is_ok());
        assert_eq!(
            rules.check(&request(kind, 0, SIZE, 0), &[]),
            Ok(Operation::Nothing)
        );
    }
}

#[test]
fn a_read_only_export_permits_no_change() {
    let rules = rules(true, false);
    for kind in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        assert_eq!(
            rules.check(&request(kind, 0, 0, 512), &[]),
            Err(IoError::Perm)
        );
    }
    assert!(rules.check(&request(command::READ, 0, 0, 512), &[]).is_ok());
    assert_eq!(
        rules.check(&request(command::FLUSH, 0, 0, 0), &[]),
        Ok(Operation::Flush)
    );
}

#[test]
fn flags_are_taken_where_they_were_advertised_and_nowhere_else() {
    let (simple, structured) = (rules(false, false), rules(false, true));
    let df = request(command::READ, command_flag::DF, 0, 1);
    assert_eq!(simple.check(&df, &[]), Err(IoError::Inval));
    assert!(structured.check(&df, &[]).is_ok());
    // FUA goes with every command.
    for kind in [command::READ, command::WRITE, command::FLUSH, command::TRIM] {
        assert!(
            simple
                .check(&request(kind, command_flag::FUA, 0, 1), &[])
                .is_ok()
        );
        assert_eq!(
            simple.check(&request(kind, command_flag::NO_HOLE, 0, 1), &[]),
            Err(IoError::Inval)
        );
    }
    let zeroes = request(
        command::WRITE_ZEROES,
        command_flag::NO_HOLE | command_flag::FAST_ZERO,
        0,
        9,
    );
    assert_eq!(
        simple.check(&zeroes, &[]),
        Ok(Operation::WriteZeroes {
            offset: 0,
            len: 9,
            may_trim: false,
            fast: true,
            fua: false
        })
    );
    let info = ExportInfo {
        can_fast_zero: false,
        can_fua: false,
        ..ExportInfo::full(SIZE)
    };
    let plain = Rules::new(info, Agreed::default());
    assert_eq!(plain.check(&zeroes, &[]), Err(IoError::Inval));
    let fua = request(command::WRITE, command_flag::FUA, 0, 1);
    assert_eq!(plain.check(&fua, &[]), Err(IoError::Inval));
}

#[test]
fn what_was_not_advertised_or_is_too_large_is_not_valid() {
    let info = ExportInfo {
        can_flush: false,
        can_trim: false,
        can_zeroes: false,
        can_cache: false,
        ..ExportInfo::full(SIZE)
    };
    let rules = Rules::new(info, Agreed::default());
    for kind in [
        command::FLUSH,
        command::TRIM,
        command::WRITE_ZEROES,
        command::CACHE,
        command::BLOCK_STATUS,
        command::RESIZE,
        99,
    ] {
        assert_eq!(
            rules.check(&request(kind, 0, 0, 1), &[]),
            Err(IoError::Inval),
            "{kind}"
        );
    }
    for kind in [command::READ, command::WRITE] {
        let max = protocol::MAX_PAYLOAD;
        assert!(rules.check(&request(kind, 0, 0, max), &[]).is_ok());
        assert_eq!(
            rules.check(&request(kind, 0, 0, max + 1), &[]),
            Err(IoError::Inval)
        );
    }
}

#[test]
fn ranges_of_64_bits_are_held_to_the_size() {
    let huge = Rules::new(
        ExportInfo::full(1 << 50),
        Agreed::headers(Headers::Extended),
    );
    let len = 1 << 49;
    assert_eq!(
        huge.check(&long(command::TRIM, 0, 1 << 49, len), &[]),
        Ok(Operation::Trim {
            offset: 1 << 49,
            len,
            fua: false
        })
    );
    assert_eq!(
        huge.check(&long(command::CACHE, 0, 0, len), &[]),
        Ok(Operation::Cache { offset: 0, len })
    );
    for (kind, error) in [
        (command::WRITE_ZEROES, IoError::NoSpace),
        (command::CACHE, IoError::Inval),
    ] {
        assert_eq!(
            huge.check(&long(kind, 0, (1 << 49) + 1, len), &[]),
            Err(error)
        );
        assert_eq!(huge.check(&long(kind, 0, 1, u64::MAX), &[]), Err(error));
    }
    let read = long(command::READ, 0, 0, 1 << 33);
    assert_eq!(huge.check(&read, &[]), Err(IoError::Inval));
}

#[test]
fn a_payload_is_taken_where_the_document_says_so() {
    let rules = extended(&BOTH);
    for kind in [
        command::READ,
        command::FLUSH,
        command::TRIM,
        command::CACHE,
        command::WRITE_ZEROES,
        command::RESIZE,
    ] {
        let request = Request {
            payload_len: 8,
            ..long(kind, command_flag::PAYLOAD_LEN, 0, 8)
        };
        assert_eq!(rules.check(&request, &[0; 8]), Err(IoError::Inval));
    }
    // A compact request has no such flag.
    let compact = request(command::WRITE, command_flag::PAYLOAD_LEN, 0, 8);
    let plain = self::rules(false, true);
    assert_eq!(plain.check(&compact, &[0; 8]), Err(IoError::Inval));
}

#[test]
fn block_status_answers_for_the_contexts_that_are_asked_for() {
    let rules = extended(&BOTH);
    let with = |rules: &Rules, effect: u64, ids: &[u32]| {
        let mut payload = effect.to_be_bytes().to_vec();
        ids.iter()
            .for_each(|id| payload.extend_from_slice(&id.to_be_bytes()));
        let length = u32::try_from(payload.len()).unwrap();
        let request = Request {
            payload_len: length,
            ..long(
                command::BLOCK_STATUS,
                command_flag::PAYLOAD_LEN,
                512,
                length.into(),
            )
        };
        rules.check(&request, &payload)
    };
    let status = |len, contexts: &[MetaContext]| {
        Ok(Operation::BlockStatus {
            offset: 512,
            len,
            one: false,
            contexts: contexts.iter().copied().collect(),
        })
    };
    let (allocation, held) = (MetaContext::Allocation.id(), MetaContext::Held.id());
    assert_eq!(
        with(&rules, 4096, &[held]),
        status(4096, &[MetaContext::Held])
    );
    assert_eq!(
        with(&rules, SIZE - 512, &[held, allocation]),
        status(SIZE - 512, &BOTH)
    );
    for (effect, ids) in [
        (4096, &[][..]),
        (4096, &[held, held]),
        (4096, &[77]),
        (4096, &[allocation, held, 77]),
        (0, &[held]),
        (SIZE, &[held]),
        (u64::MAX, &[held]),
    ] {
        assert_eq!(
            with(&rules, effect, ids),
            Err(IoError::Inval),
            "{effect} {ids:?}"
        );
    }
    // One with a point in time is asked for as any other, and only if it was selected.
    let [first, second, ..] = Slot::ALL.map(MetaContext::Changed);
    let all = [MetaContext::Allocation, MetaContext::Held, second];
    let rules = extended(&all);
    assert_eq!(with(&rules, 4096, &[second.id()]), status(4096, &[second]));
    assert_eq!(
        with(&rules, 4096, &[allocation, second.id(), held]),
        status(4096, &all)
    );
    assert_eq!(with(&rules, 4096, &[first.id()]), Err(IoError::Inval));
    // A payload that is cut short, or has bytes left.
    for len in [0u32, 7, 9, 11, 13] {
        let request = Request {
            payload_len: len,
            ..long(
                command::BLOCK_STATUS,
                command_flag::PAYLOAD_LEN,
                0,
                len.into(),
            )
        };
        let payload = vec![0; len as usize];
        assert_eq!(rules.check(&request, &payload), Err(IoError::Inval));
    }
    let rules = extended(&BOTH);
    let whole = long(command::BLOCK_STATUS, command_flag::REQ_ONE, 0, SIZE);
    assert_eq!(
        rules.check(&whole, &[]),
        Ok(Operation::BlockStatus {
            offset: 0,
            len: SIZE,
            one: true,
            contexts: BOTH.into_iter().collect()
        })
    );
    // What was not selected can't be asked for.
    assert_eq!(extended(&[]).check(&whole, &[]), Err(IoError::Inval));
    let nothing = long(command::BLOCK_STATUS, 0, 0, 0);
    assert_eq!(rules.check(&nothing, &[]), Err(IoError::Inval));
}

#[test]
fn requests_keep_to_the_minimum_block() {
    let info = ExportInfo {
        block_size: BlockSize {
            minimum: 512,
            preferred: 4096,
            maximum: 8192,
        },
        can_resize: true,
        ..ExportInfo::full(SIZE)
    };
    let contexts = BOTH.into_iter().collect();
    let headers = Headers::Structured;
    let rules = Rules::new(info, Agreed { headers, contexts });
    for kind in [
        command::READ,
        command::WRITE,
        command::TRIM,
        command::WRITE_ZEROES,
        command::CACHE,
        command::BLOCK_STATUS,
    ] {
        assert!(rules.check(&request(kind, 0, 512, 1024), &[]).is_ok());
        for (offset, len) in [(511, 512), (512, 513), (1, 1)] {
            let request = request(kind, 0, offset, len);
            assert_eq!(rules.check(&request, &[]), Err(IoError::Inval));
        }
    }
    let large = request(command::READ, 0, 0, 8192 + 512);
    assert_eq!(rules.check(&large, &[]), Err(IoError::Inval));
    let odd = long(command::RESIZE, 0, SIZE + 1, 0);
    assert_eq!(rules.check(&odd, &[]), Err(IoError::Inval));
}

#[test]
fn a_resize_moves_the_end_for_its_own_client() {
    let rules = extended(&[]);
    let resize = |size| rules.check(&long(command::RESIZE, 0, size, 0), &[]);
    let size = SIZE * 2;
    assert_eq!(resize(size), Ok(Operation::Resize { size }));
    assert_eq!(resize(0), Err(IoError::Inval));
    assert_eq!(resize(u64::MAX), Err(IoError::Inval));
    let read = request(command::READ, 0, SIZE, 512);
    assert_eq!(rules.check(&read, &[]), Err(IoError::Inval));
    rules.resized(size);
    assert!(rules.check(&read, &[]).is_ok());
    rules.resized(SIZE / 2);
    // "requests beyond the new size but not beyond the old one MUST fail with ENOSPC"
    assert_eq!(rules.check(&read, &[]), Err(IoError::NoSpace));
    let beyond = long(command::READ, 0, size, 512);
    assert_eq!(rules.check(&beyond, &[]), Err(IoError::Inval));

    let fixed = self::rules(false, true);
    let request = request(command::RESIZE, 0, size, 0);
    assert_eq!(fixed.check(&request, &[]), Err(IoError::Inval));
}

proptest! {
    #[test]
    fn what_passes_the_rules_is_within_the_disk(
        flags in 0u16..32, kind in 0u16..9, offset in prop_oneof![any::<u64>(), 0..SIZE + 9], length: u32,
        read_only: bool, structured: bool,
    ) {
        let within = |offset: u64, len: u64| len > 0 && u128::from(offset) + u128::from(len) <= u128::from(SIZE);
        match rules(read_only, structured).check(&request(kind, flags, offset, length), &[]) {
            Ok(Operation::Read { offset, len, fragment }) => {
                prop_assert!(within(offset, len.into()) && len <= protocol::MAX_PAYLOAD && (structured || !fragment));
            }
            Ok(Operation::Write { offset, len, .. }) => {
                prop_assert!(within(offset, len.into()) && len <= protocol::MAX_PAYLOAD && !read_only);
            }
            Ok(Operation::Trim { offset, len, .. } | Operation::WriteZeroes { offset, len, .. }) => {
                prop_assert!(within(offset, len) && !read_only);
            }
            Ok(Operation::Cache { offset, len }) => prop_assert!(within(offset, len)),
            Ok(Operation::Nothing) => prop_assert_eq!(length, 0),
            Ok(Operation::Flush | Operation::Disconnect) | Err(_) => {}
            Ok(operation) => prop_assert!(false, "{operation:?} was not agreed on"),
        }
    }
}
