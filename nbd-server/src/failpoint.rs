//! Places where a crash test can kill a process (the gateway; the coordinator has points of its own), at the moments that matter for the commit protocol. Does nothing
//! unless the environment says so.
//!
//! The gateway's points, in the order in which an epoch passes them: `gateway-after-seal`, `gateway-after-append`,
//! `gateway-after-data-sync`, `gateway-before-commit-record`, `gateway-after-commit-record`, `gateway-during-apply`,
//! `gateway-after-apply`, `gateway-after-mark-applied`; and around a change of hands `gateway-before-generation`,
//! `gateway-after-generation`. Other processes of the project name points of their own.
//!
//! `EPOCHGATE_FAILPOINT=name` or `name:count` makes the process send itself SIGKILL when it passes the point `name` for
//! the `count`-th time (1 if left out). With `EPOCHGATE_FAILPOINT_WHEN=path` it counts only while that path exists, so that
//! a test can wait until there is something to lose. Unarmed, a point costs one relaxed load.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{LazyLock, Once};

/// The environment variable that arms a point.
pub const VARIABLE: &str = "EPOCHGATE_FAILPOINT";

/// The environment variable that names the path without which an armed point does not count.
pub const WHEN: &str = "EPOCHGATE_FAILPOINT_WHEN";

/// False only once it is known that nothing is armed.
static MAYBE_ARMED: AtomicBool = AtomicBool::new(true);
static READ: Once = Once::new();
static ARMED: LazyLock<Option<(String, AtomicU64)>> = LazyLock::new(|| {
    let value = std::env::var(VARIABLE).ok()?;
    let (name, count) = parse(&value)?;
    Some((name.to_owned(), AtomicU64::new(count)))
});

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
                    "{VARIABLE} is not a point, nothing is armed; write it as name or name:count"
                );
            }
        }
    });
    if let Some((armed, left)) = ARMED.as_ref()
        && armed == name
        && ONLY_WHEN.as_ref().is_none_or(|path| path.exists())
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        // A crash, not an exit: nothing may be flushed or cleaned up. It can't fail for the own process.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

fn parse(value: &str) -> Option<(&str, u64)> {
    let (name, count) = match value.split_once(':') {
        Some((name, count)) => (name, count.parse().ok().filter(|count| *count > 0)?),
        None => (value, 1),
    };
    let plausible = name.split('-').count() > 1
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    plausible.then_some((name, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_looks_like_a_point_can_be_armed() {
        assert_eq!(parse("gateway-after-seal"), Some(("gateway-after-seal", 1)));
        assert_eq!(
            parse("gateway-after-seal:3"),
            Some(("gateway-after-seal", 3))
        );
        for bad in ["", ":1", "gateway-after-seal:0", "gateway-after-seal:x"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
