//! `epochgate detach`: bring all that is committed into the images of a group, and say where they are. They are plain raw files then.

use std::process::ExitCode;

use nbd_server::gateway::GatewayConfig;
use nbd_server::group::Group;

use crate::cli::DetachArgs;
use crate::config_file;
use crate::exit::Usage;

pub(crate) fn run(args: &DetachArgs) -> anyhow::Result<ExitCode> {
    let config: GatewayConfig = config_file::load(&args.config)?;
    let group = config.groups.iter().find(|group| group.name == args.group);
    let group = group.ok_or_else(|| {
        Usage(format!(
            "{} has no group \"{}\"",
            args.config.display(),
            args.group
        ))
    })?;
    // What a gateway that died has left in memory goes to the images, too.
    let opened = Group::open(group, &mut |_| {})?;
    opened.stop();
    let status = opened.status();
    anyhow::ensure!(
        status.applied == status.committed && status.owner.is_none(),
        "{}: {}",
        args.group,
        match status.owner {
            Some(owner) => format!("the source '{owner}' owns it; end its VM first"),
            None => status
                .last_error
                .unwrap_or_else(|| "not everything could be applied".to_owned()),
        }
    );
    if args.json {
        let images: Vec<_> = group.disks.iter().map(|disk| &disk.image).collect();
        println!(
            "{}",
            serde_json::json!({ "group": group.name, "epoch": status.applied, "images": images, "log": group.log })
        );
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{} is in its images, up to epoch {}:",
        group.name, status.applied
    );
    for disk in &group.disks {
        println!("  {:<12} {}  (raw)", disk.name, disk.image.display());
    }
    println!(
        "Take the group out of the configuration; its log and its history, {}, are not needed any more.",
        group.log.display()
    );
    Ok(ExitCode::SUCCESS)
}
