//! `epochgate standby`: be the backup of a VM.

use std::process::ExitCode;

use coordinator::StandbyConfig;

use crate::cli::RoleArgs;
use crate::config_file;
use crate::exit::usage;
use crate::role::{Role, exit_code, prepare_runtime_dir};
use crate::runtime;

pub(crate) fn run(args: &RoleArgs) -> anyhow::Result<ExitCode> {
    let config: StandbyConfig = config_file::load(&args.config.config)?;
    config.check().map_err(usage)?;
    config.vm.validate(&[]).map_err(usage)?;
    if args.config.check {
        println!("{} is right", args.config.config.display());
        return Ok(ExitCode::SUCCESS);
    }
    prepare_runtime_dir(&config.runtime_dir)?;
    let name = config.vm.name.clone();
    runtime::tokio()?.block_on(async {
        let role = Role::start("standby", &name, &config.runtime_dir, args.json).await?;
        let stop = runtime::stop_signals()?;
        let ending = coordinator::serve_standby(config, role.reporter(), stop).await?;
        Ok(ending.as_ref().map_or(ExitCode::SUCCESS, exit_code))
    })
}
