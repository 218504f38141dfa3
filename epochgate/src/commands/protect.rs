//! `epochgate protect`: launch a VM and keep it protected.

use std::process::ExitCode;

use anyhow::Context;
use coordinator::ProtectConfig;
use coordinator::cold_start::NotStarted;
use coordinator::source_loop::ProtectError;

use crate::cli::ProtectArgs;
use crate::config_file;
use crate::exit::usage;
use crate::role::{Role, exit_code, prepare_runtime_dir};
use crate::runtime;

pub(crate) fn run(args: &ProtectArgs) -> anyhow::Result<ExitCode> {
    let cold_start = args.cold_start;
    let args = &args.role;
    let mut config: ProtectConfig = config_file::load(&args.config.config)?;
    config.cold_start = cold_start;
    config.check().map_err(usage)?;
    // Before the gateway hears of it: attaching fences whoever has the disks.
    config.vm.validate(&[]).map_err(usage)?;
    if args.config.check {
        println!("{} is right", args.config.config.display());
        return Ok(ExitCode::SUCCESS);
    }
    prepare_runtime_dir(&config.runtime_dir)?;
    let name = config.vm.name.clone();
    runtime::tokio()?.block_on(async {
        let role = Role::start("source", &name, &config.runtime_dir, args.json).await?;
        let ending = coordinator::protect(config, role.reporter(), runtime::stop_signals()?)
            .await
            .map_err(explain)
            .with_context(|| format!("the VM \"{name}\" is not protected"))?;
        Ok(exit_code(&ending))
    })
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
