//! `epochgate standby`: be the backup of a VM.

use std::process::ExitCode;

use coordinator::StandbyConfig;

use crate::cli::RoleArgs;
use crate::config_file;
use crate::exit::usage;
use crate::role::{self, exit_code};

pub(crate) fn run(args: &RoleArgs) -> anyhow::Result<ExitCode> {
    let config: StandbyConfig = config_file::load(&args.config.config)?;
    config.check().map_err(usage)?;
    let (vm, dir) = (config.vm.clone(), config.runtime_dir.clone());
    role::run(
        "standby",
        args,
        &vm,
        &dir,
        async |reporter, commands, stop| {
            let ending = coordinator::serve_standby(config, reporter, commands, stop).await?;
            Ok(ending.as_ref().map_or(ExitCode::SUCCESS, exit_code))
        },
    )
}
