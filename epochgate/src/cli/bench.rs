//! The options of `epochgate bench faults`, `nbd`, `commit` and `memory`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::LabArgs;
use crate::bench::server::Kind;
use crate::size;

/// A number of seconds above zero.
pub(super) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(seconds),
        _ => Err("write a number of seconds above 0, such as 2 or 0.5".to_owned()),
    }
}

/// What fits into a field of a table.
fn one_word(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err("write one word".to_owned());
    }
    Ok(text.to_owned())
}

/// Who sends the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ClientChoice {
    /// fio's nbd engine, with the jobs of fio-profiles/.
    Fio,
    /// Our own load generator: batches its requests, checks what it reads.
    Native,
    /// One after the other.
    Both,
}

// Little memory: the first copy of it is part of every run.
#[derive(Debug, Args)]
#[command(mut_arg("memory", |arg| arg.default_value("96")))]
pub(crate) struct FaultsArgs {
    #[command(flatten)]
    pub lab: LabArgs,
    /// How many runs. The cells that have had the fewest come first.
    #[arg(long, value_name = "N")]
    pub runs: Option<u32>,
    /// Run every cell until it has had so many runs.
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "runs", value_parser = clap::value_parser!(u32).range(1..))]
    pub per_cell: u32,
    /// Only cells with this in their names; `*` stands for anything. May be given several times.
    #[arg(long, value_name = "PATTERN")]
    pub cell: Vec<String>,
    /// Name all cells and how each may end, and run nothing.
    #[arg(long)]
    pub list: bool,
    /// Sites at the same time.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub parallel: u32,
    /// Seed of the order and of the random instants; printed, so that a run can be repeated.
    #[arg(long)]
    pub seed: Option<u64>,
    /// A file with one line of JSON for each run: earlier runs in it count, new ones are added.
    #[arg(long, value_name = "PATH")]
    pub results: Option<PathBuf>,
    /// A file with the sums of all runs so far, cell by cell: those in it count (and not those of --results), new ones are added.
    /// The fault matrix of this repository is in docs/faults.tsv.
    #[arg(long, value_name = "PATH")]
    pub ledger: Option<PathBuf>,
    /// What is run, for the ledger: the commit.
    #[arg(long, value_name = "COMMIT", default_value = "unknown", value_parser = one_word)]
    pub build: String,
    /// One JSON object at the end.
    #[arg(long, conflicts_with = "markdown")]
    pub json: bool,
    /// Markdown at the end, as in docs/results.md.
    #[arg(long)]
    pub markdown: bool,
    /// Keep the working directories of failed runs.
    #[arg(long)]
    pub keep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct NbdArgs {
    /// Who sends the requests.
    #[arg(long, value_enum, default_value = "both")]
    pub client: ClientChoice,
    /// The gateway's modes.
    #[arg(long, value_delimiter = ',', default_value = "sync,async")]
    pub modes: Vec<String>,
    /// Servers to compare with, and floors; `none` for the gateway alone. Default: all.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub peers: Vec<String>,
    /// Load profiles. Default: all.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub profiles: Vec<String>,
    /// Numbers of connections.
    #[arg(long, value_delimiter = ',', default_value = "1,4", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub connections: Vec<u16>,
    /// How often everything is run; all servers alternate within each repetition.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
    /// Length of one run.
    #[arg(long, value_name = "S", default_value = "2", value_parser = seconds)]
    pub seconds: f64,
    /// Size of the disk; each server has one of its own with the same content.
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = size::parse)]
    pub size: u64,
    /// Milliseconds between two epochs in async mode.
    #[arg(long, value_name = "MS", default_value_t = 100)]
    pub epoch_interval: u64,
    /// The gateway's memory for epochs in async mode, in MiB. The kernel lets the page cache of the peers grow to a fifth of the
    /// machine's memory before their writes wait.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub memory_budget: u64,
    /// The native client asks for structured replies.
    #[arg(long)]
    pub structured: bool,
    /// Seed of the order and of the offsets.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where the disks lie while it runs. Default: the directory for temporary files.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
    /// Bars of the medians as an SVG picture.
    #[arg(long, value_name = "PATH")]
    pub svg: Option<PathBuf>,
}

/// In what order an epoch is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pattern {
    /// Blocks of 256 KiB, one after the other.
    Sequential,
    /// Blocks of 4 KiB, each once, in random order.
    Random,
    /// Blocks of 4 KiB at random in a quarter of the bytes: each is written four times in the mean.
    Overwrite,
}

#[derive(Debug, Args)]
pub(crate) struct CommitArgs {
    /// What the guest writes in one epoch.
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = size::parse)]
    pub size: u64,
    /// In what order.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "sequential,random,overwrite"
    )]
    pub pattern: Vec<Pattern>,
    /// Where log, disk and fio's file lie: the storage that is measured.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// How often; gateway and fio take turns.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct MemoryArgs {
    /// The group's memory budget; whole MiB.
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = size::parse)]
    pub budget: u64,
    /// Stop after so many epochs: an hour has 36,000 of 100 ms.
    #[arg(long, value_name = "N", default_value_t = 36_000)]
    pub epochs: u64,
    /// Stop after so many bytes.
    #[arg(long, value_name = "BYTES", value_parser = size::parse)]
    pub volume: Option<u64>,
    /// Stop after this time, whatever else was asked for.
    #[arg(long, value_name = "S", default_value = "240", value_parser = seconds)]
    pub seconds: f64,
    /// Milliseconds between two epochs; short, so that many fit into little time.
    #[arg(long, value_name = "MS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub epoch_interval: u64,
    /// Size of the disk that is written.
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = size::parse)]
    pub size: u64,
    /// Where log and disks lie: the storage that is too slow. Default: the directory for temporary files.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Where the figures go, beside the table on stdout.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// All figures as JSON; on stdout instead of the table if no path is given.
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
    /// The table as Markdown; on stdout instead of the table if no path is given.
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "-")]
    pub markdown: Option<PathBuf>,
}

/// The servers that `--modes` and `--peers` choose, or the name that is none.
pub(crate) fn servers(modes: &[String], peers: &[String]) -> Result<Vec<Kind>, String> {
    let named = |name: &str| {
        Kind::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| {
                let names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
                format!(
                    "there is no server `{name}`; there are {}",
                    names.join(", ")
                )
            })
    };
    let mut chosen = Vec::new();
    for mode in modes.iter().filter(|mode| *mode != "none") {
        chosen.push(named(&format!("epochgate-{mode}"))?);
    }
    if peers.is_empty() {
        chosen.extend(Kind::ALL.into_iter().skip(2));
    }
    for peer in peers.iter().filter(|peer| *peer != "none") {
        chosen.push(named(peer)?);
    }
    chosen.sort();
    chosen.dedup();
    Ok(chosen)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_chosen_by_name() {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            servers(&names(&["sync", "async"]), &[]).unwrap().len(),
            Kind::ALL.len()
        );
        assert_eq!(
            servers(&names(&["async"]), &names(&["none"])).unwrap(),
            [Kind::Async]
        );
        assert!(
            servers(&[], &names(&["nbdkit"]))
                .unwrap_err()
                .contains("nbdkit-file")
        );
    }
}
