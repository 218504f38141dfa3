//! Metadata contexts in the handshake: those that every export has, and those that it is asked for.

use super::*;
use crate::agreed::{MetaContext, Slot};

#[test]
fn contexts_are_listed_without_ids_and_selected_with_them() {
    let mut negotiation = negotiation(FLAGS);
    ask(&mut negotiation, option::STRUCTURED_REPLY, &[]);
    let list = ask(
        &mut negotiation,
        option::LIST_META_CONTEXT,
        &context_data("d", &[]),
    );
    assert_eq!(
        list,
        [
            (reply::META_CONTEXT, b"\0\0\0\0base:allocation".to_vec()),
            (reply::META_CONTEXT, b"\0\0\0\0epochgate:held".to_vec()),
            (reply::ACK, Vec::new()),
        ]
    );
    let set = ask(
        &mut negotiation,
        option::SET_META_CONTEXT,
        &context_data("d", &["epochgate:held", "other:x"]),
    );
    assert_eq!(
        set,
        [
            (reply::META_CONTEXT, b"\0\0\0\x02epochgate:held".to_vec()),
            (reply::ACK, Vec::new()),
        ]
    );
    ask(&mut negotiation, option::GO, &info_data("d", &[]));
    let contexts: Vec<_> = negotiation.agreed().contexts.iter().collect();
    assert_eq!(contexts, [MetaContext::Held]);
}

#[test]
fn contexts_of_the_export_come_behind_the_fixed_ones_in_the_order_of_the_queries() {
    let queries = ["past:b", "epochgate:held", "other:x", "past:a", "past:b"];
    let mut negotiation = negotiation(FLAGS);
    ask(&mut negotiation, option::EXTENDED_HEADERS, &[]);
    let select = context_data("d", &queries);
    let found = |data: &[u8]| (reply::META_CONTEXT, data.to_vec());
    assert_eq!(
        ask(&mut negotiation, option::SET_META_CONTEXT, &select),
        [
            found(b"\0\0\0\x02epochgate:held"),
            found(b"\0\0\0\x03past:b"),
            found(b"\0\0\0\x04past:a"),
            (reply::ACK, Vec::new()),
        ]
    );
    let list = ask(&mut negotiation, option::LIST_META_CONTEXT, &select);
    assert_eq!(list[1], found(b"\0\0\0\0past:b"));
    // More than there are places for are not selected.
    let many = ["past:1", "past:2", "past:3", "past:4", "past:5"];
    let many = context_data("d", &many);
    let set = ask(&mut negotiation, option::SET_META_CONTEXT, &many);
    assert_eq!(set.len(), 5);
    assert_eq!(set[3], found(b"\0\0\0\x06past:4"));
    ask(&mut negotiation, option::GO, &info_data("d", &[]));
    let contexts: Vec<_> = negotiation.agreed().contexts.iter().collect();
    assert_eq!(contexts, Slot::ALL.map(MetaContext::Changed));
}

/// "replaces all previously-set metadata contexts (including when this command fails)"; "referred to the same export name".
#[test]
fn a_selection_counts_for_its_export_until_the_next() {
    let select = context_data("d", &["base:allocation"]);
    for (second, attached, holds) in [
        (None, "d", true),
        (None, "other", false),
        (Some(context_data("d", &[])), "d", false),
        (
            Some(context_data("other", &["base:allocation"])),
            "d",
            false,
        ),
        (
            Some(context_data("other", &["base:allocation"])),
            "other",
            true,
        ),
        (Some(b"malformed".to_vec()), "d", false),
    ] {
        let mut negotiation = negotiation(FLAGS);
        ask(&mut negotiation, option::STRUCTURED_REPLY, &[]);
        ask(&mut negotiation, option::SET_META_CONTEXT, &select);
        if let Some(second) = second {
            ask(&mut negotiation, option::SET_META_CONTEXT, &second);
        }
        ask(&mut negotiation, option::GO, &info_data(attached, &[]));
        assert_eq!(!negotiation.agreed().contexts.is_empty(), holds);
    }
    // A refusal forgets as well.
    let mut negotiation = negotiation(FLAGS);
    ask(&mut negotiation, option::STRUCTURED_REPLY, &[]);
    ask(&mut negotiation, option::SET_META_CONTEXT, &select);
    let mut out = Vec::new();
    let again = option(option::SET_META_CONTEXT, &select);
    assert_eq!(
        advance(&mut negotiation, &again, &mut out),
        Step::Contexts {
            export: "d".into(),
            queries: Vec::new(),
            select: true
        }
    );
    negotiation.answer_contexts(Err(&OpenRefused::Unknown("gone".into())), &mut out);
    assert_eq!(replies(&out)[0].1, reply::ERR_UNKNOWN);
    ask(&mut negotiation, option::GO, &info_data("d", &[]));
    assert!(negotiation.agreed().contexts.is_empty());
}

#[test]
fn contexts_need_replies_that_can_carry_them() {
    let select = context_data("d", &["base:allocation"]);
    for kind in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        let refused = ask(&mut negotiation(FLAGS), kind, &select);
        assert_eq!(refused[0].0, reply::ERR_INVALID);
        let mut negotiation = negotiation(FLAGS);
        ask(&mut negotiation, option::EXTENDED_HEADERS, &[]);
        let found = ask(&mut negotiation, kind, &select);
        assert_eq!(found[0].0, reply::META_CONTEXT);
    }
}

#[test]
fn malformed_lists_of_queries_are_refused() {
    let whole = context_data("d", &["base:allocation", "x:y"]);
    let mut endless = context_data("d", &[]);
    endless[5..9].copy_from_slice(&u32::MAX.to_be_bytes());
    let overlong = context_data("d", &[&"x".repeat(protocol::MAX_STRING + 1)]);
    let longer = [&whole[..], b"x"].concat();
    let mut not_utf8 = context_data("d", &["base:x"]);
    let end = not_utf8.len();
    not_utf8[end - 1] = 0xff;
    let mut malformed: Vec<&[u8]> = vec![&endless, &overlong, &longer, &not_utf8];
    malformed.extend((0..whole.len()).map(|len| &whole[..len]));
    for data in malformed {
        let mut negotiation = negotiation(FLAGS);
        ask(&mut negotiation, option::STRUCTURED_REPLY, &[]);
        let answer = ask(&mut negotiation, option::LIST_META_CONTEXT, data);
        assert_eq!(answer[0].0, reply::ERR_INVALID);
    }
}
