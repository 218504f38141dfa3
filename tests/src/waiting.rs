//! Waiting for what has no event: asked again and again, with a limit that only a hang can reach.

use std::time::{Duration, Instant};

/// Nothing that is awaited takes this long, also on a loaded machine without KVM.
pub const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(10);

/// Asks until there is an answer. Panics after [`PATIENCE`] with what `state` says then.
#[track_caller]
pub fn wait_until<T>(
    what: &str,
    mut ask: impl FnMut() -> Option<T>,
    state: impl FnOnce() -> String,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            Instant::now() < deadline,
            "waited in vain for {what}; {}",
            state()
        );
        std::thread::sleep(PAUSE);
    }
}
