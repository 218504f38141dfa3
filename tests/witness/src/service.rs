//! The witness on the network: a service whose answers are as much a part of its memory as its table is. Somebody outside who was
//! given an answer can tell, after a failover, whether the guest still knows of it.
//!
//! Port `service`, TCP: a request is a number (8 bytes, little endian); the answer is that number and how many requests the
//! witness has answered by then, of all connections together (8 bytes each). Port `service` + 1, TCP: a request is a length
//! (8 bytes), the answer so many bytes, of which every eight are their own offset ([`pattern`]).
//!
//! `beacon`: to this address and port goes a UDP packet of 16 bytes every two milliseconds: a number, one more each time, and the
//! same number again as a check.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// Time between two packets of the beacon.
const BEACON: Duration = Duration::from_millis(2);
/// Bytes sent at once.
const PIECE: usize = 64 << 10;

/// Starts the service on `port` and the next one.
///
/// # Errors
/// The system's reason why it can't listen or start a thread.
pub fn serve(port: u16) -> io::Result<()> {
    let answered = Arc::new(AtomicU64::new(0));
    listen(port, move |socket| answer(socket, &answered))?;
    listen(port + 1, stream)
}

/// Starts the beacon.
///
/// # Errors
/// The system's reason why there is no socket or thread.
pub fn beacon(to: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let send = move || {
        for number in 0_u64.. {
            let mut packet = [0; 16];
            packet[..8].copy_from_slice(&number.to_le_bytes());
            packet[8..].copy_from_slice(&number.to_le_bytes());
            // Nobody has answered for the address yet, say: the next number tells that one is missing.
            let _ = socket.send_to(&packet, to);
            thread::sleep(BEACON);
        }
    };
    thread::Builder::new()
        .name("beacon".into())
        .spawn(send)
        .map(drop)
}

fn listen(
    port: u16,
    serve: impl Fn(&TcpStream) -> io::Result<()> + Clone + Send + 'static,
) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    let accept = move || {
        for socket in listener.incoming().flatten() {
            let serve = serve.clone();
            // A connection that breaks is for whoever is at its other end to judge.
            let _ = thread::Builder::new().spawn(move || serve(&socket));
        }
    };
    thread::Builder::new()
        .name(format!("port-{port}"))
        .spawn(accept)
        .map(drop)
}

fn answer(mut socket: &TcpStream, answered: &AtomicU64) -> io::Result<()> {
    socket.set_nodelay(true)?;
    loop {
        let mut request = [0; 8];
        socket.read_exact(&mut request)?;
        let count = answered.fetch_add(1, Ordering::SeqCst) + 1;
        let mut answer = [0; 16];
        answer[..8].copy_from_slice(&request);
        answer[8..].copy_from_slice(&count.to_le_bytes());
        socket.write_all(&answer)?;
    }
}

fn stream(mut socket: &TcpStream) -> io::Result<()> {
    loop {
        let mut request = [0; 8];
        socket.read_exact(&mut request)?;
        let length = u64::from_le_bytes(request);
        let mut sent = 0;
        let mut piece = vec![0; PIECE];
        while sent < length {
            let count = usize::try_from(length - sent).map_or(PIECE, |left| left.min(PIECE));
            pattern(sent, &mut piece);
            socket.write_all(&piece[..count])?;
            sent += count as u64;
        }
    }
}

/// The bytes from `offset`, a multiple of 8, on.
fn pattern(offset: u64, piece: &mut [u8]) {
    for (at, word) in (offset..).step_by(8).zip(piece.chunks_exact_mut(8)) {
        word.copy_from_slice(&at.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn connected(port: u16) -> TcpStream {
        TcpStream::connect(("127.0.0.1", port)).unwrap()
    }

    /// A port such that the next one is free, too.
    fn started() -> u16 {
        loop {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            if port < u16::MAX && serve(port).is_ok() {
                return port;
            }
        }
    }

    #[test]
    fn counts_over_all_connections() {
        let port = started();
        let (mut one, mut two) = (connected(port), connected(port));
        let ask = |socket: &mut TcpStream, number: u64| {
            socket.write_all(&number.to_le_bytes()).unwrap();
            let mut answer = [0; 16];
            socket.read_exact(&mut answer).unwrap();
            let word = |at: usize| u64::from_le_bytes(answer[at..at + 8].try_into().unwrap());
            (word(0), word(8))
        };
        assert_eq!(ask(&mut one, 7), (7, 1));
        assert_eq!(ask(&mut two, 9), (9, 2));
        assert_eq!(ask(&mut one, 8), (8, 3));
    }

    #[test]
    fn streams_offsets() {
        let mut socket = connected(started() + 1);
        let length = 3 * PIECE as u64 + 16;
        socket.write_all(&length.to_le_bytes()).unwrap();
        for at in (0..length).step_by(8) {
            let mut word = [0; 8];
            socket.read_exact(&mut word).unwrap();
            assert_eq!(u64::from_le_bytes(word), at);
        }
    }
}
