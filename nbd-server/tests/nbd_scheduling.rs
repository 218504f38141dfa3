//! Who waits for whom: out-of-order answers, slow clients, slow storage, the cut, the stop. The export here does as the test tells it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod nbd_common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use nbd_common::{Client, DISC, FLUSH, READ, Served, WRITE, at_end, go_data, option, option_reply};
use nbd_server::export::{Export, ExportInfo, IoError};
use nbd_server::limits::Limits;
use nbd_server::server::{ListenAddress, ListenError};

const SIZE: u64 = 1 << 30;
/// Reads at this place need no waiting; all others do.
const READY: u64 = 0;
/// A read here panics.
const PANIC: u64 = 512 << 20;

/// Its flush waits until the test opens the gate.
#[derive(Default)]
struct Gated {
    open: Mutex<bool>,
    changed: Condvar,
    waiting: AtomicUsize,
    reconnects: bool,
}

impl Gated {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let open = self.open.lock().unwrap();
        drop(self.changed.wait_while(open, |open| !*open).unwrap());
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    fn until_waiting(&self, count: usize) {
        while self.waiting.load(Ordering::SeqCst) < count {
            std::thread::yield_now();
        }
    }
}

impl Export for Gated {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            reconnects: self.reconnects,
            ..ExportInfo::full(SIZE)
        }
    }
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, IoError> {
        buf.fill(1);
        Ok(offset == READY)
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoError> {
        assert_ne!(offset, PANIC, "on purpose");
        buf.fill(2);
        Ok(())
    }
    fn try_write(&self, _: u64, _: &[u8], fua: bool) -> Result<bool, IoError> {
        Ok(!fua)
    }
    fn write(&self, _: u64, _: Bytes, _: bool) -> Result<(), IoError> {
        self.wait();
        Ok(())
    }
    fn flush(&self) -> Result<(), IoError> {
        self.wait();
        Ok(())
    }
    fn trim(&self, _: u64, _: u64, _: bool) -> Result<(), IoError> {
        Err(IoError::NotSup)
    }
    fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool, _: bool) -> Result<(), IoError> {
        Err(IoError::Shutdown)
    }
}

fn gated(limits: Limits) -> (Served, Arc<Gated>) {
    let export = Arc::new(Gated::default());
    (
        Served::new(
            vec![("disk", Arc::clone(&export) as Arc<dyn Export>)],
            limits,
        ),
        export,
    )
}

#[test]
fn an_answer_overtakes_one_that_waits_for_storage() {
    let (served, export) = gated(Limits::default());
    let mut client = served.client("disk", true);
    client.send(FLUSH, 0, 1, 0, 0);
    client.send(READ, 0, 2, READY, 4);
    client.send(READ, 0, 3, 4096, 4);
    let mut early = [client.receive(|_| 4), client.receive(|_| 4)];
    early.sort_by_key(|answer| answer.cookie);
    assert_eq!(
        early
            .each_ref()
            .map(|answer| (answer.cookie, answer.data[0])),
        [(2, 1), (3, 2)]
    );
    export.open();
    assert_eq!(client.receive(|_| 0).cookie, 1);
}

#[test]
fn what_an_export_says_reaches_the_client() {
    let (served, _export) = gated(Limits::default());
    let mut client = served.client("disk", false);
    assert_eq!(client.ask(nbd_common::TRIM, 0, 1, &[]).error, 95);
    assert_eq!(client.ask(nbd_common::ZEROES, 0, 1, &[]).error, 108);
}

#[test]
fn requests_in_flight_are_bounded_and_none_is_lost() {
    let limits = Limits {
        max_in_flight: 4,
        max_workers_per_connection: 16,
        ..Limits::default()
    };
    let (served, export) = gated(limits);
    let mut client = served.client("disk", true);
    for cookie in 0..50 {
        client.send(FLUSH, 0, cookie, 0, 0);
    }
    export.until_waiting(4);
    export.open();
    let mut cookies: Vec<u64> = (0..50).map(|_| client.receive(|_| 0).cookie).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..50).collect::<Vec<_>>());
}

/// The only worker must not wait for a client that takes none of its answers, or one stopped VM would stop all others.
#[test]
fn a_client_that_reads_nothing_holds_up_nobody_else() {
    let limits = Limits {
        max_workers: 1,
        ..Limits::default()
    };
    let (served, _export) = gated(limits);
    let mut slow = served.client("disk", true);
    let size = 4 << 20;
    for cookie in 0..15 {
        slow.send(READ, 0, cookie, 4096, size);
    }
    let mut other = served.client("disk", true);
    for _ in 0..100 {
        assert_eq!(other.ask(READ, 4096, 512, &[]).data, [2; 512]);
    }
    let lens: HashMap<u64, usize> = (0..15)
        .map(|_| slow.receive(|_| size as usize))
        .map(|answer| (answer.cookie, answer.data.len()))
        .collect();
    assert_eq!(lens.len(), 15);
    assert!(lens.values().all(|&len| len == size as usize));
    // Both threads of the slow connection send: they do not get into each other's answers.
    for round in 0..200 {
        slow.send(
            READ,
            0,
            round,
            if round.is_multiple_of(2) { READY } else { 4096 },
            100_000,
        );
    }
    for _ in 0..200 {
        let answer = slow.receive(|_| 100_000);
        let expected = if answer.cookie.is_multiple_of(2) {
            1
        } else {
            2
        };
        assert!(answer.data.len() == 100_000 && answer.data.iter().all(|&byte| byte == expected));
    }
}

#[test]
fn slow_storage_of_one_client_leaves_workers_to_another() {
    let limits = Limits {
        max_workers: 3,
        max_workers_per_connection: 2,
        ..Limits::default()
    };
    let (served, export) = gated(limits);
    let mut stuck = served.client("disk", true);
    for cookie in 0..20 {
        stuck.send(WRITE, 1, cookie, 0, 4);
        stuck.stream.write_all(b"data").unwrap();
    }
    export.until_waiting(2);
    let mut other = served.client("disk", true);
    assert_eq!(other.ask(READ, 4096, 4, &[]).data, [2; 4]);
    export.open();
    (0..20).for_each(|_| assert_eq!(stuck.receive(|_| 0).error, 0));
}

#[test]
fn a_cut_ends_the_connection_though_a_request_is_under_way() {
    let (served, export) = gated(Limits::default());
    let mut client = served.client("disk", true);
    let mut other = served.client("disk", true);
    client.send(FLUSH, 0, 1, 0, 0);
    export.until_waiting(1);
    served.directory.cutters.lock().unwrap()[0].cut();
    assert!(client.at_end(), "nothing is answered after the cut");
    assert_eq!(other.ask(READ, 4096, 4, &[]).error, 0);
    export.open();
    while served.server.connections() > 1 {
        std::thread::yield_now();
    }
    served.directory.cutters.lock().unwrap()[0].cut();
    // The attachment is gone with its connection: the directory, this test and the other client are left.
    drop(other);
    while Arc::strong_count(&export) > 2 {
        std::thread::yield_now();
    }
}

#[test]
fn a_panic_cuts_its_own_connection_only() {
    let (served, _export) = gated(Limits {
        max_workers: 1,
        ..Limits::default()
    });
    let mut client = served.client("disk", true);
    client.send(READ, 0, 1, PANIC, 4);
    assert!(client.at_end());
    assert_eq!(served.client("disk", true).ask(READ, 4096, 4, &[]).error, 0);
}

#[test]
fn a_stop_answers_what_is_under_way_and_then_closes() {
    let (served, export) = gated(Limits::default());
    let mut client = served.client("disk", true);
    let mut idle = served.client("disk", true);
    client.send(FLUSH, 0, 7, 0, 0);
    export.until_waiting(1);
    std::thread::scope(|scope| {
        scope.spawn(|| served.server.shutdown());
        assert!(idle.at_end());
        assert!(
            !served.socket().exists(),
            "the socket is removed before connections end"
        );
        give_the_server_a_chance_to_be_hasty();
        export.open();
        let answer = client.receive(|_| 0);
        assert_eq!((answer.cookie, answer.error), (7, 0));
        assert!(client.at_end());
    });
    assert_eq!(served.server.connections(), 0);
}

/// "any subsequently received requests SHOULD be NBD_ESHUTDOWN"
#[test]
fn a_stop_refuses_what_comes_until_the_last_answer() {
    let (served, export) = gated(Limits::default());
    let mut client = served.client("disk", true);
    let mut idle = served.client("disk", true);
    client.send(FLUSH, 0, 7, 0, 0);
    export.until_waiting(1);
    std::thread::scope(|scope| {
        scope.spawn(|| served.server.shutdown());
        assert!(idle.at_end(), "nothing is under way here");
        let mut ask = |kind, payload: &[u8]| client.ask(kind, READY, 4, payload).error;
        assert_eq!(ask(READ, &[]), 108);
        assert_eq!(ask(WRITE, b"data"), 108);
        export.open();
        assert_eq!(client.receive(|_| 0).error, 0);
        assert!(client.at_end());
    });
}

/// The same with libnbd: it hears of the stop, and gets the answer that was under way.
#[test]
fn libnbd_hears_of_a_stop() {
    let (served, export) = gated(Limits::default());
    let mut idle = served.client("disk", true);
    let script = r#"
import nbd, sys, errno
h = nbd.NBD()
h.connect_uri(sys.argv[1])
flush = h.aio_flush()
sys.stdin.readline()
try:
    h.pread(512, 0)
    raise AssertionError("it was served")
except nbd.Error as e:
    assert e.errnum == errno.ESHUTDOWN, e.string
print("refused", flush=True)
while not h.aio_command_completed(flush):
    h.poll(-1)
print("answered", flush=True)
"#;
    let mut libnbd = Command::new("/usr/bin/python3")
        .args(["-c", script, &served.unix.uri("disk")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    export.until_waiting(1);
    let mut said = BufReader::new(libnbd.stdout.take().unwrap()).lines();
    std::thread::scope(|scope| {
        scope.spawn(|| served.server.shutdown());
        assert!(idle.at_end());
        libnbd.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert_eq!(said.next().unwrap().unwrap(), "refused");
        export.open();
        assert_eq!(said.next().unwrap().unwrap(), "answered");
    });
    assert!(libnbd.wait().unwrap().success());
}

#[test]
fn a_handshake_hears_of_a_stop_and_may_say_goodbye() {
    let limits = Limits {
        shutdown_linger: Duration::from_secs(60),
        shutdown_grace: Duration::from_secs(120),
        ..Limits::default()
    };
    let (served, _export) = gated(limits);
    let mut stream = Client::connect(&served.socket());
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    let mut old = Client::connect(&served.socket());
    old.write_all(&3u32.to_be_bytes()).unwrap();
    let mut idle = served.client("disk", true);
    std::thread::scope(|scope| {
        scope.spawn(|| served.server.shutdown());
        assert!(idle.at_end());
        for (kind, data) in [(7, go_data("disk")), (3, Vec::new()), (8, Vec::new())] {
            stream.write_all(&option(kind, &data)).unwrap();
            assert_eq!(option_reply(&mut stream).0, (1 << 31) | 7, "option {kind}");
        }
        stream.write_all(&option(2, &[])).unwrap();
        assert_eq!(option_reply(&mut stream).0, 1);
        assert!(at_end(&mut stream));
        // There is no other way to refuse this one.
        old.write_all(&option(1, b"disk")).unwrap();
        assert!(at_end(&mut old));
    });
}

/// A client that reconnects must not be told: its guest would be.
#[test]
fn a_client_that_reconnects_is_disconnected_and_not_refused() {
    let export = Arc::new(Gated {
        reconnects: true,
        ..Gated::default()
    });
    let shared = Arc::clone(&export) as Arc<dyn Export>;
    let served = Served::new(vec![("disk", shared)], Limits::default());
    let mut client = served.client("disk", true);
    client.send(FLUSH, 0, 7, 0, 0);
    export.until_waiting(1);
    let mut idle = served.client("disk", true);
    std::thread::scope(|scope| {
        scope.spawn(|| served.server.shutdown());
        assert!(idle.at_end());
        // It may reach the socket or not; it is not answered.
        let _ = client
            .stream
            .write_all(&nbd_common::request(READ, 0, 8, READY, 4));
        export.open();
        let answer = client.receive(|_| 4);
        assert_eq!((answer.cookie, answer.error), (7, 0));
        assert!(client.at_end());
    });
}

/// A server that doesn't wait for requests under way would have closed by then; nothing depends on how long it takes.
fn give_the_server_a_chance_to_be_hasty() {
    std::thread::sleep(Duration::from_millis(200));
}

#[test]
fn a_goodbye_waits_for_the_answers_before_it() {
    let (served, export) = gated(Limits::default());
    let mut client = served.client("disk", true);
    client.send(FLUSH, 0, 7, 0, 0);
    client.send(DISC, 0, 0, 0, 0);
    export.until_waiting(1);
    give_the_server_a_chance_to_be_hasty();
    export.open();
    assert_eq!(client.receive(|_| 0).cookie, 7);
    assert!(client.at_end());
}

#[test]
fn a_socket_is_its_owners_and_replaces_only_the_dead() {
    let (served, _export) = gated(Limits::default());
    let socket = served.socket();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = served.server.listen(&ListenAddress::Unix(socket.clone()));
    assert!(matches!(again, Err(ListenError::InUse { .. })));
    let file = served.path("file");
    std::fs::write(&file, "precious").unwrap();
    let refused = served.server.listen(&ListenAddress::Unix(file.clone()));
    assert!(matches!(refused, Err(ListenError::NotASocket { .. })));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    // A listener that goes without removing its socket is what a killed server leaves.
    let dead = served.path("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    served
        .server
        .listen(&ListenAddress::Unix(dead.clone()))
        .unwrap();
    nbd_common::Client::attach(&dead, "disk", true);
    served.server.shutdown();
    assert!(!dead.exists() && !socket.exists());
}

#[test]
fn tcp_beyond_this_machine_needs_leave() {
    let (served, _export) = gated(Limits::default());
    for open in ["0.0.0.0:0", "[::]:0", "[::ffff:0.0.0.0]:0"] {
        let open = ListenAddress::tcp(open);
        let refused = served.server.listen(&open);
        assert!(matches!(refused, Err(ListenError::Insecure { .. })));
        served.server.listen(&open.with_insecure(true)).unwrap();
    }
    // A mapped address stays on this machine if what it stands for does.
    let mapped = ListenAddress::tcp("[::ffff:127.0.0.1]:0");
    let mapped = served.server.listen(&mapped).unwrap();
    nbd_common::run_well("nbdinfo", &["--size", &mapped.uri("disk")]);
    let bound = served.tcp();
    let nbd_server::server::BoundAddress::Tcp(address) = bound else {
        panic!("{bound}")
    };
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut greeting = [0; 18];
    std::io::Read::read_exact(&mut stream, &mut greeting).unwrap();
    assert!(at_end(&mut stream));
}
