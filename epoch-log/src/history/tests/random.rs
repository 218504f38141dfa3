//! Random histories: batches of epochs, restarts, crashes between saving and applying, trimming, thinning, a cold store that is away now and
//! then, pins, views that stay open.

use std::sync::Arc;

use proptest::prelude::*;

use super::super::{Cooling, HistoryError, Retention, Tier};
use super::model::{DISKS, Group, SIZE, Write, sum};
use super::store::{Objects, Store};
use crate::Epoch;

#[derive(Clone, Debug)]
enum Call {
    Epochs(Vec<Vec<Write>>),
    /// Saved, applied in part, and then the power goes.
    Crash(Vec<Vec<Write>>, usize),
    Reopen,
    Pass(u64),
    Maintain,
    /// What is old goes to the store, which answers so many times.
    Cool(u64),
    Pin(prop::sample::Index),
    Unpin(prop::sample::Index),
    Look(prop::sample::Index),
    Changes(prop::sample::Index, prop::sample::Index),
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let write = (
        0..DISKS,
        0..SIZE,
        prop_oneof![4 => 1..200_usize, 1 => 1..SIZE],
        any::<u8>(),
    );
    let write = write.prop_map(|(disk, from, len, byte)| {
        let byte = if byte < 60 { 0 } else { byte };
        (disk as u16, from, len.min(SIZE - from), byte)
    });
    prop::collection::vec(write, 0..4)
}

fn call() -> impl Strategy<Value = Call> {
    let epochs = || prop::collection::vec(writes(), 1..6);
    prop_oneof![
        12 => epochs().prop_map(Call::Epochs),
        1 => (epochs(), 0..6_usize).prop_map(|(epochs, applied)| Call::Crash(epochs, applied)),
        1 => Just(Call::Reopen),
        2 => (1..3000_u64).prop_map(Call::Pass),
        4 => Just(Call::Maintain),
        3 => prop_oneof![Just(u64::MAX), 0..12_u64].prop_map(Call::Cool),
        1 => any::<prop::sample::Index>().prop_map(Call::Pin),
        1 => any::<prop::sample::Index>().prop_map(Call::Unpin),
        1 => any::<prop::sample::Index>().prop_map(Call::Look),
        1 => (any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(|(a, b)| Call::Changes(a, b)),
    ]
}

fn retention() -> impl Strategy<Value = Retention> {
    let tiers = prop_oneof![
        Just(Vec::new()),
        Just(vec![
            Tier {
                older_than_ms: 500,
                one_in_ms: 100
            },
            Tier {
                older_than_ms: 3000,
                one_in_ms: 1000
            },
        ]),
    ];
    let age = prop_oneof![Just(u64::MAX), 1000..9000_u64];
    let bytes = prop_oneof![Just(u64::MAX), (100 << 10)..(2_u64 << 20)];
    (age, bytes, tiers).prop_map(|(age_ms, bytes, tiers)| Retention {
        age_ms,
        bytes,
        min_free: 0,
        tiers,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_kept_epoch_reads_as_it_was(
        calls in prop::collection::vec(call(), 1..120),
        retention in retention(),
        cool_after in prop_oneof![Just(0), 300..2000_u64],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut group = Group::new(dir.path());
        group.store = Some(Arc::new(Store::holding(Objects::new())));
        group.open().unwrap();
        let mut open = None;
        for call in &calls {
            match call {
                Call::Epochs(epochs) => group.run(epochs),
                Call::Crash(epochs, applied) => {
                    open = None;
                    group.save(epochs).unwrap();
                    group.apply(epochs, *applied);
                    let opened = group.open().unwrap();
                    prop_assert!(opened.lost.is_empty() && !opened.created, "{:?}", opened);
                    // What the log does then.
                    group.run(epochs);
                }
                Call::Reopen => {
                    open = None;
                    let opened = group.open().unwrap();
                    prop_assert!(opened.lost.is_empty() && !opened.created, "{:?}", opened);
                }
                Call::Pass(ms) => group.time += ms,
                Call::Maintain => while !group.maintain(&retention).is_nothing() {},
                Call::Cool(answers) => {
                    let store = Arc::clone(group.store.as_ref().unwrap());
                    store.answers(*answers);
                    let cooling = Cooling { after_ms: cool_after, above: 1 << 20 };
                    let cool = || group.history().cool(group.time, &cooling, &retention, &|| true);
                    loop {
                        match cool() {
                            Ok(cooled) if cooled.is_nothing() => break,
                            Ok(_) => {}
                            Err(error) => {
                                prop_assert!(matches!(error, HistoryError::Cold { .. }), "{}", error);
                                break;
                            }
                        }
                    }
                    store.answers(u64::MAX);
                }
                Call::Pin(which) => {
                    let epochs = group.check();
                    let epoch = *which.get(&epochs);
                    let name = format!("pin-{epoch}");
                    match group.history().pin(&name, Epoch(epoch)) {
                        Ok(pin) => {
                            prop_assert_eq!(pin.point.epoch, Epoch(epoch));
                            // Said twice, it is there once.
                            let again = group.history().pin(&name, Epoch(epoch)).unwrap();
                            prop_assert_eq!(again, pin);
                        }
                        Err(HistoryError::PinExists { .. }) => {}
                        Err(error) => prop_assert!(false, "{}", error),
                    }
                }
                Call::Unpin(which) => {
                    let pins = group.history().pins();
                    if !pins.is_empty() {
                        group.history().unpin(&which.get(&pins).name).unwrap();
                    }
                }
                Call::Look(which) => {
                    let epochs = group.check();
                    let view = group.history().view(Epoch(*which.get(&epochs))).unwrap();
                    open = Some(view);
                }
                Call::Changes(a, b) => {
                    let epochs = group.check();
                    let (a, b) = (*a.get(&epochs), *b.get(&epochs));
                    let (from, to) = (a.min(b), a.max(b));
                    let changes = group.history().changes(Epoch(from), Epoch(to)).unwrap();
                    let before = group.read(&group.history().view(Epoch(from)).unwrap());
                    let after = group.read(&group.history().view(Epoch(to)).unwrap());
                    for disk in 0..DISKS {
                        let changed = changes.changed(disk as u16, 0, SIZE as u64).unwrap();
                        prop_assert!(changed.windows(2).all(|pair| pair[0].1 < pair[1].0));
                        for at in 0..SIZE {
                            let said = changed.iter().any(|(a, b)| (*a..*b).contains(&(at as u64)));
                            prop_assert!(said || before[disk][at] == after[disk][at], "{}..{} byte {}", from, to, at);
                        }
                        prop_assert!(from != to || changed.is_empty());
                    }
                }
            }
            if let Some(view) = &open {
                let epoch = view.point().epoch;
                prop_assert_eq!(sum(&group.read(view)), group.epochs[&epoch.0], "the open view of {}", epoch);
            }
        }
        let kept = group.check();
        // The newest epoch can always be gone back to, and every pin.
        let newest = group.history().view(Epoch(group.applied)).unwrap();
        prop_assert_eq!(sum(&group.read(&newest)), group.epochs[&group.applied]);
        for pin in group.history().pins() {
            prop_assert!(kept.contains(&pin.point.epoch.0), "{:?} is gone", pin);
        }
        if !calls.iter().any(|call| matches!(call, Call::Maintain)) {
            for epoch in 0..=group.applied {
                group.history().view(Epoch(epoch)).unwrap();
            }
        }
    }
}
