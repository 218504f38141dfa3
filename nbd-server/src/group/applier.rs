//! Brings committed epochs into the images, from memory. It never gives up: an image that can't be written is
//! tried again, and nothing is lost meanwhile, as the log has it.
//!
//! It lets a few epochs gather and applies them as one: a block that the guest wrote in each of them goes to the image once, neighbours
//! go together, and one flush of the image serves them all.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::disk::Disk;
use super::error::Part;
use super::overlay::{Clear, Content, Overlay, newest};
use super::shared::{Cut, Job, Order, Shared};
use crate::failpoint;

/// How long a committed epoch may wait for others. It bounds what a recovery has to apply, and how long memory is held.
const GATHER: Duration = Duration::from_millis(200);
/// First and longest pause before an image is tried again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// The storage is given this many bytes while the next ones are written to the page cache.
const WRITEBACK_BYTES: u64 = 4 << 20;
/// Slices per write of the image (Linux: `UIO_MAXIOV`).
const MAX_PARTS: usize = 1024;
/// How often a pause looks whether the group stops.
const SLICE: Duration = Duration::from_millis(50);

/// Applies what comes until it is told to stop or the other side is gone.
pub fn run(shared: &Shared, orders: &Receiver<Order>) {
    while let Ok(order) = orders.recv() {
        let first = match order {
            Order::Apply(cut) => cut,
            Order::Hurry => continue,
            Order::Stop => return,
        };
        let (batch, stop) = gather(shared, orders, first);
        let mut pause = BACK_OFF.0;
        while let Err(message) = apply(shared, &batch) {
            shared.note_error(Part::Image, message);
            if !sleep(shared, pause) {
                return;
            }
            pause = (pause * 2).min(BACK_OFF.1);
        }
        shared.clear_error(Part::Image);
        failpoint::hit("gateway-after-apply");
        if let Some(last) = batch.last() {
            shared.tell(Job::Applied(last.epoch));
        }
        if stop {
            return;
        }
    }
}

/// The first epoch and those that follow soon, oldest first, and whether to stop afterwards. Where memory is short or somebody waits for
/// the images, it does not wait.
fn gather(shared: &Shared, orders: &Receiver<Order>, first: Arc<Cut>) -> (Vec<Arc<Cut>>, bool) {
    let mut batch = vec![first];
    let due = Instant::now() + GATHER;
    let mut hurry = false;
    loop {
        let wait = if hurry || shared.budget.is_busy() {
            Duration::ZERO
        } else {
            due.saturating_duration_since(Instant::now())
        };
        match orders.recv_timeout(wait) {
            Ok(Order::Apply(cut)) => batch.push(cut),
            Ok(Order::Hurry) => hurry = true,
            Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return (batch, true),
            Err(RecvTimeoutError::Timeout) => return (batch, false),
        }
    }
}

/// Applies all of `batch` and makes it durable. Doing it again is harmless, and needed when the flush failed: the page
/// cache may have dropped what it could not write.
fn apply(shared: &Shared, batch: &[Arc<Cut>]) -> Result<(), String> {
    for (index, disk) in shared.disks.iter().enumerate() {
        let layers: Vec<&Overlay> = batch
            .iter()
            .filter_map(|cut| cut.overlays.get(index))
            .map(AsRef::as_ref)
            .collect();
        let failed = |action: &str, error: &std::io::Error| {
            format!(
                "the image {} can't be {action}: {error}; trying again",
                disk.image.path().display()
            )
        };
        if layers.iter().all(|layer| layer.is_empty()) {
            continue;
        }
        write(disk, &layers).map_err(|e| failed("written", &e))?;
        disk.image.sync().map_err(|e| failed("flushed", &e))?;
    }
    Ok(())
}

/// Brings these layers, oldest first, into the image: what is cleared first, then the data, each byte of it once.
fn write(disk: &Disk, layers: &[&Overlay]) -> io::Result<()> {
    for (offset, len, content) in layers.iter().flat_map(|layer| layer.parts()) {
        if let Content::Cleared(clear) = content {
            disk.image.clear(offset, len, clear)?;
        }
    }
    let data = newest(layers);
    let mut rest = data.as_slice();
    let mut begun = rest.first().map_or(0, |(offset, _)| *offset);
    let mut written = 0;
    while let Some((offset, _)) = rest.first() {
        let mut end = *offset;
        let neighbours = rest.iter().take_while(|(at, bytes)| {
            let next = *at == end;
            end += bytes.len() as u64;
            next
        });
        let count = neighbours.take(MAX_PARTS).count();
        let (run, later) = rest.split_at(count);
        let mut slices: Vec<IoSlice<'_>> =
            run.iter().map(|(_, bytes)| IoSlice::new(bytes)).collect();
        disk.image.write_vectored(*offset, &mut slices)?;
        let end = run
            .last()
            .map_or(*offset, |(at, bytes)| at + bytes.len() as u64);
        written += end - offset;
        if written >= WRITEBACK_BYTES {
            disk.image.begin_writeback(begun, end - begun);
            (begun, written) = (end, 0);
        }
        failpoint::hit("gateway-during-apply");
        rest = later;
    }
    Ok(())
}

/// The log's word for what an overlay holds.
pub fn log_content(content: Content<'_>) -> epoch_log::Content<'_> {
    match content {
        Content::Data(data) => epoch_log::Content::Data(data),
        Content::Cleared(clear) => log_clear(clear),
    }
}

/// The log's word for a clear.
pub fn log_clear(clear: Clear) -> epoch_log::Content<'static> {
    match clear {
        Clear::Zero => epoch_log::Content::Zero,
        Clear::Hole => epoch_log::Content::Hole,
        Clear::Trim => epoch_log::Content::Trim,
    }
}

/// Sleeps for `pause`; false if the group stops.
fn sleep(shared: &Shared, pause: Duration) -> bool {
    let mut left = pause;
    while !left.is_zero() {
        if shared.is_stopping() {
            return false;
        }
        let slice = left.min(SLICE);
        std::thread::sleep(slice);
        left -= slice;
    }
    !shared.is_stopping()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::super::arena::Home;
    use super::super::budget::Budget;
    use super::super::disk::Held;
    use super::super::image::Image;
    use super::*;

    const SIZE: u64 = 600 << 10;

    /// Offset, length, byte; no byte clears.
    type Op = (u64, u64, Option<u8>, bool);

    fn op() -> impl Strategy<Value = Op> {
        let block = (0..20_u64, 1..3_u64).prop_map(|(at, len)| (at * 4096, len * 4096));
        let any_range = (0..SIZE, 1..200_000_u64).prop_map(|(at, len)| (at, len.min(SIZE - at)));
        (
            prop_oneof![3 => block, 1 => any_range],
            prop_oneof![4 => any::<u8>().prop_map(Some), 1 => Just(None)],
            any::<bool>(),
        )
            .prop_map(|((at, len), byte, trim)| (at, len, byte, trim))
    }

    proptest! {
        #[test]
        fn a_batch_of_epochs_leaves_what_one_after_the_other_would(
            epochs in proptest::collection::vec(proptest::collection::vec(op(), 0..12), 1..5),
        ) {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut model: Vec<u8> = (0..SIZE).map(|i| (i % 253) as u8).collect();
            file.as_file().write_all_at(&model, 0).unwrap();
            let budget = Budget::endless();
            let image = Image::open(file.path(), false).unwrap();
            let disk = Disk::new("a".into(), image, false, &budget, Held::nothing(&budget));
            let mut overlays = Vec::new();
            for ops in &epochs {
                let mut overlay = Overlay::new(&budget, Home::TEST);
                for (at, len, byte, trim) in ops {
                    let range = *at as usize..(*at + *len) as usize;
                    match byte {
                        Some(byte) => {
                            overlay.write(*at, &vec![*byte; *len as usize]);
                            model[range].fill(*byte);
                        }
                        None => {
                            let clear = if *trim { Clear::Trim } else { Clear::Hole };
                            overlay.clear(*at, *len, clear);
                            model[range].fill(0);
                        }
                    }
                }
                overlays.push(overlay);
            }
            let layers: Vec<&Overlay> = overlays.iter().collect();
            write(&disk, &layers).unwrap();
            prop_assert!(std::fs::read(file.path()).unwrap() == model);
        }
    }
}
