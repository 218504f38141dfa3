//! What a killed process leaves on its host: the RAM file of its VM, which would fill the host's memory if forgotten.

use qemu_glue::{GuestRam, VmDescription};

/// Removes the RAM files in the VM's `ram_dir` whose processes are gone. Best effort: it is said, and nothing fails.
pub(crate) fn remove_stale_ram(vm: &VmDescription) {
    match GuestRam::remove_stale(&vm.ram_dir) {
        Ok(removed) => {
            for path in removed {
                tracing::info!(path = %path.display(), "removed the RAM file of a process that is gone");
            }
        }
        Err(error) => tracing::warn!(%error, "old RAM files could not be looked for"),
    }
}
