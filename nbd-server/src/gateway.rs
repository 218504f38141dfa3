//! A whole gateway put together from its configuration: groups, exports outside of groups, NBD listeners, control socket.

mod advice;
mod catalog;
mod clones;
mod figures;
mod past;
mod reload;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::access::{AccessError, AccessRule, AccessRules};
use crate::control::server::{self, Gatekeeper};
use crate::group::open;
use crate::group::{Group, GroupConfig, OpenError, Progress, valid_name};
use crate::image_file::ImageError;
use crate::limits::{Limits, LimitsConfig};
use crate::metrics::http::MetricsServer;
use crate::metrics::text::{self, Source};
use crate::metrics::{MetricsAddress, MetricsError};
use crate::policy::Policy;
use crate::rates::{RateError, RateLimit, RateLimits};
use crate::server::{
    BoundAddress, ListenAddress, ListenError, ParseAddressError, Server, SocketFile,
    bind_for_owner, is_exposed,
};
use crate::tls::{Tls, TlsConfig, TlsError, TlsMode};

use figures::GatewayFigures;

pub use catalog::{Catalog, ChangeError};
pub use reload::Reloaded;

/// Threads of the control API: one may wait for a cut in sync mode while another answers.
const CONTROL_THREADS: usize = 2;
/// How long the control API may take to answer what is under way when the gateway stops.
const CONTROL_GRACE: Duration = Duration::from_secs(1);

/// An export outside of any group: sync mode, always.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportConfig {
    /// Its NBD name; may be empty, and hold no `/`.
    pub name: String,
    /// The raw image file or block device.
    pub image: PathBuf,
    /// Refuse all writes.
    #[serde(default)]
    pub read_only: bool,
    /// Past the page cache (`O_DIRECT`): clients are told to ask for whole blocks of the storage.
    #[serde(default)]
    pub direct: bool,
    /// Let clients change the size of the image, if it is a file (NBD_CMD_RESIZE).
    #[serde(default)]
    pub client_resize: bool,
}

/// What a gateway serves and where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// Path of the control socket; without it there is no control API, and no group can have a source.
    #[serde(default)]
    pub control: Option<PathBuf>,
    /// NBD addresses: `unix:/path`, `tcp:host:port`, `tcp:[ipv6]:port`, `vsock:cid:port`, `vsock:*:port` or `systemd:number`.
    pub listen: Vec<String>,
    /// Listen on TCP addresses that other machines reach, though nothing protects the connections.
    #[serde(default)]
    pub insecure: bool,
    /// TLS. Without it connections are in the clear.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
    /// Who may attach what. Without rules everybody who can connect may attach everything.
    #[serde(default)]
    pub access: Vec<AccessRule>,
    /// Where metrics for Prometheus are served over HTTP, at `/metrics`: an IP address with a port, or the path of a unix socket. No one is
    /// asked who they are.
    #[serde(default)]
    pub metrics: Option<String>,
    /// Bounds on what clients may have under way.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// The pace that exports are held to.
    #[serde(default, rename = "rate_limit")]
    pub rate_limits: Vec<RateLimit>,
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
        check(self)?;
        self.limits()?;
        self.policy().map(drop)
    }

    /// What clients may do, from the keys and files that are about that.
    ///
    /// # Errors
    /// [`GatewayError`] for the first thing that is wrong.
    pub fn policy(&self) -> Result<Policy, GatewayError> {
        Ok(Policy {
            access: AccessRules::new(&self.access)?,
            tls: match &self.tls {
                Some(tls) => Tls::load(tls)?,
                None => None,
            },
            rates: RateLimits::new(&self.rate_limits)?,
        })
    }

    fn limits(&self) -> Result<Limits, GatewayError> {
        self.limits.limits().map_err(|key| {
            GatewayError::Config(format!("the key '{key}' under [limits] must be at least 1"))
        })
    }

    /// True when listening where other machines connect needs no leave: TLS is required there.
    fn is_protected(&self) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|tls| tls.mode == TlsMode::Require)
    }
}

/// Second export names of disks, from the alias to `group/disk`.
fn aliases(groups: &[GroupConfig]) -> BTreeMap<String, String> {
    let disks = groups
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
    /// TLS can't be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A rule under `[[access]]` is wrong.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A limit under `[[rate_limit]]` is wrong.
    #[error(transparent)]
    Rate(#[from] RateError),
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
        source: ImageError,
    },
    /// An address can't be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The metrics can't be served.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The control API can't run.
    #[error("the control API can't be started")]
    Control(#[source] io::Error),
}

/// A running gateway. Dropping it without [`Gateway::shutdown`] is like a crash for what is not committed.
#[derive(Debug)]
pub struct Gateway {
    server: Server,
    addresses: Vec<BoundAddress>,
    catalog: Arc<Catalog>,
    control: Option<Control>,
    metrics: Option<MetricsServer>,
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
        let (policy, limits) = (config.policy()?, config.limits()?);
        let storage = config.warn();
        let mut groups = BTreeMap::new();
        for group in &config.groups {
            groups.insert(group.name.clone(), Arc::new(Group::open(group, progress)?));
        }
        let mut exports = BTreeMap::new();
        for export in &config.exports {
            exports.insert(export.name.clone(), catalog::open_named(export)?);
        }
        let catalog = Arc::new(Catalog::new(config, groups, exports));
        catalog.note_storage(storage);
        let directory = Arc::clone(catalog.directory());
        let server = Server::with_policy(directory as Arc<_>, limits, policy);
        let addresses = listen
            .iter()
            .map(|address| server.listen(address))
            .collect::<Result<Vec<_>, _>>()?;
        let control = match &config.control {
            Some(path) => Some(Control::start(path, &catalog, config.listen.clone())?),
            None => None,
        };
        let metrics = match &config.metrics {
            Some(address) => {
                let figures: Arc<dyn Source> = Arc::new(GatewayFigures {
                    catalog: Arc::clone(&catalog),
                    connections: Box::new(server.connection_counter()),
                });
                let page = move || text::page(&figures);
                Some(MetricsServer::start(&address.parse()?, Arc::new(page))?)
            }
            None => None,
        };
        Ok(Self {
            server,
            addresses,
            catalog,
            control,
            metrics,
        })
    }

    /// Where the metrics are served, with the port that the system chose.
    pub fn metrics_address(&self) -> Option<&MetricsAddress> {
        self.metrics.as_ref().map(MetricsServer::address)
    }

    /// Where NBD is served, with the ports that the system chose.
    pub fn addresses(&self) -> &[BoundAddress] {
        &self.addresses
    }

    /// The group of that name.
    pub fn group(&self, name: &str) -> Option<Arc<Group>> {
        self.catalog.directory().group(name).ok()
    }

    /// What is served, and the way to change it.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Makes what is served what `config` says, see [`Catalog::reload`], and who may attach it; the
    /// files of `[tls]` are read again. Connections that are open keep what they were allowed. The outcome is part of the status. An error stands for a
    /// configuration that could not even be read.
    ///
    /// # Errors
    /// The error that was given, or the reload's; everything is as it was.
    pub fn reload(&self, config: Result<GatewayConfig, String>) -> Result<Reloaded, String> {
        let outcome = config.and_then(|config| {
            let reload = || {
                // First who may attach, then what: what is new is never seen by those whom the new rules keep from it.
                let new = Arc::new(config.policy()?);
                let old = self.server.set_policy(Arc::clone(&new));
                match self.catalog.reload(&config) {
                    Ok(mut reloaded) => {
                        reloaded.for_new_connections = old.differences(&new);
                        self.catalog.note_storage(config.warn());
                        Ok(reloaded)
                    }
                    Err(error) => {
                        self.server.set_policy(old);
                        Err(error)
                    }
                }
            };
            reload().map_err(|error: GatewayError| crate::group::with_sources(&error))
        });
        let said = outcome.as_ref().map(ToString::to_string);
        self.catalog.note_reload(said.map_err(Clone::clone));
        outcome
    }

    /// Stops in order: requests under way are answered, groups without a source commit and apply what they hold. What a
    /// source holds in an open epoch is lost, as in a crash: detach it first, or let its standby take over.
    pub fn shutdown(mut self) {
        self.catalog.stop();
        for group in self.catalog.directory().groups() {
            group.stop_waiting();
        }
        self.server.shutdown();
        if let Some(control) = &mut self.control {
            control.stop();
        }
        for group in self.catalog.directory().groups() {
            group.stop();
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // The listeners wait for requests under way, so those must not wait for anything.
        for group in self.catalog.directory().groups() {
            group.stop_waiting();
        }
    }
}

impl Control {
    fn start(
        path: &std::path::Path,
        catalog: &Arc<Catalog>,
        listen: Vec<String>,
    ) -> Result<Self, GatewayError> {
        let (listener, file) = bind_for_owner(path)?;
        let (stop, stopping) = watch::channel(false);
        let gatekeeper = Gatekeeper {
            catalog: Arc::clone(catalog),
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
    if config.groups.is_empty() && config.exports.is_empty() && config.control.is_none() {
        return fail(
            "there is nothing to serve; add a [[group]] or an [[export]], or a 'control' socket to add exports through"
                .to_owned(),
        );
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
    for export in &config.exports {
        check_export_name(&export.name).map_err(GatewayError::Config)?;
    }
    for group in &config.groups {
        open::check(group)?;
    }
    AccessRules::new(&config.access)?;
    if let Some(address) = &config.metrics {
        address.parse::<MetricsAddress>()?;
    }
    let listen: Result<Vec<ListenAddress>, _> = config
        .listen
        .iter()
        .map(|address| address.parse())
        .collect();
    let listen: Vec<ListenAddress> = listen?
        .into_iter()
        .map(|address| address.with_insecure(config.insecure || config.is_protected()))
        .collect();
    listen.iter().try_for_each(check_exposed)?;
    Ok(listen)
}

/// Refuses a name that can't be one of an export outside of groups.
fn check_export_name(name: &str) -> Result<(), String> {
    if name.is_empty() || valid_name(name) {
        return Ok(());
    }
    Err(format!(
        "the export name '{name}' must be empty or have 1 to 64 ASCII letters, digits, '-', '_' or '.'"
    ))
}

/// Refuses numeric addresses that other machines reach, before any log is opened. Names of hosts are resolved, and refused,
/// only when they are listened on.
fn check_exposed(address: &ListenAddress) -> Result<(), GatewayError> {
    if let ListenAddress::Tcp {
        host_port,
        insecure: false,
    } = address
        && let Ok(address) = host_port.parse::<SocketAddr>()
        && is_exposed(&address)
    {
        return Err(ListenError::Insecure { address }.into());
    }
    Ok(())
}
