//! Looks at a QEMU over a QMP connection of its own, and changes nothing. Knows the questions and the fields of the answers that
//! matter; what becomes of the figures is the asker's.

use std::path::Path;
use std::time::Duration;

use qapi::Command;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::broadcast;

use crate::error::{Error, Result};
use crate::qmp::{Qmp, VmEvent};

/// How long QEMU may take to greet. It does at once, unless somebody else is connected.
const GREETING_LIMIT: Duration = Duration::from_secs(5);

/// A connection that only asks.
#[derive(Debug)]
pub struct Observer {
    qmp: Qmp,
}

/// One virtual processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Vcpu {
    /// Its number in the VM.
    #[serde(rename = "cpu-index")]
    pub index: u32,
    /// The thread of QEMU that runs it. Several may share one (TCG without threads).
    #[serde(rename = "thread-id")]
    pub thread: u32,
}

/// What was done to one disk since QEMU started. Times are the sums over all requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct BlockCounters {
    /// Reads completed.
    #[serde(rename = "rd_operations")]
    pub reads: u64,
    /// Writes completed.
    #[serde(rename = "wr_operations")]
    pub writes: u64,
    /// Flushes completed.
    #[serde(rename = "flush_operations")]
    pub flushes: u64,
    /// Discards completed.
    #[serde(rename = "unmap_operations")]
    pub discards: u64,
    /// Bytes read.
    #[serde(rename = "rd_bytes")]
    pub bytes_read: u64,
    /// Bytes written.
    #[serde(rename = "wr_bytes")]
    pub bytes_written: u64,
    /// Bytes discarded.
    #[serde(rename = "unmap_bytes")]
    pub bytes_discarded: u64,
    /// Time of reads, in nanoseconds.
    #[serde(rename = "rd_total_time_ns")]
    pub read_ns: u64,
    /// Time of writes, in nanoseconds.
    #[serde(rename = "wr_total_time_ns")]
    pub write_ns: u64,
    /// Time of flushes, in nanoseconds.
    #[serde(rename = "flush_total_time_ns")]
    pub flush_ns: u64,
    /// Reads that failed.
    #[serde(rename = "failed_rd_operations")]
    pub failed_reads: u64,
    /// Writes that failed.
    #[serde(rename = "failed_wr_operations")]
    pub failed_writes: u64,
    /// Flushes that failed.
    #[serde(rename = "failed_flush_operations")]
    pub failed_flushes: u64,
    /// Discards that failed.
    #[serde(rename = "failed_unmap_operations")]
    pub failed_discards: u64,
    /// Reads that made no sense.
    #[serde(rename = "invalid_rd_operations")]
    pub invalid_reads: u64,
    /// Writes that made no sense.
    #[serde(rename = "invalid_wr_operations")]
    pub invalid_writes: u64,
}

/// A counter or gauge of KVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmFigure {
    /// KVM's name for it.
    pub name: String,
    /// Its value.
    pub value: u64,
}

/// A question without arguments.
macro_rules! question {
    ($type:ident, $name:literal, $answer:ty) => {
        #[derive(Debug, Serialize)]
        struct $type {}

        impl Command for $type {
            type Ok = $answer;
            const NAME: &'static str = $name;
            const ALLOW_OOB: bool = false;
        }
    };
}

question!(QueryCpus, "query-cpus-fast", Vec<Vcpu>);
question!(QueryBlock, "query-blockstats", Vec<BlockDevice>);
question!(QueryStatus, "query-status", RunState);
question!(QueryMemory, "query-memory-size-summary", MemorySize);
question!(QueryKvm, "query-kvm", KvmInUse);

#[derive(Debug, Deserialize)]
struct BlockDevice {
    stats: BlockCounters,
    /// The path of the guest's device; a node that no device uses has none.
    qdev: Option<String>,
    #[serde(default)]
    device: String,
}

#[derive(Debug, Deserialize)]
struct RunState {
    running: bool,
}

#[derive(Debug, Deserialize)]
struct MemorySize {
    #[serde(rename = "base-memory")]
    base: u64,
}

#[derive(Debug, Deserialize)]
struct KvmInUse {
    enabled: bool,
}

/// The statistics of KVM for each virtual processor.
#[derive(Debug, Serialize)]
struct QueryStats {
    target: &'static str,
    providers: [Provider; 1],
}

#[derive(Debug, Serialize)]
struct Provider {
    provider: &'static str,
    names: &'static [&'static str],
}

impl Command for QueryStats {
    type Ok = Vec<StatsOfOne>;
    const NAME: &'static str = "query-stats";
    const ALLOW_OOB: bool = false;
}

#[derive(Debug, Deserialize)]
struct StatsOfOne {
    stats: Vec<Stat>,
}

#[derive(Debug, Deserialize)]
struct Stat {
    name: String,
    /// A number, a truth value, or a histogram.
    value: serde_json::Value,
}

impl Observer {
    /// Connects to a QMP socket.
    ///
    /// # Errors
    /// Nobody is there, or somebody else is connected: QEMU takes one client of a socket at a time.
    pub async fn connect(path: &Path) -> Result<Self> {
        let connect = async {
            let socket = UnixStream::connect(path).await?;
            socket.into_std()
        };
        let socket = connect
            .await
            .map_err(Error::file("connect to QEMU at", path))?;
        let greeted = tokio::time::timeout(GREETING_LIMIT, Qmp::connect(socket)).await;
        let qmp = greeted.map_err(|_| Error::Timeout {
            what: "greet another QMP client (is somebody else connected there?)",
            seconds: GREETING_LIMIT.as_secs(),
        })?;
        Ok(Observer { qmp: qmp? })
    }

    /// The connection, for what does more than ask.
    pub(crate) fn into_qmp(self) -> Qmp {
        self.qmp
    }

    /// QEMU's version, such as `7.2.22`.
    pub fn version(&self) -> &str {
        self.qmp.version()
    }

    /// Events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<VmEvent> {
        self.qmp.subscribe()
    }

    /// The virtual processors.
    ///
    /// # Errors
    /// QEMU is gone or does not answer; so with all others.
    pub async fn vcpus(&self) -> Result<Vec<Vcpu>> {
        self.qmp.execute(&QueryCpus {}).await
    }

    /// The counters of all disks of the guest.
    ///
    /// # Errors
    /// As [`Observer::vcpus`].
    pub async fn blocks(&self) -> Result<Vec<BlockCounters>> {
        let devices = self.qmp.execute(&QueryBlock {}).await?;
        let of_guest = |d: &BlockDevice| d.qdev.is_some() || !d.device.is_empty();
        Ok(devices
            .into_iter()
            .filter(of_guest)
            .map(|d| d.stats)
            .collect())
    }

    /// Whether QEMU runs the guest.
    ///
    /// # Errors
    /// As [`Observer::vcpus`].
    pub async fn is_running(&self) -> Result<bool> {
        Ok(self.qmp.execute(&QueryStatus {}).await?.running)
    }

    /// Bytes of the guest's RAM.
    ///
    /// # Errors
    /// As [`Observer::vcpus`].
    pub async fn memory_bytes(&self) -> Result<u64> {
        Ok(self.qmp.execute(&QueryMemory {}).await?.base)
    }

    /// Whether KVM runs the guest.
    ///
    /// # Errors
    /// As [`Observer::vcpus`].
    pub async fn is_kvm(&self) -> Result<bool> {
        Ok(self.qmp.execute(&QueryKvm {}).await?.enabled)
    }

    /// These figures of KVM, for each virtual processor; those that KVM does not know are left out.
    ///
    /// # Errors
    /// As [`Observer::vcpus`]; or QEMU is too old (7.1 has it).
    pub async fn kvm(&self, names: &'static [&'static str]) -> Result<Vec<Vec<KvmFigure>>> {
        let question = QueryStats {
            target: "vcpu",
            providers: [Provider {
                provider: "kvm",
                names,
            }],
        };
        let answer = self.qmp.execute(&question).await?;
        let figures = answer.into_iter().map(|of_one| {
            let stats = of_one.stats.into_iter();
            let figures = stats.filter_map(|stat| {
                let value = stat
                    .value
                    .as_u64()
                    .or_else(|| stat.value.as_bool().map(u64::from))?;
                Some(KvmFigure {
                    name: stat.name,
                    value,
                })
            });
            figures.collect()
        });
        Ok(figures.collect())
    }
}
