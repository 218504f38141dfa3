//! A NAS for a site: nfs-ganesha with rpcbind in network and mount namespaces of their own, and a second network namespace beside it for the
//! gateway, which sees its images and its log over nfs:// only. The server can be frozen, killed and started again. Nothing has a name, so
//! nothing stays behind.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;

use super::namespaces::{Holder, Place, allowed};
use super::network::ip;
use super::process::{die_with_parent, signal_pid, state};

/// Address of the NAS.
const ADDRESS: &str = "10.79.0.2";
/// How long it may take to start.
const START: Duration = Duration::from_secs(30);
/// Where its daemons keep what is nobody else's business.
const PLACES: &str = "mkdir -p /var/lib/nfs; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /var/lib/nfs; \
                      mkdir -p /run/ganesha /run/rpcbind /var/lib/nfs/ganesha;";

/// The NAS of a site.
#[derive(Debug)]
pub(crate) struct Nas {
    server: Option<Child>,
    mapper: Child,
    nas: Holder,
    host: Holder,
    dir: PathBuf,
}

impl Nas {
    /// Starts a NAS that exports `dir`, which is made.
    pub(crate) fn start(dir: &Path) -> anyhow::Result<Self> {
        if let Err(why) = allowed() {
            bail!("a NAS {why}; run this as root");
        }
        std::fs::create_dir(dir)?;
        let nas = Holder::start(
            &["--net", "--mount", "--propagation", "private"],
            PLACES,
            &[],
        )?;
        let host = Holder::network()?;
        let cable = format!(
            "link add eth0 type veth peer name eth0 netns {}\n",
            host.pid()
        );
        ip(&nas.place()?, &(cable + &up(ADDRESS)))?;
        ip(&host.place()?, &up("10.79.0.1"))?;
        let mapper = spawn(&nas, Command::new("rpcbind").arg("-f"))
            .context("rpcbind can't be started (Debian: rpcbind)")?;
        let mut started = Self {
            server: None,
            mapper,
            nas,
            host,
            dir: dir.to_owned(),
        };
        started.start_server()?;
        Ok(started)
    }

    /// Where the gateway runs.
    pub(crate) fn host(&self) -> anyhow::Result<Place> {
        self.host.place()
    }

    /// The URL of a file or a directory in the export.
    pub(crate) fn url(dir: &Path, name: &str) -> PathBuf {
        format!("nfs://{ADDRESS}{}/{name}", dir.display()).into()
    }

    /// Starts the server, again if it was killed.
    pub(crate) fn start_server(&mut self) -> anyhow::Result<()> {
        let beside = |name: &str| self.dir.with_extension(name);
        let dir = self.dir.display();
        let config = beside("conf");
        std::fs::write(
            &config,
            format!(
                "NFS_CORE_PARAM {{ Protocols = 3; Enable_NLM = false; Enable_RQUOTA = false; }}\nNFSv4 {{ Graceless = true; }}\n\
                 EXPORT {{ Export_Id = 1; Path = {dir}; Pseudo = /nas; Access_Type = RW; Squash = No_Root_Squash; SecType = sys; \
                 Protocols = 3; Transports = TCP; FSAL {{ Name = VFS; }} }}\n"
            ),
        )?;
        let mut command = Command::new("ganesha.nfsd");
        command
            .args(["-F", "-p", "/run/ganesha/pid", "-L"])
            .arg(beside("log"))
            .arg("-f")
            .arg(&config);
        let mut server = spawn(&self.nas, &mut command)
            .context("nfs-ganesha can't be started (Debian: nfs-ganesha, nfs-ganesha-vfs)")?;
        let deadline = Instant::now() + START;
        while !listens(self.nas.pid()) {
            ensure!(
                server.try_wait()?.is_none() && Instant::now() < deadline,
                "nfs-ganesha did not start:\n{}",
                std::fs::read_to_string(beside("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        self.server = Some(server);
        Ok(())
    }

    /// SIGSTOP: it answers nothing, and its connections stay.
    pub(crate) fn freeze(&self) -> anyhow::Result<()> {
        let Some(server) = &self.server else {
            bail!("the NAS does not run");
        };
        signal_pid(server.id(), Signal::STOP);
        let deadline = Instant::now() + START;
        while state(server.id()) != Some('T') {
            ensure!(Instant::now() < deadline, "the NAS does not stand still");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// It goes on.
    pub(crate) fn thaw(&self) {
        if let Some(server) = &self.server {
            signal_pid(server.id(), Signal::CONT);
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

impl Drop for Nas {
    fn drop(&mut self) {
        self.kill();
        let _ = self.mapper.kill();
        let _ = self.mapper.wait();
    }
}

fn up(address: &str) -> String {
    format!("link set lo up\naddr add {address}/24 dev eth0\nlink set eth0 up\n")
}

fn spawn(holder: &Holder, command: &mut Command) -> anyhow::Result<Child> {
    let place = Place {
        network: Some(holder.namespace("net")?),
        mounts: Some(holder.namespace("mnt")?),
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    die_with_parent(command);
    place.enter(command);
    Ok(command.spawn()?)
}

/// Whether something listens at the port of NFS in the network of `pid` (proc_net_tcp: port 2049, state LISTEN).
fn listens(pid: u32) -> bool {
    ["tcp", "tcp6"].iter().any(|family| {
        let sockets = std::fs::read_to_string(format!("/proc/{pid}/net/{family}"));
        sockets.unwrap_or_default().lines().any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next().is_some_and(|local| local.ends_with(":0801"))
                && fields.nth(1) == Some("0A")
        })
    })
}
