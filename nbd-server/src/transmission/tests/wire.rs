//! Bytes to requests, and replies to bytes.

use proptest::prelude::*;

use super::*;
use crate::export::IoError;
use crate::protocol::command_flag;

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
    structured.put_read_head(&mut head, &read, 4);
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

#[test]
fn extended_requests_have_lengths_of_64_bits_and_say_what_follows() {
    let zeroes = long(command::WRITE_ZEROES, 0, 0, 1 << 40);
    let parse = |request: &Request| Request::parse(&extended_bytes_of(request), Headers::Extended);
    assert_eq!(parse(&zeroes), Ok(Some(zeroes)));
    let write = Request {
        payload_len: 512,
        ..long(command::WRITE, command_flag::PAYLOAD_LEN, 0, 512)
    };
    assert_eq!(parse(&write), Ok(Some(write)));
    // Without the flag nothing follows, and there is nothing to write.
    let bare = long(command::WRITE, 0, 0, 512);
    assert_eq!(parse(&bare), Ok(Some(bare)));
    assert_eq!(extended(&BOTH).check(&bare, &[]), Err(IoError::Inval));
    let max = u64::from(protocol::MAX_PAYLOAD);
    for (kind, len) in [(command::WRITE, max + 1), (99, u64::MAX)] {
        let request = long(kind, command_flag::PAYLOAD_LEN, 0, len);
        assert_eq!(parse(&request), Err(TransmissionError::PayloadTooLong(len)));
    }
    // The forms don't mix.
    let compact = request(command::READ, 0, 0, 1);
    assert!(Request::parse(&bytes_of(&compact), Headers::Extended).is_err());
    assert!(Request::parse(&extended_bytes_of(&compact), Headers::Structured).is_err());
}

#[test]
fn chunks_are_as_the_documents_draw_them() {
    let read = long(command::READ, 0, 0x1000, 0x3000);
    let extents = [
        StatusExtent { len: 7, flags: 3 },
        StatusExtent {
            len: 0x1_0000,
            flags: 0,
        },
    ];
    let mut out = Vec::new();
    let structured = rules(false, true);
    structured.put_data_head(&mut out, &read, 0x1000, 5, false);
    assert_eq!(out[..8], *b"\x66\x8e\x33\xef\0\0\0\x01");
    assert_eq!(out[16..], *b"\0\0\0\x0d\0\0\0\0\0\0\x10\0");
    out.clear();
    structured.put_hole(&mut out, &read, 0x2000, 0x800, true);
    assert_eq!(out[4..8], *b"\0\x01\0\x02");
    assert_eq!(out[16..], *b"\0\0\0\x0c\0\0\0\0\0\0\x20\0\0\0\x08\0");
    out.clear();
    structured.put_status(&mut out, &read, MetaContext::Held, &extents, true);
    assert_eq!(out[4..8], *b"\0\x01\0\x05");
    assert_eq!(
        out[16..],
        *b"\0\0\0\x14\0\0\0\x02\0\0\0\x07\0\0\0\x03\0\x01\0\0\0\0\0\0"
    );
    out.clear();
    structured.put_error_at(&mut out, &read, IoError::Io, 0x2000);
    let message = IoError::Io.to_string();
    assert_eq!(out[4..8], *b"\0\x01\x80\x02");
    assert_eq!(
        out[16..26],
        *[
            &u32::try_from(message.len() + 14).unwrap().to_be_bytes()[..],
            b"\0\0\0\x05",
            &u16::try_from(message.len()).unwrap().to_be_bytes(),
        ]
        .concat()
    );
    assert_eq!(&out[26..26 + message.len()], message.as_bytes());
    assert_eq!(out[26 + message.len()..], 0x2000u64.to_be_bytes());

    let extended = extended(&BOTH);
    out.clear();
    extended.put_status(&mut out, &read, MetaContext::Allocation, &extents, false);
    assert_eq!(
        out,
        *b"\x6e\x8a\x27\x8c\0\0\0\x06\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\x28\
        \0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x03\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0"
    );
    // Every reply has the long header, also the plain success.
    out.clear();
    extended.put_outcome(&mut out, &read, Ok(()));
    assert_eq!(out[..8], *b"\x6e\x8a\x27\x8c\0\x01\0\0");
    assert_eq!(out.len(), 32);
    let mut head = vec![0; extended.read_head_len()];
    extended.put_read_head(&mut head, &read, 4);
    assert_eq!(head[..8], *b"\x6e\x8a\x27\x8c\0\x01\0\x01");
    assert_eq!(head[24..], *b"\0\0\0\0\0\0\0\x0c\0\0\0\0\0\0\x10\0");
}

proptest! {
    #[test]
    fn extended_requests_are_parsed_when_complete_and_bounded(
        flags: u16, kind: u16, cookie: u64, offset: u64, length in prop_oneof![any::<u64>(), 0u64..1 << 26],
    ) {
        let request = Request { flags, kind, cookie, offset, length, payload_len: 0 };
        let bytes = extended_bytes_of(&request);
        for len in 4..bytes.len() {
            prop_assert_eq!(Request::parse(&bytes[..len], Headers::Extended), Ok(None));
        }
        let carries = flags & command_flag::PAYLOAD_LEN != 0;
        match Request::parse(&bytes, Headers::Extended) {
            Ok(Some(parsed)) => {
                prop_assert_eq!(u64::from(parsed.payload_len), if carries { length } else { 0 });
                prop_assert!(parsed.payload_len <= protocol::MAX_PAYLOAD);
            }
            other => {
                prop_assert_eq!(other, Err(TransmissionError::PayloadTooLong(length)));
                prop_assert!(carries && length > u64::from(protocol::MAX_PAYLOAD));
            }
        }
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(Some(request)) = Request::parse(&bytes, Headers::Simple) {
            prop_assert_eq!(&bytes_of(&request), &bytes[..protocol::REQUEST_LEN]);
        }
    }

    #[test]
    fn a_request_is_parsed_when_it_is_complete_and_not_before(
        flags: u16, kind: u16, cookie: u64, offset: u64, length: u32, tail in prop::collection::vec(any::<u8>(), 0..9),
    ) {
        let payload_len = if kind == command::WRITE { length } else { 0 };
        let request = Request { flags, kind, cookie, offset, length: length.into(), payload_len };
        let mut bytes = bytes_of(&request);
        for len in 0..bytes.len() {
            prop_assert_eq!(Request::parse(&bytes[..len], Headers::Structured), Ok(None));
        }
        bytes.extend_from_slice(&tail);
        prop_assert_eq!(Request::parse(&bytes, Headers::Simple), Ok(Some(request)));
    }
}
