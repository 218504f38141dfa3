//! A gateway that is attacked, and the ordinary client that works beside the attackers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use epochgate_tests::nbd::{Client, FLUSH, OPT_GO, READ, Request, ZEROES, go, option};
use epochgate_tests::process::Process;
use epochgate_tests::random::Random;
use epochgate_tests::resources::{descriptors, peak_resident, resident, threads};
use epochgate_tests::site::{make_image, tempdir, wait_for_socket};
use epochgate_tests::waiting::wait_until;

/// Size of the disk.
pub const BYTES: u64 = 64 << 20;
/// What the allocator may keep of memory that is free again.
pub const KEPT: u64 = 96 << 20;
/// The innocent client has the first MiB for itself.
pub const INNOCENT: u64 = 1 << 20;

pub struct Victim {
    /// Image, socket and log.
    pub dir: tempfile::TempDir,
    /// The process.
    pub gateway: Process,
    /// What it held before anybody came: memory, threads, descriptors.
    before: (u64, u64, u64),
}

impl Victim {
    pub fn start(options: &[&str]) -> Self {
        let dir = tempdir();
        let file = |name: &str| dir.path().join(name).display().to_string();
        let (image, socket) = (file("disk.img"), file("nbd.sock"));
        make_image(image.as_ref(), BYTES);
        let fixed = ["serve", &image, "--unix", &socket, "--tcp", "127.0.0.1:0"];
        let place = file("");
        let memory = ["--epoch-memory", &place];
        let memory = memory.iter().filter(|_| options.contains(&"--async"));
        let args = fixed.iter().chain(options).chain(memory);
        let mut gateway = Process::epochgate("gateway", dir.path(), args, &[]);
        wait_for_socket(socket.as_ref(), &mut gateway);
        let pid = gateway.pid();
        // The client that found the socket may not be gone yet.
        let before = wait_until(
            "a quiet gateway",
            || {
                let now = (resident(pid), threads(pid), descriptors(pid));
                std::thread::sleep(std::time::Duration::from_millis(20));
                (now.1 == threads(pid) && now.2 == descriptors(pid)).then_some(now)
            },
            String::new,
        );
        Self {
            dir,
            gateway,
            before,
        }
    }

    pub fn pid(&self) -> u32 {
        self.gateway.pid()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    pub fn client(&self) -> Client {
        Client::attach(&self.socket(), "", true)
    }

    /// The port that the gateway says it serves.
    fn tcp(&self) -> TcpStream {
        let log = self.gateway.log();
        let port = log.split("127.0.0.1:").nth(1).unwrap();
        let digits = port.find(|c: char| !c.is_ascii_digit()).unwrap();
        let stream = TcpStream::connect(("127.0.0.1", port[..digits].parse().unwrap())).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// A TCP connection that is attached.
    pub fn tcp_attached(&self) -> TcpStream {
        let mut stream = self.tcp();
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(option(OPT_GO, &go("")));
        stream.write_all(&hello).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head).unwrap();
            let len = u32::from_be_bytes(head[16..].try_into().unwrap());
            std::io::copy(&mut (&mut stream).take(len.into()), &mut std::io::sink()).unwrap();
            if head[12..16] == [0, 0, 0, 1] {
                return stream;
            }
        }
    }

    /// After an attack whose connections are closed: it serves, and holds no more than before.
    #[track_caller]
    pub fn recovers(&mut self) {
        assert!(!self.gateway.ended(), "{}", self.gateway.log_tail());
        work(&mut self.client(), &mut Random::from_seed(1), 3);
        let pid = self.pid();
        let (memory, threads_before, files) = self.before;
        let now = || {
            format!(
                "{} KiB resident ({} before), {} threads ({threads_before}), {} files ({files})",
                resident(pid) >> 10,
                memory >> 10,
                threads(pid),
                descriptors(pid)
            )
        };
        wait_until(
            "all of it to be given back",
            || {
                (threads(pid) <= threads_before
                    && descriptors(pid) <= files
                    && resident(pid) <= memory + KEPT)
                    .then_some(())
            },
            now,
        );
        let log = self.gateway.log();
        assert!(!log.contains("panicked"), "{log}");
    }

    /// Asserts that it never held more than `extra` bytes beyond what it held at its start.
    #[track_caller]
    pub fn never_held_more_than(&self, extra: u64) {
        let (peak, before) = (peak_resident(self.pid()), self.before.0);
        assert!(
            peak <= before + extra,
            "it held {} MiB, allowed were {} MiB",
            peak >> 20,
            (before + extra) >> 20
        );
    }

    /// Runs an attack while an innocent client works; returns when the attack is over and the client has done at least
    /// `rounds` rounds.
    pub fn under<T: Send>(&self, rounds: u64, attack: impl FnOnce() -> T + Send) -> T {
        let over = AtomicBool::new(false);
        let done = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let innocent = scope.spawn(|| {
                let mut client = self.client();
                let mut random = Random::new("the innocent client");
                while !over.load(Ordering::Acquire) || done.load(Ordering::Acquire) < rounds {
                    work(&mut client, &mut random, 1);
                    done.fetch_add(1, Ordering::AcqRel);
                }
            });
            // What the attacker holds open stays so until the client has had its rounds.
            let outcome = attack();
            wait_until(
                "the innocent client",
                || (done.load(Ordering::Acquire) >= rounds || innocent.is_finished()).then_some(()),
                || self.gateway.log_tail(),
            );
            over.store(true, Ordering::Release);
            outcome
        })
    }
}

/// What an ordinary client does: it finds what it wrote.
pub fn work(client: &mut Client, random: &mut Random, rounds: u64) {
    for _ in 0..rounds {
        let at = random.within(0..INNOCENT / 2);
        let len = usize::try_from(random.within(1..20_000)).unwrap();
        let data = random.bytes(len);
        let read = Request::new(READ, at, u32::try_from(len).unwrap());
        let requests = [
            Request::write(at, data.clone()),
            Request::new(FLUSH, 0, 0),
            Request::new(ZEROES, INNOCENT - 4096, 4096),
        ];
        for request in requests {
            assert_eq!(client.ask(&request).unwrap().error, 0);
        }
        let answer = client.ask(&read).unwrap();
        assert!(answer.error == 0 && answer.data == data, "the data differs");
    }
}
