//! Windows from samples, one after the other.

use super::channels::CHANNELS;
use super::history::History;
use super::names::{Stat, features};
use crate::sample::Sample;
use crate::signals::Source;

/// Features at one instant.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// Of the newest sample.
    pub at_ms: u64,
    /// In the order of [`features`]: finite numbers, whatever the samples were.
    pub values: Vec<f32>,
    /// The same order: whether it could be had at all.
    pub there: Vec<bool>,
    /// Sources of which nothing came with the newest sample.
    pub missing: Vec<Source>,
}

/// Makes windows of one VM. Samples must be in the order of time.
#[derive(Debug, Default)]
pub struct Extractor {
    history: History,
}

impl Extractor {
    /// Takes a sample; gives the window that ends with it, once enough is known of the VM.
    pub fn push(&mut self, sample: &Sample) -> Option<Window> {
        let now = sample.at_ms;
        let of_channels = CHANNELS.iter().map(|channel| channel.of(&sample.values));
        self.history.push(now, of_channels.collect());
        self.history.is_ready(now).then(|| self.window(sample, now))
    }

    /// While something is wrong with the VM, what it does must not become what is usual for it: with `true` the minutes that windows are
    /// compared with stay those before, however long that lasts.
    pub fn hold(&mut self, hold: bool) {
        self.history.hold(hold);
    }

    fn window(&self, sample: &Sample, now: u64) -> Window {
        let missing: Vec<Source> = Source::ALL
            .into_iter()
            .filter(|source| !sample.values.has(*source))
            .collect();
        let figures: Vec<_> = (0..CHANNELS.len())
            .map(|channel| self.history.figures(channel, now))
            .collect();
        let one = |feature: &super::Feature| -> Option<f32> {
            let Some((channel, stat)) = feature.place() else {
                let is_missing = feature.source().is_some_and(|s| missing.contains(&s));
                return Some(if is_missing { 0.0 } else { 1.0 });
            };
            let of = figures.get(channel).copied().flatten()?;
            Some(match stat {
                Stat::Level => of.level,
                Stat::Change => of.change,
                Stat::Slope => of.slope,
                Stat::Spread => of.spread,
                Stat::Calm => of.calm,
                Stat::Recent => self.history.events(channel, now),
            })
        };
        let all: Vec<Option<f32>> = features().iter().map(one).collect();
        Window {
            at_ms: now,
            there: all.iter().map(Option::is_some).collect(),
            values: all.into_iter().map(Option::unwrap_or_default).collect(),
            missing,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::named;
    use super::*;
    use crate::sample::Values;
    use crate::signals::Signal;

    fn sample(at_s: u64, values: &[(Signal, f32)]) -> Sample {
        let mut all = Values::MISSING;
        for (signal, value) in values {
            all.set(*signal, *value);
        }
        Sample {
            at_ms: at_s * 1000,
            wall_ms: 0,
            values: all,
        }
    }

    fn feature(window: &Window, name: &str) -> f32 {
        window.values[named(name).unwrap()]
    }

    /// A VM that answers packets, then no longer does.
    fn falls_silent(packets: f32) -> Window {
        let mut extractor = Extractor::default();
        let mut last = None;
        for at in 1..=106 {
            let out = if at <= 100 { packets } else { 0.0 };
            let of = [
                (Signal::NetOutPackets, out),
                (Signal::NetInPackets, packets),
            ];
            let window = extractor.push(&sample(at, &of));
            assert_eq!(window.is_some(), at >= 41, "{at}");
            last = window;
        }
        last.unwrap()
    }

    #[test]
    fn what_changed_is_seen_against_the_minutes_before() {
        let window = falls_silent(400.0);
        assert_eq!(feature(&window, "net.out.packets.level"), 0.0);
        assert!(feature(&window, "net.out.packets.change") < -6.0);
        assert!(feature(&window, "net.out.packets.slope") < -5.0);
        assert!(feature(&window, "net.out.packets.calm") > 3.0);
        assert!(feature(&window, "net.answers.change") < -6.0);
        assert_eq!(feature(&window, "net.in.packets.change"), 0.0);
    }

    #[test]
    fn what_is_held_does_not_become_usual() {
        for hold in [false, true] {
            let mut extractor = Extractor::default();
            let mut last = None;
            for at in 1..=1000 {
                let out = if at <= 100 { 400.0 } else { 0.0 };
                last = extractor.push(&sample(at, &[(Signal::NetOutPackets, out)]));
                if at == 110 {
                    extractor.hold(hold);
                }
            }
            let change = feature(last.as_ref().unwrap(), "net.out.packets.change");
            assert_eq!(change < -6.0, hold, "{change}");
            // And when it works again, that is what it did before.
            extractor.hold(false);
            for at in 1001..=1010 {
                last = extractor.push(&sample(at, &[(Signal::NetOutPackets, 400.0)]));
            }
            let change = feature(last.as_ref().unwrap(), "net.out.packets.change");
            assert_eq!(change.abs() < 0.1, hold, "{change}");
        }
    }

    #[test]
    fn a_large_vm_and_a_small_one_change_alike() {
        let (small, large) = (falls_silent(400.0), falls_silent(40_000.0));
        // The level of a logarithm differs, ratios to the VM's own past hardly.
        let of = |window: &Window| feature(window, "net.in.packets.change");
        assert_eq!(of(&small), of(&large));
        let halved = |packets: f32| {
            let mut extractor = Extractor::default();
            let mut last = None;
            for at in 1..=106 {
                let now = if at <= 100 { packets } else { packets / 2.0 };
                last = extractor.push(&sample(at, &[(Signal::NetOutPackets, now)]));
            }
            feature(&last.unwrap(), "net.out.packets.change")
        };
        assert!((halved(400.0) - halved(40_000.0)).abs() < 0.01);
        assert!((halved(400.0) - 0.5_f32.ln()).abs() < 0.01);
    }

    #[test]
    fn what_is_missing_is_neutral_and_said() {
        let window = falls_silent(400.0);
        let at = named("kvm.exits.level").unwrap();
        assert_eq!((window.values[at], window.there[at]), (0.0, false));
        assert_eq!(feature(&window, "there.kvm"), 0.0);
        assert_eq!(feature(&window, "there.network"), 1.0);
        assert!(window.missing.contains(&Source::Kvm));
        assert!(!window.missing.contains(&Source::Network));
        assert!(window.there[named("net.out.packets.level").unwrap()]);
    }

    #[test]
    fn events_count_for_half_a_minute() {
        let mut extractor = Extractor::default();
        for at in 1..=100 {
            let panic = if at == 60 { 1.0 } else { 0.0 };
            let Some(window) = extractor.push(&sample(at, &[(Signal::EventPanic, panic)])) else {
                continue;
            };
            let expected = if (60..90).contains(&at) {
                2_f32.ln()
            } else {
                0.0
            };
            assert!(
                (feature(&window, "event.panic.recent") - expected).abs() < 1e-6,
                "{at}"
            );
        }
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::HashSet<_> = features().iter().map(|f| f.name()).collect();
        assert_eq!(names.len(), features().len());
        for feature in features() {
            assert!(!feature.in_words(-0.5).is_empty());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn windows_are_finite_whatever_the_samples_are(
            bits in prop::collection::vec(any::<u32>(), 200..400), step in 100_u64..10_000)
        {
            let mut extractor = Extractor::default();
            for at in 0..120 {
                let mut values = Values::MISSING;
                for (index, signal) in Signal::ALL.iter().enumerate() {
                    let bits = bits[(index * 7 + at * 13) % bits.len()];
                    values.set(*signal, f32::from_bits(bits));
                }
                let sample = Sample { at_ms: at as u64 * step, wall_ms: 0, values };
                if let Some(window) = extractor.push(&sample) {
                    prop_assert!(window.values.iter().all(|value| value.is_finite()));
                    prop_assert_eq!(window.values.len(), features().len());
                }
            }
        }
    }
}
