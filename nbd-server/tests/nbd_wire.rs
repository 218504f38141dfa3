//! The server against a client that says exactly what a test wants, well-formed or not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod nbd_common;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nbd_common::{
    Client, DISC, FLUSH, READ, Served, TRIM, WRITE, ZEROES, at_end, go_data, option, option_reply,
    pattern, raw_image, request,
};
use nbd_server::limits::Limits;
use proptest::prelude::*;

const SIZE: u64 = 64 << 20;
const MIB: u32 = 1 << 20;

fn served(read_only: bool, limits: Limits) -> (Served, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (_, export) = raw_image(dir.path(), SIZE, read_only);
    (Served::new(vec![("disk", export)], limits), dir)
}

fn serves(served: &Served) {
    let mut client = served.client("disk", true);
    assert_eq!(client.ask(READ, 0, 512, &[]).data.len(), 512);
    client.send(DISC, 0, 0, 0, 0);
    assert!(client.at_end());
}

#[test]
fn a_refused_request_leaves_the_connection_in_step() {
    let (served, _dir) = served(false, Limits::default());
    for structured in [false, true] {
        let mut client = served.client("disk", structured);
        let content = pattern(3000, 9);
        assert_eq!(
            client.ask(WRITE, SIZE - 1, 3000, &content).error,
            28,
            "beyond the end"
        );
        assert_eq!(client.ask(WRITE, u64::MAX, 3000, &content).error, 28);
        assert_eq!(client.ask(READ, SIZE, 1, &[]).error, 22);
        assert_eq!(client.ask(READ, 0, 33 * MIB, &[]).error, 22, "too long");
        assert_eq!(client.ask(WRITE, 0, 33 * MIB, &vec![1; 33 << 20]).error, 22);
        assert_eq!(client.ask(TRIM, SIZE, 1, &[]).error, 22);
        assert_eq!(client.ask(ZEROES, SIZE - 1, 2, &[]).error, 28);
        assert_eq!(client.ask(77, 0, 0, &[]).error, 22, "an unknown command");
        client.send(WRITE, 1 << 14, 5, 0, 3000);
        client.stream.write_all(&content).unwrap();
        assert_eq!(client.receive(|_| 0).error, 22, "an unknown flag");
        assert_eq!(client.ask(READ, 5, 0, &[]).error, 0, "nothing");
        assert_eq!(client.ask(WRITE, 5, 3000, &content).error, 0);
        assert!(client.ask(READ, 5, 3000, &[]).data == content);
    }
}

#[test]
fn the_largest_requests_are_served() {
    let (served, _dir) = served(false, Limits::default());
    let content = pattern(32 << 20, 4);
    for structured in [false, true] {
        let mut client = served.client("disk", structured);
        assert_eq!(client.ask(WRITE, 12_345, 32 * MIB, &content).error, 0);
        assert!(client.ask(READ, 12_345, 32 * MIB, &[]).data == content);
    }
}

#[test]
fn a_read_only_disk_says_that_writing_is_not_permitted() {
    let (served, _dir) = served(true, Limits::default());
    let mut client = served.client("disk", true);
    assert_eq!(client.ask(WRITE, 0, 4, b"data").error, 1);
    assert_eq!(client.ask(TRIM, 0, 512, &[]).error, 1);
    assert_eq!(client.ask(ZEROES, 0, 512, &[]).error, 1);
    assert_eq!(client.ask(FLUSH, 0, 0, &[]).error, 0);
    assert_eq!(client.ask(READ, 0, 4, &[]).data, [0; 4]);
}

/// Requests of all sizes in one stream, cut anywhere, come back each with its own data.
#[test]
fn a_pipeline_is_answered_whole_however_it_is_cut() {
    let (served, _dir) = served(false, Limits::default());
    for (chunk, structured) in [(1 << 20, true), (4099, false), (29, true)] {
        let mut client = served.client("disk", structured);
        let sizes = [
            1usize, 512, 4096, 65_535, 65_536, 65_537, 300_000, 2_000_000, 31, 4096,
        ];
        let mut stream = Vec::new();
        let mut offset = 0u64;
        let mut blocks = Vec::new();
        for (index, &size) in sizes.iter().enumerate() {
            let cookie = index as u64;
            stream.extend(request(
                WRITE,
                0,
                cookie,
                offset,
                u32::try_from(size).unwrap(),
            ));
            stream.extend(pattern(size, cookie + chunk as u64));
            blocks.push((offset, size));
            offset += size as u64 + 13;
        }
        for piece in stream.chunks(chunk) {
            client.stream.write_all(piece).unwrap();
        }
        let mut written: Vec<u64> = (0..sizes.len())
            .map(|_| client.receive(|_| 0).cookie)
            .collect();
        written.sort_unstable();
        assert_eq!(written, (0..sizes.len() as u64).collect::<Vec<_>>());
        for (index, &(offset, size)) in blocks.iter().enumerate() {
            client.send(READ, 0, index as u64, offset, u32::try_from(size).unwrap());
        }
        for _ in &sizes {
            let answer = client.receive(|cookie| sizes[usize::try_from(cookie).unwrap()]);
            let size = sizes[usize::try_from(answer.cookie).unwrap()];
            assert!(
                answer.data == pattern(size, answer.cookie + chunk as u64),
                "{}",
                answer.cookie
            );
        }
    }
}

#[test]
fn garbage_closes_its_own_connection_only() {
    let (served, _dir) = served(false, Limits::default());
    let flags = 3u32.to_be_bytes();
    let mut huge_name = option(1, &[]);
    huge_name[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
    let streams: Vec<Vec<u8>> = vec![
        vec![0; 64],
        vec![0xff; 1 << 20],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        [&flags[..], &[0x55; 100]].concat(),
        [&flags[..], &huge_name].concat(),
        [&flags[..], &option(1, b"unknown")].concat(),
        [&flags[..], &option(2, &[])].concat(),
        [&flags[..], &option(7, &go_data("disk")), &[0xaa; 28]].concat(),
    ];
    for bytes in streams {
        let mut stream = Client::connect(&served.socket());
        // The server may have closed before all of it is written.
        let _ = stream.write_all(&bytes);
        let mut rest = Vec::new();
        // It ends, by a close or a reset; what was answered before is of no interest.
        let _ = std::io::Read::read_to_end(&mut stream, &mut rest);
        serves(&served);
    }
}

#[test]
fn a_client_that_leaves_in_the_midst_of_anything_is_forgotten() {
    let (served, _dir) = served(false, Limits::default());
    let flags = 3u32.to_be_bytes();
    let go = option(7, &go_data("disk"));
    let whole = [
        &flags[..],
        &go,
        &request(WRITE, 0, 1, 0, 200_000),
        &[1; 1000],
    ]
    .concat();
    for len in [
        0,
        1,
        4,
        9,
        20,
        4 + go.len(),
        4 + go.len() + 27,
        4 + go.len() + 28,
        whole.len(),
    ] {
        let mut stream = Client::connect(&served.socket());
        stream.write_all(&whole[..len]).unwrap();
    }
    serves(&served);
    served.server.shutdown();
    assert_eq!(served.server.connections(), 0);
}

#[test]
fn a_huge_option_is_refused_and_the_next_is_served() {
    let (served, _dir) = served(false, Limits::default());
    let mut stream = Client::connect(&served.socket());
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    stream.write_all(&option(7, &vec![b'x'; 5 << 20])).unwrap();
    assert_eq!(option_reply(&mut stream).0, (1 << 31) | 9);
    for (name, refusal) in [("none", (1 << 31) | 6), ("forbidden", (1 << 31) | 2)] {
        stream.write_all(&option(7, &go_data(name))).unwrap();
        assert_eq!(option_reply(&mut stream).0, refusal);
    }
    stream.write_all(&option(7, &go_data("disk"))).unwrap();
    assert_eq!(option_reply(&mut stream).0, 3);
    assert_eq!(served.directory.cutters.lock().unwrap().len(), 1);
}

#[test]
fn info_attaches_nobody() {
    let (served, _dir) = served(false, Limits::default());
    let mut stream = Client::connect(&served.socket());
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    stream.write_all(&option(6, &go_data("disk"))).unwrap();
    while option_reply(&mut stream).0 != 1 {}
    assert!(served.directory.cutters.lock().unwrap().is_empty());
}

#[test]
fn a_handshake_without_end_is_ended() {
    let limits = Limits {
        // Long enough for a client that means it, also on a machine with much else to do.
        handshake_timeout: Duration::from_millis(1500),
        ..Limits::default()
    };
    let (served, _dir) = served(false, limits);
    let mut silent = Client::connect(&served.socket());
    let mut endless = Client::connect(&served.socket());
    endless.write_all(&3u32.to_be_bytes()).unwrap();
    // Each option is well-formed, and none is the last.
    while endless.write_all(&option(8, b"x")).is_ok() {}
    assert!(at_end(&mut silent));
    // Once attached there is no limit any more.
    let mut client = served.client("disk", false);
    std::thread::sleep(Duration::from_millis(2000));
    assert_eq!(client.ask(READ, 0, 1, &[]).error, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_after_the_attachment_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300), valid in any::<bool>()) {
        let (served, _dir) = served(false, Limits::default());
        let mut client = served.client("disk", true);
        let mut stream = if valid { request(WRITE, 0, 1, 0, 100) } else { Vec::new() };
        stream.extend(bytes);
        let _ = client.stream.write_all(&stream);
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        let _ = std::io::Read::read_to_end(&mut client.stream, &mut rest);
        serves(&served);
    }
}

#[test]
fn too_many_connections_are_refused_and_room_comes_back() {
    let (served, _dir) = served(
        false,
        Limits {
            max_connections: 2,
            ..Limits::default()
        },
    );
    let first = served.client("disk", true);
    let _second = served.client("disk", true);
    assert!(at_end(&mut UnixStream::connect(served.socket()).unwrap()));
    drop(first);
    while served.server.connections() > 1 {
        std::thread::yield_now();
    }
    serves(&served);
}
