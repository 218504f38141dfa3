//! Presses the reset button of a VM, over a QMP connection of its own.

use std::path::Path;

use qapi::qmp::system_reset;

use crate::error::Result;
use crate::observer::Observer;

/// Resets the VM whose QMP socket is at `path`.
///
/// # Errors
/// As [`Observer::connect`]; QEMU refuses.
pub async fn reset(path: &Path) -> Result<()> {
    let qmp = Observer::connect(path).await?.into_qmp();
    qmp.execute(&system_reset {}).await?;
    Ok(())
}
