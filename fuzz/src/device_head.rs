//! The head of a device stream: whatever QEMU writes, nothing panics; a head ends where its first device begins and is the same whatever
//! follows; one that is cut off is refused; and two of the same content are read alike.
//!
//! Input: the stream, in which `ZEROS` and a number stand for so many times 64 zeros, as the pages in it are long.

use std::collections::BTreeSet;

use qemu_glue::device_state::head::{Head, HeadError, parse};
use xxhash_rust::xxh3::xxh3_64;

/// A byte that begins nothing in a stream. Two of them stand for one.
const ZEROS: u8 = 0xa5;
/// Longest stream that is made of an input.
const LONGEST: usize = 64 << 10;
/// The first byte of a device.
const DEVICE: u8 = 4;

/// Runs one input.
pub fn run(data: &[u8]) {
    let stream = expand(data);
    match parse(&stream) {
        Ok(head) => understood(&stream, &head),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn expand(mut data: &[u8]) -> Vec<u8> {
    let mut stream = Vec::with_capacity(data.len());
    while let Some((&byte, rest)) = data.split_first() {
        data = rest;
        match rest.split_first() {
            Some((&count, rest)) if byte == ZEROS && count != ZEROS => {
                data = rest;
                stream.resize(stream.len() + usize::from(count) * 64, 0);
            }
            Some((_, rest)) if byte == ZEROS => {
                data = rest;
                stream.push(byte);
            }
            _ => stream.push(byte),
        }
        if stream.len() > LONGEST {
            break;
        }
    }
    stream
}

fn understood(stream: &[u8], head: &Head) {
    let (own, devices) = stream.split_at(head.length);
    assert_eq!(devices.first(), Some(&DEVICE));
    blocks(head);
    assert_eq!(parse(&stream[..=head.length]).as_ref(), Ok(head));
    let place = usize::try_from(xxh3_64(stream) >> 1).unwrap();
    let cut = parse(&stream[..place % (head.length + 1)]);
    assert!(matches!(cut, Err(HeadError::Truncated { .. })), "{cut:?}");
    assert!(head.same_content(own, head, own));
    let mut changed = stream.to_vec();
    changed[place % head.length] ^= 1 << (place / head.length % 8);
    let Ok(other) = parse(&changed) else { return };
    let others = &changed[..other.length];
    let same = head.same_content(own, &other, others);
    assert_eq!(
        other.same_content(others, head, own),
        same,
        "from both sides"
    );
    if same {
        assert_eq!(
            (&head.machine, &head.blocks),
            (&other.machine, &other.blocks)
        );
    }
}

fn blocks(head: &Head) {
    assert!(head.blocks.len() <= 256);
    let names: BTreeSet<&str> = head.blocks.iter().map(|b| b.name.as_str()).collect();
    assert_eq!(names.len(), head.blocks.len(), "two blocks of one name");
    let mut pages = 0;
    for block in &head.blocks {
        assert!(block.length > 0 && block.length.is_multiple_of(4096));
        pages += block.pages;
    }
    // Each takes eight bytes and a byte of content at the least.
    assert!(pages <= head.length as u64 / 9);
}
