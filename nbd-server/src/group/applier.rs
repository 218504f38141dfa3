//! Brings committed epochs into the images, in order, from memory. It never gives up: an image that can't be written is
//! tried again, and nothing is lost meanwhile, as the log has it.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use epoch_log::Extent;

use super::error::Part;
use super::overlay::Content;
use super::shared::{Cut, Job, Order, Shared};
use crate::failpoint;

/// First and longest pause before an image is tried again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How often a pause looks whether the group stops.
const SLICE: Duration = Duration::from_millis(50);

/// Applies what comes until it is told to stop or the other side is gone.
pub fn run(shared: &Shared, orders: &Receiver<Order>) {
    while let Ok(Order::Apply(first)) = orders.recv() {
        let mut batch = vec![first];
        let mut stop = false;
        for order in orders.try_iter() {
            match order {
                Order::Apply(cut) => batch.push(cut),
                Order::Stop => stop = true,
            }
        }
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

/// Applies all of `batch` and makes it durable. Doing it again is harmless, and needed when the flush failed: the page
/// cache may have dropped what it could not write.
fn apply(shared: &Shared, batch: &[Arc<Cut>]) -> Result<(), String> {
    for (index, disk) in shared.disks.iter().enumerate() {
        let failed = |action: &str, error: &std::io::Error| {
            format!(
                "the image {} can't be {action}: {error}; trying again",
                disk.image.path().display()
            )
        };
        let mut touched = false;
        for overlay in batch.iter().filter_map(|cut| cut.overlays.get(index)) {
            for (offset, len, content) in overlay.iter_from(0) {
                let content = log_content(content);
                let extent = Extent {
                    disk: 0,
                    offset,
                    len,
                    content,
                };
                disk.image
                    .apply(&extent)
                    .map_err(|e| failed("written", &e))?;
                touched = true;
                failpoint::hit("gateway-during-apply");
            }
        }
        if touched {
            disk.image.sync().map_err(|e| failed("flushed", &e))?;
        }
    }
    Ok(())
}

/// The log's word for what an overlay holds.
pub fn log_content(content: &Content) -> epoch_log::Content<'_> {
    match content {
        Content::Data(data) => epoch_log::Content::Data(data),
        Content::Zero => epoch_log::Content::Zero,
        Content::Trim => epoch_log::Content::Trim,
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
