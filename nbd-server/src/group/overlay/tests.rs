//! The overlay against a plain disk.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]
use epoch_log::{Epoch, Generation};
use proptest::prelude::*;

use super::super::arena::{Arena, Class, Found};
use super::*;

const SIZE: u64 = 5 * REGION;

#[derive(Debug, Clone)]
enum Op {
    /// Offset, length, first byte.
    Write(u64, u64, u8),
    Clear(u64, u64, Clear),
}

/// Ranges near the borders of regions and within a small part, so that they meet; small, of a block, and over whole regions.
fn range() -> impl Strategy<Value = (u64, u64)> {
    let at = prop_oneof![
        (0..5_u64, 0..128_u64).prop_map(|(region, at)| (region * REGION + at).saturating_sub(64)),
        (0..40_u64).prop_map(|block| block * 4096),
        0..SIZE,
    ];
    let len = prop_oneof![
        4 => 1..200_u64,
        3 => Just(4096_u64),
        1 => 1..3 * REGION,
        1 => (1..3_u64).prop_map(|regions| regions * REGION),
    ];
    (at, len).prop_map(|(at, len)| (at, len.min(SIZE - at)))
}

fn clear() -> impl Strategy<Value = Clear> {
    prop_oneof![Just(Clear::Zero), Just(Clear::Hole), Just(Clear::Trim)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (range(), any::<u8>()).prop_map(|((at, len), first)| Op::Write(at, len, first)),
        1 => (range(), clear()).prop_map(|((at, len), clear)| Op::Clear(at, len, clear)),
    ]
}

fn payload(len: u64, first: u8) -> Vec<u8> {
    (0..len)
        .map(|i| first.wrapping_add((i % 251) as u8))
        .collect()
}

fn read(overlays: &[&Overlay], below: &[u8], at: u64, len: u64) -> Vec<u8> {
    let mut buf = vec![0xEE; len as usize];
    let mut gaps = vec![Span {
        start: at,
        end: at + len,
    }];
    for overlay in overlays {
        overlay.read(at, &mut buf, &mut gaps);
    }
    for gap in gaps {
        part_of(&mut buf, gap.start - at, gap.end - at)
            .copy_from_slice(&below[gap.start as usize..gap.end as usize]);
    }
    buf
}

fn apply(op: &Op, overlay: &mut Overlay, model: &mut [u8]) {
    match op {
        Op::Write(at, len, first) => {
            let data = payload(*len, *first);
            model[*at as usize..(*at + *len) as usize].copy_from_slice(&data);
            overlay.write(*at, &data);
        }
        Op::Clear(at, len, clear) => {
            overlay.clear(*at, *len, *clear);
            model[*at as usize..(*at + *len) as usize].fill(0);
        }
    }
}

/// Brings all parts of an overlay onto a plain disk, in their order, as log and image do.
fn bring(overlay: &Overlay, disk: &mut [u8]) {
    for (at, len, content) in overlay.parts() {
        let target = &mut disk[at as usize..(at + len) as usize];
        match content {
            Content::Data(data) => target.copy_from_slice(data),
            Content::Cleared(_) => target.fill(0),
        }
    }
}

proptest! {
    #[test]
    fn layers_read_like_a_plain_disk(
        older in proptest::collection::vec(op(), 0..30),
        newer in proptest::collection::vec(op(), 0..30),
        reads in proptest::collection::vec(range(), 1..10),
    ) {
        let budget = Budget::endless();
        let image = payload(SIZE, 99);
        let mut model = image.clone();
        let (mut low, mut high) = (Overlay::new(&budget, Home::TEST), Overlay::new(&budget, Home::TEST));
        for op in &older {
            apply(op, &mut low, &mut model);
        }
        for op in &newer {
            apply(op, &mut high, &mut model);
        }
        for (at, len) in reads {
            let got = read(&[&high, &low], &image, at, len);
            prop_assert!(got == model[at as usize..(at + len) as usize], "a read at {at} of {len}");
        }
        let mut disk = image;
        for overlay in [&low, &high] {
            bring(overlay, &mut disk);
            let data: u64 = overlay
                .parts()
                .map(|(_, len, content)| if let Content::Data(_) = content { len } else { 0 })
                .sum();
            prop_assert_eq!(data, overlay.data_bytes());
            let extents: usize = overlay.regions.values().map(|region| region.extents().len()).sum();
            prop_assert_eq!(extents, overlay.extents);
        }
        prop_assert!(disk == model, "what goes to the image differs");
        drop((low, high));
        prop_assert_eq!(budget.held(), 0);
    }
}

/// What the overlays hold of a range, the newest first, by a walk over all of them: for each byte, or none where no overlay has it.
fn walk(overlays: &[Overlay], at: u64, len: u64) -> Vec<Option<(bool, u8)>> {
    let mut bytes = vec![None; len as usize];
    let mut gaps = vec![Span {
        start: at,
        end: at + len,
    }];
    for overlay in overlays.iter().rev() {
        overlay.cover(&mut gaps, |span, content| {
            put(&mut bytes, at, span, content);
        });
    }
    bytes
}

fn put(bytes: &mut [Option<(bool, u8)>], at: u64, span: Span, content: Content<'_>) {
    let part = &mut bytes[(span.start - at) as usize..(span.end - at) as usize];
    match content {
        Content::Data(data) => {
            assert_eq!(data.len(), part.len());
            let data = data.iter().map(|byte| Some((true, *byte)));
            part.iter_mut().zip(data).for_each(|(to, from)| *to = from);
        }
        Content::Cleared(_) => part.fill(Some((false, 0))),
    }
}

proptest! {
    #[test]
    fn a_stack_holds_what_a_walk_over_its_layers_finds(
        layers in proptest::collection::vec(proptest::collection::vec(op(), 0..12), 1..6),
        looks in proptest::collection::vec(range(), 1..10),
    ) {
        let budget = Budget::endless();
        let mut model = vec![0; SIZE as usize];
        let overlays: Vec<Overlay> = layers
            .iter()
            .map(|ops| {
                let mut overlay = Overlay::new(&budget, Home::TEST);
                ops.iter().for_each(|op| apply(op, &mut overlay, &mut model));
                overlay
            })
            .collect();
        let mut stack = Stack::default();
        for (number, overlay) in overlays.iter().enumerate() {
            let below = &overlays[..number];
            for (at, len) in looks.iter().copied().chain([(0, SIZE)]) {
                let mut bytes = vec![None; len as usize];
                let mut end = at;
                let mut last = Some(Content::Data(&[]));
                stack.look(Span { start: at, end: at + len }, |span, content| {
                    assert!(span.start == end && span.start < span.end, "not all of it, or not in order");
                    assert!(matches!(content, Some(Content::Data(_))) || content != last, "could be one");
                    (end, last) = (span.end, content);
                    if let Some(content) = content {
                        put(&mut bytes, at, span, content);
                    }
                    Ok::<(), ()>(())
                }).unwrap();
                prop_assert_eq!(end, at + len);
                prop_assert!(bytes == walk(below, at, len), "a look at {at} of {len} below layer {number}");
            }
            stack.push(overlay);
        }
        let mut bytes = walk(&overlays, 0, SIZE);
        let mut end = 0;
        for (at, data) in stack.data() {
            prop_assert!(at >= end, "not in order");
            end = at + data.len() as u64;
            for (byte, found) in data.iter().zip(&mut bytes[at as usize..]) {
                prop_assert_eq!(found.take(), Some((true, *byte)));
            }
        }
        prop_assert!(bytes.iter().all(|byte| !matches!(byte, Some((true, _)))), "data is missing");
    }

    #[test]
    fn the_spans_of_an_overlay_are_what_its_parts_change(ops in proptest::collection::vec(op(), 0..30)) {
        let budget = Budget::endless();
        let mut overlay = Overlay::new(&budget, Home::TEST);
        ops.iter().for_each(|op| apply(op, &mut overlay, &mut vec![0; SIZE as usize]));
        let bytes = |spans: &mut dyn Iterator<Item = Span>| {
            let mut changed = vec![false; SIZE as usize];
            spans.for_each(|span| changed[span.start as usize..span.end as usize].fill(true));
            changed
        };
        let mut parts = overlay.parts().map(|(start, len, _)| Span { start, end: start + len });
        prop_assert!(bytes(&mut overlay.spans()) == bytes(&mut parts));
        let spans: Vec<Span> = overlay.spans().skip(overlay.clears.len()).collect();
        prop_assert!(spans.windows(2).all(|two| two[0].end < two[1].start), "neighbours are one, in order");
    }
}

/// What is left of overlays when their process dies.
fn left(arena: &Arena, overlays: Vec<Overlay>) {
    arena.leave();
    drop(overlays);
}

proptest! {
    #[test]
    fn an_overlay_is_made_anew_from_what_its_process_has_left(
        before in proptest::collection::vec(op(), 0..30),
        after in proptest::collection::vec(op(), 0..10),
        other in proptest::collection::vec(op(), 0..5),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("held");
        let image = payload(SIZE, 99);
        let (mut model, mut another) = (image.clone(), image.clone());
        let neighbour = Home { epoch: Epoch(1), disk: 1 };
        let (arena, found) = Arena::open(&path, [7; 16]).unwrap();
        prop_assert!(matches!(found, Found::Nothing));
        arena.restart(Generation(3), Epoch(0));
        {
            let budget = Budget::new(u64::MAX, Arc::default(), Arc::clone(&arena));
            let mut overlay = Overlay::new(&budget, Home::TEST);
            let mut beside = Overlay::new(&budget, neighbour);
            for op in &before {
                apply(op, &mut overlay, &mut model);
            }
            for op in &other {
                apply(op, &mut beside, &mut another);
            }
            left(&arena, vec![overlay, beside]);
        }
        drop(arena);

        let (arena, found) = Arena::open(&path, [7; 16]).unwrap();
        let Found::Kept(kept) = found else { panic!("nothing was kept") };
        prop_assert_eq!((kept.generation, kept.sealed), (Generation(3), Epoch(0)));
        let budget = Budget::new(u64::MAX, Arc::default(), Arc::clone(&arena));
        let mut revived = [Home::TEST, neighbour].map(|home| {
            let slabs = kept.slabs.iter().filter(|slab| slab.home == home);
            let slabs = slabs.map(|slab| budget.slabs().adopt(arena.take_kept(slab).unwrap(), slab.used));
            Overlay::revive(&budget, home, SIZE, slabs.collect()).unwrap()
        });
        for op in &after {
            apply(op, &mut revived[0], &mut model);
        }
        for (overlay, model) in revived.iter().zip([&model, &another]) {
            prop_assert!(&read(&[overlay], &image, 0, SIZE) == model);
            let mut disk = image.clone();
            bring(overlay, &mut disk);
            prop_assert!(&disk == model, "what goes to the image differs");
        }
        drop(revived);
        prop_assert_eq!(budget.held(), 0);
    }
}

#[test]
fn overwriting_costs_nothing_and_slabs_go_when_nothing_of_them_is_left() {
    let budget = Budget::endless();
    let mut overlay = Overlay::new(&budget, Home::TEST);
    overlay.write(0, &[1; 4096]);
    let once = budget.held();
    for i in 0..100 {
        overlay.write(0, &[i; 4096]);
        overlay.write(1000, &[i; 50]);
    }
    assert_eq!(budget.held(), once);
    assert_eq!((overlay.extents, overlay.data_bytes()), (1, 4096));
    overlay.write(REGION, &vec![7; 1 << 20]);
    assert!(budget.held() >= once + (1 << 20));
    overlay.clear(REGION, 1 << 20, Clear::Zero);
    // The slab that is being filled stays, and one for the record of the clear.
    let stays = Class::Whole.len() + Class::Small.len() + 8192;
    assert!(
        budget.held() < once + stays as u64,
        "a slab outlives its last byte"
    );
}

#[test]
fn neighbours_become_one_part() {
    let budget = Budget::endless();
    let mut overlay = Overlay::new(&budget, Home::TEST);
    for block in 0..64 {
        overlay.write(block * 4096, &payload(4096, block as u8));
    }
    assert!(
        overlay.parts().count() <= 3,
        "a slab is left between at most two parts"
    );
    assert_eq!(overlay.data_bytes(), 64 * 4096);
}

#[test]
fn a_trim_of_everything_is_one_entry() {
    let budget = Budget::endless();
    let mut overlay = Overlay::new(&budget, Home::TEST);
    overlay.write(5 * REGION, &[1; 512]);
    overlay.clear(0, 1 << 50, Clear::Trim);
    overlay.write(9 * REGION + 7, &[2; 512]);
    let parts: Vec<_> = overlay.parts().collect();
    assert_eq!(parts[0], (0, 1 << 50, Content::Cleared(Clear::Trim)));
    assert_eq!(parts[1], (9 * REGION + 7, 512, Content::Data(&[2; 512])));
    assert_eq!(parts.len(), 2);
    assert_eq!(overlay.data_bytes(), 512);
}
