//! The load: connections that carry out one transaction after the other, each on a thread of its own in the outside world.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rand::Rng;
use serde::Serialize;

use super::SERVICE;
use super::ledger::{Broken, Names, read_back, remembered, transact, write_row};
use super::redis::{Connection, SILENCE};
use crate::lab::namespaces::Place;
use crate::lab::site::heed_interruption;

/// One of so many transactions is followed by reading an earlier one back.
const READ_BACK: u64 = 16;
/// Complaints that are kept for each connection.
const COMPLAINTS: usize = 8;

/// What broken promises there were.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Faults {
    /// Acknowledged transactions that were gone afterwards.
    pub lost: u64,
    /// Connections that were reset, closed or dead.
    pub resets: u64,
    /// Answers that fit nothing that can have happened.
    pub wrong: u64,
    /// What was seen first.
    pub complaints: Vec<String>,
}

impl Faults {
    pub(crate) fn none(&self) -> bool {
        self.lost == 0 && self.resets == 0 && self.wrong == 0
    }

    pub(super) fn note(&mut self, who: &str, broken: &Broken) {
        let what = match broken {
            Broken::Connection(why) => {
                self.resets += 1;
                why.clone()
            }
            Broken::Lost {
                transactions,
                found,
            } => {
                self.lost += transactions;
                format!("{transactions} acknowledged transactions are gone: {found}")
            }
            Broken::Wrong(what) => {
                self.wrong += 1;
                what.clone()
            }
        };
        if self.complaints.len() < COMPLAINTS {
            self.complaints.push(format!("{who}: {what}"));
        }
    }

    /// What came since `before`, by count.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            lost: self.lost - before.lost,
            resets: self.resets - before.resets,
            wrong: self.wrong - before.wrong,
            complaints: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.lost += other.lost;
        self.resets += other.resets;
        self.wrong += other.wrong;
        self.complaints.extend_from_slice(&other.complaints);
    }
}

/// One connection as others see it.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) names: Names,
    /// Rows 1 to this one were acknowledged, and are not known to be lost.
    pub(super) acknowledged: AtomicU64,
    /// Acknowledgements ever.
    answers: AtomicU64,
    /// The longest that a transaction took since this was last asked for, in microseconds.
    worst_us: AtomicU64,
    /// How long each took since this was last asked for, in microseconds.
    times_us: Mutex<Vec<u64>>,
    faults: Mutex<Faults>,
}

/// The load. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Load {
    pub(super) clients: Vec<Arc<Client>>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    pub(super) place: Place,
}

impl Load {
    /// So many connections, which begin at once. `seed` tells the contents of this run from those of others.
    pub(crate) fn start(place: &Place, connections: u32, seed: u64) -> anyhow::Result<Self> {
        let mut load = Self {
            clients: Vec::new(),
            threads: Vec::new(),
            stop: Arc::default(),
            place: place.clone(),
        };
        for connection in 0..connections as usize {
            let client = Arc::new(Client {
                names: Names { seed, connection },
                acknowledged: AtomicU64::new(0),
                answers: AtomicU64::new(0),
                worst_us: AtomicU64::new(0),
                times_us: Mutex::default(),
                faults: Mutex::default(),
            });
            load.clients.push(Arc::clone(&client));
            let (stop, place) = (Arc::clone(&load.stop), place.clone());
            let thread = std::thread::Builder::new().name(format!("client-{connection}"));
            load.threads
                .push(thread.spawn(move || match place.enter_now() {
                    Ok(()) => client.work(&stop),
                    Err(errno) => client.complain(&Broken::Wrong(errno.to_string())),
                })?);
        }
        Ok(load)
    }

    /// Acknowledgements so far, of all connections.
    pub(crate) fn answers(&self) -> u64 {
        let answers = self
            .clients
            .iter()
            .map(|c| c.answers.load(Ordering::Relaxed));
        answers.sum()
    }

    /// The longest that a transaction took since this was last asked for, in microseconds.
    pub(crate) fn take_worst_us(&self) -> u64 {
        let worst = self
            .clients
            .iter()
            .map(|c| c.worst_us.swap(0, Ordering::Relaxed));
        worst.max().unwrap_or(0)
    }

    /// How long each transaction took since this was last asked for, in microseconds, sorted.
    pub(crate) fn take_times_us(&self) -> Vec<u64> {
        let mut all = Vec::new();
        for client in &self.clients {
            all.append(&mut lock(&client.times_us));
        }
        all.sort_unstable();
        all
    }

    /// Broken promises so far.
    pub(crate) fn faults(&self) -> Faults {
        let mut all = Faults::default();
        for client in &self.clients {
            all.add(&lock(&client.faults));
        }
        all
    }

    /// Waits until each connection has so many more acknowledgements, be it after it was broken and opened again.
    pub(crate) fn until_all_go_on(
        &self,
        more: u64,
        mut meanwhile: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let answers = |client: &Arc<Client>| client.answers.load(Ordering::Relaxed);
        let wanted: Vec<u64> = self.clients.iter().map(|c| answers(c) + more).collect();
        let deadline = Instant::now() + SILENCE * 4;
        loop {
            heed_interruption()?;
            meanwhile()?;
            let mut all = self.clients.iter().zip(&wanted);
            let Some((silent, _)) = all.find(|(client, wanted)| answers(client) < **wanted) else {
                return Ok(());
            };
            if Instant::now() > deadline {
                bail!(
                    "connection {} does not go on: {:?}",
                    silent.names.connection,
                    lock(&silent.faults).complaints
                );
            }
        }
    }

    /// Lets each connection finish what it does, and closes it.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok().context("a client panicked")?;
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // A client that waits for an answer is not waited for.
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Client {
    /// Works until it is told to stop; opens the connection again if it breaks.
    fn work(&self, stop: &AtomicBool) {
        let stopped = || stop.load(Ordering::Relaxed);
        while !stopped() {
            // That nobody answers is no broken promise: those who wait for this client notice.
            let Ok(mut to) = Connection::open(SERVICE) else {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            let began = self.begin(&mut to);
            if let Err(broken) = began.and_then(|()| self.transactions(&mut to, &stopped)) {
                self.complain(&broken);
            }
        }
    }

    /// What the database remembers of this client.
    fn begin(&self, to: &mut Connection) -> Result<(), Broken> {
        let there = remembered(to, &self.names)?;
        let promised = self.acknowledged.swap(there, Ordering::Relaxed);
        if there < promised {
            self.complain(&Broken::Lost {
                transactions: promised - there,
                found: format!("{promised} were acknowledged, {there} are remembered"),
            });
        } else if there > promised + 1 {
            // One may have been carried out whose answer did not come.
            return Err(Broken::Wrong(format!(
                "{promised} were acknowledged, {there} are remembered"
            )));
        }
        Ok(())
    }

    fn transactions(&self, to: &mut Connection, stopped: &dyn Fn() -> bool) -> Result<(), Broken> {
        while !stopped() {
            let number = self.acknowledged.load(Ordering::Relaxed) + 1;
            let began = Instant::now();
            let done = transact(to, &self.names, number);
            let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            // Also of one that ends with the connection: whoever uses it waited so long.
            self.worst_us.fetch_max(took, Ordering::Relaxed);
            match done {
                Ok(()) => self.acknowledged.store(number, Ordering::Relaxed),
                Err(ref lost @ Broken::Lost { transactions, .. }) => {
                    // The connection lives: go on from what is remembered. The row of that number is another's.
                    let there = number.saturating_sub(transactions);
                    self.complain(lost);
                    self.acknowledged.store(there, Ordering::Relaxed);
                    write_row(to, &self.names, there)?;
                }
                Err(broken) => return Err(broken),
            }
            lock(&self.times_us).push(took);
            if number.is_multiple_of(READ_BACK) {
                let row = rand::rng().random_range(1..=number);
                match read_back(to, &self.names, row..=row) {
                    Err(broken @ Broken::Connection(_)) => return Err(broken),
                    Err(broken) => self.complain(&broken),
                    Ok(()) => {}
                }
            }
            // Last: who has seen this number may ask for all else.
            self.answers.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    fn complain(&self, broken: &Broken) {
        let who = format!("connection {}", self.names.connection);
        lock(&self.faults).note(&who, broken);
    }
}

/// A client that panicked leaves figures that are still worth reading.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
