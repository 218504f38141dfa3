//! KVM's statistics, per virtual processor.

use qemu_glue::KvmFigure;

use super::Values;
use super::growth::single;
use super::process::Spread;
use crate::signals::Signal;

/// What is asked for.
pub(crate) const FIGURES: &[&str] = &[
    "exits",
    "halt_exits",
    "halt_wakeup",
    "io_exits",
    "mmio_exits",
    "irq_exits",
    "irq_injections",
    "blocking",
];

/// Counters that are shown as means, and where.
const MEANS: &[(&str, Signal)] = &[
    ("exits", Signal::KvmExits),
    ("halt_exits", Signal::KvmHaltExits),
    ("halt_wakeup", Signal::KvmHaltWakeups),
    ("io_exits", Signal::KvmIoExits),
    ("mmio_exits", Signal::KvmMmioExits),
    ("irq_exits", Signal::KvmInterruptExits),
    ("irq_injections", Signal::KvmInjections),
];

/// Remembers the counters of the last sample.
#[derive(Debug, Default)]
pub(crate) struct Kvm {
    last: Vec<Vec<KvmFigure>>,
}

impl Kvm {
    /// `elapsed` in seconds. A counter that the kernel does not have is missing.
    pub(crate) fn sample(&mut self, now: Vec<Vec<KvmFigure>>, elapsed: f64, values: &mut Values) {
        let halted: Vec<u64> = now
            .iter()
            .filter_map(|vcpu| value(vcpu, "blocking"))
            .collect();
        if !halted.is_empty() {
            values.set(
                Signal::KvmHalted,
                single(Spread::of(halted.iter().map(|h| *h as f64)).mean),
            );
        }
        let last = std::mem::replace(&mut self.last, now);
        if last.len() != self.last.len() {
            return;
        }
        for (name, signal) in MEANS {
            let pairs = self.last.iter().zip(&last);
            let grown: Vec<f64> = pairs
                .filter_map(|(now, last)| value(now, name)?.checked_sub(value(last, name)?))
                .map(|grown| grown as f64 / elapsed)
                .collect();
            if grown.is_empty() {
                continue;
            }
            let spread = Spread::of(grown.into_iter());
            values.set(*signal, single(spread.mean));
            if *signal == Signal::KvmExits {
                values.set(Signal::KvmExitsSpread, single(spread.deviation));
            }
        }
    }

    /// QEMU did not say, or is another one.
    pub(crate) fn forget(&mut self) {
        self.last.clear();
    }
}

fn value(figures: &[KvmFigure], name: &str) -> Option<u64> {
    figures
        .iter()
        .find(|figure| figure.name == name)
        .map(|figure| figure.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vcpu(exits: u64, blocking: u64) -> Vec<KvmFigure> {
        let figure = |name: &str, value| KvmFigure {
            name: name.into(),
            value,
        };
        vec![figure("exits", exits), figure("blocking", blocking)]
    }

    #[test]
    fn counters_become_rates_and_what_is_not_there_is_missing() {
        let mut kvm = Kvm::default();
        let mut values = Values::MISSING;
        kvm.sample(vec![vcpu(100, 1), vcpu(0, 0)], 1.0, &mut values);
        assert_eq!(values.get(Signal::KvmExits), None);
        assert_eq!(values.get(Signal::KvmHalted), Some(0.5));
        kvm.sample(vec![vcpu(120, 0), vcpu(0, 0)], 2.0, &mut values);
        assert_eq!(values.get(Signal::KvmExits), Some(5.0));
        assert_eq!(values.get(Signal::KvmExitsSpread), Some(5.0));
        assert_eq!(values.get(Signal::KvmHaltExits), None);
    }
}
