//! A NAS on this machine: nfs-ganesha and rpcbind on a host of their own (network and mount namespaces without a name), with an ext4 file
//! system in a file as its disk, and a cable to a second host where gateways run. It can be frozen, killed, started again, lose its
//! export, and lose power: then what it had not synced is gone. Needs root.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::die_with_parent::die_with_parent;
use crate::process::Process;
use crate::waiting::wait_until;

/// The NAS.
pub const ADDRESS: &str = "10.79.0.2";
/// Where its disk is mounted, and what it exports.
const EXPORT: &str = "/srv/nas";

/// The NAS, and the host beside it.
#[derive(Debug)]
pub struct Nas {
    server: Option<Process>,
    // Ended after the server.
    mapper: Child,
    nas: Child,
    host: Child,
    dir: PathBuf,
    /// Which copy of the disk is in use.
    disk: u32,
}

impl Nas {
    /// Starts it. Its files are in `dir`; its disk has `mib` MiB.
    #[track_caller]
    pub fn start(dir: &Path, mib: u64) -> Self {
        assert!(
            rustix::process::getuid().is_root(),
            "a NAS in namespaces needs root: run this test with sudo"
        );
        let disk = dir.join("nas-0.ext4");
        let file = File::create(&disk).expect("a file can be made");
        file.set_len(mib << 20).expect("a file can be long");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk));
        let nas = holder(&["--net", "--mount"]);
        let host = holder(&["--net"]);
        ip(&host, "link set lo up\n");
        ip(&nas, "link set lo up\n");
        ip(
            &nas,
            &format!(
                "link add eth0 type veth peer name eth0 netns {}\n",
                host.id()
            ),
        );
        let up = |address: &str| format!("addr add {address}/24 dev eth0\nlink set eth0 up\n");
        ip(&nas, &up(ADDRESS));
        ip(&host, &up("10.79.0.1"));
        // What the daemons keep there is nobody else's business.
        let places = "mkdir -p /var/lib/nfs; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /var/lib/nfs; mount -t tmpfs tmpfs /srv; \
                      mkdir -p /run/ganesha /run/rpcbind /var/lib/nfs/ganesha /srv/nas";
        run(on(&nas, "sh").args(["-ec", places]));
        let mut mapper = on(&nas, "rpcbind");
        mapper.arg("-f").stdin(Stdio::null());
        die_with_parent(&mut mapper);
        let mapper = mapper.spawn().expect("rpcbind can be started");
        let mut nas = Self {
            server: None,
            mapper,
            nas,
            host,
            dir: dir.to_owned(),
            disk: 0,
        };
        nas.mount();
        nas.boot(true);
        nas
    }

    /// The URL of a file or a directory on it.
    pub fn url(&self, name: &str) -> String {
        format!("nfs://{ADDRESS}{EXPORT}/{name}")
    }

    /// A file of its disk, as this machine sees it.
    pub fn file(&self, name: &str) -> PathBuf {
        format!("/proc/{}/root{EXPORT}/{name}", self.nas.id()).into()
    }

    /// A command on the host beside it.
    pub fn host(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.host.id()))
            .arg(program);
        command
    }

    fn mount(&self) {
        run(on(&self.nas, "mount")
            .args(["-o", "loop"])
            .arg(self.disk_file())
            .arg(EXPORT));
    }

    fn disk_file(&self) -> PathBuf {
        self.dir.join(format!("nas-{}.ext4", self.disk))
    }

    fn boot(&mut self, exports: bool) {
        let config = self.dir.join("ganesha.conf");
        let mut text =
            "NFS_CORE_PARAM { Protocols = 3; Enable_NLM = false; Enable_RQUOTA = false; }\n\
                        NFSv4 { Graceless = true; }\nLOG { Default_Log_Level = EVENT; }\n"
                .to_owned();
        if exports {
            // With a number of its own it is the same file system after its device has changed.
            text.push_str(&format!(
                "EXPORT {{ Export_Id = 1; Filesystem_Id = 79.1; Path = {EXPORT}; Pseudo = {EXPORT}; Access_Type = RW; \
                 Squash = No_Root_Squash; SecType = sys; Protocols = 3; Transports = TCP; FSAL {{ Name = VFS; }} }}\n"
            ));
        }
        std::fs::write(&config, text).expect("a file can be written");
        let mut command = on(&self.nas, "ganesha.nfsd");
        command
            .args(["-F", "-p", "/run/ganesha/pid", "-L"])
            .arg(self.dir.join("ganesha.log"))
            .arg("-f")
            .arg(&config);
        let mut server = Process::start("nas", &self.dir, command);
        let nas = self.nas.id();
        wait_until(
            "the NAS to listen",
            || {
                assert!(!server.ended(), "nfs-ganesha has ended");
                listens(nas).then_some(())
            },
            || std::fs::read_to_string(self.dir.join("ganesha.log")).unwrap_or_default(),
        );
        self.server = Some(server);
    }

    /// SIGSTOP: it answers nothing, and its connections stay.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let Some(server) = &self.server else { return };
        // Not all its threads stop at once.
        let tasks = format!("/proc/{}/task", server.pid());
        let all_stand = || {
            let mut tasks = std::fs::read_dir(&tasks).ok()?;
            tasks
                .all(|task| {
                    let stat = task.map(|task| task.path().join("stat"));
                    let stat = stat.and_then(std::fs::read_to_string).unwrap_or_default();
                    stat.rsplit(')')
                        .next()
                        .is_none_or(|rest| !rest.trim_start().starts_with(['R', 'S', 'D']))
                })
                .then_some(())
        };
        wait_until("the NAS to stand still", all_stand, String::new);
    }

    /// It goes on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(server) = &self.server {
            server.signal(signal);
        }
    }

    /// SIGKILL for the server.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill();
        }
    }

    /// Starts it again.
    pub fn start_again(&mut self) {
        self.boot(true);
    }

    /// Starts it again, and it has forgotten what it exports.
    pub fn start_without_export(&mut self) {
        self.boot(false);
    }

    /// The server dies, and with it all that the NAS had in its memory: its disk is as it was at that instant.
    #[track_caller]
    pub fn lose_power(&mut self) {
        self.kill();
        let before = self.disk_file();
        self.disk += 1;
        // What the file system had not written yet is not in the file yet.
        run(Command::new("cp")
            .arg("--sparse=always")
            .arg(&before)
            .arg(self.disk_file()));
        run(on(&self.nas, "umount").args(["-l", EXPORT]));
        self.mount();
        std::fs::remove_file(before).expect("a file can be removed");
    }
}

impl Drop for Nas {
    fn drop(&mut self) {
        self.kill();
        for child in [&mut self.mapper, &mut self.nas, &mut self.host] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Whether something listens at the port of NFS in the network of `pid`.
fn listens(pid: u32) -> bool {
    let listening = |file: &str| {
        let sockets = std::fs::read_to_string(format!("/proc/{pid}/net/{file}"));
        // Port 2049 in state LISTEN (proc_net_tcp).
        sockets.is_ok_and(|text| {
            text.lines().any(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                fields.get(1).is_some_and(|local| local.ends_with(":0801"))
                    && fields.get(3) == Some(&"0A")
            })
        })
    };
    listening("tcp") || listening("tcp6")
}

/// A process that keeps namespaces.
fn holder(options: &[&str]) -> Child {
    let mut command = Command::new("unshare");
    command.args(options).arg("cat");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    die_with_parent(&mut command);
    let mut child = command.spawn().expect("unshare of util-linux is there");
    // It answers when it is in its namespaces.
    let stdin = child.stdin.as_mut().expect("stdin is a pipe");
    stdin.write_all(b"?").expect("the holder listens");
    let stdout = child.stdout.as_mut().expect("stdout is a pipe");
    let answer = stdout.read_exact(&mut [0; 1]);
    answer.expect("root may make namespaces");
    child
}

/// A command in the namespaces of a holder.
fn on(holder: &Child, program: &str) -> Command {
    let pid = holder.id();
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/proc/{pid}/ns/net"))
        .arg(format!("--mount=/proc/{pid}/ns/mnt"))
        .arg(program);
    command
}

#[track_caller]
fn ip(holder: &Child, batch: &str) {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/proc/{}/ns/net", holder.id()))
        .args(["ip", "-batch", "-"])
        .stdin(Stdio::piped());
    let mut child = command.spawn().expect("nsenter of util-linux is there");
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    stdin.write_all(batch.as_bytes()).expect("ip reads");
    drop(stdin);
    assert!(
        child.wait().expect("ip ends").success(),
        "ip failed at\n{batch}"
    );
}

#[track_caller]
fn run(command: &mut Command) {
    let ended = command.output().unwrap_or_else(|error| {
        panic!(
            "{} can't be started: {error}",
            command.get_program().display()
        )
    });
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{command:?}: {said}");
}
