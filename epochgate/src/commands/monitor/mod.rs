//! `epochgate monitor`: thin commands over the crate of that name.

pub(crate) mod evaluate;
mod plots;
pub(crate) mod record;
pub(crate) mod show;
pub(crate) mod train;
pub(crate) mod watch;
mod watch_metrics;

use std::path::PathBuf;
use std::process::ExitCode;

use coordinator::ProtectConfig;
use monitor::Watched;
use monitor::sample::Place;
use monitor::signals::{Kind, Signal};

use crate::cli::monitor::{MonitorCommand, VmArgs};
use crate::config_file;
use crate::exit::Usage;

pub(crate) fn run(command: &MonitorCommand) -> anyhow::Result<ExitCode> {
    match command {
        MonitorCommand::Record(args) => record::run(args),
        MonitorCommand::Show(args) => show::run(args),
        MonitorCommand::Watch(args) => watch::run(args),
        MonitorCommand::Train(args) => train::run(args),
        MonitorCommand::Evaluate(args) => evaluate::run(args),
        MonitorCommand::Signals => {
            print!("{}", signal_table());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The VM that was asked for.
#[derive(Debug, Clone)]
struct Target {
    /// Its name, for people and files; of a QEMU that nobody named its process id.
    name: String,
    place: Place,
    /// The gateway's control socket, and the name of its group there.
    gateway: Option<(PathBuf, String)>,
    runtime_dir: PathBuf,
}

impl Target {
    fn of(args: &VmArgs) -> anyhow::Result<Self> {
        let runtime_dir = args.runtime_dir.clone();
        let protected = |runtime_dir: PathBuf, name: String, gateway| Self {
            place: Watched::protected(&runtime_dir, &name).vm,
            name,
            gateway,
            runtime_dir,
        };
        let mut target = match (&args.config, &args.vm, &args.qmp, args.pid) {
            (Some(file), ..) => {
                let config: ProtectConfig = config_file::load(file)?;
                let gateway = Some((config.gateway, config.vm.name.clone()));
                protected(config.runtime_dir, config.vm.name, gateway)
            }
            (_, Some(name), ..) => protected(runtime_dir, name.clone(), None),
            (_, _, Some(socket), Some(pid)) => Self {
                name: args.group.clone().unwrap_or_else(|| format!("qemu-{pid}")),
                place: Watched::qemu(socket, pid).vm,
                gateway: None,
                runtime_dir,
            },
            _ => {
                return Err(Usage(
                    "which VM? One of --config, --vm and --qmp with --pid says so".to_owned(),
                )
                .into());
            }
        };
        let is_named = args.qmp.is_none();
        let (control, group) = target.gateway.take().unzip();
        let group = args.group.clone().or(group);
        let group = group.or(is_named.then(|| target.name.clone()));
        target.gateway = match (args.gateway.clone().or(control), group) {
            (Some(control), Some(group)) => Some((control, group)),
            (Some(_), None) => {
                return Err(Usage(
                    "--gateway needs --group: the name of the VM's disks there".to_owned(),
                )
                .into());
            }
            (None, _) => None,
        };
        Ok(target)
    }

    fn watched(&self) -> Watched {
        let watched = Watched {
            vm: self.place.clone(),
            gateway: None,
            dirty: None,
            gate: None,
        };
        match &self.gateway {
            Some((control, group)) => watched.with_gateway(control, group),
            None => watched,
        }
    }
}

/// All signals as a table of Markdown.
fn signal_table() -> String {
    let mut table = "| signal | unit | kind | source | what |\n|---|---|---|---|---|\n".to_owned();
    for signal in Signal::ALL {
        let kind = match signal.kind() {
            Kind::Gauge => "gauge",
            Kind::Rate => "rate",
            Kind::Count => "count",
        };
        let (unit, source, about) = (signal.unit(), signal.source(), signal.about());
        table.push_str(&format!(
            "| `{signal}` | {unit} | {kind} | {source} | {about} |\n"
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_this_table() -> anyhow::Result<()> {
        let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/monitor.md");
        let page = std::fs::read_to_string(page)?;
        assert!(
            page.contains(&signal_table()),
            "docs/monitor.md does not have the table that `epochgate monitor signals` prints"
        );
        Ok(())
    }
}
