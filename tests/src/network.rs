//! A network for one guest: a switch with the two QEMUs' taps in one network namespace, and the outside world in another, at the other
//! end of a cable. Needs root, as any tap does. Nothing has a name, so nothing stays behind.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
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

/// What the guest's kernel is told.
pub const GUEST_CMDLINE: &str =
    "guest.address=10.78.0.2/24 witness.service=7000 witness.beacon=10.78.0.1:9000";
/// What QEMU is told, as it continues a list in TOML.
pub const QEMU_ARGS: &str = r#", "-netdev", "tap,id=n0,ifname=tap-{host},script=no,downscript=no", "-device", "virtio-net-pci,netdev=n0,mac=52:54:00:78:00:02,romfile=""#;

/// Frames of all protocols, in network order (linux/if_ether.h).
const ETH_P_ALL: i32 = 0x0003_u16.to_be() as i32;

/// The network. The thread that made it is on the side of the QEMUs, as is all that it starts.
#[derive(Debug)]
pub struct Lan {
    outside: Arc<File>,
}

impl Lan {
    /// Moves this thread, for good, into a new network namespace with the switch.
    #[track_caller]
    pub fn enter() -> Self {
        assert!(
            rustix::process::getuid().is_root(),
            "taps and network namespaces need root: run this test with sudo"
        );
        let (inside, outside) = (Namespace::new(), Namespace::new());
        inside.enter();
        let peer = outside.holder.id();
        ip(&format!(
            "link set lo up\n\
             link add switch type bridge mcast_snooping 0\n\
             link set switch up\n\
             tuntap add tap-host-a mode tap\n\
             link set tap-host-a master switch up\n\
             tuntap add tap-host-b mode tap\n\
             link set tap-host-b master switch up\n\
             link add cable type veth peer name eth0 netns {peer}\n\
             link set cable master switch up\n"
        ));
        let lan = Self {
            outside: Arc::new(outside.open()),
        };
        lan.outside(|| ip("link set lo up\naddr add 10.78.0.1/24 dev eth0\nlink set eth0 up\n"));
        lan
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

    /// Packets that the QEMU of a host has given to the network so far, of whatever kind. To be asked on the thread that made the network.
    #[track_caller]
    pub fn packets_from(&self, host: &str) -> u64 {
        // Not /proc/net: that is the network of the process's first thread.
        let table = std::fs::read_to_string("/proc/thread-self/net/dev").expect("/proc is there");
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

    fn enter(&self) {
        enter(&self.open());
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
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
