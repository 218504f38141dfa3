//! Places where a crash test can kill or stop a process, at the moments that matter for the commit protocol. Does nothing unless the
//! environment says so. The gateway's points are [`EPOCH`] and [`TAKEOVER`]; other processes of the project name points of their own.
//!
//! `EPOCHGATE_FAILPOINT=name` or `name:count` makes the process send itself SIGKILL when it passes the point `name` for
//! the `count`-th time (1 if left out); `name:count:stop` makes it send itself SIGSTOP instead, so that a test can do something to
//! others at that very step and then continue it. With `EPOCHGATE_FAILPOINT_WHEN=path` it counts only while that path exists, so that
//! a test can wait until there is something to lose. Unarmed, a point costs one relaxed load.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{LazyLock, Once};
use std::time::Duration;

use rustix::process::Signal;

/// The gateway's points, in the order in which an epoch passes them.
pub const EPOCH: &[&str] = &[
    "gateway-after-seal",
    "gateway-after-append",
    "gateway-after-data-sync",
    "gateway-before-commit-record",
    "gateway-after-commit-record",
    "gateway-during-apply",
    "gateway-after-apply",
    "gateway-after-mark-applied",
];

/// The gateway's points around a change of hands.
pub const TAKEOVER: &[&str] = &["gateway-before-generation", "gateway-after-generation"];

/// A signal to oneself stops all threads a moment later; the thread that sent it waits here meanwhile.
const UNTIL_STOPPED: Duration = Duration::from_millis(20);

/// The environment variable that arms a point.
pub const VARIABLE: &str = "EPOCHGATE_FAILPOINT";

/// The environment variable that names the path without which an armed point does not count.
pub const WHEN: &str = "EPOCHGATE_FAILPOINT_WHEN";

/// False only once it is known that nothing is armed.
static MAYBE_ARMED: AtomicBool = AtomicBool::new(true);
static READ: Once = Once::new();
static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
    let value = std::env::var(VARIABLE).ok()?;
    let (name, count, action) = parse(&value)?;
    Some(Armed {
        name: name.to_owned(),
        left: AtomicU64::new(count),
        action,
    })
});

struct Armed {
    name: String,
    left: AtomicU64,
    action: Action,
}

/// What happens to the process at the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Kill,
    Stop,
}

static ONLY_WHEN: LazyLock<Option<PathBuf>> =
    LazyLock::new(|| std::env::var_os(WHEN).map(PathBuf::from));

/// Passes the point `name`.
pub fn hit(name: &str) {
    if MAYBE_ARMED.load(Ordering::Relaxed) {
        hit_slowly(name);
    }
}

#[cold]
fn hit_slowly(name: &str) {
    READ.call_once(|| {
        if ARMED.is_none() {
            MAYBE_ARMED.store(false, Ordering::Relaxed);
            if let Ok(value) = std::env::var(VARIABLE) {
                tracing::warn!(
                    value,
                    "{VARIABLE} is not a point, nothing is armed; write it as name, name:count or name:count:stop"
                );
            }
        }
    });
    if let Some(armed) = ARMED.as_ref()
        && armed.name == name
        && ONLY_WHEN.as_ref().is_none_or(|path| path.exists())
        && armed.left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        act(armed.action);
    }
}

fn act(action: Action) {
    let send = |signal| {
        // To the own process it can't fail.
        let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
    };
    match action {
        // A crash, not an exit: nothing may be flushed or cleaned up.
        Action::Kill => send(Signal::KILL),
        Action::Stop => {
            send(Signal::STOP);
            std::thread::sleep(UNTIL_STOPPED);
        }
    }
}

fn parse(value: &str) -> Option<(&str, u64, Action)> {
    let mut parts = value.split(':');
    let name = parts.next()?;
    let count = match parts.next() {
        Some(count) => count.parse().ok().filter(|count| *count > 0)?,
        None => 1,
    };
    let action = match parts.next() {
        None | Some("kill") => Action::Kill,
        Some("stop") => Action::Stop,
        Some(_) => return None,
    };
    let plausible = name.split('-').count() > 1
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    (plausible && parts.next().is_none()).then_some((name, count, action))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_looks_like_a_point_can_be_armed() {
        let kill = |count| Some(("gateway-after-seal", count, Action::Kill));
        assert_eq!(parse("gateway-after-seal"), kill(1));
        assert_eq!(parse("gateway-after-seal:3"), kill(3));
        assert_eq!(parse("gateway-after-seal:3:kill"), kill(3));
        assert_eq!(
            parse("gateway-after-seal:2:stop"),
            Some(("gateway-after-seal", 2, Action::Stop))
        );
        for bad in [
            "",
            ":1",
            "gateway-after-seal:0",
            "gateway-after-seal:x",
            "gateway-after-seal:1:sleep",
            "gateway-after-seal:1:stop:1",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
