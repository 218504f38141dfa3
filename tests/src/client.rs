//! A client of the witness's service on the network (tests/witness/src/service.rs) that notices when the guest forgets what it has
//! told.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::network::SERVICE;
use crate::waiting::wait_until;

/// A connection on which nothing comes for so long is dead.
const SILENCE: Duration = Duration::from_secs(20);

/// A client, asked by one thread and watched by another.
#[derive(Debug, Default)]
pub struct Client {
    /// Answers so far.
    answers: AtomicU64,
    stop: AtomicBool,
}

impl Client {
    /// Asks one thing after the other on one connection until it is told to stop. The error says what is wrong.
    pub fn ask(&self) -> Result<(), String> {
        let mut socket = TcpStream::connect(SERVICE).map_err(|e| e.to_string())?;
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        let mut last = 0;
        for number in 1_u64.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let mut answer = [0; 16];
            socket
                .write_all(&number.to_le_bytes())
                .and_then(|()| socket.read_exact(&mut answer))
                .map_err(|e| format!("after {number} requests: {e}"))?;
            let echoed = u64::from_le_bytes(answer[..8].try_into().unwrap());
            let count = u64::from_le_bytes(answer[8..].try_into().unwrap());
            if echoed != number || (last != 0 && count != last + 1) {
                return Err(format!(
                    "request {number} was answered as {echoed}, the {count}th after the {last}th"
                ));
            }
            last = count;
            self.answers.store(number, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The asking goes on as long as this is there; a panic ends it, too.
    pub fn asking(&self) -> Asking<'_> {
        Asking(self)
    }

    /// Answers so far.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Waits until it has so many more.
    #[track_caller]
    pub fn wait_for_more(&self, more: u64) {
        let wanted = self.answers.load(Ordering::Relaxed) + more;
        let enough = || (self.answers.load(Ordering::Relaxed) >= wanted).then_some(());
        wait_until("more answers", enough, String::new);
    }
}

/// See [`Client::asking`].
#[derive(Debug)]
pub struct Asking<'a>(&'a Client);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}
