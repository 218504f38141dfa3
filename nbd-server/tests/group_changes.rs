//! What has changed since a point in time, as clients are told: nothing that differs is left out, and nothing is said to have changed that
//! was not written.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

mod group_common;
mod nbd_common;
mod past_common;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use group_common::{BLOCK, SIZE, attach};
use nbd_common::extended::{BLOCK_STATUS, Extended, status};
use nbd_server::export::Export;
use past_common::{DISKS, Running};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// What was written to each disk, by the epoch that it was committed with.
#[derive(Default)]
struct Written(BTreeMap<u64, [Vec<Range<usize>>; 2]>);

impl Written {
    /// What was written behind one epoch and up to another.
    fn between(&self, disk: usize, from: u64, to: u64) -> Vec<bool> {
        let mut written = vec![false; SIZE as usize];
        for (_, ranges) in self
            .0
            .iter()
            .filter(|(epoch, _)| (from + 1..=to).contains(epoch))
        {
            for range in &ranges[disk] {
                written[range.clone()].fill(true);
            }
        }
        written
    }
}

/// Changes something at random; returns what.
fn change(export: &dyn Export, random: &mut StdRng) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    for _ in 0..random.random_range(0..5) {
        let offset = random.random_range(0..SIZE - 1);
        let len = random.random_range(1..=(SIZE - offset).min(100_000));
        match random.random_range(0..6) {
            0 => export.trim(offset, len, false).unwrap(),
            1 => {
                let may_trim = random.random();
                export
                    .write_zeroes(offset, len, may_trim, false, false)
                    .unwrap();
            }
            _ => {
                let data = Bytes::from(vec![random.random(); len as usize]);
                export.write(offset, data, false).unwrap();
            }
        }
        ranges.push(offset as usize..(offset + len) as usize);
    }
    ranges
}

/// All that differs has changed; what has changed was written.
fn check(what: &str, before: &[u8], after: &[u8], changed: &[bool], written: &[bool]) {
    for at in 0..SIZE as usize {
        assert!(
            changed[at] || before[at] == after[at],
            "{what}: byte {at} differs, and has not changed"
        );
        assert!(
            written[at] || !changed[at],
            "{what}: byte {at} has changed, and was not written"
        );
    }
}

#[test]
fn what_differs_has_changed_and_what_has_changed_was_written() {
    for seed in 0..4 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut running = Running::new();
        let mut written = Written::default();
        let mut epochs = vec![0];
        for round in 0..24 {
            let mut ranges = [Vec::new(), Vec::new()];
            for (number, disk) in DISKS.iter().enumerate() {
                let export = attach(running.group(), disk, None).export;
                ranges[number] = change(&export, &mut random);
            }
            // Part of it may be applied already, part is committed only, and this is in the open epoch.
            let open = running.group().status().committed.0 + 1;
            written.0.insert(open, ranges);
            if round % 4 == 1 {
                check_live(&running, &written, &epochs, &mut random);
            }
            attach(running.group(), "root", None)
                .export
                .flush()
                .unwrap();
            epochs.push(running.group().status().committed.0);
            match round {
                7 | 15 => running.restart(round == 7),
                n if n % 3 == 0 => running.apply(),
                _ => {}
            }
            if round % 6 == 5 {
                check_past(&running, &written, &epochs, &mut random);
            }
        }
    }
}

fn check_live(running: &Running, written: &Written, epochs: &[u64], random: &mut StdRng) {
    for (number, disk) in DISKS.iter().enumerate() {
        let since = epochs[random.random_range(0..epochs.len())];
        let context = format!("x-epochgate:changed-since:{since}");
        let changed = running.changed(&format!("vm/{disk}"), &context);
        let before = running.read(disk, Some(&format!("epoch={since}")));
        let after = running.read(disk, None);
        let written = written.between(number, since, u64::MAX - 1);
        let what = format!("{disk} since {since}");
        check(&what, &before, &after, &changed, &written);
    }
}

fn check_past(running: &Running, written: &Written, epochs: &[u64], random: &mut StdRng) {
    for (number, disk) in DISKS.iter().enumerate() {
        let mut pair = [0, 0].map(|_| epochs[random.random_range(0..epochs.len())]);
        pair.sort_unstable();
        let [from, to] = pair;
        let export = format!("vm/{disk}@epoch={to}");
        let changed = running.changed(&export, &format!("qemu:dirty-bitmap:epoch={from}"));
        let before = running.read(disk, Some(&format!("epoch={from}")));
        let after = running.read(disk, Some(&format!("epoch={to}")));
        let written = written.between(number, from, to);
        let what = format!("{disk} from {from} to {to}");
        check(&what, &before, &after, &changed, &written);
    }
}

/// What is on its way from memory to the image at the very moment of the question is not overlooked.
#[test]
fn nothing_slips_through_between_memory_and_image() {
    const BLOCKS: u64 = SIZE / BLOCK as u64;
    let running = Running::new();
    let source = attach(running.group(), "root", None);
    let since = running.group().status().committed.0;
    // Blocks below this are written.
    let (written, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (running, written, over) = (&running, &written, &over);
        scope.spawn(move || {
            let export = attach(running.group(), "root", None).export;
            while !over.load(Ordering::SeqCst) {
                export.flush().unwrap();
                running.apply();
            }
        });
        scope.spawn(move || {
            for block in 0..BLOCKS {
                source.write(block, 1);
                written.store(block + 1, Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(4));
            }
            over.store(true, Ordering::SeqCst);
        });
        let context = format!("x-epochgate:changed-since:{since}");
        let mut client = Extended::attach(&running.socket(), "vm/root", &[&context]);
        while !over.load(Ordering::SeqCst) {
            let before = written.load(Ordering::SeqCst);
            let chunks = client.ask(BLOCK_STATUS, 0, 0, SIZE, &[]);
            let (_, extents) = status(&chunks[0]);
            let changed = extents.first().filter(|(_, flags)| *flags == 1);
            let changed = changed.map_or(0, |(len, _)| len / BLOCK as u64);
            assert!(changed >= before, "{changed} of {before} blocks");
        }
    });
}
