//! Clients outside of the VM. They go on whatever becomes of the guest, as real ones do.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::http;
use crate::qmp::Qmp;
use crate::spec::Client;

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What clients got.
#[derive(Debug, Default)]
pub struct Counts {
    /// Answers that are good.
    pub good: AtomicU64,
    /// Answers that are not, or that did not come.
    pub bad: AtomicU64,
    /// Bytes both ways.
    pub bytes: AtomicU64,
}

/// Clients at work. They end when this is dropped.
#[derive(Debug)]
pub struct Clients {
    /// What they got so far.
    pub counts: Arc<Counts>,
    _tasks: JoinSet<()>,
}

impl Clients {
    /// Starts them against the guest at `address`; `qmp` is for resets.
    pub fn start(clients: &[Client], address: &str, seed: u64, qmp: &Path) -> Self {
        let counts = Arc::new(Counts::default());
        let mut tasks = JoinSet::new();
        for (index, client) in (0u64..).zip(clients) {
            let random = StdRng::seed_from_u64(seed.wrapping_add(index));
            let counts = Arc::clone(&counts);
            match client.clone() {
                Client::Get {
                    port,
                    path,
                    rate,
                    connections,
                } => {
                    tasks.spawn(gets(
                        format!("{address}:{port}"),
                        path,
                        rate,
                        connections,
                        random,
                        counts,
                    ));
                }
                Client::Send { port, rate } => {
                    tasks.spawn(sends(format!("{address}:{port}"), rate, counts));
                }
                Client::Reset { every } => {
                    tasks.spawn(resets(qmp.to_owned(), every));
                }
            }
        }
        Self {
            counts,
            _tasks: tasks,
        }
    }
}

/// Requests at random distances, as those of many independent people.
async fn gets(
    address: String,
    path: String,
    rate: f64,
    connections: usize,
    mut random: StdRng,
    counts: Arc<Counts>,
) {
    let free = Arc::new(Semaphore::new(connections));
    let mut requests = JoinSet::new();
    loop {
        let pause = -random.random_range(f64::EPSILON..1.0).ln() / rate;
        sleep(Duration::from_secs_f64(pause)).await;
        while requests.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else {
            return;
        };
        let (address, path, counts) = (address.clone(), path.clone(), Arc::clone(&counts));
        requests.spawn(async move {
            let _permit = permit;
            match timeout(PATIENCE, http::get(&address, &path)).await {
                Ok(Ok(answer)) if answer.status == 200 => {
                    counts.good.fetch_add(1, Ordering::Relaxed);
                    counts.bytes.fetch_add(answer.bytes, Ordering::Relaxed);
                }
                _ => {
                    counts.bad.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
}

async fn resets(path: PathBuf, every: u64) {
    loop {
        sleep(Duration::from_secs(every)).await;
        if let Ok(mut qmp) = Qmp::connect(&path).await {
            // A QEMU that is gone is noticed elsewhere.
            let _ = qmp.execute("system_reset", serde_json::json!({})).await;
        }
    }
}

async fn sends(address: String, rate: u64, counts: Arc<Counts>) {
    let chunk: Vec<u8> = (0..32 * 1024u32)
        .map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    let pause = Duration::from_secs_f64(32.0 / rate.max(1) as f64);
    loop {
        if let Ok(Ok(mut socket)) = timeout(PATIENCE, TcpStream::connect(&address)).await {
            while let Ok(Ok(())) = timeout(PATIENCE, socket.write_all(&chunk)).await {
                counts.good.fetch_add(1, Ordering::Relaxed);
                counts
                    .bytes
                    .fetch_add(chunk.len() as u64, Ordering::Relaxed);
                sleep(pause).await;
            }
        }
        counts.bad.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_secs(1)).await;
    }
}
