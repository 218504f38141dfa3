//! Arguments of `epochgate monitor`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};

use super::duration;

#[derive(Debug, Subcommand)]
pub(crate) enum MonitorCommand {
    /// Record what a running VM looks like from outside, until it is told to stop. Nothing runs in the guest.
    Record(Box<RecordArgs>),
    /// Show what is in a recording.
    Show(ShowArgs),
    /// Judge a running VM: say when something is wrong with it, and do what is configured then.
    Watch(Box<WatchArgs>),
    /// Learn a model from a folder of recordings with labels.
    Train(TrainArgs),
    /// Judge how well a model would do on loads and kinds of fault that it has never seen: each is left out of learning in turn.
    Evaluate(EvaluateArgs),
    /// List the signals that are recorded, as docs/monitor.md has them.
    Signals,
}

/// Which VM. One of `--config`, `--vm` and `--qmp`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["config", "vm", "qmp"])))]
pub(crate) struct VmArgs {
    /// The VM that `epochgate protect` runs with this configuration file on this host.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The VM of this name that is protected on this host.
    #[arg(long, value_name = "NAME")]
    pub vm: Option<String>,
    /// Any QEMU: a QMP socket of it that nobody else uses.
    #[arg(long, value_name = "SOCKET", requires = "pid")]
    pub qmp: Option<PathBuf>,
    /// Process id of that QEMU.
    #[arg(long, value_name = "PID", requires = "qmp")]
    pub pid: Option<u32>,
    /// Where sources have their sockets, for `--vm`.
    #[arg(long, value_name = "DIR", default_value = "/run/epochgate")]
    pub runtime_dir: PathBuf,
    /// Control socket of the gateway that serves the VM's disks. With `--config` it is known.
    #[arg(long, value_name = "SOCKET")]
    pub gateway: Option<PathBuf>,
    /// Name of the VM's group there. With `--config` and `--vm` it is the VM's name.
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RecordArgs {
    #[command(flatten)]
    pub vm: VmArgs,
    /// The recording.
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
    /// Time between two samples, from 100ms to 10s.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub interval: Duration,
    /// End by itself after this time: 90s, 10m, 8h. Without: at SIGINT or SIGTERM.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub length: Option<Duration>,
    /// A label: `load=NAME`, `seed=NUMBER`, `note=TEXT`, or any other word as a tag. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// A fault that somebody makes while this runs, and when: KIND@FROM or KIND@FROM..UNTIL, times since the start, as `kernel_panic@90s`.
    #[arg(long, value_name = "KIND@TIME", value_parser = fault)]
    pub fault: Option<FaultAt>,
    /// No progress; a line of JSON when it has begun, and one at the end.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    pub vm: VmArgs,
    /// How to watch it, and what to do: docs/examples/monitor.toml is a commented one.
    #[arg(long, value_name = "FILE")]
    pub settings: Option<PathBuf>,
    /// Only check the settings.
    #[arg(long)]
    pub check: bool,
    /// Do nothing to the VM; say what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// A model that `epochgate monitor train` made, instead of the one that comes with Epochgate.
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Time between two samples, from 100ms to 10s; 1s unless the settings say otherwise.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub interval: Option<Duration>,
    /// Serve metrics for Prometheus here, over HTTP: an address such as 127.0.0.1:9110, or the path of a unix socket.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<String>,
    /// Write every event to stdout as one line of JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The recording.
    pub file: PathBuf,
    /// As JSON.
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// All samples as CSV: times in milliseconds, then a column for each signal; a missing value is an empty field.
    #[arg(long)]
    pub csv: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LearnArgs {
    /// Folder of recordings (`*.egrec`).
    pub data_set: PathBuf,
    /// How to learn: logistic, forest or boosted.
    #[arg(long, value_name = "NAME", default_value = "forest", value_parser = method)]
    pub method: monitor::model::Method,
    /// Of what is random.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Windows to learn from.
    #[arg(long, value_name = "COUNT", default_value_t = 6000)]
    pub rows: usize,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub learn: LearnArgs,
    /// The model.
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct EvaluateArgs {
    #[command(flatten)]
    pub learn: LearnArgs,
    /// All figures as one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Draw pictures into this folder, as SVG: ROC curves, confusion, some recordings by rule, F1 of each kind of fault and load.
    #[arg(long, value_name = "DIR")]
    pub plots: Option<PathBuf>,
    /// Evaluate this method alone, without all that it is compared with.
    #[arg(long)]
    pub alone: bool,
    /// Learn so many models at a time.
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    pub threads: usize,
}

fn method(text: &str) -> Result<monitor::model::Method, String> {
    let mut all = monitor::model::Method::ALL.into_iter();
    all.find(|method| method.name() == text)
        .ok_or_else(|| format!("\"{text}\" is none of logistic, forest, boosted"))
}

/// A fault with its times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FaultAt {
    pub kind: String,
    pub from: Duration,
    pub until: Option<Duration>,
}

fn fault(text: &str) -> Result<FaultAt, String> {
    let (kind, times) = text.split_once('@').ok_or("a fault is written KIND@TIME")?;
    let (from, until) = match times.split_once("..") {
        Some((from, until)) => (from, Some(duration(until)?)),
        None => (times, None),
    };
    Ok(FaultAt {
        kind: kind.to_owned(),
        from: duration(from)?,
        until,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(duration("8h"), Ok(Duration::from_secs(28_800)));
        assert!(duration("10").is_err());
        assert!(duration("s").is_err());
        assert!(duration("1.5s").is_err());
    }

    #[test]
    fn faults_have_times() {
        let until = |until| FaultAt {
            kind: "hang".to_owned(),
            from: Duration::from_secs(90),
            until,
        };
        assert_eq!(fault("hang@90s"), Ok(until(None)));
        assert_eq!(
            fault("hang@90s..2m"),
            Ok(until(Some(Duration::from_secs(120))))
        );
        assert!(fault("hang").is_err());
        assert!(fault("hang@soon").is_err());
    }
}
