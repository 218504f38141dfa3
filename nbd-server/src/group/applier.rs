//! Brings committed epochs into the images, from memory. It never gives up: an image that can't be written is
//! tried again, and nothing is lost meanwhile, as the log has it.
//!
//! It lets a few epochs gather and applies them as one: a block that the guest wrote in each of them goes to the image once, neighbours
//! go together, and one flush of the image serves them all.
//!
//! In a group with a history, what the images hold is saved before they are changed.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use super::disk::Disk;
use super::error::Part;
use super::overlay::{Clear, Content, Overlay, Stack};
use super::shared::{Cut, Job, Order, Shared};
use super::stepping::Next;
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

/// The applier.
#[derive(Debug)]
pub struct Applier {
    shared: Arc<Shared>,
    orders: Receiver<Order>,
    /// What gathers, oldest first.
    batch: Vec<Arc<Cut>>,
    /// When the batch is applied at the latest.
    due: Option<Instant>,
    /// Somebody waits for the images.
    hurry: bool,
    /// To stop, once the batch is applied.
    stop: bool,
    /// An image could not be written: when to try again, and how long the pause after that.
    again: Option<(Instant, Duration)>,
}

impl Applier {
    /// An applier that takes `orders`.
    pub fn new(shared: Arc<Shared>, orders: Receiver<Order>) -> Self {
        Self {
            shared,
            orders,
            batch: Vec::new(),
            due: None,
            hurry: false,
            stop: false,
            again: None,
        }
    }

    /// Applies what comes until it is told to stop or the other side is gone.
    pub fn run(mut self) {
        let mut next = self.turn(Instant::now());
        loop {
            let order = match next {
                Next::Turn => None,
                Next::Wait(None) => self.orders.recv().ok(),
                Next::Wait(Some(until)) => {
                    let patience = until.saturating_duration_since(Instant::now());
                    self.orders.recv_timeout(patience).ok()
                }
                Next::Pause(until) => {
                    let pause = until.saturating_duration_since(Instant::now());
                    std::thread::sleep(pause.min(SLICE));
                    None
                }
                Next::Over => return,
            };
            let now = Instant::now();
            if let Some(order) = order {
                self.take(order, now);
            }
            next = self.turn(now);
        }
    }

    /// One turn of [`Applier::run`], which never waits for anything but the storage.
    ///
    /// It lets epochs gather. Where memory is short or somebody waits for the images, it does not wait.
    pub fn turn(&mut self, now: Instant) -> Next {
        if let Some((at, pause)) = self.again {
            if self.shared.is_stopping() {
                return Next::Over;
            }
            return if now < at {
                Next::Pause(at)
            } else {
                self.try_batch(now, pause)
            };
        }
        loop {
            match self.orders.try_recv() {
                Ok(order) => self.take(order, now),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.stop = true;
                    break;
                }
            }
        }
        match self.due {
            None if self.stop => Next::Over,
            None => Next::Wait(None),
            Some(due) => {
                let soon = self.stop || self.hurry || self.shared.budget.is_busy();
                if soon || now >= due {
                    self.try_batch(now, BACK_OFF.0)
                } else {
                    Next::Wait(Some(due))
                }
            }
        }
    }

    fn take(&mut self, order: Order, now: Instant) {
        match order {
            Order::Apply(cut) => {
                if self.due.is_none() {
                    self.due = Some(now + GATHER);
                }
                self.batch.push(cut);
            }
            Order::Hurry => self.hurry = self.due.is_some(),
            Order::Stop => self.stop = true,
        }
    }

    fn try_batch(&mut self, now: Instant, pause: Duration) -> Next {
        if let Err(message) = apply(&self.shared, &self.batch) {
            self.shared.note_error(Part::Image, message);
            let at = now + pause;
            self.again = Some((at, (pause * 2).min(BACK_OFF.1)));
            return Next::Pause(at);
        }
        self.shared.clear_error(Part::Image);
        failpoint::hit("gateway-after-apply");
        if let Some(last) = self.batch.last() {
            self.shared.tell(Job::Applied(last.epoch));
        }
        self.batch.clear();
        (self.due, self.again, self.hurry) = (None, None, false);
        Next::Turn
    }
}

/// Applies all of `batch` and makes it durable. Doing it again is harmless, and needed when the flush failed: the page
/// cache may have dropped what it could not write.
fn apply(shared: &Shared, batch: &[Arc<Cut>]) -> Result<(), String> {
    let mut stacks: Vec<Stack<'_>> = shared.disks.iter().map(|_| Stack::default()).collect();
    if let Some(history) = &shared.history {
        history.save(&shared.disks, batch, &mut stacks)?;
        failpoint::hit("gateway-after-save");
    } else {
        batch.iter().for_each(|cut| cut.stack(&mut stacks));
    }
    for (index, (disk, stack)) in shared.disks.iter().zip(&stacks).enumerate() {
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
        write(disk, &layers, stack).map_err(|e| failed("written", &e))?;
        disk.image.sync().map_err(|e| failed("flushed", &e))?;
    }
    if let (Some(history), Some(last)) = (&shared.history, batch.last()) {
        history.past.applied(last.epoch);
    }
    Ok(())
}

/// Brings these layers, oldest first, into the image: what is cleared first, then the data, each byte of it once. `stack` has them all.
fn write(disk: &Disk, layers: &[&Overlay], stack: &Stack<'_>) -> io::Result<()> {
    for (offset, len, content) in layers.iter().flat_map(|layer| layer.parts()) {
        if let Content::Cleared(clear) = content {
            disk.image.clear(offset, len, clear)?;
        }
    }
    let data = stack.data();
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
            let mut stack = Stack::default();
            layers.iter().for_each(|layer| stack.push(layer));
            write(&disk, &layers, &stack).unwrap();
            prop_assert!(std::fs::read(file.path()).unwrap() == model);
        }
    }
}
