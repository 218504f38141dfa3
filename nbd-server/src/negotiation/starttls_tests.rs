//! What NBD_OPT_STARTTLS does to a handshake.
#![allow(clippy::unwrap_used)]

use super::*;

const FLAGS: u32 = protocol::C_FIXED_NEWSTYLE | protocol::C_NO_ZEROES;

fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = protocol::OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// Kinds of the replies to these options, up to the fault.
fn ask(tls: StartTls, options: &[(u32, &[u8])]) -> (Vec<u32>, Vec<Step>) {
    let (mut out, mut steps) = (Vec::new(), Vec::new());
    let mut negotiation = Negotiation::start(tls, &mut out);
    out.clear();
    let flags = FLAGS.to_be_bytes();
    negotiation.advance(&mut &flags[..], &mut out).unwrap();
    for (kind, data) in options {
        let bytes = option(*kind, data);
        steps.push(
            negotiation
                .advance(&mut bytes.as_slice(), &mut out)
                .unwrap(),
        );
    }
    let mut kinds = Vec::new();
    let mut reader = WireReader(&out);
    while reader.u64().is_some() {
        let (_, kind, length) = (reader.u32(), reader.u32().unwrap(), reader.u32().unwrap());
        kinds.push(kind);
        reader.bytes(length as usize).unwrap();
    }
    (kinds, steps)
}

#[test]
fn before_required_tls_nothing_else_is_answered() {
    // The name "disk" and no information types.
    let go = [&[0, 0, 0, 4][..], b"disk", &[0, 0]].concat();
    let asked: &[(u32, &[u8])] = &[
        (option::STRUCTURED_REPLY, &[]),
        (option::LIST, &[]),
        (option::INFO, &go),
        (option::GO, &go),
        (99, &[]),
        (option::STARTTLS, &[1]),
        (option::STARTTLS, &[]),
        (option::STARTTLS, &[]),
    ];
    let (kinds, steps) = ask(StartTls::Required, asked);
    let [refused @ .., with_data, tls, again] = kinds.as_slice() else {
        panic!("{kinds:?}")
    };
    assert!(refused.len() == 5 && refused.iter().all(|kind| *kind == reply::ERR_TLS_REQD));
    assert_eq!((*with_data, *tls), (reply::ERR_INVALID, reply::ACK));
    assert_eq!(*again, reply::ERR_INVALID);
    let started = |step: &&Step| **step == Step::StartTls;
    assert_eq!(steps.iter().filter(started).count(), 1);
    // ABORT is understood; EXPORT_NAME has no other refusal than the end.
    let abort = ask(StartTls::Required, &[(option::ABORT, &[])]);
    assert_eq!(abort, (vec![reply::ACK], vec![Step::Abort]));
    let mut out = Vec::new();
    let mut negotiation = Negotiation::start(StartTls::Required, &mut out);
    let bytes = [
        FLAGS.to_be_bytes().to_vec(),
        option(option::EXPORT_NAME, b""),
    ]
    .concat();
    let outcome = negotiation.advance(&mut bytes.as_slice(), &mut out);
    assert_eq!(outcome, Err(NegotiationError::TlsRequired));
}

#[test]
fn tls_that_is_not_there_is_refused() {
    let (kinds, _) = ask(StartTls::Unavailable, &[(option::STARTTLS, &[])]);
    assert_eq!(kinds, [reply::ERR_POLICY]);
}

#[test]
fn tls_forgets_what_was_agreed_in_the_clear() {
    let mut out = Vec::new();
    let mut negotiation = Negotiation::start(StartTls::Offered, &mut out);
    let mut bytes = FLAGS.to_be_bytes().to_vec();
    bytes.extend(option(option::STRUCTURED_REPLY, &[]));
    bytes.extend(option(option::STARTTLS, &[]));
    let step = negotiation.advance(&mut bytes.as_slice(), &mut out);
    assert_eq!(step, Ok(Step::StartTls));
    assert_eq!(negotiation.headers, Headers::default());
}

#[test]
fn bytes_behind_starttls_are_an_attack() {
    let mut out = Vec::new();
    let mut negotiation = Negotiation::start(StartTls::Offered, &mut out);
    let mut bytes = FLAGS.to_be_bytes().to_vec();
    bytes.extend(option(option::STARTTLS, &[]));
    bytes.push(0);
    let step = negotiation.advance(&mut bytes.as_slice(), &mut out);
    assert_eq!(step, Err(NegotiationError::BytesBehindStartTls));
}
