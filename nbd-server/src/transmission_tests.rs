//! Requests and replies against bytes, and the rules against a plain statement of them.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const SIZE: u64 = 1 << 30;

fn request(kind: u16, flags: u16, offset: u64, length: u32) -> Request {
    Request {
        flags,
        kind,
        cookie: 0x0102_0304_0506_0708,
        offset,
        length,
    }
}

fn bytes_of(request: &Request) -> Vec<u8> {
    let mut bytes = protocol::REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&request.flags.to_be_bytes());
    bytes.extend_from_slice(&request.kind.to_be_bytes());
    bytes.extend_from_slice(&request.cookie.to_be_bytes());
    bytes.extend_from_slice(&request.offset.to_be_bytes());
    bytes.extend_from_slice(&request.length.to_be_bytes());
    bytes
}

fn rules(read_only: bool, structured: bool) -> Rules {
    Rules::new(
        ExportInfo {
            read_only,
            ..ExportInfo::full(SIZE)
        },
        structured,
    )
}

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
            assert_eq!(rules.check(&request), Err(error), "{request:?}");
        }
        assert!(rules.check(&request(kind, 0, SIZE - 1, 1)).is_ok());
        assert_eq!(
            rules.check(&request(kind, 0, SIZE, 0)),
            Ok(Operation::Nothing)
        );
    }
}

#[test]
fn a_read_only_export_permits_no_change() {
    let rules = rules(true, false);
    for kind in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        assert_eq!(rules.check(&request(kind, 0, 0, 512)), Err(IoError::Perm));
    }
    assert!(rules.check(&request(command::READ, 0, 0, 512)).is_ok());
    assert_eq!(
        rules.check(&request(command::FLUSH, 0, 0, 0)),
        Ok(Operation::Flush)
    );
}

#[test]
fn flags_are_taken_where_they_were_advertised_and_nowhere_else() {
    let (simple, structured) = (rules(false, false), rules(false, true));
    let df = request(command::READ, command_flag::DF, 0, 1);
    assert_eq!(simple.check(&df), Err(IoError::Inval));
    assert!(structured.check(&df).is_ok());
    // FUA goes with every command.
    for kind in [command::READ, command::WRITE, command::FLUSH, command::TRIM] {
        assert!(
            simple
                .check(&request(kind, command_flag::FUA, 0, 1))
                .is_ok()
        );
        assert_eq!(
            simple.check(&request(kind, command_flag::NO_HOLE, 0, 1)),
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
        simple.check(&zeroes),
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
    let plain = Rules::new(info, false);
    assert_eq!(plain.check(&zeroes), Err(IoError::Inval));
    let fua = request(command::WRITE, command_flag::FUA, 0, 1);
    assert_eq!(plain.check(&fua), Err(IoError::Inval));
}

#[test]
fn what_was_not_advertised_or_is_too_large_is_not_valid() {
    let info = ExportInfo {
        can_flush: false,
        can_trim: false,
        can_zeroes: false,
        ..ExportInfo::full(SIZE)
    };
    let rules = Rules::new(info, false);
    for kind in [
        command::FLUSH,
        command::TRIM,
        command::WRITE_ZEROES,
        5,
        7,
        99,
    ] {
        assert_eq!(
            rules.check(&request(kind, 0, 0, 1)),
            Err(IoError::Inval),
            "{kind}"
        );
    }
    for kind in [command::READ, command::WRITE] {
        let max = protocol::MAX_PAYLOAD;
        assert!(rules.check(&request(kind, 0, 0, max)).is_ok());
        assert_eq!(
            rules.check(&request(kind, 0, 0, max + 1)),
            Err(IoError::Inval)
        );
    }
}

#[test]
fn replies_are_as_the_protocol_draws_them() {
    let read = request(command::READ, 0, 0x10, 4);
    let mut out = Vec::new();
    rules(false, false).put_outcome(&mut out, &read, Err(IoError::Io));
    assert_eq!(
        out,
        *b"\x67\x44\x66\x98\x00\x00\x00\x05\x01\x02\x03\x04\x05\x06\x07\x08"
    );

    let structured = rules(false, true);
    let mut head = vec![0; structured.read_head_len()];
    structured.put_read_head(&mut head, read.cookie, read.offset, read.length);
    assert_eq!(
        head,
        *b"\x66\x8e\x33\xef\x00\x01\x00\x01\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x00\x10"
    );

    out.clear();
    structured.put_outcome(&mut out, &read, Err(IoError::Io));
    let message = IoError::Io.to_string();
    assert_eq!(out[..8], *b"\x66\x8e\x33\xef\x00\x01\x80\x01");
    assert_eq!(
        out[16..20],
        u32::try_from(message.len() + 6).unwrap().to_be_bytes()
    );
    assert_eq!(out[20..24], [0, 0, 0, 5]);
    assert_eq!(
        out[24..26],
        u16::try_from(message.len()).unwrap().to_be_bytes()
    );
    assert_eq!(&out[26..], message.as_bytes());

    out.clear();
    structured.put_outcome(&mut out, &request(command::WRITE, 0, 0, 1), Ok(()));
    assert_eq!(out[..4], protocol::SIMPLE_REPLY_MAGIC.to_be_bytes());
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(Some(request)) = Request::parse(&bytes) {
            prop_assert_eq!(&bytes_of(&request), &bytes[..protocol::REQUEST_LEN]);
        }
    }

    #[test]
    fn a_request_is_parsed_when_it_is_complete_and_not_before(
        flags: u16, kind: u16, cookie: u64, offset: u64, length: u32, tail in prop::collection::vec(any::<u8>(), 0..9),
    ) {
        let request = Request { flags, kind, cookie, offset, length };
        let mut bytes = bytes_of(&request);
        for len in 0..bytes.len() {
            prop_assert_eq!(Request::parse(&bytes[..len]), Ok(None));
        }
        bytes.extend_from_slice(&tail);
        prop_assert_eq!(Request::parse(&bytes), Ok(Some(request)));
    }

    #[test]
    fn what_passes_the_rules_is_within_the_disk(
        flags in 0u16..32, kind in 0u16..9, offset in prop_oneof![any::<u64>(), 0..SIZE + 9], length: u32,
        read_only: bool, structured: bool,
    ) {
        let within = |offset: u64, len: u32| len > 0 && u128::from(offset) + u128::from(len) <= u128::from(SIZE);
        match rules(read_only, structured).check(&request(kind, flags, offset, length)) {
            Ok(Operation::Read { offset, len }) => prop_assert!(within(offset, len) && len <= protocol::MAX_PAYLOAD),
            Ok(Operation::Write { offset, len, .. }) => {
                prop_assert!(within(offset, len) && len <= protocol::MAX_PAYLOAD && !read_only);
            }
            Ok(Operation::Trim { offset, len, .. } | Operation::WriteZeroes { offset, len, .. }) => {
                prop_assert!(within(offset, len) && !read_only);
            }
            Ok(Operation::Nothing) => prop_assert_eq!(length, 0),
            Ok(Operation::Flush | Operation::Disconnect) | Err(_) => {}
        }
    }
}
