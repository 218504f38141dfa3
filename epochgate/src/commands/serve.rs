//! `epochgate serve IMAGE`: one disk at once, as qemu-nbd would.

use std::path::PathBuf;
use std::process::ExitCode;

use nbd_server::gateway::{ExportConfig, GatewayConfig};
use nbd_server::group::{DiskConfig, GroupConfig, GroupMode};

use super::gateway;
use crate::cli::ServeArgs;
use crate::exit::usage;

/// Name of the group that an image in async mode is alone in.
const GROUP: &str = "image";

pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let config = config(args);
    config.check().map_err(usage)?;
    gateway::serve(&config)
}

fn config(args: &ServeArgs) -> GatewayConfig {
    let unix = args
        .unix
        .iter()
        .map(|path| format!("unix:{}", path.display()));
    let tcp = args.tcp.iter().map(|address| format!("tcp:{address}"));
    let mut config = GatewayConfig {
        listen: unix.chain(tcp).collect(),
        insecure: args.insecure,
        ..GatewayConfig::default()
    };
    if args.async_mode {
        config.groups.push(GroupConfig {
            mode: GroupMode::Async,
            epoch_interval_ms: args.epoch_interval,
            ..GroupConfig::new(
                GROUP,
                log_beside(args),
                vec![DiskConfig {
                    name: "disk".to_owned(),
                    image: args.image.clone(),
                    read_only: false,
                    export: Some(args.name.clone()),
                }],
            )
        });
    } else {
        config.exports.push(ExportConfig {
            name: args.name.clone(),
            image: args.image.clone(),
            read_only: args.read_only,
        });
    }
    config
}

/// `IMAGE.epochlog`, beside the image.
fn log_beside(args: &ServeArgs) -> PathBuf {
    let mut log = args.image.clone().into_os_string();
    log.push(".epochlog");
    log.into()
}
