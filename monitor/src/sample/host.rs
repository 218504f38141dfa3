//! How busy the host is: a VM that gets no processor is not ill.

use std::fs::read_to_string;

use super::Values;
use super::growth::{Growth, per};
use super::proc_text;
use crate::signals::Signal;

/// Remembers the counters of the last sample.
#[derive(Debug, Default)]
pub(crate) struct Host {
    cpu: Growth<2>,
    stalls: [Growth<1>; 3],
}

const STALLS: [(&str, Signal); 3] = [
    ("/proc/pressure/cpu", Signal::HostStallCpu),
    ("/proc/pressure/io", Signal::HostStallIo),
    ("/proc/pressure/memory", Signal::HostStallMemory),
];

impl Host {
    /// `elapsed` in seconds.
    pub(crate) fn sample(&mut self, elapsed: f64, values: &mut Values) {
        let cpu = read_to_string("/proc/stat")
            .ok()
            .and_then(|text| proc_text::cpu(&text));
        if let Some([busy, all]) = cpu.and_then(|(busy, all)| self.cpu.step([busy, all]))
            && all > 0
        {
            values.set(Signal::HostBusy, per(busy, all as f64));
        }
        // A kernel without PSI has no such files.
        for ((path, signal), stall) in STALLS.iter().zip(&mut self.stalls) {
            let waited = read_to_string(path)
                .ok()
                .and_then(|text| proc_text::pressure(&text));
            if let Some([waited]) = waited.and_then(|waited| stall.step([waited])) {
                values.set(*signal, per(waited, elapsed * 1e6).min(1.0));
            }
        }
    }
}
