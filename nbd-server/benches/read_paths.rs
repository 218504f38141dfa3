//! What it costs to read, by the ways that the data path could take: from the page cache, and from storage. The measurement behind
//! docs/decisions.md. CPU time of this process per operation, so that a busy machine disturbs it little.
//!
//! `cargo bench -p nbd-server --bench read_paths`
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};
use rustix::fs::{Advice, fadvise, sendfile};
use rustix::io::{ReadWriteFlags, preadv2};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::sockopt;
use rustix::time::{ClockId, clock_gettime};

const SIZE: u64 = 256 << 20;
const SMALL: usize = 4096;
const DEPTH: usize = 32;
const OPERATIONS: usize = 320_000;
const LARGE: usize = 256 << 10;
const LARGE_OPERATIONS: usize = 8_000;
const ROUNDS: usize = 3;
/// Reads in flight when they have to come from storage, and who waits for them where no ring does.
const COLD_DEPTH: usize = 64;
const WORKERS: usize = 16;
const COLD_OPERATIONS: usize = 60_000;

/// CPU time of this process so far.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn report(name: &str, operations: usize, before: Duration) {
    let spent = cpu() - before;
    let each = spent.as_nanos() as f64 / operations as f64;
    println!("  {name:<62} {each:>9.0} ns of CPU");
}

/// Random offsets, the same in every run.
struct Offsets(u64);

impl Offsets {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % (SIZE / SMALL as u64) * SMALL as u64
    }
}

/// Brings the whole file into the page cache.
fn warm(file: &File) {
    let mut buf = vec![0; 1 << 20];
    for at in (0..SIZE).step_by(buf.len()) {
        file.read_exact_at(&mut buf, at).unwrap();
    }
}

fn preadv2_each(file: &File, buf: &mut [u8], missed: &mut usize) {
    let mut offsets = Offsets(1);
    let before = cpu();
    for i in 0..OPERATIONS {
        let slot = i % DEPTH * SMALL;
        let target = &mut buf[slot..slot + SMALL];
        let at = offsets.next();
        let read = preadv2(
            file,
            &mut [IoSliceMut::new(target)],
            at,
            ReadWriteFlags::NOWAIT,
        );
        if read != Ok(SMALL) {
            *missed += 1;
        }
    }
    report("4 KiB: preadv2, RWF_NOWAIT", OPERATIONS, before);
}

fn ring_batches(file: &File, buf: &mut [u8], fixed: bool) {
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .build(DEPTH as u32 * 2)
        .expect("io_uring is allowed here");
    ring.submitter()
        .register_files(&[file.as_raw_fd()])
        .unwrap();
    let whole = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    if fixed {
        // SAFETY: the buffer outlives the ring, which ends with this function.
        unsafe { ring.submitter().register_buffers(&[whole]) }.unwrap();
    }
    let mut offsets = Offsets(1);
    let before = cpu();
    for _ in 0..OPERATIONS / DEPTH {
        for slot in buf.chunks_exact_mut(SMALL) {
            let at = offsets.next();
            let target = slot.as_mut_ptr();
            let entry = if fixed {
                opcode::ReadFixed::new(types::Fixed(0), target, SMALL as u32, 0)
                    .offset(at)
                    .build()
            } else {
                opcode::Read::new(types::Fixed(0), target, SMALL as u32)
                    .offset(at)
                    .build()
            };
            // SAFETY: the buffer lives until the completion, which is waited for below.
            unsafe { ring.submission().push(&entry) }.unwrap();
        }
        ring.submit_and_wait(DEPTH).unwrap();
        assert!(ring.completion().all(|done| done.result() == SMALL as i32));
    }
    let name = if fixed {
        "4 KiB: io_uring, 32 at once, fixed buffers"
    } else {
        "4 KiB: io_uring, 32 at once"
    };
    report(name, OPERATIONS, before);
}

fn mapped(file: &File, buf: &mut [u8]) {
    let len = SIZE as usize;
    // SAFETY: a fresh mapping, read only, of a file that nobody shortens; it is unmapped below.
    let map = unsafe {
        mmap(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ,
            MapFlags::SHARED,
            file,
            0,
        )
    }
    .unwrap();
    for pass in ["first", "second"] {
        let mut offsets = Offsets(1);
        let before = cpu();
        for i in 0..OPERATIONS {
            let slot = i % DEPTH * SMALL;
            // SAFETY: the offset and 4 KiB behind it lie inside the mapping, the slot inside the buffer.
            unsafe {
                let source = map.cast::<u8>().add(offsets.next() as usize);
                std::ptr::copy_nonoverlapping(source, buf[slot..].as_mut_ptr(), SMALL);
            }
        }
        report(
            &format!("4 KiB: mapped file, {pass} pass"),
            OPERATIONS,
            before,
        );
    }
    // SAFETY: nothing points into the mapping any more.
    unsafe { munmap(map, len) }.unwrap();
}

/// Takes the whole file out of the page cache.
fn cool(file: &File) {
    file.sync_data().unwrap();
    fadvise(file, 0, None, Advice::DontNeed).unwrap();
    fadvise(file, 0, None, Advice::Random).unwrap();
}

fn report_cold(name: &str, before: Duration, started: Instant) {
    let rate = COLD_OPERATIONS as f64 / started.elapsed().as_secs_f64();
    report(
        &format!("{name} ({rate:.0} a second)"),
        COLD_OPERATIONS,
        before,
    );
}

/// As the server does it: one thread hands requests over, workers read and hand the answers back.
fn cold_by_workers(file: &File) {
    let (requests, queue) = mpsc::channel::<(u64, Vec<u8>)>();
    let queue = Arc::new(Mutex::new(queue));
    let (answers, done) = mpsc::channel::<Vec<u8>>();
    cool(file);
    let (before, started) = (cpu(), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            let (queue, answers) = (Arc::clone(&queue), answers.clone());
            scope.spawn(move || {
                loop {
                    let request = queue.lock().unwrap().recv();
                    let Ok((at, mut buf)) = request else { return };
                    file.read_exact_at(&mut buf, at).unwrap();
                    answers.send(buf).unwrap();
                }
            });
        }
        let mut offsets = Offsets(7);
        for i in 0..COLD_OPERATIONS {
            let buf = if i < COLD_DEPTH {
                vec![0; SMALL]
            } else {
                done.recv().unwrap()
            };
            requests.send((offsets.next(), buf)).unwrap();
        }
        drop(requests);
    });
    report_cold("4 KiB from storage: 16 workers", before, started);
}

fn cold_by_ring(file: &File) {
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .build(COLD_DEPTH as u32 * 2)
        .expect("io_uring is allowed here");
    let mut buf = vec![0; COLD_DEPTH * SMALL];
    cool(file);
    let (before, started) = (cpu(), Instant::now());
    let mut offsets = Offsets(7);
    let mut free: Vec<usize> = (0..COLD_DEPTH).collect();
    let (mut begun, mut ended) = (0, 0);
    while ended < COLD_OPERATIONS {
        while begun < COLD_OPERATIONS
            && let Some(slot) = free.pop()
        {
            let target = buf[slot * SMALL..].as_mut_ptr();
            let entry = opcode::Read::new(types::Fd(file.as_raw_fd()), target, SMALL as u32)
                .offset(offsets.next())
                .build()
                .user_data(slot as u64);
            // SAFETY: the slot is free and the buffer outlives the ring's work, all of which is waited for.
            unsafe { ring.submission().push(&entry) }.unwrap();
            begun += 1;
        }
        ring.submit_and_wait(1).unwrap();
        for done in ring.completion() {
            assert_eq!(done.result(), SMALL as i32);
            free.push(done.user_data() as usize);
            ended += 1;
        }
    }
    report_cold("4 KiB from storage: io_uring, 64 at once", before, started);
}

fn to_socket(name: &str, mut send: impl FnMut(&mut UnixStream, u64)) {
    let (mut server, client) = UnixStream::pair().unwrap();
    sockopt::set_socket_send_buffer_size(&server, 1 << 20).unwrap();
    let before = cpu();
    let reader = std::thread::spawn(move || {
        let mut buf = vec![0; LARGE];
        let mut left = LARGE * LARGE_OPERATIONS;
        while left > 0 {
            left -= std::io::Read::read(&mut &client, &mut buf).unwrap();
        }
    });
    for i in 0..LARGE_OPERATIONS {
        send(&mut server, (i * LARGE) as u64 % SIZE);
    }
    reader.join().unwrap();
    report(name, LARGE_OPERATIONS, before);
}

fn main() {
    let mut file = tempfile::tempfile().unwrap();
    let piece: Vec<u8> = (0..1 << 20).map(|i| (i % 251) as u8).collect();
    for _ in 0..SIZE / (1 << 20) {
        file.write_all(&piece).unwrap();
    }
    file.sync_data().unwrap();
    let mut buf = vec![0; DEPTH * SMALL];
    let mut missed = 0;
    for round in 1..=ROUNDS {
        println!("round {round}");
        cold_by_workers(&file);
        cold_by_ring(&file);
        fadvise(&file, 0, None, Advice::Normal).unwrap();
        warm(&file);
        preadv2_each(&file, &mut buf, &mut missed);
        ring_batches(&file, &mut buf, false);
        ring_batches(&file, &mut buf, true);
        mapped(&file, &mut buf);
        let mut large = vec![0; LARGE];
        to_socket(
            "256 KiB to a unix socket, client included: copy",
            |socket, at| {
                file.read_exact_at(&mut large, at).unwrap();
                socket.write_all(&large).unwrap();
            },
        );
        to_socket(
            "256 KiB to a unix socket, client included: sendfile",
            |socket, mut at| {
                let end = at + LARGE as u64;
                while at < end {
                    let left = (end - at) as usize;
                    sendfile(&*socket, &file, Some(&mut at), left).unwrap();
                }
            },
        );
    }
    if missed > 0 {
        println!(
            "{missed} reads were not in the page cache: something reclaims it; the figures include that"
        );
    }
}
