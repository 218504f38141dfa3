//! A gateway with one group of one disk whose image and log lie wherever a test says, and a load on it that knows what must be there.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::command::epochgate;
use crate::ledger::{BLOCKS, CONNECTIONS, Ledger, contents, numbers, work};
use crate::nbd::{Client, FLUSH, Request};
use crate::paths;
use crate::process::Process;
use crate::random::Random;
use crate::site::{forget_held, wait_for_socket};
use crate::waiting::wait_until;

/// Where things lie, and what mode the group is in.
#[derive(Debug, Clone)]
pub struct Places {
    /// The image, as a configuration names it.
    pub image: String,
    /// The log.
    pub log: String,
    /// `sync` or `async`.
    pub mode: &'static str,
}

/// The gateway.
#[derive(Debug)]
pub struct Below {
    gateway: Process,
    dir: PathBuf,
    found: Vec<u64>,
    next: u64,
}

/// The gateway as a process on the host that `on` says.
fn start(dir: &Path, on: &dyn Fn(&Path) -> Command) -> Process {
    let mut command = on(paths::epochgate());
    command
        .args(["gateway", "--config"])
        .arg(dir.join("below.toml"));
    Process::start("below", dir, command)
}

/// Writes the configuration of a gateway into `dir`.
pub fn configure(dir: &Path, places: &Places) {
    let here = dir.display();
    let text = format!(
        "control = \"{here}/gateway.sock\"\nlisten = [\"unix:{here}/nbd.sock\"]\n\n[[group]]\nname = \"g\"\nlog = \"{}\"\n\
         epoch_memory = \"{here}\"\nmode = \"{}\"\nepoch_interval_ms = 20\n\n[[group.disk]]\nname = \"d\"\nimage = \"{}\"\n",
        places.log, places.mode, places.image
    );
    std::fs::write(dir.join("below.toml"), text).expect("a file can be written");
}

impl Below {
    /// Starts it over a disk of zeros.
    #[track_caller]
    pub fn start(dir: &Path, places: &Places, on: &dyn Fn(&Path) -> Command) -> Self {
        configure(dir, places);
        let mut gateway = start(dir, on);
        wait_for_socket(&dir.join("nbd.sock"), &mut gateway);
        Self {
            gateway,
            dir: dir.to_owned(),
            found: vec![0; BLOCKS],
            next: 1,
        }
    }

    /// Kills it, and with it all that it held; starts it again.
    #[track_caller]
    pub fn crash(&mut self, on: &dyn Fn(&Path) -> Command) {
        self.gateway.kill();
        forget_held(&self.dir);
        self.gateway = start(&self.dir, on);
        wait_for_socket(&self.dir.join("nbd.sock"), &mut self.gateway);
    }

    /// Stops it in order.
    #[track_caller]
    pub fn stop(&mut self) {
        self.gateway.stop();
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.gateway.log()
    }

    /// A client of its disk.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::attach(&self.dir.join("nbd.sock"), "g/d", true)
    }

    /// What `epochgate status` says of the group.
    #[track_caller]
    pub fn status(&self) -> Value {
        let dir = self.dir.display().to_string();
        let said = epochgate(["status", "--json", "--runtime-dir", &dir]).with(0);
        let status: Value = serde_json::from_str(&said.out).expect("the status is JSON");
        status["gateway"]["groups"][0].clone()
    }

    /// Waits until the status speaks of trouble with all of `words`, or with none at all if there are no words.
    #[track_caller]
    pub fn wait_for_trouble(&self, words: &[&str]) {
        let said = || self.status()["last_error"].as_str().map(str::to_owned);
        wait_until(
            "the status to say how the storage fares",
            || {
                let fits = match said() {
                    None => words.is_empty(),
                    Some(said) => !words.is_empty() && words.iter().all(|word| said.contains(word)),
                };
                fits.then_some(())
            },
            || format!("it says {:?}; log:\n{}", said(), self.gateway.log_tail()),
        );
    }

    /// Four connections write and flush while `trouble` happens. Then everything that was answered must be there, and is flushed.
    /// Returns what `trouble` returned.
    #[track_caller]
    pub fn under_load<T>(&mut self, random: &Random, trouble: impl FnOnce(&Self) -> T) -> T {
        let (ledger, outcome) = self.load(random, trouble);
        let reader = self.client();
        let contents: Vec<u64> = contents(reader, true).into_iter().flatten().collect();
        for (index, (block, content)) in ledger.blocks.iter().zip(&contents).enumerate() {
            let version = ledger.version(index, *content);
            assert_eq!(version, block.newest_answered(), "block {index}");
        }
        let flushed = self.client().ask(&Request::new(FLUSH, 0, 0));
        assert_eq!(flushed.expect("the gateway answers").error, 0);
        (self.found, self.next) = (contents, ledger.next_content);
        outcome
    }

    /// The same, and in the end the gateway is killed. Then everything that was flushed must be there.
    #[track_caller]
    pub fn until_crash(
        &mut self,
        random: &Random,
        on: &dyn Fn(&Path) -> Command,
        trouble: impl FnOnce(&Self),
    ) {
        let next = self.next;
        let ledger = Mutex::new(Ledger::new(self.found.clone(), next));
        let never = AtomicBool::new(false);
        let clients: Vec<Client> = (0..CONNECTIONS).map(|_| self.client()).collect();
        std::thread::scope(|scope| {
            for (client, index) in clients.into_iter().zip(0..) {
                let (random, ledger, never) = (random.fork(index), &ledger, &never);
                scope.spawn(move || work(client, index, random, ledger, never));
            }
            trouble(self);
            self.gateway.kill();
        });
        forget_held(&self.dir);
        self.gateway = start(&self.dir, on);
        wait_for_socket(&self.dir.join("nbd.sock"), &mut self.gateway);
        let ledger = ledger.into_inner().expect("no client panics");
        let found: Vec<u64> = contents(self.client(), true)
            .into_iter()
            .flatten()
            .collect();
        let versions: Vec<u64> = (found.iter().enumerate())
            .map(|(index, content)| ledger.version(index, *content))
            .collect();
        ledger.check_durable(&versions);
        (self.found, self.next) = (found, ledger.next_content);
    }

    fn load<T>(&self, random: &Random, trouble: impl FnOnce(&Self) -> T) -> (Ledger, T) {
        let ledger = Mutex::new(Ledger::new(self.found.clone(), self.next));
        let stop = AtomicBool::new(false);
        let clients: Vec<Client> = (0..CONNECTIONS).map(|_| self.client()).collect();
        let outcome = std::thread::scope(|scope| {
            for (client, index) in clients.into_iter().zip(0..) {
                let (random, ledger, stop) = (random.fork(index), &ledger, &stop);
                scope.spawn(move || work(client, index, random, ledger, stop));
            }
            let outcome = trouble(self);
            // Some more, over what has come back.
            std::thread::sleep(Duration::from_millis(200));
            stop.store(true, Ordering::Relaxed);
            outcome
        });
        (ledger.into_inner().expect("no client panics"), outcome)
    }

    /// Asserts that an image holds what the disk was last seen to hold.
    #[track_caller]
    pub fn assert_image(&self, image: &[u8]) {
        let there: Vec<u64> = numbers(image, true).into_iter().flatten().collect();
        assert!(there == self.found, "the image is not what the disk was");
    }
}
