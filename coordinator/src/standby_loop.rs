//! `epochgate standby`: receives the checkpoints of one VM and goes on with it when its source is lost.
//!
//! What to do is decided by [`standby`](crate::standby); this loop carries it out: it launches the waiting QEMU,
//! buffers and verifies, acknowledges, merges, asks the gateway for the takeover, and lets the guest run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_server::control::api::{ErrorKind, TakeoverReply};
use nbd_server::control::client::{Client, ControlError};
use nbd_server::{Epoch, Generation, failpoint};
use qemu_glue::{GuestRam, Role, RuntimePlace, StandbyVm, VmEvent};
use tokio::sync::{mpsc, watch};

use crate::address::{ChannelAddress, Listener, Reader, Writer};
use crate::channel_io::{self, ChannelError, Sender};
use crate::checkpoint::{Checkpoint, CheckpointError, Incoming, Pages};
use crate::checkpoint_channel::{Frame, Kind, Stamp};
use crate::command::Command;
use crate::config::{ConfigError, StandbyConfig};
use crate::disks::{self, DisksError};
use crate::ending::Ending;
use crate::failpoints;
use crate::gateway_task::Place;
use crate::handshake::{Hello, hear, refuse, welcome};
use crate::leftovers::remove_stale_ram;
use crate::link::chain;
use crate::memory_history::{MemoryHistory, Moment, Watch};
use crate::packing::Unpacker;
use crate::report::{Report, Reporter, emit, micros};
use crate::source_loop::{Gate, Running};
use crate::standby::{Action, Event, Standby};
use crate::taken_over;

/// Between two attempts to reach the gateway for a takeover: short, because the VM is down meanwhile.
const TAKEOVER_AGAIN: Duration = Duration::from_millis(20);

/// Why a standby can't be one.
#[derive(Debug, thiserror::Error)]
pub enum StandbyError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address can't be listened on.
    #[error("the standby can't listen on {address}")]
    Listen {
        /// The address.
        address: ChannelAddress,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The memory history can't be begun.
    #[error("the memory of the VM can't be kept")]
    MemoryHistory(#[source] std::io::Error),
    /// The guest had been taken over, and could not be continued.
    #[error("the takeover at epoch {epoch} succeeded, but the guest could not be continued here")]
    Resume {
        /// E.
        epoch: Epoch,
        /// Why.
        #[source]
        source: qemu_glue::Error,
    },
}

/// Why a source is turned away before anything is received.
#[derive(Debug, thiserror::Error)]
enum Unready {
    #[error("this standby is for the VM \"{mine}\", not for \"{theirs}\"")]
    OtherVm { mine: String, theirs: String },
    #[error("the machines differ: {}", .0.join("; "))]
    OtherMachine(Vec<String>),
    #[error("the standby's gateway does not know it")]
    Gateway(#[source] ControlError),
    #[error(transparent)]
    Disks(#[from] DisksError),
    #[error("the standby's QEMU can't be started")]
    Vm(#[source] qemu_glue::Error),
}

/// Why receiving ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("a frame of another VM or generation came")]
    Stranger,
    #[error("the source sent a {0:?} frame, which only a standby may")]
    Unexpected(Kind),
    #[error("the first copy of the memory came after a checkpoint")]
    LateBase,
    #[error("checkpoint {0} does not follow the one before it")]
    OutOfOrder(Epoch),
    #[error("{0}")]
    Ram(String),
    #[error("the source gave the VM up: {0}")]
    Yielded(String),
}

/// Serves as a standby until `stop` asks it to end, or until the VM that it took over has ended. Returns how that ended.
/// `commands` are for the time after a takeover.
pub async fn serve_standby(
    config: StandbyConfig,
    reporter: Reporter,
    commands: mpsc::Receiver<Command>,
    mut stop: watch::Receiver<u32>,
) -> Result<Option<Ending>, StandbyError> {
    config.check()?;
    let netdevs = match &config.protect {
        Some(protect) => protect.gated(&config.vm)?,
        None => Vec::new(),
    };
    let listener = config.listen.listen().await;
    let listener = listener.map_err(|source| StandbyError::Listen {
        address: config.listen.clone(),
        source,
    })?;
    remove_stale_ram(&config.vm);
    // Fresh for every process: what an earlier one held is gone with it.
    let id = format!("{}:{}", config.host, uuid::Uuid::new_v4());
    let address = config.listen.to_string();
    emit(
        &reporter,
        Report::Listening {
            standby: id.clone(),
            address,
        },
    );
    let memory = config
        .memory_history
        .as_ref()
        .map(|memory| {
            let (gateway, vm) = (config.gateway.clone(), &config.vm);
            let bytes = vm.memory_bytes();
            MemoryHistory::start(memory, gateway, &vm.name, bytes, Arc::clone(&reporter))
        })
        .transpose()
        .map_err(StandbyError::MemoryHistory)?;
    let host = Host {
        config,
        reporter,
        id,
        listener,
        netdevs,
        memory,
    };
    loop {
        let accepted = tokio::select! {
            accepted = host.listener.accept() => accepted,
            _ = stop.changed() => return Ok(None),
        };
        let Ok((reader, writer)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let session = tokio::select! {
            session = host.meet(reader, writer) => session,
            _ = stop.changed() => return Ok(None),
        };
        let Some(session) = session else { continue };
        tokio::select! {
            outcome = session.receive() => match outcome {
                After::Nothing => {}
                After::Running(guest) => {
                    let (listener, reporter) = (&host.listener, &host.reporter);
                    let ending =
                        taken_over::run(*guest, &host.config, listener, reporter, commands, stop);
                    return Ok(Some(ending.await));
                }
                After::Failed(error) => return Err(error),
            },
            _ = stop.changed() => return Ok(None),
        }
    }
}

/// What stays the same from source to source.
struct Host {
    config: StandbyConfig,
    reporter: Reporter,
    id: String,
    listener: Listener,
    /// Network backends that an output gate is put in front of once the guest runs here.
    netdevs: Vec<String>,
    /// Keeps what is merged, if that is wanted.
    memory: Option<MemoryHistory>,
}

/// What became of a source.
enum After {
    /// Nothing to go on from; wait for the next.
    Nothing,
    /// The guest runs here.
    Running(Box<Running>),
    /// The disks are ours, and the guest does not run.
    Failed(StandbyError),
}

impl Host {
    /// Greets a source and prepares everything for it; turns it away with the reason if that can't be.
    async fn meet(&self, mut reader: Reader, mut writer: Writer) -> Option<Session<'_>> {
        let (hello, stamp) = match hear(&mut reader).await {
            Ok(heard) => heard,
            Err(error) => {
                let reason = chain(&error);
                tracing::warn!(reason, "a connection that is not a source");
                refuse(&mut writer, &self.config.vm.name, &reason).await;
                return None;
            }
        };
        let prepared = match self.prepare(&hello).await {
            Ok(prepared) => prepared,
            Err(error) => {
                let reason = chain(&error);
                tracing::warn!(source = hello.source, reason, "a source was turned away");
                refuse(&mut writer, &self.config.vm.name, &reason).await;
                emit(&self.reporter, Report::SourceRefused { reason });
                return None;
            }
        };
        if let Err(error) = welcome(&mut writer, stamp, &self.id).await {
            tracing::warn!(%error, "the source went away while the standby got ready");
            return None;
        }
        emit(
            &self.reporter,
            Report::SourceJoined {
                source: hello.source.clone(),
                generation: stamp.generation,
                pid: prepared.1.pid(),
                watch_socket: prepared.1.watch_socket().to_owned(),
            },
        );
        let heartbeat = Duration::from_millis(self.config.heartbeat_ms);
        let suspicion = Duration::from_millis(self.config.suspicion_ms);
        let (sender, _writer) = Sender::start(writer, stamp, heartbeat, None);
        let unpacker = Unpacker::new(hello.cached_pages());
        let (client, vm) = prepared;
        let mut machine = Standby::new();
        machine.step(Event::SourceJoined);
        let watch = self.memory.as_ref();
        Some(Session {
            host: self,
            watch: watch.map(|memory| memory.watch(Arc::clone(vm.ram()))),
            machine,
            client,
            vm,
            stamp,
            frames: channel_io::Incoming::start(reader, suspicion, unpacker),
            sender,
            incoming: None,
            verified: BTreeMap::new(),
            merged_devices: None,
        })
    }

    /// Disks parked at the gateway, RAM file, and a QEMU that waits.
    async fn prepare(&self, hello: &Hello) -> Result<(Client, StandbyVm), Unready> {
        let vm = &self.config.vm;
        if hello.vm != vm.name {
            return Err(Unready::OtherVm {
                mine: vm.name.clone(),
                theirs: hello.vm.clone(),
            });
        }
        let client = Client::connect(&self.config.gateway)
            .await
            .map_err(Unready::Gateway)?;
        let parked = client
            .park(&vm.name, &self.id)
            .await
            .map_err(Unready::Gateway)?;
        let attachments =
            disks::attachments(&self.config.nbd, &self.config.disks, &parked.exports)?;
        let ram = GuestRam::create(&vm.ram_dir, &vm.name, Role::Standby, vm.memory_bytes())
            .map_err(Unready::Vm)?;
        let place = RuntimePlace::standby(self.config.runtime_dir.join(&vm.name));
        let place = place.on(&self.config.host);
        let standby = StandbyVm::launch(vm, &place, &attachments, Arc::new(ram))
            .await
            .map_err(Unready::Vm)?;
        let differences = hello.machine.differences(standby.fingerprint());
        if !differences.is_empty() {
            return Err(Unready::OtherMachine(differences));
        }
        Ok((client, standby))
    }
}

/// One source, from its Hello to its end.
struct Session<'a> {
    host: &'a Host,
    machine: Standby,
    client: Client,
    vm: StandbyVm,
    stamp: Stamp,
    frames: channel_io::Incoming,
    sender: Sender,
    incoming: Option<Incoming>,
    verified: BTreeMap<Epoch, Checkpoint>,
    /// Device state of the merged epoch: with the RAM image it is what the guest can go on from.
    merged_devices: Option<Vec<u8>>,
    /// Sees what is merged, for the memory history.
    watch: Option<Watch>,
}

impl Session<'_> {
    /// Receives until the source is lost or ends, then does what has to be done.
    async fn receive(mut self) -> After {
        let mut qemu = self.vm.subscribe();
        loop {
            let next = tokio::select! {
                frame = self.frames.next() => frame.map_err(Broken::from),
                event = qemu.recv() => match event {
                    Ok(VmEvent::Closed) | Err(tokio::sync::broadcast::error::RecvError::Closed) => {
                        // Without a QEMU there is no takeover: let the source go and start over with it.
                        self.discard("the standby's QEMU ended");
                        return After::Nothing;
                    }
                    _ => continue,
                },
                accepted = self.host.listener.accept() => {
                    self.turn_away(accepted).await;
                    continue;
                }
            };
            let taken = match next {
                Ok(frame) if frame.kind == Kind::End => {
                    let actions = self.machine.step(Event::SourceEnded);
                    self.report_discards(&actions);
                    return After::Nothing;
                }
                Ok(frame) => self.take(frame).await,
                Err(broken) => Err(broken),
            };
            if let Err(broken) = taken {
                return self.source_lost(&broken).await;
            }
        }
    }

    /// Another connection while a source is being served.
    async fn turn_away(&self, accepted: std::io::Result<(Reader, Writer)>) {
        if let Ok((_, mut writer)) = accepted {
            let reason = "this standby already receives the VM from another source";
            refuse(&mut writer, &self.host.config.vm.name, reason).await;
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), Broken> {
        if frame.stamp != self.stamp {
            return Err(Broken::Stranger);
        }
        match frame.kind {
            Kind::BasePages => self.take_base(frame),
            Kind::Pages | Kind::Device => {
                let ram = self.vm.ram().len();
                let incoming = self
                    .incoming
                    .get_or_insert_with(|| Incoming::new(frame.epoch, ram));
                Ok(incoming.take(frame)?)
            }
            Kind::Commit1 => self.take_commit1(&frame).await,
            Kind::Commit3 => {
                let actions = self.machine.step(Event::Commit3 { epoch: frame.epoch });
                self.carry_out(actions).await
            }
            Kind::Heartbeat => Ok(()),
            Kind::Yield => Err(Broken::Yielded(
                String::from_utf8_lossy(&frame.payload).into_owned(),
            )),
            other => Err(Broken::Unexpected(other)),
        }
    }

    /// Pages of the first copy go straight into the RAM image: nothing is held yet that they could spoil.
    fn take_base(&mut self, frame: Frame) -> Result<(), Broken> {
        if self.machine.holds_anything() {
            return Err(Broken::LateBase);
        }
        let pages = Pages::decode(frame.payload, self.vm.ram().len())?;
        failpoint::hit(failpoints::STANDBY_MID_BASE);
        self.merge(&pages)
    }

    async fn take_commit1(&mut self, commit1: &Frame) -> Result<(), Broken> {
        let ram = self.vm.ram().len();
        let incoming = self.incoming.take();
        let incoming = incoming.unwrap_or_else(|| Incoming::new(commit1.epoch, ram));
        let checkpoint = incoming.complete(commit1)?;
        let epoch = checkpoint.epoch;
        let actions = self.machine.step(Event::Verified { epoch });
        if !actions.contains(&Action::AckCommit1 { epoch }) {
            return Err(Broken::OutOfOrder(epoch));
        }
        self.verified.insert(epoch, checkpoint);
        self.carry_out(actions).await
    }

    async fn carry_out(&mut self, actions: Vec<Action>) -> Result<(), Broken> {
        for action in actions {
            match action {
                Action::AckCommit1 { epoch } => {
                    failpoint::hit(failpoints::BEFORE_ACK);
                    self.sender
                        .send_new(Kind::Commit1Ack, epoch, Vec::new())
                        .await?;
                    failpoint::hit(failpoints::AFTER_ACK);
                    emit(&self.host.reporter, Report::Held { epoch });
                }
                Action::MergeUpTo { epoch } => {
                    failpoint::hit(failpoints::BEFORE_MERGE);
                    self.merge_up_to(epoch)?;
                    failpoint::hit(failpoints::AFTER_MERGE);
                    self.keep(epoch);
                    emit(&self.host.reporter, Report::Merged { epoch });
                }
                Action::TakeOver | Action::Resume { .. } | Action::Discard { .. } => {
                    tracing::error!(?action, "not an action of receiving");
                }
            }
        }
        Ok(())
    }

    fn merge_up_to(&mut self, epoch: Epoch) -> Result<(), Broken> {
        while let Some(entry) = self.verified.first_entry() {
            if *entry.key() > epoch {
                break;
            }
            let checkpoint = entry.remove();
            for pages in &checkpoint.pages {
                self.merge(pages)?;
                failpoint::hit(failpoints::MID_MERGE);
            }
            self.merged_devices = Some(checkpoint.device_state);
        }
        Ok(())
    }

    /// Memory and devices are those of `epoch`: offers them to the memory history.
    fn keep(&self, epoch: Epoch) {
        let memory = self.host.memory.as_ref().zip(self.watch.as_ref());
        let (Some((memory, watch)), Some(devices)) = (memory, &self.merged_devices) else {
            return;
        };
        let moment = Moment {
            epoch,
            generation: self.stamp.generation,
            devices,
            machine: self.vm.fingerprint(),
        };
        memory.merged(watch, &moment);
    }

    fn merge(&self, pages: &Pages) -> Result<(), Broken> {
        for (offset, bytes) in pages.iter() {
            if let Some(watch) = &self.watch {
                watch.before_write(offset, bytes.len() as u64);
            }
            let written = self.vm.ram().write(offset, bytes);
            written.map_err(|e| Broken::Ram(chain(&e)))?;
        }
        Ok(())
    }

    /// The source is lost: ask the gateway, and go on from exactly the epoch that it names.
    async fn source_lost(mut self, broken: &Broken) -> After {
        let reason = chain(broken);
        tracing::warn!(reason, "the source is lost");
        let began = Instant::now();
        emit(&self.host.reporter, Report::SourceLost { reason });
        let actions = self.machine.step(Event::SourceLost);
        if !actions.contains(&Action::TakeOver) {
            self.report_discards(&actions);
            return After::Nothing;
        }
        failpoint::hit(failpoints::BEFORE_TAKEOVER);
        let reply = match self.take_over().await {
            Ok(reply) => reply,
            Err(refusal) => {
                let reason = refusal.to_string();
                let actions = self.machine.step(Event::TakeoverRefused { reason });
                self.report_discards(&actions);
                return After::Nothing;
            }
        };
        failpoint::hit(failpoints::AFTER_TAKEOVER);
        let takeover = began.elapsed();
        let TakeoverReply { generation, epoch } = reply;
        emit(&self.host.reporter, Report::TakenOver { generation, epoch });
        let actions = self.machine.step(Event::TakenOver { epoch });
        self.report_discards(&actions);
        if !actions.contains(&Action::Resume { epoch }) {
            return After::Nothing;
        }
        self.resume(epoch, generation, takeover).await
    }

    /// Raises the generation. A gateway that does not answer is asked until it does; only its word counts.
    async fn take_over(&self) -> Result<TakeoverReply, ControlError> {
        let group = &self.host.config.vm.name;
        let mut said = false;
        loop {
            let error = match self.client.takeover(group, &self.host.id).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            let passing = matches!(
                error.kind(),
                None | Some(ErrorKind::Io | ErrorKind::LogFull | ErrorKind::Stopping)
            );
            if !passing {
                return Err(error);
            }
            if !std::mem::replace(&mut said, true) {
                let reason = chain(&error);
                tracing::warn!(reason, "the takeover waits for the gateway");
                emit(&self.host.reporter, Report::TakeoverWaits { reason });
            }
            tokio::time::sleep(TAKEOVER_AGAIN).await;
        }
    }

    async fn resume(mut self, epoch: Epoch, generation: Generation, takeover: Duration) -> After {
        // From now on the guest writes to its memory by itself.
        self.watch = None;
        let began = Instant::now();
        if let Err(broken) = self.merge_up_to(epoch) {
            self.discard(&chain(&broken));
            return After::Nothing;
        }
        let merge = began.elapsed();
        let devices = self.merged_devices.take().unwrap_or_default();
        failpoint::hit(failpoints::BEFORE_RESUME);
        let began = Instant::now();
        match self.vm.resume_from(&devices).await {
            Ok((vm, _)) => {
                emit(
                    &self.host.reporter,
                    Report::Resumed {
                        epoch,
                        takeover_us: micros(takeover),
                        merge_us: micros(merge),
                        resume_us: micros(began.elapsed()),
                    },
                );
                tracing::info!(%epoch, "the guest goes on here");
                failpoint::hit(failpoints::AFTER_RESUMED);
                if let Err(error) = vm.announce().await {
                    tracing::warn!(%error, "the network was not told where the guest is now");
                }
                let place = Place {
                    client: self.client,
                    group: self.host.config.vm.name.clone(),
                    generation,
                };
                After::Running(Box::new(Running {
                    vm,
                    gate: Gate::Later {
                        netdevs: self.host.netdevs.clone(),
                    },
                    place,
                    owner: self.host.id.clone(),
                    newest: epoch,
                }))
            }
            Err(source) => After::Failed(StandbyError::Resume { epoch, source }),
        }
    }

    fn report_discards(&self, actions: &[Action]) {
        for action in actions {
            if let Action::Discard { reason } = action {
                self.discard(reason);
            }
        }
    }

    fn discard(&self, reason: &str) {
        tracing::warn!(reason, "memory and checkpoints are dropped");
        let reason = reason.to_owned();
        emit(&self.host.reporter, Report::Discarded { reason });
    }
}
