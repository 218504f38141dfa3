//! `epochgate gateway`: serve many disks, groups, the control API.

use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use nbd_server::gateway::{Gateway, GatewayConfig, GatewayError};
use nbd_server::group::{OpenError, Progress};

use crate::cli::ConfigArgs;
use crate::config_file;
use crate::exit::usage;
use crate::runtime;

pub(crate) fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let config: GatewayConfig = config_file::load(&args.config)?;
    config.check().map_err(usage)?;
    if args.check {
        println!("{} is right", args.config.display());
        return Ok(ExitCode::SUCCESS);
    }
    serve(&config)
}

/// Serves until SIGTERM or SIGINT. Shared with `epochgate serve`.
pub(crate) fn serve(config: &GatewayConfig) -> anyhow::Result<ExitCode> {
    // Before anything is served: a signal that comes early must not be missed.
    let runtime = runtime::tokio()?;
    let mut stop = runtime.block_on(async { runtime::stop_signals() })?;
    let bar = recovery_bar();
    let gateway = Gateway::start_with(config, &mut |progress| show(&bar, progress));
    bar.finish_and_clear();
    let gateway = gateway.map_err(explain)?;
    for address in gateway.addresses() {
        tracing::info!(%address, "serving");
    }
    runtime.block_on(stop.changed())?;
    tracing::info!("stopping: requests under way are answered, what is held is committed");
    gateway.shutdown();
    Ok(ExitCode::SUCCESS)
}

fn recovery_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    match ProgressStyle::with_template("recovering {msg} {wide_bar} {pos}/{len} epochs") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn show(bar: &ProgressBar, progress: Progress<'_>) {
    bar.set_length(progress.total);
    bar.set_position(progress.applied);
    bar.set_message(progress.group.to_owned());
}

/// Which errors are the user's to mend.
fn explain(error: GatewayError) -> anyhow::Error {
    let error_is_the_users = match &error {
        GatewayError::Config(_) | GatewayError::Address(_) | GatewayError::Export { .. } => true,
        GatewayError::Listen(_) => true,
        GatewayError::Group(OpenError::Config { .. } | OpenError::Image { .. }) => true,
        GatewayError::Group(OpenError::Log { source, .. }) => is_the_users(source),
        GatewayError::Group(_) | GatewayError::Control(_) => false,
    };
    let error = anyhow::Error::new(error).context("the gateway can't start");
    if error_is_the_users {
        usage(error)
    } else {
        error
    }
}

/// A log of other images or one that is in use is a question of configuration; a damaged one is not.
fn is_the_users(error: &epoch_log::LogError) -> bool {
    use epoch_log::LogError;
    matches!(
        error,
        LogError::OtherGroup { .. }
            | LogError::OtherDisks { .. }
            | LogError::InUse { .. }
            | LogError::NotALog { .. }
            | LogError::BadName { .. }
            | LogError::BadDisks { .. }
    )
}
