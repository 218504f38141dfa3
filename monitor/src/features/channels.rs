//! Channels: signals and ratios between them, each on a scale of its own. One line for each; knows one sample and no time.
//!
//! Shares stay as they are. Rates `x` become `ln(1 + x / unit)`, where `unit` is a rate that is hardly more than nothing: so zero is
//! zero, noise around zero stays small, and above it equal ratios are equal distances.

use crate::sample::Values;
use crate::signals::Signal::{self, *};

/// Which features are made of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// All but `recent`.
    Full,
    /// `level` and `change`.
    Short,
    /// `recent` alone.
    Event,
}

/// A signal, or a ratio between some.
#[derive(Debug)]
pub struct Channel {
    /// Its name, the beginning of those of its features.
    pub name: &'static str,
    /// For people: what is more or less than usual.
    pub about: &'static str,
    /// All must have a value, or the channel has none.
    pub uses: &'static [Signal],
    pub(super) depth: Depth,
    pub(super) value: fn(&[f32]) -> f32,
}

impl Channel {
    /// Its value; None if a signal is missing.
    pub(super) fn of(&self, values: &Values) -> Option<f32> {
        // No channel has more.
        let mut inputs = [0.0; 4];
        for (slot, signal) in inputs.iter_mut().zip(self.uses) {
            *slot = values.get(*signal)?;
        }
        // Beyond that nothing differs any more, and a hostile recording can't make sums overflow.
        Some((self.value)(&inputs).clamp(-30.0, 30.0)).filter(|value| value.is_finite())
    }
}

/// `ln(1 + x / unit)`.
fn rate(x: f32, unit: f32) -> f32 {
    (x.max(0.0) / unit).ln_1p()
}

/// The logarithm of a ratio, of numbers that may be zero.
fn ratio(a: f32, b: f32, unit: f32) -> f32 {
    ((a.max(0.0) + unit) / (b.max(0.0) + unit)).ln()
}

/// Time that a vCPU wants a core, whether it gets one or not: the same on a host that is busy.
fn demand(run: f32, wait: f32) -> f32 {
    (run + wait).clamp(0.0, 1.0)
}

/// What a vCPU does with a core, if the host has one for it.
fn undisturbed(run: f32, wait: f32) -> f32 {
    (run / (1.0 - wait).max(0.05)).clamp(0.0, 1.0)
}

macro_rules! channels {
    ($($name:literal $depth:ident [$($uses:ident),+] $about:literal |$v:ident| $value:expr;)*) => {
        /// All of them. The order is that of the features.
        pub(super) static CHANNELS: &[Channel] = &[$(Channel {
            name: $name, about: $about, uses: &[$($uses),+], depth: Depth::$depth, value: |$v| $value,
        },)*];
    };
}

channels! {
    "cpu.demand" Full [VcpuRunMean, VcpuWaitMean] "CPU that the guest wants" |v| demand(v[0], v[1]);
    "cpu.busiest" Full [VcpuRunMax, VcpuWaitMean] "work of its busiest vCPU" |v| undisturbed(v[0], v[1]);
    "cpu.idlest" Full [VcpuRunMin, VcpuWaitMean] "work of its idlest vCPU" |v| undisturbed(v[0], v[1]);
    "cpu.uneven" Short [VcpuRunSpread, VcpuRunMean] "difference between its vCPUs" |v| rate(v[0] / (v[1] + 0.02), 1.0);
    "cpu.kernel" Full [VcpuSystem, VcpuRunMean] "part of its vCPUs' time in the host's kernel" |v| (v[0] / (v[1] + 0.01)).clamp(0.0, 1.5);
    "cpu.slices" Full [VcpuSlices] "how often its vCPUs wake up" |v| rate(v[0], 10.0);
    "cpu.slices_per_run" Full [VcpuSlices, VcpuRunMean] "wakeups for the work done" |v| rate(v[0] / (v[1] + 0.01), 100.0);
    "cpu.sleeps" Full [VcpuSwitchVoluntary, VcpuSwitchInvoluntary] "how often its vCPUs go to sleep by themselves" |v| v[0] / (v[0] + v[1] + 1.0);
    "qemu.main" Full [MainRun] "work of QEMU's main loop" |v| rate(v[0], 0.01);
    "qemu.workers" Full [WorkersRun] "work of QEMU's I/O threads" |v| rate(v[0], 0.01);
    "qemu.others" Short [OthersSwitchVoluntary] "switches of QEMU's other threads" |v| rate(v[0], 10.0);
    "qemu.blocked" Short [ThreadsBlocked] "threads of QEMU that wait for storage" |v| rate(v[0], 1.0);
    "memory.resident" Short [MemoryResident] "memory in use on the host" |v| v[0];
    "memory.swapped" Short [MemorySwapped] "memory that the host swapped out" |v| v[0];
    "memory.faults" Full [FaultsMinor] "page faults of QEMU" |v| rate(v[0], 100.0);
    "memory.faults.major" Short [FaultsMajor] "page faults of QEMU with I/O" |v| rate(v[0], 1.0);
    "vm.running" Short [Running] "whether QEMU runs the guest" |v| v[0];
    "vm.answer" Short [Answer] "time that QEMU takes to answer" |v| rate(v[0], 1.0);
    "event.panic" Event [EventPanic] "reports of a panic" |v| v[0];
    "event.reset" Event [EventReset] "resets" |v| v[0];
    "event.watchdog" Event [EventWatchdog] "alarms of the guest's watchdog" |v| v[0];
    "event.io_error" Event [EventIoError] "failed requests of its disks" |v| v[0];
    "event.shutdown" Event [EventShutdown] "shutdowns" |v| v[0];
    "event.memory_failure" Event [EventMemoryFailure] "failures of the host's memory" |v| v[0];
    "block.read.ops" Full [BlockReadOps] "reads" |v| rate(v[0], 1.0);
    "block.write.ops" Full [BlockWriteOps] "writes" |v| rate(v[0], 1.0);
    "block.flush.ops" Full [BlockFlushOps] "flushes" |v| rate(v[0], 0.5);
    "block.read.bytes" Full [BlockReadBytes] "bytes read" |v| rate(v[0], 4096.0);
    "block.write.bytes" Full [BlockWriteBytes] "bytes written" |v| rate(v[0], 4096.0);
    "block.read.size" Short [BlockReadBytes, BlockReadOps] "size of reads" |v| rate(v[0] / (v[1] + 0.1), 512.0);
    "block.write.size" Short [BlockWriteBytes, BlockWriteOps] "size of writes" |v| rate(v[0] / (v[1] + 0.1), 512.0);
    "block.read.latency" Short [BlockReadLatency] "time of reads" |v| rate(v[0], 0.1);
    "block.write.latency" Short [BlockWriteLatency] "time of writes" |v| rate(v[0], 0.1);
    "block.flush.latency" Short [BlockFlushLatency] "time of flushes" |v| rate(v[0], 0.1);
    "block.failed" Short [BlockFailed] "failed requests" |v| rate(v[0], 0.1);
    "block.writes_per_flush" Short [BlockWriteOps, BlockFlushOps] "writes for each flush" |v| ratio(v[0], v[1], 0.5);
    "block.mix" Short [BlockReadBytes, BlockWriteBytes] "reads in relation to writes" |v| ratio(v[0], v[1], 4096.0);
    "block.per_cpu" Full [BlockReadOps, BlockWriteOps, VcpuRunMean] "disk requests for the work done" |v| rate((v[0] + v[1]) / (v[2] + 0.02), 1.0);
    "gateway.in_flight" Short [GatewayInFlight] "requests that wait for storage" |v| rate(v[0], 1.0);
    "gateway.stuck" Short [GatewayInFlight, GatewayReadOps, GatewayWriteOps] "requests that wait while none is answered" |v| rate(v[0] / (1.0 + v[1] + v[2]), 1.0);
    "gateway.failed" Short [GatewayFailed] "requests answered with an error" |v| rate(v[0], 0.1);
    "gateway.write.latency" Short [GatewayWriteLatency] "time of writes at the gateway" |v| rate(v[0], 0.1);
    "gateway.flush.latency" Short [GatewayFlushLatency] "time of flushes at the gateway" |v| rate(v[0], 0.1);
    "gateway.epoch.blocks" Full [GatewayEpochBlocks] "different blocks written" |v| rate(v[0], 1.0);
    "gateway.rewritten" Full [GatewayWriteBytes, GatewayEpochBytes] "how often the same block is written" |v| ratio(v[0], v[1], 4096.0);
    "dirty.share" Full [DirtyShare] "memory that the guest writes" |v| rate(v[0], 0.0002);
    "dirty.regions" Full [DirtyRegions] "regions of memory that the guest writes" |v| v[0].max(0.0).sqrt();
    "dirty.entropy" Full [DirtyEntropy] "how widely it writes over its memory" |v| v[0];
    "dirty.repeat" Full [DirtyRepeat] "pages that it writes again and again" |v| v[0];
    "dirty.run" Full [DirtyRun] "neighbouring pages written together" |v| rate(v[0], 1.0);
    "dirty.per_cpu" Full [DirtyShare, VcpuRunMean] "memory written for the work done" |v| rate(v[0] / (v[1] + 0.02), 0.002);
    "dirty.per_write" Short [DirtyPages, BlockWriteBytes] "memory written in relation to disk" |v| ratio(v[0], v[1] / 4096.0, 1.0);
    "net.out.packets" Full [NetOutPackets] "packets that the guest sends" |v| rate(v[0], 0.5);
    "net.in.packets" Full [NetInPackets] "packets for the guest" |v| rate(v[0], 0.5);
    "net.out.bytes" Full [NetOutBytes] "bytes that the guest sends" |v| rate(v[0], 100.0);
    "net.in.bytes" Short [NetInBytes] "bytes for the guest" |v| rate(v[0], 100.0);
    "net.dropped" Short [NetDropped] "packets dropped" |v| rate(v[0], 0.5);
    "net.answers" Full [NetOutPackets, NetInPackets] "packets sent for each one that comes" |v| ratio(v[0], v[1], 0.5);
    "net.answer_bytes" Full [NetOutBytes, NetInBytes] "bytes sent for each one that comes" |v| ratio(v[0], v[1], 100.0);
    "net.per_cpu" Full [NetOutPackets, VcpuRunMean] "packets sent for the work done" |v| rate(v[0] / (v[1] + 0.02), 1.0);
    "gate.packets" Full [GatePackets] "packets at the output gate" |v| rate(v[0], 0.5);
    "gate.held" Short [GateHeld] "bytes that wait in the output gate" |v| rate(v[0], 1500.0);
    "kvm.exits" Full [KvmExits] "exits from the guest" |v| rate(v[0], 100.0);
    "kvm.halt_exits" Full [KvmHaltExits] "how often the guest has nothing to do" |v| rate(v[0], 10.0);
    "kvm.io_exits" Full [KvmIoExits, KvmMmioExits] "exits for I/O" |v| rate(v[0] + v[1], 10.0);
    "kvm.injections" Full [KvmInjections] "interrupts for the guest" |v| rate(v[0], 10.0);
    "kvm.halted" Full [KvmHalted] "vCPUs that have nothing to do" |v| v[0];
    "host.busy" Short [HostBusy] "CPU in use on the host" |v| v[0];
    "host.stall.cpu" Short [HostStallCpu] "waiting for cores on the host" |v| v[0];
    "host.stall.io" Short [HostStallIo] "waiting for I/O on the host" |v| v[0];
    "host.stall.memory" Short [HostStallMemory] "waiting for memory on the host" |v| v[0];
    "both.busy_alone" Full [VcpuRunMean, VcpuWaitMean, BlockWriteOps, NetOutPackets]
        "work of which nothing is seen outside" |v| demand(v[0], v[1]) / (1.0 + rate(v[2] + v[3], 5.0));
    "both.asked_idle" Full [VcpuRunMean, VcpuWaitMean, NetInPackets, NetOutPackets]
        "packets for a guest that does not work" |v| (1.0 - demand(v[0], v[1])) * ratio(v[2], v[3], 0.5);
}
