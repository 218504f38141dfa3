//! What `/proc` says of the QEMU process: its threads, its memory, its page faults.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;

use super::Values;
use super::growth::{Growth, per, single};
use super::proc_text::{self, Stat};
use crate::signals::Signal;

/// The counters of one thread: time on a core and waiting for one (ns), slices, time in the kernel (ticks), context switches.
const COUNTERS: usize = 6;

/// Remembers the counters of the last sample.
#[derive(Debug, Default)]
pub(crate) struct Process {
    pid: u32,
    threads: HashMap<u32, Thread>,
    faults: Growth<2>,
    /// Room for a text.
    text: String,
}

#[derive(Debug, Default)]
struct Thread {
    started: u64,
    counters: Growth<COUNTERS>,
    /// In the last sample.
    seen: bool,
}

/// What is known of the process from elsewhere.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    pub(crate) pid: u32,
    /// Threads that run virtual processors; None: that can't be asked now.
    pub(crate) vcpus: Option<&'a [u32]>,
    /// Bytes of the guest's RAM, if known.
    pub(crate) ram_bytes: Option<u64>,
}

impl Process {
    /// Fills in what can be had. `elapsed` is the time since the last sample, in seconds.
    /// Says whether the process is there.
    pub(crate) fn sample(&mut self, known: Known<'_>, elapsed: f64, values: &mut Values) -> bool {
        if self.pid != known.pid {
            let text = std::mem::take(&mut self.text);
            *self = Process {
                pid: known.pid,
                text,
                ..Process::default()
            };
        }
        let stat = self.read("stat").and_then(proc_text::stat);
        // One that has ended is there until its parent has taken notice.
        let Some(stat) = stat.filter(|stat| !matches!(stat.state, b'Z' | b'X')) else {
            *self = Process::default();
            return false;
        };
        if let Some([minor, major]) = self.faults.step([stat.minor_faults, stat.major_faults]) {
            values.set(Signal::FaultsMinor, per(minor, elapsed));
            values.set(Signal::FaultsMajor, per(major, elapsed));
        }
        self.memory(known, values);
        self.threads(known, elapsed, values);
        true
    }

    /// Whether one of these threads is there no more: then they have to be asked for again.
    pub(crate) fn misses(&self, vcpus: &[u32]) -> bool {
        vcpus
            .iter()
            .any(|thread| !self.threads.contains_key(thread))
    }

    fn read(&mut self, path: &str) -> Option<&str> {
        self.text.clear();
        let mut file = File::open(format!("/proc/{}/{path}", self.pid)).ok()?;
        file.read_to_string(&mut self.text).ok()?;
        Some(&self.text)
    }

    fn memory(&mut self, known: Known<'_>, values: &mut Values) {
        let page = rustix::param::page_size() as u64;
        let resident = self.read("statm").and_then(proc_text::statm);
        let swapped = self
            .read("status")
            .and_then(|text| proc_text::keyed(text, "VmSwap"));
        if let Some(ram) = known.ram_bytes.filter(|ram| *ram > 0) {
            let share = |bytes: u64| per(bytes, ram as f64);
            values.set(
                Signal::MemoryResident,
                resident.map(|(all, _)| share(all * page)),
            );
            values.set(
                Signal::MemoryShared,
                resident.map(|(_, shared)| share(shared * page)),
            );
            values.set(Signal::MemorySwapped, swapped.map(|kib| share(kib << 10)));
        }
    }

    fn threads(&mut self, known: Known<'_>, elapsed: f64, values: &mut Values) {
        let Ok(entries) = std::fs::read_dir(format!("/proc/{}/task", self.pid)) else {
            return;
        };
        for thread in self.threads.values_mut() {
            thread.seen = false;
        }
        let numbers = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let numbers: Vec<u32> = numbers.collect();
        let mut blocked = 0;
        let mut grown = Vec::with_capacity(numbers.len());
        for number in numbers {
            // A thread that ends meanwhile is left out.
            let Some((stat, counters)) = self.counters_of(number) else {
                continue;
            };
            blocked += u32::from(stat.state == b'D');
            let thread = self.threads.entry(number).or_default();
            if thread.started != stat.started {
                *thread = Thread {
                    started: stat.started,
                    ..Thread::default()
                };
            }
            thread.seen = true;
            grown.extend(
                thread
                    .counters
                    .step(counters)
                    .map(|counters| (number, counters)),
            );
        }
        self.threads.retain(|_, thread| thread.seen);
        values.set(Signal::ThreadsBlocked, blocked as f32);
        let Some(vcpus) = known.vcpus else { return };
        let (of_vcpus, others): (Vec<_>, Vec<_>) = grown
            .into_iter()
            .partition(|(number, _)| vcpus.contains(number));
        vcpu_values(&of_vcpus, elapsed, values);
        self.other_values(&others, elapsed, values);
    }

    fn counters_of(&mut self, thread: u32) -> Option<(Stat, [u64; COUNTERS])> {
        let stat = self
            .read(&format!("task/{thread}/stat"))
            .and_then(proc_text::stat)?;
        let schedule = self
            .read(&format!("task/{thread}/schedstat"))
            .and_then(proc_text::schedstat)?;
        let text = self.read(&format!("task/{thread}/status"))?;
        let voluntary = proc_text::keyed(text, "voluntary_ctxt_switches")?;
        let involuntary = proc_text::keyed(text, "nonvoluntary_ctxt_switches")?;
        let [run, wait, slices] = schedule;
        Some((
            stat,
            [run, wait, slices, stat.system_ticks, voluntary, involuntary],
        ))
    }

    fn other_values(&self, others: &[(u32, [u64; COUNTERS])], elapsed: f64, values: &mut Values) {
        let main = others.iter().find(|(number, _)| *number == self.pid);
        let Some((_, main)) = main else { return };
        let sum = |place: usize| {
            others
                .iter()
                .filter_map(|(_, grown)| grown.get(place))
                .sum::<u64>()
        };
        values.set(Signal::MainRun, per(main[0], elapsed * 1e9));
        values.set(Signal::WorkersRun, per(sum(0) - main[0], elapsed * 1e9));
        values.set(Signal::OthersSwitchVoluntary, per(sum(4), elapsed));
        values.set(Signal::OthersSwitchInvoluntary, per(sum(5), elapsed));
    }
}

fn vcpu_values(vcpus: &[(u32, [u64; COUNTERS])], elapsed: f64, values: &mut Values) {
    if vcpus.is_empty() {
        return;
    }
    let of = |place: usize, unit: f64| {
        let each = vcpus.iter().filter_map(|(_, grown)| grown.get(place));
        Spread::of(each.map(|grown| *grown as f64 / (elapsed * unit)))
    };
    let (run, wait) = (of(0, 1e9), of(1, 1e9));
    values.set(Signal::VcpuRunMean, single(run.mean));
    values.set(Signal::VcpuRunMax, single(run.max));
    values.set(Signal::VcpuRunMin, single(run.min));
    values.set(Signal::VcpuRunSpread, single(run.deviation));
    values.set(Signal::VcpuWaitMean, single(wait.mean));
    values.set(Signal::VcpuWaitMax, single(wait.max));
    values.set(Signal::VcpuWaitMin, single(wait.min));
    values.set(Signal::VcpuWaitSpread, single(wait.deviation));
    values.set(Signal::VcpuSlices, single(of(2, 1.0).mean));
    let ticks = rustix::param::clock_ticks_per_second().max(1) as f64;
    values.set(Signal::VcpuSystem, single(of(3, ticks).mean));
    values.set(Signal::VcpuSwitchVoluntary, single(of(4, 1.0).mean));
    values.set(Signal::VcpuSwitchInvoluntary, single(of(5, 1.0).mean));
}

/// How values are spread; all 0 if there are none.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Spread {
    pub(crate) mean: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// Standard deviation.
    pub(crate) deviation: f64,
}

impl Spread {
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.collect();
        if values.is_empty() {
            return Self::default();
        }
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values
            .iter()
            .map(|value| (value - mean).powi(2))
            .sum::<f64>()
            / count;
        Spread {
            mean,
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            deviation: variance.sqrt(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn vcpus_are_summed_up_independent_of_their_number() {
        let mut values = Values::MISSING;
        let run = |seconds: f64| [(seconds * 1e9) as u64, 0, 10, 0, 0, 0];
        vcpu_values(&[(1, run(2.0)), (2, run(0.0))], 2.0, &mut values);
        assert_eq!(values.get(Signal::VcpuRunMean), Some(0.5));
        assert_eq!(values.get(Signal::VcpuRunMax), Some(1.0));
        assert_eq!(values.get(Signal::VcpuRunMin), Some(0.0));
        assert_eq!(values.get(Signal::VcpuRunSpread), Some(0.5));
        assert_eq!(values.get(Signal::VcpuSlices), Some(5.0));
        assert_eq!(values.get(Signal::VcpuWaitMean), Some(0.0));
    }

    /// This test's own process is looked at, with one of its threads in the place of a vCPU.
    #[test]
    fn a_thread_that_ends_leaves_no_trace_and_a_busy_one_shows() {
        let pid = std::process::id();
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let busy = std::thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get())
                .unwrap();
            while ended.try_recv().is_err() {
                std::hint::spin_loop();
            }
        });
        let vcpus = [u32::try_from(told.recv().unwrap()).unwrap()];
        let known = Known {
            pid,
            vcpus: Some(&vcpus),
            ram_bytes: Some(1 << 30),
        };
        let mut process = Process::default();
        let mut values = Values::MISSING;
        process.sample(known, 1.0, &mut values);
        assert_eq!(
            values.get(Signal::VcpuRunMean),
            None,
            "nothing is known of the time before"
        );
        assert!(values.get(Signal::MemoryResident).unwrap() > 0.0);
        let began = Instant::now();
        std::thread::sleep(Duration::from_millis(100));
        process.sample(known, began.elapsed().as_secs_f64(), &mut values);
        assert!(values.get(Signal::VcpuRunMean).unwrap() > 0.0);
        assert!(!process.misses(&vcpus));

        end.send(()).unwrap();
        busy.join().unwrap();
        let mut values = Values::MISSING;
        process.sample(known, 1.0, &mut values);
        assert!(process.misses(&vcpus));
        assert_eq!(values.get(Signal::VcpuRunMean), None);
        assert!(values.get(Signal::MainRun).is_some());
    }

    #[test]
    fn a_process_that_is_not_there_is_missing() {
        let mut values = Values::MISSING;
        let known = Known {
            pid: u32::MAX,
            vcpus: Some(&[1]),
            ram_bytes: Some(1),
        };
        Process::default().sample(known, 1.0, &mut values);
        assert_eq!(values, Values::MISSING);
    }
}
