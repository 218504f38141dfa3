//! Extended headers, block status and resize, byte by byte: what the documents say and no released client sends.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod nbd_common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use nbd_common::extended::{BLOCK_STATUS, CACHE, Extended, PAYLOAD_LEN, REQ_ONE, RESIZE, status};
use nbd_common::{READ, Served, TRIM, WRITE, ZEROES, pattern, raw_image};
use nbd_server::export::Export;
use nbd_server::limits::Limits;
use nbd_server::raw_export::RawExport;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SIZE: u64 = 20 * GIB;
const ALLOCATION: &str = "base:allocation";
const HELD: &str = "epochgate:held";

struct Disk {
    served: Served,
    image: PathBuf,
    _dir: tempfile::TempDir,
}

fn disk() -> Disk {
    let dir = tempfile::tempdir().unwrap();
    let (image, export) = raw_image(dir.path(), SIZE, false);
    Disk {
        served: Served::new(vec![("disk", export)], Limits::default()),
        image,
        _dir: dir,
    }
}

/// 1 MiB of data at 1 MiB and at 19 GiB.
fn written(disk: &Disk) -> Vec<u8> {
    let content = pattern(usize::try_from(MIB).unwrap(), 3);
    let image = fs::OpenOptions::new()
        .write(true)
        .open(&disk.image)
        .unwrap();
    for place in [MIB, 19 * GIB] {
        image.write_all_at(&content, place).unwrap();
    }
    image.sync_all().unwrap();
    content
}

#[test]
fn one_request_of_many_gigabytes_is_done() {
    let disk = disk();
    written(&disk);
    let mut client = Extended::attach(&disk.served.socket(), "disk", &[]);
    assert_eq!(client.error(CACHE, 0, 0, SIZE, &[]), 0);
    assert_eq!(client.error(TRIM, 0, 0, 18 * GIB, &[]), 0);
    let blocks = || fs::metadata(&disk.image).unwrap().blocks() * 512;
    assert!(blocks() < 2 * MIB, "the first piece of data is gone");
    assert_eq!(client.error(ZEROES, 0, GIB, 19 * GIB, &[]), 0);
    assert!(blocks() < MIB, "the second one too");
    assert_eq!(client.error(ZEROES, 0, GIB, 19 * GIB + 1, &[]), 28);
    assert_eq!(client.error(TRIM, 0, 1, u64::MAX, &[]), 22);
}

#[test]
fn writes_carry_their_length_in_a_flag() {
    let disk = disk();
    let mut client = Extended::attach(&disk.served.socket(), "disk", &[]);
    let content = pattern(300_000, 8);
    let len = content.len() as u64;
    assert_eq!(client.error(WRITE, PAYLOAD_LEN, 5, len, &content), 0);
    // Nothing follows a request without the flag, and the stream stays in step.
    assert_eq!(client.error(WRITE, 0, 5, len, &[]), 22);
    // What follows any other request is skipped.
    for (kind, len) in [(READ, 10), (TRIM, 70_000), (77, 200_000)] {
        let payload = vec![9; len];
        assert_eq!(client.error(kind, PAYLOAD_LEN, 0, len as u64, &payload), 22);
    }
    let chunks = client.ask(READ, 0, 5, len, &[]);
    assert!(chunks[0].payload[8..] == content);
    // Too long to be skipped: the connection ends.
    client.send(WRITE, PAYLOAD_LEN, 1, 0, 33 * MIB);
    assert!(nbd_common::at_end(&mut client.stream));
}

#[test]
fn block_status_tells_each_context_and_the_payload_chooses_among_them() {
    let disk = disk();
    written(&disk);
    let socket = disk.served.socket();
    let mut client = Extended::attach(&socket, "disk", &[HELD, ALLOCATION]);
    assert_ne!(client.flags & (1 << 12), 0, "the payload is offered");
    let hole = 3;
    let allocation = vec![
        (MIB, hole),
        (MIB, 0),
        (19 * GIB - 2 * MIB, hole),
        (MIB, 0),
        (GIB - MIB, hole),
    ];
    let chunks = client.ask(BLOCK_STATUS, 0, 0, SIZE, &[]);
    let told: Vec<_> = chunks.iter().map(status).collect();
    assert_eq!(told.len(), 2);
    let id = |extents: &[(u64, u64)]| told.iter().find(|told| told.1 == extents).unwrap().0;
    let (allocation_id, held_id) = (id(&allocation), id(&[(SIZE, 0)]));
    assert_ne!(allocation_id, held_id);

    let filter = |ids: &[u32]| {
        let mut payload = (2 * MIB).to_be_bytes().to_vec();
        ids.iter()
            .for_each(|id| payload.extend_from_slice(&id.to_be_bytes()));
        payload
    };
    let payload = filter(&[allocation_id]);
    let chunks = client.ask(BLOCK_STATUS, PAYLOAD_LEN, 0, 12, &payload);
    let told: Vec<_> = chunks.iter().map(status).collect();
    assert_eq!(told, [(allocation_id, vec![(MIB, hole), (MIB, 0)])]);
    for ids in [
        &[allocation_id, allocation_id][..],
        &[77],
        &[],
        &[1, 2, 3, 4, 5],
    ] {
        let payload = filter(ids);
        let len = payload.len() as u64;
        let error = client.error(BLOCK_STATUS, PAYLOAD_LEN, 0, len, &payload);
        assert_eq!(error, 22, "{ids:?}");
    }
    let one = client.ask(BLOCK_STATUS, REQ_ONE, MIB + 4096, GIB, &[]);
    let lens: Vec<_> = one.iter().map(|chunk| status(chunk).1[0].0).collect();
    assert_eq!(one.len(), 2);
    assert!(lens.contains(&(MIB - 4096)) && lens.contains(&GIB));
    assert_eq!(client.error(BLOCK_STATUS, 0, SIZE, 1, &[]), 22);

    let mut none = Extended::attach(&socket, "disk", &[]);
    assert_eq!(none.flags & (1 << 12), 0);
    assert_eq!(none.error(BLOCK_STATUS, 0, 0, MIB, &[]), 22);
}

#[test]
fn reads_leave_holes_out() {
    let disk = disk();
    let content = written(&disk);
    let mut client = Extended::attach(&disk.served.socket(), "disk", &[]);
    let chunks = client.ask(READ, 0, 0, 3 * MIB, &[]);
    let kinds: Vec<_> = chunks.iter().map(|chunk| chunk.kind).collect();
    assert_eq!(kinds, [2, 1, 2]);
    let place = |chunk: usize| u64::from_be_bytes(chunks[chunk].payload[..8].try_into().unwrap());
    assert_eq!([place(0), place(1), place(2)], [0, MIB, 2 * MIB]);
    assert_eq!(
        chunks[2].payload[8..],
        u32::try_from(MIB).unwrap().to_be_bytes()
    );
    assert!(chunks[1].payload[8..] == content);
    // "don't fragment"
    let whole = client.ask(READ, 1 << 2, 0, 3 * MIB, &[]);
    assert_eq!(whole.len(), 1);
    let from = 8 + usize::try_from(MIB).unwrap();
    assert!(whole[0].payload[from..][..content.len()] == content);
    assert_eq!(whole[0].payload.len() as u64, 8 + 3 * MIB);
}

#[test]
fn a_client_may_resize_where_it_is_let() {
    let dir = tempfile::tempdir().unwrap();
    let mut exports: Vec<(&str, Arc<dyn Export>)> = Vec::new();
    let mut images = Vec::new();
    for (name, allowed) in [("fixed", false), ("elastic", true)] {
        let image = dir.path().join(name);
        fs::File::create(&image).unwrap().set_len(MIB).unwrap();
        let export = RawExport::open(&image, false).unwrap();
        exports.push((name, Arc::new(export.with_client_resize(allowed))));
        images.push(image);
    }
    let served = Served::new(exports, Limits::default());
    let length = |image: &PathBuf| fs::metadata(image).unwrap().len();

    let mut fixed = Extended::attach(&served.socket(), "fixed", &[]);
    assert_eq!(fixed.flags & (1 << 9), 0);
    assert_eq!(fixed.error(RESIZE, 0, 2 * MIB, 0, &[]), 22);
    assert_eq!(length(&images[0]), MIB);

    let mut client = Extended::attach(&served.socket(), "elastic", &[]);
    let mut other = Extended::attach(&served.socket(), "elastic", &[]);
    assert_ne!(client.flags & (1 << 9), 0);
    assert_eq!(client.error(RESIZE, 0, 2 * MIB, 0, &[]), 0);
    assert_eq!(length(&images[1]), 2 * MIB);
    let data = [7; 512];
    assert_eq!(client.error(WRITE, PAYLOAD_LEN, MIB, 512, &data), 0);
    assert_eq!(client.ask(READ, 0, MIB, 512, &[])[0].payload[8..], data);
    assert_eq!(client.error(RESIZE, 0, MIB / 2, 0, &[]), 0);
    assert_eq!(length(&images[1]), MIB / 2);
    // Between the new end and the old one it is ENOSPC, whatever is asked.
    assert_eq!(client.error(READ, 0, MIB, 512, &[]), 28);
    // The other client was told of an end that is no longer there.
    assert_eq!(other.error(READ, 0, MIB - 512, 512, &[]), 22);
    assert_eq!(other.error(WRITE, PAYLOAD_LEN, MIB - 512, 512, &data), 28);
    assert_eq!(length(&images[1]), MIB / 2, "nothing makes it grow again");
    assert_eq!(client.error(RESIZE, 0, 0, 0, &[]), 22);
}

#[test]
fn compact_requests_end_an_extended_session() {
    let disk = disk();
    let mut client = Extended::attach(&disk.served.socket(), "disk", &[]);
    let compact = nbd_common::request(READ, 0, 1, 0, 512);
    client.stream.write_all(&compact).unwrap();
    assert!(nbd_common::at_end(&mut client.stream));
}
