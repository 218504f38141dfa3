//! `epochgate protect`: launch a VM and keep it protected.

use std::process::ExitCode;

use anyhow::Context;
use coordinator::cold_start::NotStarted;
use coordinator::{ProtectConfig, ProtectError};

use crate::cli::ProtectArgs;
use crate::config_file;
use crate::exit::usage;
use crate::role::{self, exit_code};

pub(crate) fn run(args: &ProtectArgs) -> anyhow::Result<ExitCode> {
    let mut config: ProtectConfig = config_file::load(&args.role.config.config)?;
    config.cold_start = args.cold_start;
    config.saved_state.clone_from(&args.saved_state);
    config.any_disks = args.any_disks;
    config.check().map_err(usage)?;
    let (vm, dir) = (config.vm.clone(), config.runtime_dir.clone());
    role::run(
        "source",
        &args.role,
        &vm,
        &dir,
        async |reporter, commands, stop| {
            let ending = coordinator::protect(config, reporter, commands, stop)
                .await
                .map_err(explain)
                .with_context(|| format!("the VM \"{}\" is not protected", vm.name))?;
            Ok(exit_code(&ending))
        },
    )
}

/// Which errors are the user's to mend.
fn explain(error: ProtectError) -> anyhow::Error {
    match error {
        ProtectError::Config(_) | ProtectError::Disks(_) => usage(error),
        ProtectError::NotStarted(NotStarted::Disks(_) | NotStarted::NoQemu(_)) => usage(error),
        ProtectError::Vm(
            qemu_glue::Error::Description { .. }
            | qemu_glue::Error::RamSpace { .. }
            | qemu_glue::Error::Spawn { .. },
        ) => usage(error),
        other => other.into(),
    }
}
