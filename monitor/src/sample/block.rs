//! QEMU's counters of the guest's disks, summed.

use qemu_glue::BlockCounters;

use super::Values;
use super::growth::{Growth, mean_ms, per};
use crate::signals::Signal;

/// Remembers the counters of the last sample.
#[derive(Debug, Default)]
pub(crate) struct Block {
    disks: usize,
    counters: Growth<11>,
}

impl Block {
    /// `elapsed` in seconds.
    pub(crate) fn sample(&mut self, disks: &[BlockCounters], elapsed: f64, values: &mut Values) {
        if std::mem::replace(&mut self.disks, disks.len()) != disks.len() {
            self.counters.forget();
        }
        let sum = |of: fn(&BlockCounters) -> u64| disks.iter().map(of).sum::<u64>();
        let grown = self.counters.step([
            sum(|d| d.reads),
            sum(|d| d.writes),
            sum(|d| d.flushes),
            sum(|d| d.discards),
            sum(|d| d.bytes_read),
            sum(|d| d.bytes_written),
            sum(|d| d.bytes_discarded),
            sum(|d| d.read_ns),
            sum(|d| d.write_ns),
            sum(|d| d.flush_ns),
            sum(failed),
        ]);
        let Some(
            [
                reads,
                writes,
                flushes,
                discards,
                read,
                written,
                discarded,
                read_ns,
                write_ns,
                flush_ns,
                failed,
            ],
        ) = grown
        else {
            return;
        };
        values.set(Signal::BlockReadOps, per(reads, elapsed));
        values.set(Signal::BlockWriteOps, per(writes, elapsed));
        values.set(Signal::BlockFlushOps, per(flushes, elapsed));
        values.set(Signal::BlockDiscardOps, per(discards, elapsed));
        values.set(Signal::BlockReadBytes, per(read, elapsed));
        values.set(Signal::BlockWriteBytes, per(written, elapsed));
        values.set(Signal::BlockDiscardBytes, per(discarded, elapsed));
        values.set(Signal::BlockReadLatency, mean_ms(read_ns, reads));
        values.set(Signal::BlockWriteLatency, mean_ms(write_ns, writes));
        values.set(Signal::BlockFlushLatency, mean_ms(flush_ns, flushes));
        values.set(Signal::BlockFailed, per(failed, elapsed));
    }

    /// QEMU did not say, or is another one.
    pub(crate) fn forget(&mut self) {
        self.counters.forget();
    }
}

fn failed(d: &BlockCounters) -> u64 {
    d.failed_reads
        + d.failed_writes
        + d.failed_flushes
        + d.failed_discards
        + d.invalid_reads
        + d.invalid_writes
}
