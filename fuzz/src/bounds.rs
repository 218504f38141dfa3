//! What every input is held to, whatever it drives: so much memory, so much time.
//!
//! libFuzzer's own limit of an allocation (`-malloc_limit_mb`) does nothing without a sanitizer, and its limit of time counts the time in
//! which the machine did something else.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Most bytes that a process may hold at once, what the targets keep between inputs included.
pub const MOST_BYTES: usize = 64 << 20;
/// Longest that an input may keep its thread busy.
pub const LONGEST: Duration = Duration::from_secs(1);
/// Slow enough to be told of.
const SLOW: Duration = Duration::from_millis(1);

/// Less than nothing if what was not counted is given back.
static HELD: AtomicIsize = AtomicIsize::new(0);
static SLOWEST: AtomicU64 = AtomicU64::new(0);

/// The system's allocator with a limit. What goes beyond ends the process: an allocator may not panic, and a fuzzer takes that for
/// the fault that it is.
#[derive(Debug)]
pub struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

impl Bounded {
    /// Whether there is room for so many more. There is for whatever tells of an input that has failed, such as a backtrace with its
    /// symbols, and it is not counted.
    fn take(bytes: usize) -> bool {
        if std::thread::panicking() {
            return true;
        }
        let held = HELD.fetch_add(signed(bytes), Ordering::Relaxed);
        if held.saturating_add(signed(bytes)) <= signed(MOST_BYTES) {
            return true;
        }
        HELD.fetch_sub(signed(bytes), Ordering::Relaxed);
        false
    }

    fn give_back(bytes: usize) {
        HELD.fetch_sub(signed(bytes), Ordering::Relaxed);
    }
}

// SAFETY: all memory is the system allocator's, with the layouts that came in. Null is what an allocator says when it has none.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !Self::take(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !Self::take(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !Self::take(size) {
            return std::ptr::null_mut();
        }
        // SAFETY: as the caller promises.
        let moved = unsafe { System.realloc(at, layout, size) };
        Self::give_back(if moved.is_null() { size } else { layout.size() });
        moved
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        Self::give_back(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Runs one input, and sees to it that it does not take too long. Tells of each one that is slower than all before.
pub fn within(run: impl FnOnce(&[u8]), data: &[u8]) {
    let before = busy();
    run(data);
    let took = busy().saturating_sub(before);
    let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    if SLOWEST.fetch_max(nanos, Ordering::Relaxed) < nanos && took > SLOW {
        eprintln!(
            "slowest input so far: {:.1} ms",
            took.as_secs_f64() * 1000.0
        );
    }
    assert!(took < LONGEST, "an input that takes {took:?}");
}

fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

/// How long this thread has had a processor.
fn busy() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_limit_can_not_be_had() {
        let mut bytes: Vec<u8> = Vec::new();
        assert!(bytes.try_reserve_exact(MOST_BYTES + 1).is_err());
        assert!(bytes.try_reserve_exact(MOST_BYTES / 2).is_ok());
        assert!(bytes.try_reserve_exact(MOST_BYTES).is_err());
        drop(bytes);
        assert!(Vec::<u8>::new().try_reserve_exact(MOST_BYTES / 2).is_ok());
    }

    #[test]
    #[should_panic(expected = "an input that takes")]
    fn what_takes_too_long_fails() {
        let spin = |_: &[u8]| {
            let before = busy();
            while busy() - before < LONGEST {}
        };
        within(spin, b"");
    }

    #[test]
    fn what_sleeps_takes_no_time() {
        within(|_| std::thread::sleep(Duration::from_millis(5)), b"");
    }
}
