//! What `epochgate protect` and `epochgate standby` are told: plain values, read from TOML by the command.
//!
//! One documented example per role is checked in (`docs/examples/`) and loaded by a test.

use std::path::PathBuf;
use std::time::Duration;

use qemu_glue::VmDescription;
use serde::Deserialize;

use crate::address::ChannelAddress;
use crate::memory_history::MemoryHistoryConfig;
use crate::packing::Compression;

/// What happens to the VM when its standby is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnStandbyLoss {
    /// It runs on, unprotected, and says so.
    #[default]
    Continue,
    /// It is paused until a standby protects it again.
    Pause,
}

/// What becomes of the packets that the guest sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// They leave when the epoch in which they were sent is committed: whatever somebody outside has seen survives a failover.
    #[default]
    Hold,
    /// They leave at once. A client may have seen what a failover then rolls back.
    Pass,
}

/// When checkpoints are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rhythm {
    /// Every `interval_ms`.
    #[default]
    Fixed,
    /// As soon as a packet waits to leave, `min_interval_ms` after the last one; and every `interval_ms`.
    Demand,
    /// As on demand, but no closer together than pauses take `pause_budget_percent` of the time.
    Adaptive,
}

/// How a VM is protected where it runs. Keys of a source's file; the section `[protect]` of a standby's, for the time after
/// a takeover.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtectionPolicy {
    /// Standbys, in order of preference.
    pub standby: Vec<ChannelAddress>,
    /// Milliseconds between the start of two checkpoints, 1 to 60000.
    #[serde(default = "interval_ms")]
    pub interval_ms: u64,
    /// When checkpoints are taken.
    #[serde(default)]
    pub rhythm: Rhythm,
    /// Shortest distance of two checkpoints when packets wait, 1 to 60000 milliseconds.
    #[serde(default = "min_interval_ms")]
    pub min_interval_ms: u64,
    /// The share of time that the guest may stand still in an adaptive rhythm while packets wait, 1 to 90 percent.
    #[serde(default = "pause_budget_percent")]
    pub pause_budget_percent: u32,
    /// Checkpoints captured and not yet committed before the next one waits, 1 to 64.
    #[serde(default = "max_in_flight")]
    pub max_in_flight: usize,
    /// Milliseconds without any answer of the gateway after which a protected VM is given up to its standby.
    #[serde(default = "gateway_patience_ms")]
    pub gateway_patience_ms: u64,
    /// What happens when the standby is lost.
    #[serde(default)]
    pub on_standby_loss: OnStandbyLoss,
    /// What becomes of the packets that the guest sends.
    #[serde(default)]
    pub output: Output,
    /// MiB of packets that are held for each network interface before more of them are dropped, 1 to 65536. At half of it a
    /// checkpoint is taken at once.
    #[serde(default = "output_limit_mib")]
    pub output_limit_mib: u64,
    /// How what is sent to the standby is compressed.
    #[serde(default)]
    pub compression: Compression,
    /// MiB of pages that source and standby remember each, to send only what has changed in them, 0 to 65536.
    #[serde(default = "delta_cache_mib")]
    pub delta_cache_mib: u64,
}

/// The configuration of a source.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtectConfig {
    /// Name of this host, part of the ids that the log shows. Default: the host's name.
    #[serde(default = "host_name")]
    pub host: String,
    /// Control socket of the gateway.
    pub gateway: PathBuf,
    /// Where QEMU finds the gateway's NBD server, as a path of a unix socket or `host:port`.
    pub nbd: String,
    /// Standbys, in order of preference.
    pub standby: Vec<ChannelAddress>,
    /// The disks of the group in the order in which the guest sees them. Default: all of them, by name.
    #[serde(default)]
    pub disks: Vec<String>,
    /// For sockets and the VM's private files. Default: `/run/epochgate`.
    #[serde(default = "runtime_dir")]
    pub runtime_dir: PathBuf,
    /// Milliseconds between the start of two checkpoints, 1 to 60000.
    #[serde(default = "interval_ms")]
    pub interval_ms: u64,
    /// When checkpoints are taken.
    #[serde(default)]
    pub rhythm: Rhythm,
    /// Shortest distance of two checkpoints when packets wait, 1 to 60000 milliseconds.
    #[serde(default = "min_interval_ms")]
    pub min_interval_ms: u64,
    /// The share of time that the guest may stand still in an adaptive rhythm while packets wait, 1 to 90 percent.
    #[serde(default = "pause_budget_percent")]
    pub pause_budget_percent: u32,
    /// Checkpoints captured and not yet committed before the next one waits, 1 to 64.
    #[serde(default = "max_in_flight")]
    pub max_in_flight: usize,
    /// Milliseconds between heartbeats.
    #[serde(default = "heartbeat_ms")]
    pub heartbeat_ms: u64,
    /// Milliseconds of silence after which the standby is taken for lost.
    #[serde(default = "suspicion_ms")]
    pub suspicion_ms: u64,
    /// Milliseconds without any answer of the gateway after which a protected VM is given up to its standby.
    #[serde(default = "gateway_patience_ms")]
    pub gateway_patience_ms: u64,
    /// What happens when the standby is lost.
    #[serde(default)]
    pub on_standby_loss: OnStandbyLoss,
    /// What becomes of the packets that the guest sends.
    #[serde(default)]
    pub output: Output,
    /// MiB of packets that are held for each network interface before more of them are dropped, 1 to 65536.
    #[serde(default = "output_limit_mib")]
    pub output_limit_mib: u64,
    /// How what is sent to the standby is compressed.
    #[serde(default)]
    pub compression: Compression,
    /// MiB of pages that source and standby remember each, to send only what has changed in them, 0 to 65536.
    #[serde(default = "delta_cache_mib")]
    pub delta_cache_mib: u64,
    /// Send checkpoints beyond this machine without encryption. Only on a link that nobody else can reach.
    #[serde(default)]
    pub insecure: bool,
    /// Start from the disks even if the VM runs elsewhere or a standby holds its memory. Not a key of the file: it is
    /// asked for each time.
    #[serde(skip)]
    pub cold_start: bool,
    /// Go on with the memory in this directory instead of booting; see `saved_state`. Not a key of the file: it is asked for
    /// each time.
    #[serde(skip)]
    pub saved_state: Option<PathBuf>,
    /// The disks belong to that memory, whatever it says of itself. Not a key of the file: it is for the fault matrix, which copies both.
    #[serde(skip)]
    pub any_disks: bool,
    /// The VM. Its name is the name of its group at the gateway.
    pub vm: VmDescription,
}

/// The configuration of a standby.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StandbyConfig {
    /// Name of this host, part of the ids that the log shows. Default: the host's name.
    #[serde(default = "host_name")]
    pub host: String,
    /// Control socket of the gateway.
    pub gateway: PathBuf,
    /// Where QEMU finds the gateway's NBD server, as a path of a unix socket or `host:port`.
    pub nbd: String,
    /// Where the source connects to.
    pub listen: ChannelAddress,
    /// The disks of the group in the order in which the guest sees them. Default: all of them, by name.
    #[serde(default)]
    pub disks: Vec<String>,
    /// For sockets and the VM's private files. Default: `/run/epochgate`.
    #[serde(default = "runtime_dir")]
    pub runtime_dir: PathBuf,
    /// Milliseconds between heartbeats.
    #[serde(default = "heartbeat_ms")]
    pub heartbeat_ms: u64,
    /// Milliseconds of silence after which the source is taken for lost.
    #[serde(default = "suspicion_ms")]
    pub suspicion_ms: u64,
    /// Listen beyond this machine without encryption. Only on a link that nobody else can reach.
    #[serde(default)]
    pub insecure: bool,
    /// How the VM is protected again once it runs here. Without it, it runs on unprotected.
    #[serde(default)]
    pub protect: Option<ProtectionPolicy>,
    /// How its memory at earlier epochs is kept. Without it, it is not.
    #[serde(default)]
    pub memory_history: Option<MemoryHistoryConfig>,
    /// The VM, described as at its source.
    pub vm: VmDescription,
}

/// A value that can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A number out of its range.
    #[error("`{key} = {value}` is out of range: {low} to {high} are allowed")]
    Range {
        /// The key.
        key: &'static str,
        /// Its value.
        value: u64,
        /// Lowest.
        low: u64,
        /// Highest.
        high: u64,
    },
    /// Silence is shorter than the distance of the heartbeats.
    #[error(
        "`suspicion_ms = {suspicion}` must be at least three times `heartbeat_ms = {heartbeat}`, or a single late heartbeat is taken for a failure"
    )]
    Suspicion {
        /// `suspicion_ms`.
        suspicion: u64,
        /// `heartbeat_ms`.
        heartbeat: u64,
    },
    /// A channel that others can reach, without encryption.
    #[error(
        "`{address}` can be reached from other machines and the checkpoint channel is not encrypted: the guest's memory would travel in the clear; carry it over a tunnel to a loopback address, or set `insecure = true` on a private link"
    )]
    Exposed {
        /// The address.
        address: ChannelAddress,
    },
    /// A network interface of the VM that can't be held.
    #[error("{0}")]
    Network(String),
    /// The section `[memory_history]`.
    #[error("{0}")]
    MemoryHistory(String),
    /// A list that is empty.
    #[error(
        "`standby` is empty: name at least one address, such as `unix:/run/epochgate/vm1.standby` or `tcp:127.0.0.1:7070`"
    )]
    NoStandby,
}

impl ProtectionPolicy {
    /// What a VM has that is not protected again after a takeover: it runs on, and nothing is held.
    pub(crate) fn none() -> Self {
        Self {
            standby: Vec::new(),
            interval_ms: interval_ms(),
            rhythm: Rhythm::default(),
            min_interval_ms: min_interval_ms(),
            pause_budget_percent: pause_budget_percent(),
            max_in_flight: max_in_flight(),
            gateway_patience_ms: gateway_patience_ms(),
            on_standby_loss: OnStandbyLoss::default(),
            output: Output::Pass,
            output_limit_mib: output_limit_mib(),
            compression: Compression::default(),
            delta_cache_mib: delta_cache_mib(),
        }
    }

    fn check(&self, insecure: bool, vm: &VmDescription) -> Result<(), ConfigError> {
        in_range("interval_ms", self.interval_ms, 1, 60_000)?;
        in_range("min_interval_ms", self.min_interval_ms, 1, 60_000)?;
        in_range(
            "pause_budget_percent",
            self.pause_budget_percent.into(),
            1,
            90,
        )?;
        in_range("max_in_flight", self.max_in_flight as u64, 1, 64)?;
        in_range(
            "gateway_patience_ms",
            self.gateway_patience_ms,
            100,
            600_000,
        )?;
        in_range("delta_cache_mib", self.delta_cache_mib, 0, 65_536)?;
        in_range("output_limit_mib", self.output_limit_mib, 1, 65_536)?;
        if self.standby.is_empty() {
            return Err(ConfigError::NoStandby);
        }
        for address in &self.standby {
            check_exposed(address, insecure)?;
        }
        self.gated(vm)?;
        Ok(())
    }

    /// `gateway_patience_ms` as a duration.
    pub(crate) fn gateway_patience(&self) -> Duration {
        Duration::from_millis(self.gateway_patience_ms)
    }

    /// The network backends of `vm` that an output gate is put in front of.
    ///
    /// # Errors
    /// Output is to be held, and `vm` has an interface whose packets can't be.
    pub(crate) fn gated(&self, vm: &VmDescription) -> Result<Vec<String>, ConfigError> {
        match self.output {
            Output::Hold => vm
                .gated_netdevs()
                .map_err(|error| ConfigError::Network(error.to_string())),
            Output::Pass => Ok(Vec::new()),
        }
    }

    /// `output_limit_mib` in bytes.
    pub(crate) fn output_limit(&self) -> u64 {
        self.output_limit_mib << 20
    }
}

impl ProtectConfig {
    /// Checks what TOML can't.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_timing(self.heartbeat_ms, self.suspicion_ms)?;
        self.protection().check(self.insecure, &self.vm)
    }

    /// Its keys that a standby has in its section `[protect]`.
    pub fn protection(&self) -> ProtectionPolicy {
        ProtectionPolicy {
            standby: self.standby.clone(),
            interval_ms: self.interval_ms,
            rhythm: self.rhythm,
            min_interval_ms: self.min_interval_ms,
            pause_budget_percent: self.pause_budget_percent,
            max_in_flight: self.max_in_flight,
            gateway_patience_ms: self.gateway_patience_ms,
            on_standby_loss: self.on_standby_loss,
            output: self.output,
            output_limit_mib: self.output_limit_mib,
            compression: self.compression,
            delta_cache_mib: self.delta_cache_mib,
        }
    }
}

impl StandbyConfig {
    /// Checks what TOML can't.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_timing(self.heartbeat_ms, self.suspicion_ms)?;
        check_exposed(&self.listen, self.insecure)?;
        if let Some(memory) = &self.memory_history {
            memory.check().map_err(ConfigError::MemoryHistory)?;
        }
        match &self.protect {
            Some(protect) => protect.check(self.insecure, &self.vm),
            None => Ok(()),
        }
    }
}

fn in_range(key: &'static str, value: u64, low: u64, high: u64) -> Result<(), ConfigError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::Range {
        key,
        value,
        low,
        high,
    })
}

fn check_timing(heartbeat: u64, suspicion: u64) -> Result<(), ConfigError> {
    in_range("heartbeat_ms", heartbeat, 1, 60_000)?;
    in_range("suspicion_ms", suspicion, 10, 600_000)?;
    if suspicion < heartbeat.saturating_mul(3) {
        return Err(ConfigError::Suspicion {
            suspicion,
            heartbeat,
        });
    }
    Ok(())
}

fn check_exposed(address: &ChannelAddress, insecure: bool) -> Result<(), ConfigError> {
    if address.is_exposed() && !insecure {
        return Err(ConfigError::Exposed {
            address: address.clone(),
        });
    }
    Ok(())
}

fn host_name() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    // It becomes part of ids, which allow fewer characters than a host name might have.
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' || c == '.' {
                c
            } else {
                '-'
            }
        })
        .take(64)
        .collect()
}

fn runtime_dir() -> PathBuf {
    PathBuf::from("/run/epochgate")
}

fn interval_ms() -> u64 {
    25
}

fn min_interval_ms() -> u64 {
    5
}

fn pause_budget_percent() -> u32 {
    20
}

fn delta_cache_mib() -> u64 {
    64
}

fn output_limit_mib() -> u64 {
    64
}

fn max_in_flight() -> usize {
    4
}

fn heartbeat_ms() -> u64 {
    25
}

fn gateway_patience_ms() -> u64 {
    10_000
}

fn suspicion_ms() -> u64 {
    100
}
