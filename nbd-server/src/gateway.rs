//! A whole gateway put together from its configuration: groups, exports outside of groups, NBD listeners, control socket.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::control::server::{self, Gatekeeper};
use crate::group::directory::Directory;
use crate::group::open;
use crate::group::{Group, GroupConfig, OpenError, Progress, valid_name};
use crate::limits::Limits;
use crate::raw_export::{RawExport, RawExportError};
use crate::server::{
    BoundAddress, ListenAddress, ListenError, ParseAddressError, Server, SocketFile, bind_for_owner,
};

/// Threads of the control API: one may wait for a cut in sync mode while another answers.
const CONTROL_THREADS: usize = 2;
/// How long the control API may take to answer what is under way when the gateway stops.
const CONTROL_GRACE: Duration = Duration::from_secs(1);

/// An export outside of any group: sync mode, always.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportConfig {
    /// Its NBD name; may be empty, and hold no `/`.
    pub name: String,
    /// The raw image file or block device.
    pub image: PathBuf,
    /// Refuse all writes.
    #[serde(default)]
    pub read_only: bool,
}

/// What a gateway serves and where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// Path of the control socket; without it there is no control API, and no group can have a source.
    #[serde(default)]
    pub control: Option<PathBuf>,
    /// NBD addresses: `unix:/path` or `tcp:host:port`.
    pub listen: Vec<String>,
    /// Listen on TCP addresses that other machines reach, though nothing protects the connections.
    #[serde(default)]
    pub insecure: bool,
    /// Groups of disks.
    #[serde(default, rename = "group")]
    pub groups: Vec<GroupConfig>,
    /// Exports outside of groups.
    #[serde(default, rename = "export")]
    pub exports: Vec<ExportConfig>,
}

impl GatewayConfig {
    /// Checks all that can be checked without opening anything.
    ///
    /// # Errors
    /// [`GatewayError`] for the first thing that is wrong.
    pub fn check(&self) -> Result<(), GatewayError> {
        check(self).map(drop)
    }
}

/// Second export names of disks, from the alias to `group/disk`.
fn aliases(config: &GatewayConfig) -> BTreeMap<String, String> {
    let disks = config
        .groups
        .iter()
        .flat_map(|group| group.disks.iter().map(move |disk| (group, disk)));
    disks
        .filter_map(|(group, disk)| {
            Some((
                disk.export.clone()?,
                format!("{}/{}", group.name, disk.name),
            ))
        })
        .collect()
}

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The configuration is wrong.
    #[error("{0}")]
    Config(String),
    /// An address is none.
    #[error("the key 'listen' holds a wrong address")]
    Address(#[from] ParseAddressError),
    /// A group can't be opened.
    #[error(transparent)]
    Group(#[from] OpenError),
    /// An export can't be opened.
    #[error("export '{name}'")]
    Export {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: RawExportError,
    },
    /// An address can't be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The control API can't run.
    #[error("the control API can't be started")]
    Control(#[source] io::Error),
}

/// A running gateway. Dropping it without [`Gateway::shutdown`] is like a crash for what is not committed.
#[derive(Debug)]
pub struct Gateway {
    server: Server,
    addresses: Vec<BoundAddress>,
    directory: Arc<Directory>,
    control: Option<Control>,
}

#[derive(Debug)]
struct Control {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    _file: SocketFile,
}

impl Gateway {
    /// Starts everything: recovers the groups, then listens.
    ///
    /// # Errors
    /// [`GatewayError`]; nothing is left running.
    pub fn start(config: &GatewayConfig) -> Result<Self, GatewayError> {
        Self::start_with(config, &mut |_| {})
    }

    /// The same, and tells how far the recovery of the groups is.
    ///
    /// # Errors
    /// [`GatewayError`]; nothing is left running.
    pub fn start_with(
        config: &GatewayConfig,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, GatewayError> {
        let listen = check(config)?;
        let mut groups = BTreeMap::new();
        for group in &config.groups {
            groups.insert(group.name.clone(), Arc::new(Group::open(group, progress)?));
        }
        let mut exports = BTreeMap::new();
        for export in &config.exports {
            let raw = RawExport::open(&export.image, export.read_only).map_err(|source| {
                GatewayError::Export {
                    name: export.name.clone(),
                    source,
                }
            })?;
            exports.insert(export.name.clone(), Arc::new(raw));
        }
        let directory = Arc::new(Directory::new(groups, exports, aliases(config)));
        let server = Server::new(Arc::clone(&directory) as Arc<_>, Limits::default());
        let addresses = listen
            .iter()
            .map(|address| server.listen(address))
            .collect::<Result<Vec<_>, _>>()?;
        let control = match &config.control {
            Some(path) => Some(Control::start(path, &directory, config.listen.clone())?),
            None => None,
        };
        Ok(Self {
            server,
            addresses,
            directory,
            control,
        })
    }

    /// Where NBD is served, with the ports that the system chose.
    pub fn addresses(&self) -> &[BoundAddress] {
        &self.addresses
    }

    /// The group of that name.
    pub fn group(&self, name: &str) -> Option<&Arc<Group>> {
        self.directory.group(name)
    }

    /// Stops in order: requests under way are answered, groups without a source commit and apply what they hold. What a
    /// source holds in an open epoch is lost, as in a crash: detach it first, or let its standby take over.
    pub fn shutdown(mut self) {
        for group in self.directory.groups() {
            group.stop_waiting();
        }
        self.server.shutdown();
        if let Some(control) = &mut self.control {
            control.stop();
        }
        for group in self.directory.groups() {
            group.stop();
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // The listeners wait for requests under way, so those must not wait for anything.
        for group in self.directory.groups() {
            group.stop_waiting();
        }
    }
}

impl Control {
    fn start(
        path: &std::path::Path,
        directory: &Arc<Directory>,
        listen: Vec<String>,
    ) -> Result<Self, GatewayError> {
        let (listener, file) = bind_for_owner(path)?;
        let (stop, stopping) = watch::channel(false);
        let gatekeeper = Gatekeeper {
            directory: Arc::clone(directory),
            listen,
            stopping,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(CONTROL_THREADS)
            .thread_name("control")
            .enable_all()
            .build()
            .map_err(GatewayError::Control)?;
        let mut stopped = stop.subscribe();
        let serve = move || {
            runtime.block_on(async {
                let grace = async {
                    // An error says that the gateway was dropped.
                    let _ = stopped.wait_for(|stopping| *stopping).await;
                    tokio::time::sleep(CONTROL_GRACE).await;
                };
                tokio::select! {
                    outcome = server::serve(listener, gatekeeper) => {
                        if let Err(error) = outcome {
                            tracing::error!(%error, "the control API has failed");
                        }
                    }
                    () = grace => {}
                }
            });
            runtime.shutdown_timeout(CONTROL_GRACE);
        };
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(serve)
            .map_err(GatewayError::Control)?;
        Ok(Self {
            stop,
            thread: Some(thread),
            _file: file,
        })
    }

    fn stop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A panic of it has been reported by itself.
            drop(thread.join());
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop();
    }
}

fn check(config: &GatewayConfig) -> Result<Vec<ListenAddress>, GatewayError> {
    let fail = |what: String| Err(GatewayError::Config(what));
    if config.listen.is_empty() {
        return fail(
            "the key 'listen' is empty; add an address such as \"unix:/run/epochgate/nbd.sock\""
                .to_owned(),
        );
    }
    if config.groups.is_empty() && config.exports.is_empty() {
        return fail("there is nothing to serve; add a [[group]] or an [[export]]".to_owned());
    }
    let mut names: Vec<_> = config.groups.iter().map(|group| &group.name).collect();
    names.extend(config.exports.iter().map(|export| &export.name));
    let disks = config.groups.iter().flat_map(|group| &group.disks);
    names.extend(disks.filter_map(|disk| disk.export.as_ref()));
    names.sort();
    if let Some(pair) = names.windows(2).find(|pair| pair.first() == pair.last()) {
        let name = pair.first().map_or("", |name| name.as_str());
        return fail(format!(
            "two groups or exports are named '{name}'; give each a name of its own"
        ));
    }
    if let Some(export) = config
        .exports
        .iter()
        .find(|export| !export.name.is_empty() && !valid_name(&export.name))
    {
        return fail(format!(
            "the export name '{}' must be empty or have 1 to 64 ASCII letters, digits, '-', '_' or '.'",
            export.name
        ));
    }
    for group in &config.groups {
        open::check(group)?;
    }
    let listen: Result<Vec<ListenAddress>, _> = config
        .listen
        .iter()
        .map(|address| address.parse())
        .collect();
    let listen: Vec<ListenAddress> = listen?
        .into_iter()
        .map(|address| address.with_insecure(config.insecure))
        .collect();
    listen.iter().try_for_each(check_exposed)?;
    Ok(listen)
}

/// Refuses numeric addresses that other machines reach, before any log is opened. Names of hosts are resolved, and refused,
/// only when they are listened on.
fn check_exposed(address: &ListenAddress) -> Result<(), GatewayError> {
    if let ListenAddress::Tcp {
        host_port,
        insecure: false,
    } = address
        && let Ok(address) = host_port.parse::<SocketAddr>()
        && !address.ip().is_loopback()
    {
        return Err(ListenError::Insecure { address }.into());
    }
    Ok(())
}
