//! The list of signals: what a sample is made of. Names, units and meanings; nothing here measures.
//!
//! The list is fixed and has a [version](SIGNALS_VERSION): data sets and models name their signals, and what was trained on one meaning
//! must never be fed with another. A signal that is added goes to the end of its group and raises the version; a meaning never changes
//! under a name.
//!
//! All are independent of the number of processors (means over them, with their spread), and as far as can be of the size of the VM.
//! A value that could not be had is *missing*, which is something else than 0: see [`Values`](crate::sample::Values).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Raised whenever the list changes.
pub const SIGNALS_VERSION: u32 = 1;

/// How a value comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// As it is at the instant of the sample.
    Gauge,
    /// What a counter has grown by since the last sample, per second.
    Rate,
    /// How often it happened since the last sample.
    Count,
}

/// Where signals come from. All signals of a source that is not there are missing; a source that is there gives all of its own, but for
/// what its table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// `/proc` of the QEMU process, with thread ids by QMP.
    Process,
    /// QMP: the run state and the events.
    Qmp,
    /// QMP `query-blockstats`.
    Block,
    /// The control API of the gateway that serves the VM's disks.
    Gateway,
    /// Dirty pages: of a tracker of our own, or of the process that protects the VM.
    Dirty,
    /// The counters of the VM's tap interfaces.
    Network,
    /// The output gate of the process that protects the VM.
    Gate,
    /// QMP `query-stats` of KVM (QEMU 7.1 or newer; never under TCG).
    Kvm,
    /// `/proc` of the host.
    Host,
}

impl Source {
    /// All of them.
    pub const ALL: [Source; 9] = [
        Source::Process,
        Source::Qmp,
        Source::Block,
        Source::Gateway,
        Source::Dirty,
        Source::Network,
        Source::Gate,
        Source::Kvm,
        Source::Host,
    ];

    /// Its name, as in files.
    pub fn name(self) -> &'static str {
        match self {
            Source::Process => "process",
            Source::Qmp => "qmp",
            Source::Block => "block",
            Source::Gateway => "gateway",
            Source::Dirty => "dirty",
            Source::Network => "network",
            Source::Gate => "gate",
            Source::Kvm => "kvm",
            Source::Host => "host",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is known of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    name: &'static str,
    unit: &'static str,
    kind: Kind,
    source: Source,
    about: &'static str,
}

macro_rules! signals {
    ($($variant:ident $name:literal $unit:literal $kind:ident $source:ident $about:literal,)*) => {
        /// One signal. The order is that of the columns of a recording.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Signal {
            $(#[doc = $about] $variant,)*
        }

        impl Signal {
            /// All signals, in order.
            pub const ALL: &'static [Signal] = &[$(Signal::$variant,)*];

            fn entry(self) -> Entry {
                match self {
                    $(Signal::$variant => Entry {
                        name: $name, unit: $unit, kind: Kind::$kind, source: Source::$source, about: $about,
                    },)*
                }
            }
        }
    };
}

signals! {
    // The threads of the virtual processors.
    VcpuRunMean "vcpu.run.mean" "share" Rate Process "time that a vCPU thread runs on a core, mean over vCPUs",
    VcpuRunMax "vcpu.run.max" "share" Rate Process "the same, of the busiest vCPU",
    VcpuRunMin "vcpu.run.min" "share" Rate Process "the same, of the least busy vCPU",
    VcpuRunSpread "vcpu.run.spread" "share" Rate Process "the same, standard deviation over vCPUs",
    VcpuWaitMean "vcpu.wait.mean" "share" Rate Process "time that a vCPU thread waits for a core of the host, mean over vCPUs",
    VcpuWaitMax "vcpu.wait.max" "share" Rate Process "the same, of the vCPU that waits most",
    VcpuWaitMin "vcpu.wait.min" "share" Rate Process "the same, of the vCPU that waits least",
    VcpuWaitSpread "vcpu.wait.spread" "share" Rate Process "the same, standard deviation over vCPUs",
    VcpuSystem "vcpu.system" "share" Rate Process "time that a vCPU thread runs in the host's kernel, mean over vCPUs",
    VcpuSlices "vcpu.slices" "1/s" Rate Process "how often a vCPU thread is put on a core, mean over vCPUs: an idle guest wakes by its timers",
    VcpuSwitchVoluntary "vcpu.switch.voluntary" "1/s" Rate Process "context switches of a vCPU thread that goes to sleep, mean over vCPUs",
    VcpuSwitchInvoluntary "vcpu.switch.involuntary" "1/s" Rate Process "context switches of a vCPU thread that would have run on, mean over vCPUs",
    // QEMU's other threads.
    MainRun "main.run" "cores" Rate Process "CPU of QEMU's main loop",
    WorkersRun "workers.run" "cores" Rate Process "CPU of all other threads of QEMU: I/O threads, workers",
    OthersSwitchVoluntary "others.switch.voluntary" "1/s" Rate Process "context switches of QEMU's threads other than vCPUs that go to sleep, summed",
    OthersSwitchInvoluntary "others.switch.involuntary" "1/s" Rate Process "context switches of QEMU's threads other than vCPUs that would have run on, summed",
    ThreadsBlocked "threads.blocked" "threads" Gauge Process "threads of QEMU in uninterruptible sleep (they wait for storage, mostly)",
    // The process' memory.
    MemoryResident "memory.resident" "of RAM" Gauge Process "resident memory of QEMU, in relation to the guest's RAM",
    MemoryShared "memory.shared" "of RAM" Gauge Process "the shared and file-backed part of it, in relation to the guest's RAM",
    MemorySwapped "memory.swapped" "of RAM" Gauge Process "memory of QEMU that the host has swapped out, in relation to the guest's RAM",
    FaultsMinor "faults.minor" "1/s" Rate Process "page faults of QEMU without I/O; the dirty page tracker causes one for each page that is written",
    FaultsMajor "faults.major" "1/s" Rate Process "page faults of QEMU with I/O",
    // QEMU's view of the VM.
    Running "vm.running" "0 or 1" Gauge Qmp "whether QEMU runs the guest; a pause for a checkpoint counts as running",
    Answer "vm.answer" "ms" Gauge Qmp "time that QEMU takes to answer a question; 1000 or more: it has not, and what it should have told is missing",
    EventPanic "event.panic" "times" Count Qmp "GUEST_PANICKED, GUEST_CRASHLOADED: the guest's kernel reports a panic",
    EventReset "event.reset" "times" Count Qmp "RESET",
    EventWatchdog "event.watchdog" "times" Count Qmp "WATCHDOG: nobody in the guest has fed its watchdog",
    EventIoError "event.io_error" "times" Count Qmp "BLOCK_IO_ERROR: a request of the guest's disk failed",
    EventShutdown "event.shutdown" "times" Count Qmp "SHUTDOWN, POWERDOWN",
    EventMemoryFailure "event.memory_failure" "times" Count Qmp "MEMORY_FAILURE: the host's memory is broken",
    EventStop "event.stop" "times" Count Qmp "STOP; missing while the VM is protected, as each checkpoint is one",
    EventResume "event.resume" "times" Count Qmp "RESUME; missing while the VM is protected",
    // Disks as QEMU sees them, summed.
    BlockReadOps "block.read.ops" "1/s" Rate Block "reads completed",
    BlockWriteOps "block.write.ops" "1/s" Rate Block "writes completed",
    BlockFlushOps "block.flush.ops" "1/s" Rate Block "flushes completed",
    BlockDiscardOps "block.discard.ops" "1/s" Rate Block "discards completed",
    BlockReadBytes "block.read.bytes" "B/s" Rate Block "bytes read",
    BlockWriteBytes "block.write.bytes" "B/s" Rate Block "bytes written",
    BlockDiscardBytes "block.discard.bytes" "B/s" Rate Block "bytes discarded",
    BlockReadLatency "block.read.latency" "ms" Gauge Block "mean time of the reads that completed since the last sample; 0 if there were none",
    BlockWriteLatency "block.write.latency" "ms" Gauge Block "the same of writes",
    BlockFlushLatency "block.flush.latency" "ms" Gauge Block "the same of flushes",
    BlockFailed "block.failed" "1/s" Rate Block "requests that failed, of all kinds, with those that were invalid",
    // Disks as the gateway sees them, summed over the group.
    GatewayReadOps "gateway.read.ops" "1/s" Rate Gateway "reads answered",
    GatewayWriteOps "gateway.write.ops" "1/s" Rate Gateway "writes answered, with trims and zeroes",
    GatewayFlushOps "gateway.flush.ops" "1/s" Rate Gateway "flushes answered",
    GatewayReadBytes "gateway.read.bytes" "B/s" Rate Gateway "bytes read",
    GatewayWriteBytes "gateway.write.bytes" "B/s" Rate Gateway "bytes written",
    GatewayReadLatency "gateway.read.latency" "ms" Gauge Gateway "mean time of the reads answered since the last sample; 0 if there were none",
    GatewayWriteLatency "gateway.write.latency" "ms" Gauge Gateway "the same of writes",
    GatewayFlushLatency "gateway.flush.latency" "ms" Gauge Gateway "the same of flushes",
    GatewayInFlight "gateway.in_flight" "requests" Gauge Gateway "requests that wait for storage",
    GatewayFailed "gateway.failed" "1/s" Rate Gateway "requests answered with an error",
    GatewayEpochBytes "gateway.epoch.bytes" "B/s" Rate Gateway "guest data in committed epochs: what is written twice within an epoch counts once; missing in sync mode",
    GatewayEpochBlocks "gateway.epoch.blocks" "1/s" Rate Gateway "different 4 KiB blocks in committed epochs; missing in sync mode",
    GatewayHeld "gateway.held" "share" Gauge Gateway "memory that epochs hold, of their budget",
    // Dirty pages. The window is one second, whatever the interval is.
    DirtyPages "dirty.pages" "pages/s" Gauge Dirty "different pages that the guest wrote within the last window of one second",
    DirtyShare "dirty.share" "of RAM/s" Gauge Dirty "the same, in relation to the guest's RAM",
    DirtyRegions "dirty.regions" "share" Gauge Dirty "regions of 2 MiB with a written page, of all regions",
    DirtyEntropy "dirty.entropy" "0 to 1" Gauge Dirty "how evenly the written pages lie over 64 equal parts of RAM: 0 all in one, 1 the same number in each",
    DirtyRepeat "dirty.repeat" "share" Gauge Dirty "of the written pages, those that were also written in the window before",
    DirtyRun "dirty.run" "pages" Gauge Dirty "mean length of runs of neighbouring written pages; 0 if there is none",
    // Packets, by the tap interfaces.
    NetOutPackets "net.out.packets" "1/s" Rate Network "packets that the guest sends",
    NetOutBytes "net.out.bytes" "B/s" Rate Network "bytes that the guest sends",
    NetInPackets "net.in.packets" "1/s" Rate Network "packets for the guest",
    NetInBytes "net.in.bytes" "B/s" Rate Network "bytes for the guest",
    NetDropped "net.dropped" "1/s" Rate Network "packets dropped at the taps, both ways: a guest that takes none lets their queue run full",
    // The output gate.
    GatePackets "gate.packets" "1/s" Rate Gate "packets that the guest hands to the output gate",
    GateBytes "gate.bytes" "B/s" Rate Gate "their bytes",
    GateHeld "gate.held" "B" Gauge Gate "bytes that wait in the gate",
    // KVM, mean over vCPUs.
    KvmExits "kvm.exits" "1/s" Rate Kvm "exits from the guest, mean over vCPUs",
    KvmExitsSpread "kvm.exits.spread" "1/s" Rate Kvm "the same, standard deviation over vCPUs",
    KvmHaltExits "kvm.halt_exits" "1/s" Rate Kvm "exits because the guest has nothing to do, mean over vCPUs",
    KvmHaltWakeups "kvm.halt_wakeups" "1/s" Rate Kvm "ends of that, mean over vCPUs",
    KvmIoExits "kvm.io_exits" "1/s" Rate Kvm "exits for port I/O, mean over vCPUs",
    KvmMmioExits "kvm.mmio_exits" "1/s" Rate Kvm "exits for memory-mapped I/O, mean over vCPUs",
    KvmInterruptExits "kvm.irq_exits" "1/s" Rate Kvm "exits for interrupts of the host, mean over vCPUs",
    KvmInjections "kvm.irq_injections" "1/s" Rate Kvm "interrupts injected into the guest, mean over vCPUs",
    KvmHalted "kvm.halted" "share" Gauge Kvm "vCPUs that are halted, of all",
    // The host: a sick VM, or a sick host?
    HostBusy "host.busy" "share" Rate Host "CPU time of the host that is not idle, of all cores",
    HostStallCpu "host.stall.cpu" "share" Rate Host "time in which something on the host waited for a core (PSI, some)",
    HostStallIo "host.stall.io" "share" Rate Host "time in which something on the host waited for I/O (PSI, some)",
    HostStallMemory "host.stall.memory" "share" Rate Host "time in which something on the host waited for memory (PSI, some)",
}

impl Signal {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Its name in files, tables and messages. Never changes.
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// The unit of its value.
    pub fn unit(self) -> &'static str {
        self.entry().unit
    }

    /// How its value comes to be.
    pub fn kind(self) -> Kind {
        self.entry().kind
    }

    /// What has to be there.
    pub fn source(self) -> Source {
        self.entry().source
    }

    /// What it is, for people.
    pub fn about(self) -> &'static str {
        self.entry().about
    }

    /// Its place in [`Signal::ALL`].
    pub fn index(self) -> usize {
        usize::from(self as u8)
    }

    /// The signal of this name.
    pub fn named(name: &str) -> Option<Signal> {
        Self::ALL
            .iter()
            .copied()
            .find(|signal| signal.name() == name)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_find_their_signal() {
        let names: HashSet<_> = Signal::ALL.iter().map(|signal| signal.name()).collect();
        assert_eq!(names.len(), Signal::COUNT);
        for (index, signal) in Signal::ALL.iter().enumerate() {
            assert_eq!(signal.index(), index);
            assert_eq!(Signal::named(signal.name()), Some(*signal));
            assert!(Source::ALL.contains(&signal.source()));
        }
        assert_eq!(Signal::named("no.such"), None);
    }
}
