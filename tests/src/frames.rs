//! The checkpoint channel as a foreign program would speak it, written from the drawing in
//! coordinator/src/checkpoint_channel.rs: frames by hand, a peer of another version, a relay that spoils a frame.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::waiting::PATIENCE;

/// Bytes of a frame's header.
pub const HEADER: usize = 64;
/// The version that is spoken.
pub const VERSION: u16 = 2;

/// Kinds of frames.
pub mod kind {
    #![allow(missing_docs, reason = "named as in the drawing")]
    pub const HELLO: u16 = 1;
    pub const REFUSED: u16 = 3;
    pub const BASE_PAGES: u16 = 13;
    pub const PAGES: u16 = 14;
}

/// A whole frame for `vm`.
pub fn frame(version: u16, kind: u16, vm: &str, payload: &[u8]) -> Vec<u8> {
    let mut raw = b"EPCH".to_vec();
    raw.extend_from_slice(&version.to_le_bytes());
    raw.extend_from_slice(&kind.to_le_bytes());
    raw.extend_from_slice(&xxh3_128(vm.as_bytes()).to_le_bytes());
    raw.extend_from_slice(&1u64.to_le_bytes());
    raw.extend_from_slice(&0u64.to_le_bytes());
    raw.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    raw.extend_from_slice(&xxh3_64(payload).to_le_bytes());
    let sum = xxh3_64(&raw);
    raw.extend_from_slice(&sum.to_le_bytes());
    raw.extend_from_slice(payload);
    raw
}

/// Reads one frame: its kind, its header and its payload. None at the end of the stream.
pub fn read(stream: &mut impl Read) -> Option<(u16, Vec<u8>, Vec<u8>)> {
    let mut header = vec![0; HEADER];
    stream.read_exact(&mut header).ok()?;
    let kind = u16::from_le_bytes([header[6], header[7]]);
    let mut length = [0; 8];
    length.copy_from_slice(&header[40..48]);
    let length = usize::try_from(u64::from_le_bytes(length)).expect("a length fits");
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).ok()?;
    Some((kind, header, payload))
}

/// Sends bytes to a standby and closes the sending side, as a source that dies would. Returns the text of its refusal, if
/// there is one.
pub fn offer(standby: &Path, bytes: &[u8]) -> Option<String> {
    let mut stream = UnixStream::connect(standby).expect("the standby listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a socket has timeouts");
    // It may close before all is read.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let (kind, _, payload) = read(&mut stream)?;
    (kind == kind::REFUSED).then(|| String::from_utf8_lossy(&payload).into_owned())
}

/// A standby of version 99: answers every source with a frame of that version, until it is dropped.
#[derive(Debug)]
pub struct FutureStandby {
    listener: UnixListener,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl FutureStandby {
    /// Listens on `socket`.
    pub fn listen(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).expect("a socket can be made");
        let accepting = listener.try_clone().expect("a socket can be cloned");
        let thread = std::thread::spawn(move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                let _ = read(&mut stream);
                let _ = stream.write_all(&frame(99, 2, "vm1", b"{}"));
            }
        });
        Self {
            listener,
            thread: Some(thread),
        }
    }
}

impl Drop for FutureStandby {
    fn drop(&mut self) {
        // Wakes the thread with an error.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A wire between source and standby that flips one bit, in the payload of the `nth` frame of a kind; frames before and after
/// it, and all later connections, pass as they are. Ends with the two processes.
pub fn spoiling_relay(listen: &Path, standby: &Path, kind: u16, nth: u64) {
    let listener = UnixListener::bind(listen).expect("a socket can be made");
    let standby = standby.to_owned();
    std::thread::spawn(move || {
        let mut left = nth;
        while let Ok((source, _)) = listener.accept() {
            let Ok(there) = UnixStream::connect(&standby) else {
                continue;
            };
            let (mut from, mut to) = (
                there.try_clone().expect("a socket can be cloned"),
                source.try_clone().expect("a socket can be cloned"),
            );
            let back = std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Both);
            });
            pass(source, there, kind, &mut left);
            let _ = back.join();
        }
    });
}

fn pass(mut source: UnixStream, mut standby: UnixStream, spoiled: u16, left: &mut u64) {
    while let Some((kind, header, mut payload)) = read(&mut source) {
        if kind == spoiled && *left > 0 {
            *left -= 1;
            if *left == 0 {
                let middle = payload.len() / 2;
                payload[middle] ^= 0x10;
            }
        }
        if standby.write_all(&header).is_err() || standby.write_all(&payload).is_err() {
            break;
        }
    }
    let _ = standby.shutdown(std::net::Shutdown::Write);
    let _ = source.shutdown(std::net::Shutdown::Read);
}
