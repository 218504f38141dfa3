//! The handshake against bytes: what real clients send, what none should, and anything at all.
#![allow(clippy::unwrap_used)]

mod contexts;

use proptest::prelude::*;

use super::*;
use crate::protocol::{info, transmission_flag};

fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = protocol::OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn info_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&u16::try_from(wanted.len()).unwrap().to_be_bytes());
    wanted
        .iter()
        .for_each(|kind| data.extend_from_slice(&kind.to_be_bytes()));
    data
}

/// A negotiation past the client flags.
fn negotiation(flags: u32) -> Negotiation {
    let mut out = Vec::new();
    let mut negotiation = Negotiation::start(StartTls::Unavailable, &mut out);
    assert_eq!(out.len(), protocol::GREETING_LEN);
    let step = negotiation
        .advance(&mut &flags.to_be_bytes()[..], &mut out)
        .unwrap();
    assert_eq!(step, Step::NeedMore);
    negotiation
}

/// The (option, type, data) of all replies.
fn replies(mut out: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut all = Vec::new();
    while !out.is_empty() {
        let mut reader = WireReader(out);
        assert_eq!(reader.u64(), Some(protocol::OPTION_REPLY_MAGIC));
        let (option, kind) = (reader.u32().unwrap(), reader.u32().unwrap());
        let length = reader.u32().unwrap();
        all.push((
            option,
            kind,
            reader.bytes(length as usize).unwrap().to_vec(),
        ));
        out = reader.0;
    }
    all
}

fn advance(negotiation: &mut Negotiation, bytes: &[u8], out: &mut Vec<u8>) -> Step {
    let mut input = bytes;
    let step = negotiation.advance(&mut input, out).unwrap();
    assert!(input.is_empty());
    step
}

const FLAGS: u32 = protocol::C_FIXED_NEWSTYLE | protocol::C_NO_ZEROES;

#[test]
fn go_describes_and_attaches() {
    let mut negotiation = negotiation(FLAGS);
    let mut out = Vec::new();
    let step = advance(
        &mut negotiation,
        &option(option::STRUCTURED_REPLY, &[]),
        &mut out,
    );
    assert_eq!(step, Step::NeedMore);
    let wanted = [info::NAME, info::DESCRIPTION];
    let go = option(option::GO, &info_data("disk", &wanted));
    assert_eq!(
        advance(&mut negotiation, &go, &mut out),
        Step::Attach("disk".into())
    );
    let export = ExportInfo {
        description: "a disk".into(),
        ..ExportInfo::full(0x1234)
    };
    assert!(negotiation.answer_attach(Ok(&export), &mut out));
    assert!(negotiation.ended());
    assert_eq!(negotiation.agreed(), Agreed::headers(Headers::Structured));
    let replies = replies(&out);
    let kinds: Vec<_> = replies
        .iter()
        .map(|(option, kind, _)| (*option, *kind))
        .collect();
    assert_eq!(kinds[0], (option::STRUCTURED_REPLY, reply::ACK));
    assert_eq!(kinds[1..5], [(option::GO, reply::INFO); 4]);
    assert_eq!(kinds[5..], [(option::GO, reply::ACK)]);
    assert_eq!(replies[1].2[2..10], 0x1234u64.to_be_bytes());
    assert_eq!(replies[2].2, [0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0]);
    assert_eq!(replies[3].2, b"\x00\x01disk");
    assert_eq!(replies[4].2, b"\x00\x02a disk");
}

#[test]
fn each_refusal_has_its_reply_and_the_client_may_go_on() {
    let mut negotiation = negotiation(FLAGS);
    for (refused, kind) in [
        (OpenRefused::Unknown("no".into()), reply::ERR_UNKNOWN),
        (OpenRefused::Policy("no".into()), reply::ERR_POLICY),
        (OpenRefused::Shutdown, reply::ERR_SHUTDOWN),
    ] {
        let mut out = Vec::new();
        advance(
            &mut negotiation,
            &option(option::GO, &info_data("x", &[])),
            &mut out,
        );
        assert!(!negotiation.answer_attach(Err(&refused), &mut out));
        assert!(!negotiation.ended());
        assert_eq!(replies(&out)[0].1, kind);
    }
}

#[test]
fn export_name_sends_padding_only_to_those_who_want_it() {
    for (flags, len) in [(FLAGS, 10), (protocol::C_FIXED_NEWSTYLE, 134)] {
        let mut negotiation = negotiation(flags);
        let mut out = Vec::new();
        let step = advance(
            &mut negotiation,
            &option(option::EXPORT_NAME, b"d"),
            &mut out,
        );
        assert_eq!(step, Step::Attach("d".into()));
        assert!(negotiation.answer_attach(Ok(&ExportInfo::full(1)), &mut out));
        assert_eq!(out.len(), len);
    }
}

#[test]
fn a_refused_export_name_ends_the_handshake_without_a_byte() {
    let mut negotiation = negotiation(FLAGS);
    let mut out = Vec::new();
    advance(
        &mut negotiation,
        &option(option::EXPORT_NAME, b"d"),
        &mut out,
    );
    assert!(!negotiation.answer_attach(Err(&OpenRefused::Shutdown), &mut out));
    assert!(negotiation.ended() && out.is_empty());
}

#[test]
fn list_names_every_export() {
    let mut negotiation = negotiation(FLAGS);
    let mut out = Vec::new();
    assert_eq!(
        advance(&mut negotiation, &option(option::LIST, &[]), &mut out),
        Step::List
    );
    let listing = ExportListing {
        name: "a".into(),
        description: "b".into(),
    };
    negotiation.answer_list(&[listing], &mut out);
    let expected = vec![
        (option::LIST, reply::SERVER, b"\x00\x00\x00\x01ab".to_vec()),
        (option::LIST, reply::ACK, Vec::new()),
    ];
    assert_eq!(replies(&out), expected);
}

#[test]
fn what_is_malformed_or_unknown_is_refused_and_the_client_may_go_on() {
    let overlong = info_data(&"n".repeat(protocol::MAX_STRING + 1), &[]);
    let mut truncated = info_data("name", &[1, 2]);
    truncated.pop();
    for (kind, data, refusal) in [
        (option::LIST, &b"x"[..], reply::ERR_INVALID),
        (option::STRUCTURED_REPLY, b"x", reply::ERR_INVALID),
        (option::GO, b"", reply::ERR_INVALID),
        (option::INFO, b"\xff\xff\xff\xff", reply::ERR_INVALID),
        (
            option::GO,
            b"\x00\x00\x00\x01\xff\x00\x00",
            reply::ERR_INVALID,
        ),
        (option::GO, &overlong, reply::ERR_INVALID),
        (option::INFO, &truncated, reply::ERR_INVALID),
        (5, b"", reply::ERR_POLICY),
        (4, b"peek", reply::ERR_UNSUP),
        (0xdead_beef, b"", reply::ERR_UNSUP),
    ] {
        let mut negotiation = negotiation(FLAGS);
        let mut out = Vec::new();
        assert_eq!(
            advance(&mut negotiation, &option(kind, data), &mut out),
            Step::NeedMore
        );
        assert_eq!(replies(&out)[0].1, refusal, "option {kind}");
        assert_eq!(
            advance(&mut negotiation, &option(option::LIST, &[]), &mut out),
            Step::List
        );
    }
}

#[test]
fn a_huge_option_is_skipped_piece_by_piece() {
    let mut negotiation = negotiation(FLAGS);
    let mut header = option(77, &[]);
    let length = 3_000_000u32;
    header.truncate(12);
    header.extend_from_slice(&length.to_be_bytes());
    let mut out = Vec::new();
    assert_eq!(advance(&mut negotiation, &header, &mut out), Step::NeedMore);
    for _ in 0..2999 {
        assert_eq!(
            advance(&mut negotiation, &[7; 1000], &mut out),
            Step::NeedMore
        );
    }
    assert!(out.is_empty());
    advance(&mut negotiation, &[7; 1000], &mut out);
    assert_eq!(replies(&out)[0].1, reply::ERR_TOO_BIG);
}

#[test]
fn faults_without_an_answer_are_errors() {
    let mut out = Vec::new();
    for flags in [0u32, 1 << 2 | 1, u32::MAX] {
        let mut negotiation = Negotiation::start(StartTls::Unavailable, &mut out);
        let result = negotiation.advance(&mut &flags.to_be_bytes()[..], &mut out);
        assert_eq!(result, Err(NegotiationError::ClientFlags(flags)));
    }
    let result = negotiation(FLAGS).advance(&mut &[0u8; 8][..], &mut out);
    assert_eq!(result, Err(NegotiationError::OptionMagic(0)));
    for name in [&[0xff][..], &[b'n'; 5000], &[b'n'; 50_000]] {
        let bytes = option(option::EXPORT_NAME, name);
        let result = negotiation(FLAGS).advance(&mut bytes.as_slice(), &mut out);
        assert_eq!(result, Err(NegotiationError::ExportName));
    }
}

fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let length = |length: usize| u32::try_from(length).unwrap().to_be_bytes();
    let mut data = length(name.len()).to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&length(queries.len()));
    for query in queries {
        data.extend_from_slice(&length(query.len()));
        data.extend_from_slice(query.as_bytes());
    }
    data
}

/// Sends an option and answers what it asks for with a disk.
fn ask(negotiation: &mut Negotiation, kind: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut out = Vec::new();
    match advance(negotiation, &option(kind, data), &mut out) {
        Step::Info(_) => negotiation.answer_info(Ok(&ExportInfo::full(4096)), &mut out),
        // The export knows whatever is about a past.
        Step::Contexts { mut queries, .. } => {
            queries.retain(|query| query.starts_with("past:"));
            negotiation.answer_contexts(Ok(&queries), &mut out);
        }
        Step::Attach(_) => {
            assert!(negotiation.answer_attach(Ok(&ExportInfo::full(4096)), &mut out));
        }
        Step::NeedMore => {}
        other => panic!("{other:?}"),
    }
    let replies = replies(&out).into_iter();
    replies.map(|(_, kind, data)| (kind, data)).collect()
}

/// The transmission flags in an answer to INFO or GO.
fn flags_in(replies: &[(u32, Vec<u8>)]) -> u16 {
    u16::from_be_bytes(replies[0].1[10..12].try_into().unwrap())
}

#[test]
fn extended_headers_take_precedence_and_have_no_way_back() {
    let ack = [(reply::ACK, Vec::new())];
    let mut negotiation = negotiation(FLAGS);
    assert_eq!(ask(&mut negotiation, option::STRUCTURED_REPLY, &[]), ack);
    assert_eq!(ask(&mut negotiation, option::EXTENDED_HEADERS, &[]), ack);
    let back = ask(&mut negotiation, option::STRUCTURED_REPLY, &[]);
    assert_eq!(back[0].0, reply::ERR_EXT_HEADER_REQD);
    let with_data = ask(&mut negotiation, option::EXTENDED_HEADERS, b"x");
    assert_eq!(with_data[0].0, reply::ERR_INVALID);

    let payload = transmission_flag::BLOCK_STATUS_PAYLOAD;
    let info = ask(&mut negotiation, option::INFO, &info_data("d", &[]));
    assert_eq!(flags_in(&info) & payload, 0, "no context is selected");
    let select = context_data("d", &["base:allocation"]);
    ask(&mut negotiation, option::SET_META_CONTEXT, &select);
    let mut old = negotiation.clone();
    let go = ask(&mut negotiation, option::GO, &info_data("d", &[]));
    assert_ne!(flags_in(&go) & payload, 0);
    assert_ne!(flags_in(&go) & transmission_flag::SEND_DF, 0);
    assert_eq!(negotiation.agreed().headers, Headers::Extended);

    let bytes = option(option::EXPORT_NAME, b"d");
    let result = old.advance(&mut bytes.as_slice(), &mut Vec::new());
    assert_eq!(result, Err(NegotiationError::ExportNameExtended));
}

/// Plays the driver: every question is answered, as the number says.
fn drive(pieces: &[Vec<u8>], answers: u8) -> (Vec<u8>, bool) {
    let mut out = Vec::new();
    let mut negotiation = Negotiation::start(StartTls::Unavailable, &mut out);
    let mut held = Vec::new();
    let (info, refused) = (ExportInfo::full(4096), OpenRefused::Policy("no".into()));
    let answer = if answers.is_multiple_of(2) {
        Ok(&info)
    } else {
        Err(&refused)
    };
    for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            let mut input = held.as_slice();
            let step = negotiation.advance(&mut input, &mut out);
            held = input.to_vec();
            match step {
                Ok(Step::NeedMore) => break,
                Ok(Step::List) => negotiation.answer_list(&[], &mut out),
                Ok(Step::Info(_)) => negotiation.answer_info(answer, &mut out),
                Ok(Step::Contexts { queries, .. }) => {
                    negotiation.answer_contexts(answer.map(|_| queries.as_slice()), &mut out);
                }
                Ok(Step::Attach(_)) => {
                    if negotiation.answer_attach(answer, &mut out) {
                        return (out, true);
                    }
                }
                Ok(Step::StartTls) => {}
                Ok(Step::Abort) | Err(_) => return (out, false),
            }
            if negotiation.ended() {
                return (out, false);
            }
        }
        let bound = MAX_OPTION_DATA + protocol::OPTION_HEADER_LEN;
        assert!(
            held.len() < bound,
            "the driver is made to hold {} bytes",
            held.len()
        );
    }
    (out, false)
}

fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        ("[a-z]{0,9}", prop::collection::vec(0u16..5, 0..4))
            .prop_map(|(name, wanted)| info_data(&name, &wanted)),
        prop::collection::vec("(base|epochgate|x):[a-z]{0,10}", 0..4).prop_map(|queries| {
            context_data("d", &queries.iter().map(String::as_str).collect::<Vec<_>>())
        }),
    ];
    (prop_oneof![0u32..12, any::<u32>()], data).prop_map(|(kind, data)| option(kind, &data))
}

proptest! {
    #[test]
    fn any_bytes_are_survived(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8), answers: u8) {
        drive(&pieces, answers);
    }

    #[test]
    fn it_makes_no_difference_where_the_stream_is_cut(
        options in prop::collection::vec(any_option(), 0..8),
        cut in 1usize..40,
        answers: u8,
    ) {
        let mut stream = FLAGS.to_be_bytes().to_vec();
        options.iter().for_each(|option| stream.extend_from_slice(option));
        let pieces: Vec<Vec<u8>> = stream.chunks(cut).map(<[u8]>::to_vec).collect();
        let whole: Vec<Vec<u8>> = stream.chunks(MAX_OPTION_DATA).map(<[u8]>::to_vec).collect();
        prop_assert_eq!(drive(&pieces, answers), drive(&whole, answers));
    }
}
