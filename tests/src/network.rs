//! A network for one guest: two hosts and the storage host in network namespaces of their own, on a switch in a fourth; a second switch for
//! the guest, with a cable to a bridge on each host where its tap is, and one to the outside world in a fifth. That switch learns from
//! what comes in at its ports where the guest is. Needs root, as any tap does. Nothing has a name, so nothing stays behind.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, Socket, Type};

use crate::die_with_parent::die_with_parent;
use crate::waiting::wait_until;

/// The guest.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
/// Where the witness answers; it streams at the next port.
pub const SERVICE: SocketAddrV4 = SocketAddrV4::new(GUEST, 7000);
/// Where the witness sends its beacon to.
pub const BEACON: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 78, 0, 1), 9000);
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x78, 0, 2];

/// The hosts where the guest can be.
pub const HOSTS: [&str; 2] = ["host-a", "host-b"];
/// The host of the gateway.
pub const STORAGE: &str = "storage";
/// Hosts by number.
const PLACES: [&str; 3] = [HOSTS[0], HOSTS[1], STORAGE];

/// What the guest's kernel is told.
pub const GUEST_CMDLINE: &str =
    "guest.address=10.78.0.2/24 witness.service=7000 witness.beacon=10.78.0.1:9000";
/// What QEMU is told, as it continues a list in TOML.
pub const QEMU_ARGS: &str = r#", "-netdev", "tap,id=n0,ifname=tap-{host},script=no,downscript=no", "-device", "virtio-net-pci,netdev=n0,mac=52:54:00:78:00:02,disable-modern=on,romfile=""#;

/// Frames of all protocols, in network order (linux/if_ether.h).
const ETH_P_ALL: i32 = 0x0003_u16.to_be() as i32;

/// The network.
#[derive(Debug)]
pub struct Lan {
    hosts: Vec<File>,
    switch: File,
    outside: Arc<File>,
}

/// The address of a host on the network of the hosts.
///
/// # Panics
/// There is no such host.
#[track_caller]
pub fn address(host: &str) -> Ipv4Addr {
    let number = u8::try_from(number(host)).expect("there are three hosts");
    Ipv4Addr::new(10, 77, 0, number + 1)
}

#[track_caller]
fn number(host: &str) -> usize {
    let number = PLACES.iter().position(|name| *name == host);
    number.unwrap_or_else(|| panic!("there is no host {host}"))
}

impl Lan {
    /// Makes the network.
    #[track_caller]
    pub fn start() -> Self {
        assert!(
            rustix::process::getuid().is_root(),
            "taps and network namespaces need root: run this test with sudo"
        );
        let hosts = PLACES.map(|_| Namespace::new());
        let (switch, outside) = (Namespace::new(), Namespace::new());
        let lan = Self {
            hosts: hosts.iter().map(Namespace::open).collect(),
            switch: switch.open(),
            outside: Arc::new(outside.open()),
        };
        let bridge = |name: &str| {
            format!("link add {name} type bridge mcast_snooping 0\nlink set {name} up\n")
        };
        let mut ports = bridge("hosts") + &bridge("guests");
        for (name, host) in PLACES.iter().zip(&hosts) {
            ports.push_str(&format!(
                "link add at-{name} type veth peer name eth0 netns {}\nlink set at-{name} master hosts up\n",
                host.holder.id()
            ));
        }
        for (name, host) in HOSTS.iter().zip(&hosts) {
            ports.push_str(&format!(
                "link add {name} type veth peer name uplink netns {}\nlink set {name} master guests up\n",
                host.holder.id()
            ));
        }
        ports.push_str(&format!(
            "link add cable type veth peer name eth0 netns {}\nlink set cable master guests up\n",
            outside.holder.id()
        ));
        within(&lan.switch, || ip(&ports));
        for (name, host) in PLACES.iter().zip(&lan.hosts) {
            let mut own = format!(
                "link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\n",
                address(name)
            );
            if HOSTS.contains(name) {
                own.push_str(&bridge("guests"));
                own.push_str(&format!(
                    "link set uplink master guests up\n\
                     tuntap add tap-{name} mode tap\n\
                     link set tap-{name} master guests up\n"
                ));
            }
            within(host, || ip(&own));
        }
        lan.outside(|| ip("link set lo up\naddr add 10.78.0.1/24 dev eth0\nlink set eth0 up\n"));
        lan
    }

    /// Does something on a host, as all that it starts is: processes and threads.
    #[track_caller]
    pub fn on<T>(&self, host: &str, work: impl FnOnce() -> T) -> T {
        within(&self.hosts[number(host)], work)
    }

    /// The host to which the switch sends what is for the guest.
    pub fn learned(&self) -> Option<String> {
        let table = within(&self.switch, || {
            let show = ["fdb", "show", "br", "guests"];
            Command::new("bridge").args(show).output()
        });
        let Output { status, stdout, .. } = table.expect("bridge of iproute2 is there");
        assert!(status.success(), "bridge ended with {status}");
        let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
        let table = String::from_utf8_lossy(&stdout);
        let line = table.lines().find_map(|line| line.strip_prefix(&mac))?;
        // MAC dev PORT ...
        line.split_whitespace().nth(1).map(str::to_owned)
    }

    /// Does something in the outside world, on a thread of its own.
    pub fn outside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| self.beside(scope, work).join().expect("no panic outside"))
    }

    /// The same beside what this thread does.
    pub fn beside<'s, T: Send + 's>(
        &self,
        scope: &'s Scope<'s, '_>,
        work: impl FnOnce() -> T + Send + 's,
    ) -> ScopedJoinHandle<'s, T> {
        let outside = Arc::clone(&self.outside);
        scope.spawn(move || {
            enter(&outside);
            work()
        })
    }

    /// Does something in the outside world, on a thread that does not end with this one's scope.
    pub fn spawn_outside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let outside = Arc::clone(&self.outside);
        let thread = Builder::new().name("outside".into()).spawn(move || {
            enter(&outside);
            work()
        });
        thread.expect("a thread can be started")
    }

    /// Packets that the QEMU of a host has given to the network so far, of whatever kind.
    #[track_caller]
    pub fn packets_from(&self, host: &str) -> u64 {
        // Not /proc/net: that is the network of the process's first thread.
        let table = self.on(host, || {
            std::fs::read_to_string("/proc/thread-self/net/dev").expect("/proc is there")
        });
        let name = format!("tap-{host}:");
        let counts = table
            .lines()
            .find_map(|line| line.trim().strip_prefix(&name));
        // What the tap has received is what QEMU has sent: bytes, packets, ...
        counts
            .and_then(|counts| counts.split_ascii_whitespace().nth(1)?.parse().ok())
            .expect("the tap is there")
    }

    /// Waits until the QEMU of a host has sent so many more packets.
    #[track_caller]
    pub fn wait_for_more_from(&self, host: &str, more: u64) {
        let wanted = self.packets_from(host) + more;
        wait_until(
            "more packets",
            || (self.packets_from(host) >= wanted).then_some(()),
            || format!("{} of {wanted} came from {host}", self.packets_from(host)),
        );
    }

    /// Notes each frame of the guest that comes out of the switch, from now on.
    pub fn capture(&self) -> Capture {
        let outside = Arc::clone(&self.outside);
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let (ready, started) = std::sync::mpsc::channel();
        let capture = move || {
            enter(&outside);
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(ETH_P_ALL)));
            let socket = socket.expect("root may capture packets");
            let timeout = std::time::Duration::from_millis(50);
            socket.set_read_timeout(Some(timeout)).unwrap();
            // Before the first packet comes.
            ready.send(()).unwrap();
            let mut frames = Vec::new();
            let mut buffer = [0; 2048];
            while !until.load(Ordering::Relaxed) {
                // An error is the timeout.
                let length = (&socket).read(&mut buffer).unwrap_or(0);
                let t_us = now_us();
                if length >= 12 && buffer[6..12] == GUEST_MAC {
                    let bytes = buffer[..length].to_vec();
                    frames.push(Frame { t_us, bytes });
                }
            }
            frames
        };
        let thread = Builder::new().name("capture".into()).spawn(capture);
        let capture = Capture {
            thread: thread.expect("a thread can be started"),
            stop,
        };
        started.recv().expect("the capture runs");
        capture
    }
}

/// A frame of the guest.
#[derive(Debug, Clone)]
pub struct Frame {
    /// When it was seen, in microseconds since 1970.
    pub t_us: u64,
    /// From its Ethernet header on, at most 2048 bytes.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// The number in a packet of the beacon; None if it is something else.
    pub fn beacon(&self) -> Option<u64> {
        const UDP: usize = 14 + 20;
        let is_beacon = self.bytes.get(12..14)? == [8, 0]
            && *self.bytes.get(23)? == 17
            && *self.bytes.get(UDP + 2..UDP + 4)? == BEACON.port().to_be_bytes();
        let word = |at: usize| {
            Some(u64::from_le_bytes(
                self.bytes.get(at..at + 8)?.try_into().ok()?,
            ))
        };
        let (number, check) = (word(UDP + 8)?, word(UDP + 16)?);
        (is_beacon && number == check).then_some(number)
    }
}

/// A capture under way.
#[derive(Debug)]
pub struct Capture {
    thread: JoinHandle<Vec<Frame>>,
    stop: Arc<AtomicBool>,
}

impl Capture {
    /// Ends it; what was seen, in order.
    pub fn end(self) -> Vec<Frame> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the capture does not panic")
    }
}

/// A network namespace that lasts at least as long as this.
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "cat"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        die_with_parent(&mut command);
        let mut holder = command.spawn().expect("unshare of util-linux is there");
        // It answers when it is in its namespace.
        let stdin = holder.stdin.as_mut().expect("stdin is a pipe");
        stdin.write_all(b"?").expect("the holder listens");
        let stdout = holder.stdout.as_mut().expect("stdout is a pipe");
        let answer = stdout.read_exact(&mut [0; 1]);
        answer.expect("root may make a network namespace");
        Self { holder }
    }

    fn open(&self) -> File {
        File::open(format!("/proc/{}/ns/net", self.holder.id())).expect("the holder lives")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Does something in a namespace, and comes back.
fn within<T>(namespace: &File, work: impl FnOnce() -> T) -> T {
    let here = File::open("/proc/thread-self/ns/net").expect("this thread is somewhere");
    enter(namespace);
    let done = work();
    enter(&here);
    done
}

fn enter(namespace: &File) {
    let moved = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
    moved.expect("root may enter a namespace");
}

#[track_caller]
fn ip(batch: &str) {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped());
    let mut child = command.spawn().expect("ip of iproute2 is there");
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    stdin.write_all(batch.as_bytes()).expect("ip reads");
    drop(stdin);
    let status = child.wait().expect("ip ends");
    assert!(status.success(), "ip failed at\n{batch}");
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.expect("after 1970").as_micros()).expect("before the year 500000")
}
