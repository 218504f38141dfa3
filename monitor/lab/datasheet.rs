//! The datasheet of a data set, from its recordings alone: what it is, how it was made, how long it is, what it can't tell.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use monitor::recording::{DataSet, Header};
use monitor::{SIGNALS_VERSION, Signal};

use crate::faults;
use crate::loads;

/// What is counted for each kind.
#[derive(Debug, Default, Clone, Copy)]
struct Sum {
    runs: u32,
    seconds: f64,
}

impl Sum {
    fn add(&mut self, seconds: f64) {
        self.runs += 1;
        self.seconds += seconds;
    }
}

/// The datasheet of a folder.
pub fn of(folder: &Path) -> anyhow::Result<String> {
    let set = DataSet::load(folder)?;
    let (mut loads, mut faults, mut sizes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let (mut all, mut well, mut ill) = (Sum::default(), Sum::default(), Sum::default());
    let (mut samples, mut hosts, mut host_load) = (0, BTreeMap::new(), Vec::new());
    let (mut protected, mut changed) = (Sum::default(), 0);
    for entry in &set.entries {
        let header: &Header = entry.recording.header();
        let seconds = entry.recording.duration_ms() as f64 / 1000.0;
        let faulty = header.fault.as_ref().map_or(0.0, |fault| {
            (seconds - fault.at_ms as f64 / 1000.0).max(0.0)
        });
        all.add(seconds);
        if header.tags.contains_key("protected.interval_ms") {
            protected.add(seconds);
        }
        changed += u32::from(header.phases.iter().any(|phase| phase.name == "change"));
        well.add(seconds - faulty);
        if let Some(fault) = &header.fault {
            ill.add(faulty);
            let sum: &mut (Sum, BTreeMap<String, u32>) =
                faults.entry(fault.kind.clone()).or_default();
            sum.0.add(faulty);
            *sum.1
                .entry(header.load.clone().unwrap_or_default())
                .or_default() += 1;
        }
        let of_load: &mut (Sum, Sum) = loads
            .entry(header.load.clone().unwrap_or_default())
            .or_default();
        if header.fault.is_none() {
            of_load.0.add(seconds);
        } else {
            of_load.1.add(seconds - faulty);
        }
        let size: &mut Sum = sizes
            .entry((header.vm.vcpus, header.vm.memory_mib))
            .or_default();
        size.add(seconds);
        let host = format!(
            "{} cores, QEMU {}, {}",
            header.host.cores, header.host.qemu, header.host.accelerator
        );
        *hosts.entry(host).or_insert(0) += 1;
        host_load.extend(
            header
                .tags
                .get("host.load.end")
                .and_then(|text| text.parse::<f64>().ok()),
        );
        samples += entry.recording.samples().len();
    }
    host_load.sort_by(f64::total_cmp);
    let mut text = String::new();
    let hours = |seconds: f64| format!("{:.2}", seconds / 3600.0);
    let _ = write!(
        text,
        "# Data set of the laboratory\n\n\
         Made by the laboratory (`monitor/lab/README.md`) from the recordings in this folder; this page is written by it, too.\n\n\
         ## What\n\n\
         {} recordings of VMs, {} hours of VM time ({} hours well, {} hours with a fault), {samples} samples of {} signals (list version {SIGNALS_VERSION}).\n\
         One file for each run (`.egrec`): the signals as the host sees them, the load, the fault and its instant. Beside it `.json`, what was planned with all parameters, and \
         `.probe.tsv`, what a heartbeat saw (`beat`: a program that only answers; `app`: the application): a reference for comparisons, not a signal.\n\n\
         {} of the VMs ({} hours) were protected by Epochgate meanwhile, with a checkpoint every 50 to 250 ms and their output held (tag `protected.interval_ms`). In {changed} \
         recordings the load changes on the way (phase `change`): other work begins, or the work ends; the tag `also` names loads beside that of the label.\n\n\
         | vCPUs | MiB | runs | hours |\n|---|---|---|---|\n",
        all.runs,
        hours(all.seconds),
        hours(well.seconds),
        hours(ill.seconds),
        Signal::COUNT,
        protected.runs,
        hours(protected.seconds),
    );
    for ((cpus, memory), sum) in &sizes {
        let _ = writeln!(
            text,
            "| {cpus} | {memory} | {} | {} |",
            sum.runs,
            hours(sum.seconds)
        );
    }
    let _ = write!(
        text,
        "\n## Loads\n\n| load | what | runs without a fault | hours | before faults, hours |\n|---|---|---|---|---|\n"
    );
    for (name, (alone, before)) in &loads {
        let about = loads::named(name).map_or("", |load| load.about);
        let _ = writeln!(
            text,
            "| {name} | {about} | {} | {} | {} |",
            alone.runs,
            hours(alone.seconds),
            hours(before.seconds)
        );
    }
    let _ = write!(
        text,
        "\n## Faults\n\n| fault | what | runs | hours | beside |\n|---|---|---|---|---|\n"
    );
    for (name, (sum, beside)) in &faults {
        let about = faults::named(name).map_or("", |fault| fault.about);
        let beside: Vec<&str> = beside.keys().map(String::as_str).collect();
        let _ = writeln!(
            text,
            "| {name} | {about} | {} | {} | {} |",
            sum.runs,
            hours(sum.seconds),
            beside.join(", ")
        );
    }
    let _ = write!(text, "\n## How\n\nRecorded on: ");
    let on: Vec<String> = hosts
        .iter()
        .map(|(host, runs)| format!("{host} ({runs} runs)"))
        .collect();
    let _ = writeln!(text, "{}.", on.join("; "));
    if let (Some(low), Some(high)) = (host_load.first(), host_load.last()) {
        let middle = host_load.get(host_load.len() / 2).copied().unwrap_or(*low);
        let _ = writeln!(
            text,
            "Several VMs at a time, and whatever else the host did: tasks that wanted to run on it at the end of runs {low:.1} to {high:.1}, median {middle:.1}. \
             That VMs wait for each other is part of the data."
        );
    }
    text.push_str(LIMITS);
    if let Ok(failed) = std::fs::read_to_string(folder.join("failed.tsv")) {
        let _ = write!(text, "\n## Runs that failed twice and are not in it\n\n");
        for line in failed.lines() {
            let _ = writeln!(text, "- {}", line.replace('\t', ": "));
        }
    }
    Ok(text)
}

/// What no count says.
const LIMITS: &str = "
The fault's instant is that at which the guest said that it begins the line that makes it, or that at which the host made it. Most faults are there at once;
`leak`, `swap_storm`, `disk_full`, `runaway_log`, `zombies` and `panic_loop` take their time, and their first seconds look normal because they are.

## What it can't tell

- Guests are one kernel and one distribution, emulated by TCG where that stands above: absolute CPU figures and times are not those of KVM.
- Hosts are one machine. That a host itself is ill is not in it.
- Several VMs share few cores in most runs, so their processors wait more than they run; on a host with free cores they would not.
- Minutes, not days: no daily rhythm, no slow leak of weeks, no ageing.
- Loads are single programs or two of them, not the medley of a real server. The probes' packets go by an interface that is not counted, but answering costs the guest some
  CPU once a second, in every run.
- Faults of services (`needs clients` in the laboratory) have clients in every run, healthy runs in somewhat less than half of them.
- A stopped service in a guest where nobody wants anything of it is the same as an idle one, from outside. Some faults beside quiet loads are of this kind.
- The disk that fails makes QEMU stop the guest, as Epochgate tells it to.
- Labels of faults are for the whole rest of the run. Between two rounds of a loop (`leak`, `panic_loop`, `crash_loop`) a guest can look well for some seconds.
";
