//! A bench that is asked to stop leaves its loops in order, so that processes and files go away.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::runtime;

static STOP: AtomicBool = AtomicBool::new(false);
static WATCH: Once = Once::new();

/// Watches SIGTERM and SIGINT from now on.
pub(crate) fn watch() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    WATCH.call_once(|| {
        std::thread::spawn(move || {
            runtime.block_on(async {
                if let Ok(mut stop) = runtime::stop_signals() {
                    while stop.changed().await.is_ok() {
                        STOP.store(true, Ordering::Relaxed);
                    }
                }
            });
        });
    });
    Ok(())
}

/// An error once the user wants out.
pub(crate) fn check() -> anyhow::Result<()> {
    anyhow::ensure!(!STOP.load(Ordering::Relaxed), "interrupted");
    Ok(())
}
