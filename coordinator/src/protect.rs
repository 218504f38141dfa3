//! `epochgate protect`: starts the VM at this host and hands it to the source loop.

use nbd_server::control::client::{Client, ControlError};
use qemu_glue::{RuntimePlace, SourceVm};
use tokio::sync::{mpsc, watch};

use crate::cold_start::{self, NotStarted};
use crate::command::Command;
use crate::config::{ConfigError, ProtectConfig};
use crate::disks;
use crate::ending::Ending;
use crate::gateway_task::Place;
use crate::leftovers::remove_stale_ram;
use crate::link::Timing;
use crate::report::{Report, Reporter, emit};
use crate::saved_state;
use crate::source_loop::{Gate, Running, SourceLoop};

/// Why a VM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ProtectError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The gateway said no, or does not answer.
    #[error("the gateway does not give this VM its disks")]
    Gateway(#[source] ControlError),
    /// It can't or may not be started here.
    #[error(transparent)]
    NotStarted(#[from] NotStarted),
    /// The disks of the configuration are not those of the group.
    #[error(transparent)]
    Disks(#[from] disks::DisksError),
    /// QEMU did not start.
    #[error("the VM could not be started")]
    Vm(#[source] qemu_glue::Error),
}

/// Runs the VM until it ends. `commands` are carried out one after another. `stop` counts the requests to stop: one for a clean stop, two for a quick one.
pub async fn protect(
    config: ProtectConfig,
    reporter: Reporter,
    commands: mpsc::Receiver<Command>,
    stop: watch::Receiver<u32>,
) -> Result<Ending, ProtectError> {
    config.check()?;
    let protection = config.protection();
    let gated = protection.gated(&config.vm)?;
    remove_stale_ram(&config.vm);
    let group = config.vm.name.clone();
    let owner = format!("{}:{}", config.host, uuid::Uuid::new_v4());
    let client = Client::connect(&config.gateway)
        .await
        .map_err(ProtectError::Gateway)?;
    let checked = cold_start::check(&client, &config).await?;
    let attached = client
        .attach(&group, &owner)
        .await
        .map_err(ProtectError::Gateway)?;
    if let (Some(dir), false) = (&config.saved_state, attached.committed == checked) {
        let reason = "somebody has written to the disks just now; rewind again".to_owned();
        let dir = dir.clone();
        return Err(NotStarted::SavedState { dir, reason }.into());
    }
    let place = Place {
        client,
        group,
        generation: attached.generation,
    };
    let attachments = disks::attachments(&config.nbd, &config.disks, &attached.exports)?;
    let runtime = RuntimePlace::source(config.runtime_dir.join(&config.vm.name)).on(&config.host);
    let launched = match &config.saved_state {
        None => SourceVm::launch(&config.vm, &runtime, &attachments).await,
        Some(saved) => saved_state::restore(&config.vm, &runtime, &attachments, saved).await,
    };
    let mut vm = launched.map_err(ProtectError::Vm)?;
    let tracker = vm.start_tracking().await.map_err(ProtectError::Vm)?;
    let gate = vm.attach_gate(&gated, protection.output_limit()).await;
    let gate = Gate::There(gate.map_err(ProtectError::Vm)?);
    vm.resume().await.map_err(ProtectError::Vm)?;
    emit(
        &reporter,
        Report::VmStarted {
            vm: place.group.clone(),
            pid: vm.pid(),
            qemu: vm.fingerprint().qemu_version().to_owned(),
            dirty_tracker: tracker.to_string(),
            device_state: vm.device_state(),
            generation: place.generation,
            ram_bytes: vm.ram().len(),
            watch_socket: vm.watch_socket().to_owned(),
        },
    );
    let running = Running {
        vm,
        gate,
        place,
        owner,
        newest: attached.committed,
    };
    let timing = Timing::new(config.heartbeat_ms, config.suspicion_ms);
    let source = SourceLoop::new(protection, timing, reporter.clone(), running);
    let ending = source.run(commands, stop).await;
    ending.report(&reporter);
    Ok(ending)
}
