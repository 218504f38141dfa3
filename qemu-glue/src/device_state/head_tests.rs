#![allow(clippy::unwrap_used)]

use super::*;
use crate::device_state::streams;

fn names(head: &Head) -> Vec<&str> {
    head.blocks.iter().map(|b| b.name.as_str()).collect()
}

#[test]
fn the_heads_of_real_streams_end_at_the_first_device() {
    let pc = [
        "epochgate-ram",
        "/rom@etc/acpi/tables",
        "pc.bios",
        "pc.rom",
        "/rom@etc/table-loader",
        "/rom@etc/acpi/rsdp",
    ];
    for (stream, machine) in [
        (streams::pc_7_2(), "pc-i440fx-7.2"),
        (streams::pc_10_0(), "pc-i440fx-10.0"),
    ] {
        let head = parse(&stream).unwrap();
        assert_eq!(head.machine, machine);
        assert_eq!(names(&head), pc);
        assert_eq!(stream[head.length], section::FULL);
        assert_eq!(head.blocks[0].length, 128 << 20);
        assert_eq!(head.blocks[0].pages, 0);
        for block in &head.blocks[1..] {
            assert_eq!(block.pages * PAGE_SIZE, block.length, "{block:?}");
        }
        // The first device of a PC: its timer.
        assert_eq!(&stream[head.length + 5..][..6], b"\x05timer");
        assert_eq!(parse(&stream[..=head.length]).unwrap(), head);
    }
    let head = parse(&streams::q35_net_10_0()).unwrap();
    assert_eq!(head.machine, "pc-q35-10.0");
    assert!(names(&head).contains(&"0000:00:01.0/virtio-net-pci.rom"));
    assert!(names(&parse(&streams::pflash_7_2()).unwrap()).contains(&"system.flash0"));
    assert!(names(&parse(&streams::vga_7_2()).unwrap()).contains(&"0000:00:02.0/vga.vram"));
}

#[test]
fn a_head_that_is_cut_off_anywhere_is_refused() {
    for stream in [streams::pc_7_2(), streams::pc_10_0()] {
        let length = parse(&stream).unwrap().length;
        // Every length within the first records, then every 97th: pages are long and dull.
        for cut in (0..600.min(length))
            .chain((600..=length).step_by(97))
            .chain([length])
        {
            assert!(
                matches!(parse(&stream[..cut]), Err(HeadError::Truncated { .. })),
                "{cut}"
            );
        }
    }
}

#[test]
fn damaged_heads_never_panic_and_never_grow() {
    let stream = streams::q35_net_10_0();
    let good = parse(&stream).unwrap();
    let mut damaged = stream.clone();
    let mut refused = 0_u32;
    let places = (0..700).chain((700..good.length).step_by(53));
    for (at, bit) in places.flat_map(|at| [(at, 0x01), (at, 0x10), (at, 0x80), (at, 0xFF)]) {
        damaged[at] ^= bit;
        match parse(&damaged) {
            Err(_) => refused += 1,
            // The content of a page, an address, a letter of a name.
            Ok(head) => assert!(head.length <= stream.len() && head.blocks.len() <= BLOCK_LIMIT),
        }
        damaged[at] ^= bit;
    }
    assert_eq!(damaged, stream);
    assert!(refused > 1000, "{refused}");
}

#[test]
fn bytes_that_are_no_stream_are_refused() {
    assert_eq!(parse(b""), Err(HeadError::Truncated { at: 0 }));
    assert_eq!(parse(b"this is no stream"), Err(HeadError::Preamble));
    let mut endless = streams::pc_7_2();
    let first = [0x7E, 0, 0, 0, 2, 2];
    let at = endless.windows(6).position(|w| w == first).unwrap() + 5;
    endless.truncate(at);
    // RAM sections without a record, without an end.
    while endless.len() <= HEAD_LIMIT {
        endless.extend_from_slice(&[2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0x10, 0x7E, 0, 0, 0, 2]);
    }
    assert_eq!(parse(&endless), Err(HeadError::TooLong));
}

/// A small head with what `change` makes of its parts.
fn small(change: impl FnOnce(&mut Vec<Vec<u8>>)) -> Vec<u8> {
    let name = |text: &str| {
        let mut bytes = vec![u8::try_from(text.len()).unwrap()];
        bytes.extend_from_slice(text.as_bytes());
        bytes
    };
    let list = [
        &0x3004_u64.to_be_bytes()[..],
        &name("ram"),
        &0x2000_u64.to_be_bytes(),
        &[0; 8],
        &name("rom"),
        &0x1000_u64.to_be_bytes(),
        &[0; 8],
    ]
    .concat();
    let end = [&0x10_u64.to_be_bytes()[..], &[0x7E, 0, 0, 0, 9]].concat();
    let mut parts = vec![
        PREAMBLE.to_vec(),
        b"\x07\0\0\0\x02pc".to_vec(),
        [
            &[5][..],
            &name("configuration/capabilities"),
            &[0, 0, 0, 1, 0, 0, 0, 1],
        ]
        .concat(),
        name("x-ignore-shared"),
        [
            &[1, 0, 0, 0, 9][..],
            &name("ram"),
            &[0, 0, 0, 0, 0, 0, 0, 4],
        ]
        .concat(),
        list,
        end.clone(),
        vec![2, 0, 0, 0, 9],
        [&0x0002_u64.to_be_bytes()[..], &name("rom"), &[0]].concat(),
        end.clone(),
        vec![3, 0, 0, 0, 9],
        end,
        vec![4],
    ];
    change(&mut parts);
    parts.concat()
}

#[test]
fn what_is_not_known_is_named() {
    let head = parse(&small(|_| {})).unwrap();
    assert_eq!((head.machine.as_str(), head.blocks[1].pages), ("pc", 1));

    let error = |change: fn(&mut Vec<Vec<u8>>)| parse(&small(change)).unwrap_err();
    // A device before the end of RAM.
    assert!(matches!(
        error(|p| drop(p.drain(7..12))),
        HeadError::Order { .. }
    ));
    // Another section that travels in rounds.
    let e = error(|p| p[4][5] = b'd');
    assert!(
        matches!(
            &e,
            HeadError::NotText { .. } | HeadError::Name { .. } | HeadError::Truncated { .. }
        ),
        "{e}"
    );
    let e =
        error(|p| p[4] = [&[1, 0, 0, 0, 9, 5][..], b"block", &[0, 0, 0, 0, 0, 0, 0, 4]].concat());
    assert!(e.to_string().contains("\"block\""), "{e}");
    // A capability more.
    let e = error(|p| {
        *p[2].last_mut().unwrap() = 2;
        p[3].extend_from_slice(b"\x09multifd-x");
    });
    assert!(e.to_string().contains("multifd-x"), "{e}");
    // A command, a type of section, a version, a record, a page too far, a list that does not add up.
    let e = error(|p| p[7].splice(0..0, [8, 0, 1, 0, 0]).for_each(drop));
    assert!(matches!(e, HeadError::Command { kind: 1, .. }), "{e}");
    let e = error(|p| p[12][0] = 6);
    assert!(matches!(e, HeadError::Section { kind: 6, .. }), "{e}");
    let e = error(|p| *p[4].last_mut().unwrap() = 5);
    assert!(matches!(e, HeadError::Version { version: 5, .. }), "{e}");
    let e = error(|p| p[8][6] |= 0x01);
    assert!(matches!(e, HeadError::Record { word: 0x102, .. }), "{e}");
    let e = error(|p| p[8][6] |= 0x10);
    assert!(matches!(e, HeadError::Page { .. }), "{e}");
    let e = error(|p| p[5][6] = 0x10);
    assert!(matches!(e, HeadError::List { .. }), "{e}");
    // A footer of another section.
    let e = error(|p| *p[9].last_mut().unwrap() = 8);
    assert!(matches!(e, HeadError::Order { .. }), "{e}");
}

#[test]
fn heads_are_compared_without_the_guest_addresses_of_their_blocks() {
    let stream = streams::q35_net_10_0();
    let head = parse(&stream).unwrap();
    let same = |changed: &[u8]| head.same_content(&stream, &parse(changed).unwrap(), changed);
    let rom = b"/virtio-net-pci.rom";
    let mut places = stream.windows(rom.len()).enumerate();
    let name_ends = places.find(|(_, bytes)| bytes == rom).unwrap().0 + rom.len();
    let mut moved = stream.clone();
    moved[name_ends + 8 + 7] ^= 0xFF;
    assert!(same(&moved));
    let (_, page) = head.pages.last_key_value().unwrap();
    moved[page.unwrap()] ^= 1;
    assert!(!same(&moved));
}

#[test]
fn where_a_section_of_ram_ends_says_nothing() {
    let page = |offset: u64, flags: u64, name: &[u8], fill: u8| {
        let word = ((offset << 12) | flags).to_be_bytes();
        [&word[..], name, &[fill; PAGE]].concat()
    };
    // Two pages of a block in one section, or QEMU took long for the first and went on with the second in the next one.
    let (first, second) = (page(0, 0x8, b"\x03ram", 1), page(1, 0x28, b"", 2));
    let one = small(|parts| parts[8] = [&first[..], &second].concat());
    let two = small(|parts| {
        parts[8].clone_from(&first);
        let more = [parts[7].clone(), second.clone(), parts[9].clone()];
        parts.splice(10..10, more).for_each(drop);
    });
    let (head, other) = (parse(&one).unwrap(), parse(&two).unwrap());
    assert_eq!(head.blocks[0].pages, 2);
    assert_ne!(one, two);
    assert!(head.same_content(&one, &other, &two));
    // A page that comes again counts once, with its last content.
    let again = small(|parts| {
        parts[8] = [&page(0, 0x8, b"\x03ram", 7)[..], &first, &second].concat();
    });
    assert!(head.same_content(&one, &parse(&again).unwrap(), &again));
}
