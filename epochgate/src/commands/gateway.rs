//! `epochgate gateway`: serve many disks, groups, the control API.

use std::path::Path;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use nbd_server::gateway::{Gateway, GatewayConfig, GatewayError};
use nbd_server::group::{OpenError, Progress};

use crate::cli::ConfigArgs;
use crate::config_file;
use crate::exit::usage;
use crate::runtime;
use crate::service;

pub(crate) fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let config: GatewayConfig = config_file::load(&args.config)?;
    config.check().map_err(usage)?;
    if args.check {
        for advice in config.advice() {
            eprintln!("{advice}");
        }
        for advice in config.storage_advice() {
            eprintln!("{advice}");
        }
        println!("{} is right", args.config.display());
        return Ok(ExitCode::SUCCESS);
    }
    serve(&config, Some(&args.config))
}

/// Serves until SIGTERM or SIGINT, and reads `file` again at SIGHUP. Shared with `epochgate serve`, which has no file.
pub(crate) fn serve(config: &GatewayConfig, file: Option<&Path>) -> anyhow::Result<ExitCode> {
    runtime::allow_many_files();
    // Before anything is served: a signal that comes early must not be missed.
    let runtime = runtime::tokio()?;
    let mut stop = runtime.block_on(async { runtime::stop_signals() })?;
    let mut hangup = runtime.block_on(async { runtime::hangup_signal() })?;
    let bar = recovery_bar();
    let gateway = Gateway::start_with(config, &mut |progress| show(&bar, progress));
    bar.finish_and_clear();
    let gateway = gateway.map_err(|error| explain(error, config))?;
    for address in gateway.addresses() {
        tracing::info!(%address, "serving");
    }
    service::ready(&serving(&gateway));
    runtime.block_on(async {
        loop {
            tokio::select! {
                stopped = stop.changed() => return stopped,
                Some(()) = hangup.recv() => {
                    // One at a time, and a stop waits for it.
                    tokio::task::block_in_place(|| {
                        service::reloading();
                        let outcome = reload(&gateway, file);
                        service::ready(&format!("{}; {outcome}", serving(&gateway)));
                    });
                }
            }
        }
    })?;
    service::stopping();
    tracing::info!("stopping: requests under way are answered, what is held is committed");
    gateway.shutdown();
    Ok(ExitCode::SUCCESS)
}

/// Where NBD is served, for people.
fn serving(gateway: &Gateway) -> String {
    let addresses: Vec<_> = gateway
        .addresses()
        .iter()
        .map(ToString::to_string)
        .collect();
    format!("serving on {}", addresses.join(", "))
}

/// Brings about what has changed in the file, and says what that was. A file that is not right changes nothing.
fn reload(gateway: &Gateway, file: Option<&Path>) -> String {
    let Some(file) = file else {
        tracing::warn!("SIGHUP: there is no configuration file to read again");
        return "there is no configuration file to read again".to_owned();
    };
    let config = config_file::load(file).map_err(|error| error.to_string());
    match gateway.reload(config) {
        Ok(reloaded) => {
            tracing::info!("the configuration is reloaded: {reloaded}");
            format!("last reload: {reloaded}")
        }
        Err(error) => {
            tracing::error!("the configuration is not reloaded, nothing has changed: {error}");
            // One line, for a message of lines.
            let error = error.lines().collect::<Vec<_>>().join(" ");
            format!("the last reload changed nothing: {error}")
        }
    }
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
fn explain(error: GatewayError, config: &GatewayConfig) -> anyhow::Error {
    let error_is_the_users = match &error {
        GatewayError::Config(_) | GatewayError::Address(_) | GatewayError::Export { .. } => true,
        GatewayError::Listen(_)
        | GatewayError::Access(_)
        | GatewayError::Tls(_)
        | GatewayError::Rate(_) => true,
        GatewayError::Metrics(_) => true,
        GatewayError::Group(
            OpenError::Config { .. } | OpenError::Image { .. } | OpenError::HistoryLeft { .. },
        ) => true,
        GatewayError::Group(OpenError::Log { source, .. }) => is_the_users(source),
        GatewayError::Group(_) | GatewayError::Control(_) => false,
    };
    let cant = match damaged_log(&error, config) {
        Some(log) => format!(
            "the gateway can't start (`epochgate log verify {}` says what is left, `epochgate log recover` goes on from there)",
            log.display()
        ),
        None => "the gateway can't start".to_owned(),
    };
    let error = anyhow::Error::new(error).context(cant);
    if error_is_the_users {
        usage(error)
    } else {
        error
    }
}

/// The log that keeps a gateway from its start because it is damaged.
fn damaged_log<'a>(error: &GatewayError, config: &'a GatewayConfig) -> Option<&'a Path> {
    let GatewayError::Group(OpenError::Log {
        group,
        source: epoch_log::LogError::Damaged(_),
    }) = error
    else {
        return None;
    };
    let named = config.groups.iter().find(|config| config.name == *group);
    named.map(|config| config.log.as_path())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::log_recover::tests::damaged_group;

    #[test]
    fn a_damaged_log_is_named_with_the_commands_that_help() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let group = damaged_group(dir.path())?;
        let log = group.log.display().to_string();
        let config = GatewayConfig {
            listen: vec![format!("unix:{}", dir.path().join("nbd.sock").display())],
            groups: vec![group],
            ..GatewayConfig::default()
        };
        let Err(error) = Gateway::start(&config) else {
            anyhow::bail!("it started");
        };
        let text = format!("{:#}", explain(error, &config));
        for words in [
            &format!("`epochgate log verify {log}`"),
            "`epochgate log recover`",
            "segment 1 at byte",
            "(epoch 2)",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        Ok(())
    }
}
