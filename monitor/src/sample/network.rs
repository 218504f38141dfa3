//! The counters of the tap interfaces that QEMU has open, as the host keeps them. They are found by QEMU's open files, and read in QEMU's
//! network namespace: nothing has to be configured.

use std::fs;
use std::path::Path;

use super::Values;
use super::growth::{Growth, per};
use super::proc_text;
use crate::signals::Signal;

/// Samples between two looks at QEMU's open files: interfaces hardly ever come and go.
const LOOK_EVERY: u32 = 30;

/// Remembers the counters of the last sample.
#[derive(Debug, Default)]
pub(crate) struct Network {
    pid: u32,
    taps: Vec<String>,
    samples: u32,
    counters: Growth<6>,
}

impl Network {
    /// `elapsed` in seconds.
    pub(crate) fn sample(&mut self, pid: u32, elapsed: f64, values: &mut Values) {
        if self.pid != pid || self.samples % LOOK_EVERY == 0 {
            let taps = taps_of(pid);
            if taps != self.taps || self.pid != pid {
                self.counters.forget();
            }
            (self.taps, self.pid) = (taps, pid);
        }
        self.samples = self.samples.wrapping_add(1);
        if self.taps.is_empty() {
            return;
        }
        let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
        let mut sums = [0; 6];
        for tap in &self.taps {
            // One that was moved to another namespace can't be seen, and without it the sum would be wrong.
            let Some(counters) = proc_text::interface(&text, tap) else {
                self.counters.forget();
                return;
            };
            for (sum, counter) in sums.iter_mut().zip(counters) {
                *sum += counter;
            }
        }
        // What the host receives from a tap, the guest has sent.
        if let Some([out, out_bytes, out_lost, into, in_bytes, in_lost]) = self.counters.step(sums)
        {
            values.set(Signal::NetOutPackets, per(out, elapsed));
            values.set(Signal::NetOutBytes, per(out_bytes, elapsed));
            values.set(Signal::NetInPackets, per(into, elapsed));
            values.set(Signal::NetInBytes, per(in_bytes, elapsed));
            values.set(Signal::NetDropped, per(out_lost + in_lost, elapsed));
        }
    }
}

/// The tap interfaces that a process has open, each once.
fn taps_of(pid: u32) -> Vec<String> {
    let files = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    let tun = files
        .filter(|file| fs::read_link(file.path()).is_ok_and(|to| to == Path::new("/dev/net/tun")));
    let name = |file: fs::DirEntry| {
        let info = format!("/proc/{pid}/fdinfo/{}", file.file_name().to_string_lossy());
        let info = fs::read_to_string(info).ok()?;
        let name = info.lines().find_map(|line| line.strip_prefix("iff:"))?;
        Some(name.trim().to_owned())
    };
    let mut names: Vec<String> = tun
        .filter_map(name)
        .filter(|name| !name.is_empty())
        .collect();
    names.sort();
    // An interface with several queues has a file for each.
    names.dedup();
    names
}
