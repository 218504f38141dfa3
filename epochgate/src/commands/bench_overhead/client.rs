//! The other end of a guest's connection: asks and waits, or takes what comes, until it is dropped.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::cli::overhead::Workload;
use crate::lab::lan::GUEST;
use crate::lab::namespaces::Place;

/// Port of the witness's service; the next one streams.
pub(super) const PORT: u16 = 9000;
/// A guest that has just booted may not have its address yet.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// How soon an end is noticed.
const TICK: Duration = Duration::from_millis(100);

/// What client and bench share.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Answers or bytes.
    count: AtomicU64,
    /// Microseconds of each round trip.
    trips: Mutex<Vec<u64>>,
}

/// A client at work.
#[derive(Debug)]
pub(super) struct Client {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Client {
    /// Connects from `place`, and begins.
    pub(super) fn start(place: &Place, workload: Workload) -> anyhow::Result<Self> {
        let shared = Arc::<Shared>::default();
        let (mine, place) = (Arc::clone(&shared), place.clone());
        let thread = std::thread::Builder::new()
            .name("client".into())
            .spawn(move || {
                place.enter_now()?;
                match workload {
                    Workload::Stream => mine.take(&mine.connect(PORT + 1)?),
                    _ => mine.ask(&mine.connect(PORT)?),
                }
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Answers or bytes so far. An error if the connection broke.
    pub(super) fn count(&mut self) -> anyhow::Result<u64> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(thread) = self.thread.take()
        {
            match thread.join() {
                Ok(ended) => ended.context("the guest's connection broke")?,
                Err(_) => bail!("the client's thread panicked"),
            }
        }
        Ok(self.shared.count.load(Ordering::Relaxed))
    }

    /// Round trips since this was last asked for, in microseconds.
    pub(super) fn take_trips(&self) -> Vec<u64> {
        let mut trips = self
            .shared
            .trips
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *trips)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let to = SocketAddr::from((GUEST, port));
        let deadline = Instant::now() + CONNECT_LIMIT;
        loop {
            match TcpStream::connect_timeout(&to, Duration::from_secs(2)) {
                Ok(socket) => {
                    socket.set_nodelay(true)?;
                    socket.set_read_timeout(Some(TICK))?;
                    return Ok(socket);
                }
                Err(error) if self.stopped() || Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(TICK),
            }
        }
    }

    /// Some bytes; 0 when it is to stop.
    fn read(&self, mut socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.stopped() {
            match socket.read(buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                other => return other,
            }
        }
        Ok(0)
    }

    fn ask(&self, mut socket: &TcpStream) -> io::Result<()> {
        let mut answer = [0; 16];
        while !self.stopped() {
            let began = Instant::now();
            socket.write_all(&self.count.load(Ordering::Relaxed).to_le_bytes())?;
            let mut got = 0;
            while got < answer.len() {
                match self.read(socket, &mut answer[got..])? {
                    0 => return Ok(()),
                    n => got += n,
                }
            }
            let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            let mut trips = self.trips.lock().unwrap_or_else(PoisonError::into_inner);
            trips.push(micros);
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn take(&self, mut socket: &TcpStream) -> io::Result<()> {
        // Whole words, more of them than anybody waits for.
        socket.write_all(&(u64::MAX - 7).to_le_bytes())?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match self.read(socket, &mut buffer)? {
                0 => return Ok(()),
                n => self.count.fetch_add(n as u64, Ordering::Relaxed),
            };
        }
    }
}
