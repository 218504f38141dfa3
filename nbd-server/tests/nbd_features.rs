//! What is beyond reads and writes, with clients that somebody else wrote: extended headers with QEMU 10, metadata contexts, holes,
//! hints and exact flags with libnbd.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod nbd_common;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use nbd_common::{Served, pattern, raw_image, run, run_well};
use nbd_server::export::{BlockExtent, Export, ExportInfo, IoError};
use nbd_server::limits::Limits;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SIZE: u64 = 20 * GIB;

struct Disk {
    served: Served,
    image: PathBuf,
    _dir: tempfile::TempDir,
}

/// Data, a hole, and data that can't be read; 64 KiB each.
struct Broken;

const PART: u64 = 64 << 10;

impl Export for Broken {
    fn info(&self) -> ExportInfo {
        ExportInfo::full(3 * PART)
    }
    fn try_read(&self, _: u64, _: &mut [u8]) -> Result<bool, IoError> {
        Ok(false)
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoError> {
        if offset + buf.len() as u64 > 2 * PART {
            return Err(IoError::Io);
        }
        buf.fill(7);
        Ok(())
    }
    fn try_write(&self, _: u64, _: &[u8], _: bool) -> Result<bool, IoError> {
        Ok(false)
    }
    fn write(&self, _: u64, _: Bytes, _: bool) -> Result<(), IoError> {
        Err(IoError::NoSpace)
    }
    fn flush(&self) -> Result<(), IoError> {
        Err(IoError::Io)
    }
    fn trim(&self, _: u64, _: u64, _: bool) -> Result<(), IoError> {
        Err(IoError::Io)
    }
    fn write_zeroes(&self, _: u64, _: u64, _: bool, fast: bool, _: bool) -> Result<(), IoError> {
        Err(if fast {
            IoError::NotSup
        } else {
            IoError::NoSpace
        })
    }
    fn block_status(&self, offset: u64, _: u64, _: usize) -> Result<Vec<BlockExtent>, IoError> {
        assert_eq!(offset, 0);
        Ok(vec![
            BlockExtent::data(PART),
            BlockExtent::hole(PART),
            BlockExtent::data(PART),
        ])
    }
    fn cache(&self, _: u64, _: u64) -> Result<(), IoError> {
        Err(IoError::Io)
    }
}

/// 1 MiB of data at 1 MiB and at 19 GiB; all else is a hole.
fn disk(read_only: bool) -> Disk {
    let dir = tempfile::tempdir().unwrap();
    let (image, export) = raw_image(dir.path(), SIZE, read_only);
    let disk = Disk {
        served: Served::new(vec![("disk", export)], Limits::default()),
        image,
        _dir: dir,
    };
    let image = fs::OpenOptions::new()
        .write(true)
        .open(&disk.image)
        .unwrap();
    for place in [MIB, 19 * GIB] {
        image.write_all_at(&content(), place).unwrap();
    }
    image.sync_all().unwrap();
    disk
}

fn content() -> Vec<u8> {
    pattern(usize::try_from(MIB).unwrap(), 3)
}

/// A program of QEMU 10, the one released client with extended headers that Debian 12 can have.
fn qemu10(program: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let path = root.join("target/qemu10").join(program);
    assert!(
        path.exists(),
        "{} is missing; run: make qemu10",
        path.display()
    );
    path.to_str().unwrap().to_owned()
}

/// Runs a script with libnbd's Python bindings, which ask for exactly what they are told: `h` is a handle, `uri` the export, `EINVAL` and
/// others are numbers. Debian's own Python has them, whatever else stands first on the path.
fn libnbd(disk: &Disk, script: &str) {
    libnbd_on(&disk.served, script);
}

fn libnbd_on(served: &Served, script: &str) {
    let uri = served.unix.uri("disk");
    let head = format!(
        "import nbd\nfrom errno import *\nuri = {uri:?}\nh = nbd.NBD()\n\
         def fails(number, call, *args):\n\
         \ttry:\n\t\tcall(*args)\n\
         \texcept nbd.Error as e:\n\t\tassert e.errnum == number, (e.errnum, e.string)\n\t\treturn\n\
         \traise AssertionError('it did not fail')\n"
    );
    run_well("/usr/bin/python3", &["-c", &(head + script)]);
}

#[test]
fn qemu_10_agrees_on_extended_headers() {
    let disk = disk(false);
    let socket = disk.served.socket();
    let list = run_well(
        &qemu10("qemu-nbd"),
        &["--list", "-k", socket.to_str().unwrap()],
    );
    for told in [
        "transaction size: 64-bit",
        "base:allocation",
        "epochgate:held",
        "cache",
    ] {
        assert!(list.contains(told), "{told}: {list}");
    }
}

/// QEMU's trace shows what it sent: one request, longer than 32 bits can say.
#[test]
fn qemu_10_zeroes_ten_gigabytes_in_one_request() {
    let disk = disk(false);
    let uri = disk.served.unix.uri("disk");
    let output = run(
        &qemu10("qemu-io"),
        &[
            "--trace",
            "nbd_send_request",
            "-f",
            "raw",
            "-c",
            "write -z -n -u 10G 10G",
            "-c",
            "read -P 0 19G 1M",
            &uri,
        ],
    );
    let (out, trace) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{out}\n{trace}");
    let sent = format!(".from = {}, .len = {}", 10 * GIB, 10 * GIB);
    assert!(trace.contains(&sent), "{trace}");
    assert!(fs::metadata(&disk.image).unwrap().blocks() * 512 < 2 * MIB);
}

#[test]
fn every_client_finds_the_same_map() {
    let disk = disk(true);
    let uri = disk.served.unix.uri("disk");
    // Start, length, and whether it is data.
    let expected = [
        (0, MIB, false),
        (MIB, MIB, true),
        (2 * MIB, 19 * GIB - 2 * MIB, false),
        (19 * GIB, MIB, true),
        (19 * GIB + MIB, GIB - MIB, false),
    ];
    for qemu_img in ["qemu-img".to_owned(), qemu10("qemu-img")] {
        let text = run_well(
            &qemu_img,
            &[
                "map",
                "--output=json",
                "--image-opts",
                &format!(
                    "driver=nbd,server.type=unix,server.path={},export=disk",
                    disk.served.socket().display()
                ),
            ],
        );
        let map: serde_json::Value = serde_json::from_str(&text).unwrap();
        let found: Vec<_> = map
            .as_array()
            .unwrap()
            .iter()
            .map(|extent| {
                assert_ne!(extent["data"], extent["zero"]);
                let number = |key: &str| extent[key].as_u64().unwrap();
                (
                    number("start"),
                    number("length"),
                    extent["data"].as_bool().unwrap(),
                )
            })
            .collect();
        assert_eq!(found, expected, "{qemu_img}");
    }
    let text = run_well("nbdinfo", &["--map", "--json", &uri]);
    let map: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut found: Vec<(u64, u64, bool)> = Vec::new();
    for extent in map.as_array().unwrap() {
        let number = |key: &str| extent[key].as_u64().unwrap();
        let data = number("type") == 0;
        // Where 32 bits end, nbdinfo has asked again.
        match found.last_mut() {
            Some(last) if last.2 == data => last.1 += number("length"),
            _ => found.push((number("offset"), number("length"), data)),
        }
    }
    assert_eq!(found, expected);
    let held = run_well("nbdinfo", &["--map=epochgate:held", "--totals", &uri]);
    assert!(
        held.contains("100.0%") && held.lines().count() == 1,
        "{held}"
    );
}

#[test]
fn nbdinfo_lists_contexts_and_abilities() {
    let disk = disk(false);
    let uri = disk.served.unix.uri("disk");
    let text = run_well("nbdinfo", &["--json", &uri]);
    let info: serde_json::Value = serde_json::from_str(&text).unwrap();
    let export = &info["exports"][0];
    assert_eq!(
        export["contexts"],
        serde_json::json!(["base:allocation", "epochgate:held"])
    );
    for ability in [
        "cache",
        "df",
        "fast-zero",
        "flush",
        "fua",
        "multi-conn",
        "structured-reply",
        "trim",
        "write",
        "zero",
    ] {
        run_well("nbdinfo", &["--can", ability, &uri]);
    }
    let list = run_well("nbdinfo", &["--list", "--json", &disk.served.unix.uri("")]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["exports"][0]["export-name"], "disk");
}

#[test]
fn libnbd_selects_contexts_as_the_document_says() {
    let disk = disk(false);
    libnbd(
        &disk,
        r#"
def listed(*queries):
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(uri)
    for query in queries:
        h.add_meta_context(query)
    names = []
    h.opt_list_meta_context(lambda name: names.append(name) and 0)
    h.opt_abort()
    return sorted(names)

both = ["base:allocation", "epochgate:held"]
assert listed() == both, listed()
assert listed("base:") == both[:1]
assert listed("epochgate:", "base:allocation") == both
assert listed("qemu:", "base:nothing") == []

for name in both:
    h.add_meta_context(name)
h.add_meta_context("x-other:thing")
h.connect_uri(uri)
assert [h.can_meta_context(name) for name in both] == [True, True]
assert not h.can_meta_context("x-other:thing")

found = {}
def keep(context, offset, extents, error):
    assert offset == 4096 and error.value == 0
    found[context] = list(extents)
h.block_status(2 << 20, 4096, keep)
assert found["base:allocation"] == [(1 << 20) - 4096, 3, (1 << 20) + 4096, 0] or \
    found["base:allocation"] == [(1 << 20) - 4096, 3, 1 << 20, 0, 4096, 3], found
assert found["epochgate:held"] == [2 << 20, 0], found
found.clear()
h.block_status(2 << 20, 4096, keep, nbd.CMD_FLAG_REQ_ONE)
assert found["base:allocation"] == [(1 << 20) - 4096, 3], found

# Without a selection there is nothing to ask for.
plain = nbd.NBD()
plain.set_strict_mode(0)
plain.connect_uri(uri)
fails(EINVAL, plain.block_status, 512, 0, keep)
"#,
    );
}

#[test]
fn libnbd_receives_holes_and_one_chunk_where_it_asks_for_that() {
    let disk = disk(false);
    libnbd(
        &disk,
        r#"
h.connect_uri(uri)
chunks = []
def keep(data, offset, status, error):
    chunks.append((offset, len(data), status))
    assert status != nbd.READ_HOLE or not any(data)
data = h.pread_structured(3 << 20, 0, keep)
M = 1 << 20
assert sorted(chunks) == [(0, M, nbd.READ_HOLE), (M, M, nbd.READ_DATA), (2 * M, M, nbd.READ_HOLE)], chunks
chunks.clear()
assert h.pread_structured(3 << 20, 0, keep, nbd.CMD_FLAG_DF) == data
assert chunks == [(0, 3 * M, nbd.READ_DATA)], chunks
chunks.clear()
h.pread_structured(32 << 10, 0, keep)
assert chunks == [(0, 32 << 10, nbd.READ_DATA)], chunks

# Without structured replies there is one way only.
simple = nbd.NBD()
simple.set_request_structured_replies(False)
simple.connect_uri(uri)
assert simple.pread(3 << 20, 0) == data
"#,
    );
}

/// What could be read is told apart from what could not, and each error has its number.
#[test]
fn libnbd_is_told_what_failed_and_where() {
    let export: Arc<dyn Export> = Arc::new(Broken);
    let served = Served::new(vec![("disk", export)], Limits::default());
    libnbd_on(
        &served,
        r#"
h.connect_uri(uri)
P = 64 << 10
chunks = []
def keep(data, offset, status, error):
    chunks.append((offset, status))
    if status == nbd.READ_ERROR:
        assert error.value == EIO
    elif status == nbd.READ_DATA:
        assert data == bytes([7]) * P
fails(EIO, h.pread_structured, 3 * P, 0, keep)
assert chunks == [(0, nbd.READ_DATA), (P, nbd.READ_HOLE), (2 * P, nbd.READ_ERROR)], chunks
# In one piece there is nothing to tell apart.
chunks.clear()
fails(EIO, h.pread_structured, 3 * P, 0, keep, nbd.CMD_FLAG_DF)
assert chunks == [], chunks
fails(EIO, h.flush)
fails(EIO, h.cache, 512, 0)
fails(ENOSPC, h.pwrite, bytes(512), 0)
fails(ENOTSUP, h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
fails(ENOSPC, h.zero, 512, 0)
assert h.pread(512, 0) == bytes([7]) * 512
"#,
    );
}

#[test]
fn libnbd_sends_hints_and_zeroes_with_every_flag() {
    let disk = disk(false);
    let blocks = || fs::metadata(&disk.image).unwrap().blocks() * 512;
    let before = blocks();
    libnbd(
        &disk,
        r#"
h.connect_uri(uri)
h.cache(32 << 20, 0)
h.cache(0xfffff000, 0)
h.zero(1 << 20, 1 << 20, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
assert not any(h.pread(1 << 20, 1 << 20))
"#,
    );
    assert!(blocks() >= before, "NO_HOLE keeps the space");
    libnbd(
        &disk,
        r#"
h.connect_uri(uri)
h.zero(1 << 20, 1 << 20, nbd.CMD_FLAG_FAST_ZERO)
h.trim(1 << 20, 19 << 30, nbd.CMD_FLAG_FUA)
h.flush()
"#,
    );
    assert!(blocks() < MIB, "a hole gives it back");
}

#[test]
fn what_was_not_agreed_on_is_refused_and_the_session_goes_on() {
    let disk = disk(false);
    libnbd(
        &disk,
        r#"
h.set_strict_mode(0)
h.connect_uri(uri)
size = h.get_size()
data = bytes(512)
fails(EINVAL, h.pread, 512, size)
fails(ENOSPC, h.pwrite, data, size)
fails(ENOSPC, h.zero, 512, size)
fails(EINVAL, h.trim, 512, size)
fails(EINVAL, h.cache, 512, size)
fails(EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_NO_HOLE)
fails(EINVAL, h.pwrite, data, 0, nbd.CMD_FLAG_DF)
fails(EINVAL, h.cache, 512, 0, nbd.CMD_FLAG_REQ_ONE)
fails(EINVAL, h.zero, 512, 0, 1 << 12)
fails(EINVAL, h.flush, 1 << 9)
assert h.pread(512, 0) == data

# DF is a matter of structured replies.
simple = nbd.NBD()
simple.set_request_structured_replies(False)
simple.set_strict_mode(0)
simple.connect_uri(uri)
assert not simple.can_df()
fails(EINVAL, simple.pread, 512, 0, nbd.CMD_FLAG_DF)
assert simple.pread(512, 0) == data
"#,
    );
    let disk = self::disk(true);
    libnbd(
        &disk,
        r#"
h.set_strict_mode(0)
h.connect_uri(uri)
assert h.is_read_only() and h.can_cache() and not h.can_trim()
fails(EPERM, h.pwrite, bytes(512), 0)
fails(EPERM, h.zero, 512, 0)
fails(EPERM, h.trim, 512, 0)
h.cache(512, 0)
h.flush()
"#,
    );
}

#[test]
fn opt_mode_asks_and_asks_again_before_it_attaches() {
    let disk = disk(false);
    libnbd(
        &disk,
        r#"
h.set_opt_mode(True)
h.connect_uri(uri)
h.set_export_name("none")
fails(ENOENT, h.opt_info)
fails(ENOENT, h.opt_go)
names = []
h.opt_list(lambda name, description: names.append((name, description)) and 0)
assert names == [("disk", "raw image, sync mode")], names
h.set_export_name("disk")
h.set_full_info(True)
h.opt_info()
size = h.get_size()
assert h.get_canonical_export_name() == "disk"
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
h.opt_go()
assert h.get_size() == size and h.get_structured_replies_negotiated()
"#,
    );
}
