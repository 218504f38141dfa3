//! Clients that mean harm, or are broken: none of them may crash the gateway, hang it, make it grow, change a disk with half a
//! request, or disturb a client that works beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod victim;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use epochgate_tests::nbd::{
    self, Client, DISC, FLUSH, FUA, OPT_GO, READ, Request, TRIM, WRITE, ZEROES, at_end, connect,
    go, option,
};
use epochgate_tests::random::Random;
use rustix::net::sockopt::set_socket_linger;
use victim::{BYTES, INNOCENT, KEPT, Victim};

/// The largest READ and WRITE.
const LARGEST: u32 = 32 << 20;
/// What a connection may have under way (docs/limits.md), with room for its stacks, buffers and the allocator.
const PER_CONNECTION: u64 = (64 + 8) << 20;

const BOTH: [&[&str]; 2] = [&[], &["--async", "--epoch-interval", "5"]];

#[test]
fn clients_that_read_no_answer_get_their_share_of_memory_and_no_more() {
    const SLOW: u64 = 4;
    for options in BOTH {
        let mut victim = Victim::start(options);
        // So that reads have something to bring back.
        let data = vec![7; LARGEST as usize];
        let write = Request::write(LARGEST.into(), data);
        assert_eq!(victim.client().ask(&write).unwrap().error, 0);
        let slow = victim.under(50, || {
            let slow: Vec<_> = (0..SLOW).map(|index| slow_reader(&victim, index)).collect();
            slow
        });
        victim.never_held_more_than(SLOW * PER_CONNECTION + KEPT);
        drop(slow);
        victim.recovers();
        // One that takes no answer can't keep the gateway from stopping.
        let slow = slow_reader(&victim, 0);
        victim.gateway.stop();
        drop(slow);
    }
}

/// Asks for the largest read two thousand times, and takes no answer.
fn slow_reader(victim: &Victim, index: u64) -> Client {
    let mut client = Client::attach(&victim.socket(), "", index.is_multiple_of(2));
    let read = Request::new(READ, LARGEST.into(), LARGEST);
    let reads: Vec<u8> = (0..2000).flat_map(|cookie| read.bytes(cookie)).collect();
    client.stream.set_nonblocking(true).unwrap();
    // As much as fits: at some point the gateway takes no more.
    let _ = client.stream.write_all(&reads);
    client
}

/// A connection in each state that it can be left in.
fn half_open(victim: &Victim) -> Vec<UnixStream> {
    let mut all = Vec::new();
    let half_option = &option(OPT_GO, &go("x"))[..9];
    let half_data = &option(OPT_GO, &go("a name"))[..21];
    let openings: [&[u8]; 5] = [&[], &[0, 0], &[0, 0, 0, 3], half_option, half_data];
    for (index, opening) in openings.into_iter().enumerate() {
        let mut stream = connect(&victim.socket()).unwrap();
        if index > 2 {
            stream.write_all(&[0, 0, 0, 3]).unwrap();
        }
        stream.write_all(opening).unwrap();
        all.push(stream);
    }
    let write = Request::write(INNOCENT, vec![9; 300_000]).bytes(1);
    let small = Request::write(INNOCENT, vec![9; 3000]).bytes(1);
    let attached: [&[u8]; 5] = [
        &[],
        &write[..11],
        &write[..28],
        &write[..200_000],
        &small[..99],
    ];
    for opening in attached {
        let mut client = victim.client();
        client.stream.write_all(opening).unwrap();
        all.push(client.stream);
    }
    all
}

#[test]
fn half_open_connections_disturb_nobody() {
    let mut victim = Victim::start(&[]);
    let mut open = victim.under(50, || {
        let all: Vec<_> = (0..30).map(|_| half_open(&victim)).collect();
        all
    });
    victim.never_held_more_than(KEPT);
    // Those that never came through the handshake are ended; the others may take their time.
    for set in &mut open {
        for stream in &mut set[..5] {
            assert!(at_end(stream), "a handshake without end");
        }
    }
    drop(open);
    victim.recovers();
    // Nothing of the writes that were never whole.
    let image = std::fs::read(victim.dir.path().join("disk.img")).unwrap();
    assert!(!image[1 << 20..].contains(&9));
    // A gateway with half-open connections stops all the same.
    let open = half_open(&victim);
    victim.gateway.stop();
    drop(open);
}

#[test]
fn ten_thousand_connections_come_and_go() {
    const CONNECTIONS: u64 = 10_000;
    const AT_ONCE: u64 = 100;
    let mut victim = Victim::start(&[]);
    let random = Random::new("ten_thousand_connections_come_and_go");
    victim.under(50, || {
        for chunk in 0..CONNECTIONS / AT_ONCE {
            let mut random = random.fork(chunk);
            // Dropped together, each where it happens to be.
            let mut open: Vec<UnixStream> = Vec::new();
            for _ in 0..AT_ONCE {
                let opened = match random.within(0..4) {
                    0 => UnixStream::connect(victim.socket()),
                    1 => connect(&victim.socket()),
                    2 => connect(&victim.socket()).map(|mut stream| {
                        let _ = stream.write_all(&[0, 0, 0, 3]);
                        let _ = stream.write_all(&option(OPT_GO, &go("")));
                        stream
                    }),
                    _ => Client::try_attach(&victim.socket(), "", true).map(|mut client| {
                        let read = Request::new(READ, 0, 100_000).bytes(1);
                        let _ = client.stream.write_all(&read);
                        client.stream
                    }),
                };
                open.push(opened.unwrap());
            }
        }
    });
    victim.never_held_more_than(AT_ONCE * 2 * (1 << 20) + KEPT);
    victim.recovers();
    victim.gateway.stop();
}

#[test]
fn garbage_ends_its_own_connection_only() {
    let mut victim = Victim::start(&[]);
    let random = Random::new("garbage_ends_its_own_connection_only");
    victim.under(50, || {
        for index in 0..600 {
            let mut random = random.fork(index);
            let length = usize::try_from(random.within(1..4000)).unwrap();
            let mut bytes = random.bytes(length);
            let mut stream = match index % 3 {
                0 => connect(&victim.socket()).unwrap(),
                1 => {
                    // A true beginning, then garbage where options have to be.
                    let mut stream = connect(&victim.socket()).unwrap();
                    stream.write_all(&[0, 0, 0, 3]).unwrap();
                    bytes.splice(0..0, option(6, &go("")));
                    stream
                }
                _ => victim.client().stream,
            };
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            // Answers may come before the end; after it nothing does.
            let _ = stream.read_to_end(&mut Vec::new());
            assert!(at_end(&mut stream));
        }
    });
    victim.never_held_more_than(KEPT);
    victim.recovers();
    victim.gateway.stop();
}

#[test]
fn claimed_lengths_are_not_believed() {
    let mut victim = Victim::start(&[]);
    let open = victim.under(20, || {
        let mut open = Vec::new();
        for kind in 0..20_u32 {
            let mut stream = connect(&victim.socket()).unwrap();
            stream.write_all(&[0, 0, 0, 3]).unwrap();
            let mut bytes = option(kind, &[]);
            bytes.splice(12..16, u32::MAX.to_be_bytes());
            bytes.extend([0x41; 50_000]);
            let _ = stream.write_all(&bytes);
            open.push(stream);
        }
        // A name that is longer than its option.
        let mut stream = connect(&victim.socket()).unwrap();
        stream.write_all(&[0, 0, 0, 3]).unwrap();
        let mut data = go("name");
        data.splice(0..4, u32::MAX.to_be_bytes());
        stream.write_all(&option(OPT_GO, &data)).unwrap();
        let (kind, _) = nbd::option_reply(&mut stream).unwrap();
        assert_eq!(kind, (1 << 31) | 3, "NBD_REP_ERR_INVALID");
        for length in [LARGEST + 1, 1 << 31, u32::MAX] {
            for kind in [READ, TRIM, ZEROES] {
                let mut client = victim.client();
                let cookie = 1;
                let request = Request::new(kind, INNOCENT, length);
                client.stream.write_all(&request.bytes(cookie)).unwrap();
                let (_, answer) = client.receive().unwrap();
                // The disk is larger than the smallest of these: only a read has to be refused.
                let fits = kind != READ && INNOCENT + u64::from(length) <= BYTES;
                assert_eq!(answer.error == 0, fits, "{request:?}");
            }
            let mut client = victim.client();
            let write = Request::new(WRITE, INNOCENT, length);
            client.stream.write_all(&write.bytes(1)).unwrap();
            // What comes is skipped, whatever was promised.
            client.stream.write_all(&vec![8; 500_000]).unwrap();
            open.push(client.stream);
        }
        open
    });
    victim.never_held_more_than(KEPT);
    drop(open);
    victim.recovers();
    let image = std::fs::read(victim.dir.path().join("disk.img")).unwrap();
    assert!(!image[1 << 20..].contains(&8));
    victim.gateway.stop();
}

#[test]
fn floods_of_tiny_requests_are_answered_or_held_back() {
    for options in BOTH {
        let mut victim = Victim::start(options);
        let random = Random::new("floods_of_tiny_requests_are_answered_or_held_back");
        let flooded = victim.under(20, || {
            std::thread::scope(|scope| {
                for index in 0..3 {
                    let (victim, mut random) = (&victim, random.fork(index));
                    scope.spawn(move || {
                        let mut client = victim.client();
                        let requests: Vec<_> = (0..20_000)
                            .map(|_| {
                                let at = random.within(INNOCENT..BYTES);
                                match random.within(0..10) {
                                    0 => Request::new(FLUSH, 0, 0),
                                    1 => Request::new(TRIM, at, 1),
                                    2..5 => Request::write(at, vec![1]),
                                    _ => Request::new(READ, at, 1),
                                }
                            })
                            .collect();
                        let answers = client.exchange(&requests).unwrap();
                        assert!(answers.iter().all(|answer| answer.error == 0));
                    });
                }
            });
            // Some never take an answer: the gateway must stop to take requests, not collect answers for them.
            let mut flooded = Vec::new();
            for kind in [READ, FLUSH, ZEROES] {
                let length = if kind == FLUSH { 0 } else { 1 };
                let bytes = Request::new(kind, INNOCENT, length)
                    .bytes(1)
                    .repeat(1 << 20);
                let mut client = victim.client();
                let patience = Some(std::time::Duration::from_secs(2));
                client.stream.set_write_timeout(patience).unwrap();
                let sent = client.stream.write_all(&bytes);
                assert!(
                    sent.is_err(),
                    "it took a million requests from a client that takes no answer"
                );
                flooded.push(client);
            }
            flooded
        });
        victim.never_held_more_than(KEPT);
        drop(flooded);
        victim.recovers();
        victim.gateway.stop();
    }
}

#[test]
fn every_command_and_flag_is_answered_and_leaves_the_stream_in_step() {
    let mut victim = Victim::start(&[]);
    for structured in [false, true] {
        let mut client = Client::attach(&victim.socket(), "", structured);
        let kinds = (0..40).chain((6..16).map(|bit| 1 << bit)).chain([u16::MAX]);
        for kind in kinds.filter(|kind| *kind != DISC) {
            for flags in (0..16).map(|bit| 1 << bit).chain([0, u16::MAX]) {
                let mut request = Request::new(kind, INNOCENT, 16).with(flags);
                if kind == WRITE {
                    request.payload = vec![3; 16];
                }
                let answer = client.ask(&request).unwrap();
                // Nothing that is unknown may succeed.
                let known = matches!(kind, 0..10) && flags & !0x7f == 0;
                assert!(answer.error != 0 || known, "{request:?} succeeded");
                let flush = Request::new(FLUSH, 0, 0);
                assert_eq!(client.ask(&flush).unwrap().error, 0, "after {request:?}");
            }
        }
    }
    victim.recovers();
    victim.gateway.stop();
}

#[test]
fn after_a_goodbye_nothing_is_done() {
    for options in BOTH {
        let mut victim = Victim::start(options);
        let mut client = victim.client();
        let mut bytes = Vec::new();
        for index in 0..20 {
            let at = INNOCENT + index * 4096;
            bytes.extend(Request::write(at, vec![5; 4096]).with(FUA).bytes(index));
        }
        bytes.extend(Request::new(DISC, 0, 0).bytes(20));
        bytes.extend(Request::write(INNOCENT, vec![6; 1 << 20]).bytes(21));
        // The gateway may have closed before all of it is sent.
        let _ = client.stream.write_all(&bytes);
        for _ in 0..20 {
            let (cookie, answer) = client.receive().unwrap();
            assert!(cookie < 20 && answer.error == 0);
        }
        assert!(at_end(&mut client.stream));
        victim.recovers();
        victim.gateway.stop();
        let image = std::fs::read(victim.dir.path().join("disk.img")).unwrap();
        assert_eq!(
            image[1 << 20..].iter().filter(|byte| **byte == 5).count(),
            20 * 4096
        );
        assert!(!image[1 << 20..].contains(&6));
    }
}

/// Part of a write is no write: the disk has all of it or nothing.
#[test]
fn a_connection_reset_within_a_payload_writes_nothing() {
    for options in BOTH {
        let mut victim = Victim::start(options);
        let mut random = Random::new("a_connection_reset_within_a_payload_writes_nothing");
        victim.under(20, || {
            for round in 0..60 {
                let length = [100, 4096, 70_000, 1 << 20, 8 << 20][round % 5];
                let write = Request::write(INNOCENT + random.within(0..1 << 20), vec![4; length]);
                let mut bytes = write.bytes(1);
                let part = random.within(1..bytes.len() as u64);
                bytes.truncate(usize::try_from(part).unwrap());
                if round % 3 == 0 {
                    let mut client = victim.client();
                    client.stream.write_all(&bytes).unwrap();
                } else {
                    let mut stream = victim.tcp_attached();
                    stream.write_all(&bytes).unwrap();
                    if round % 3 == 1 {
                        // Closed by a reset rather than a goodbye.
                        let now = Some(std::time::Duration::ZERO);
                        set_socket_linger(&stream, now).unwrap();
                    }
                }
            }
        });
        victim.recovers();
        victim.gateway.stop();
        let image = std::fs::read(victim.dir.path().join("disk.img")).unwrap();
        assert!(!image[1 << 20..].contains(&4));
    }
}
