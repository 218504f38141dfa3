//! `epochgate serve IMAGE`: one disk at once, as qemu-nbd would.

use std::path::PathBuf;
use std::process::ExitCode;

use nbd_server::gateway::{ExportConfig, GatewayConfig};
use nbd_server::group::{DiskConfig, GroupConfig, GroupMode};
use nbd_server::storage::Place;
use nbd_server::tls::TlsConfig;

use nbd_server::server::inherited_sockets;

use super::gateway;
use crate::cli::ServeArgs;
use crate::exit::usage;

/// Name of the group that an image in async mode is alone in.
const GROUP: &str = "image";

pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let config = config(args);
    if config.listen.is_empty() {
        return Err(usage(anyhow::anyhow!(
            "nobody says where to listen; give --unix PATH, --tcp ADDRESS or --vsock CID:PORT, or start it by systemd's socket activation"
        )));
    }
    config.check().map_err(usage)?;
    gateway::serve(&config, None)
}

fn config(args: &ServeArgs) -> GatewayConfig {
    let unix = args
        .unix
        .iter()
        .map(|path| format!("unix:{}", path.display()));
    let tcp = args.tcp.iter().map(|address| format!("tcp:{address}"));
    let vsock = args.vsock.iter().map(|address| format!("vsock:{address}"));
    let mut listen: Vec<String> = unix.chain(tcp).chain(vsock).collect();
    if listen.is_empty() {
        listen.extend((0..inherited_sockets()).map(|number| format!("systemd:{number}")));
    }
    let mut config = GatewayConfig {
        listen,
        insecure: args.insecure,
        tls: tls(args),
        metrics: args.metrics.clone(),
        ..GatewayConfig::default()
    };
    if args.async_mode {
        config.groups.push(GroupConfig {
            mode: GroupMode::Async,
            epoch_interval_ms: args.epoch_interval,
            history: None,
            memory_budget_mib: args.memory_budget,
            epoch_memory: args.epoch_memory.clone(),
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
            ..ExportConfig::default()
        });
    }
    config
}

/// Certificate and key come together: the command line sees to that.
fn tls(args: &ServeArgs) -> Option<TlsConfig> {
    let (certificate, key) = args.tls_certificate.clone().zip(args.tls_key.clone())?;
    Some(TlsConfig {
        mode: args.tls.into(),
        certificate,
        key,
        client_ca: args.tls_client_ca.clone(),
        unix_in_clear: false,
    })
}

/// `IMAGE.epochlog`, beside the image.
fn log_beside(args: &ServeArgs) -> PathBuf {
    if Place::is_url(&args.image)
        && let Some((place, query)) = args.image.to_str().and_then(|url| url.split_once('?'))
    {
        return format!("{place}.epochlog?{query}").into();
    }
    let mut log = args.image.clone().into_os_string();
    log.push(".epochlog");
    log.into()
}
