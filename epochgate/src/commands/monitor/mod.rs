//! `epochgate monitor`: thin commands over the crate of that name.

pub(crate) mod evaluate;
mod plots;
pub(crate) mod record;
pub(crate) mod show;
pub(crate) mod train;

use std::path::PathBuf;
use std::process::ExitCode;

use coordinator::ProtectConfig;
use monitor::Watched;
use monitor::signals::{Kind, Signal};

use crate::cli::monitor::{MonitorCommand, VmArgs};
use crate::config_file;
use crate::exit::Usage;

pub(crate) fn run(command: &MonitorCommand) -> anyhow::Result<ExitCode> {
    match command {
        MonitorCommand::Record(args) => record::run(args),
        MonitorCommand::Show(args) => show::run(args),
        MonitorCommand::Train(args) => train::run(args),
        MonitorCommand::Evaluate(args) => evaluate::run(args),
        MonitorCommand::Signals => {
            print!("{}", signal_table());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The VM that was asked for.
fn watched(args: &VmArgs) -> anyhow::Result<Watched> {
    let (watched, gateway, group): (_, Option<PathBuf>, _) =
        match (&args.config, &args.vm, &args.qmp, args.pid) {
            (Some(file), ..) => {
                let config: ProtectConfig = config_file::load(file)?;
                let name = config.vm.name;
                (
                    Watched::protected(&config.runtime_dir, &name),
                    Some(config.gateway),
                    Some(name),
                )
            }
            (_, Some(name), ..) => (
                Watched::protected(&args.runtime_dir, name),
                None,
                Some(name.clone()),
            ),
            (_, _, Some(socket), Some(pid)) => (Watched::qemu(socket, pid), None, None),
            _ => {
                return Err(Usage(
                    "which VM? One of --config, --vm and --qmp with --pid says so".to_owned(),
                )
                .into());
            }
        };
    match (
        args.gateway.clone().or(gateway),
        args.group.clone().or(group),
    ) {
        (Some(control), Some(group)) => Ok(watched.with_gateway(control, group)),
        (Some(_), None) => Err(Usage(
            "--gateway needs --group: the name of the VM's disks there".to_owned(),
        )
        .into()),
        (None, _) => Ok(watched),
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
