//! All that demo and bench need at once: the network, the hosts, the guest with the database, its clients; and one move from host to host
//! under them, be it a failover or a switchover.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use coordinator::report::{Report, Stamped};

use super::audit::{Audit, audit};
use super::load::{Faults, Load};
use super::until_it_answers;
use crate::cli::database::DatabaseArgs;
use crate::exit::Usage;
use crate::lab::chain::{Chain, Disks, Plan};
use crate::lab::lan::{HOSTS, Lan};
use crate::lab::namespaces;

/// Each connection has shown that it goes on when it has had so many more acknowledgements.
const GOES_ON: u64 = 3;
/// So many acknowledged transactions of each connection are looked at after a failover; all of them in the end.
const NEWEST: u64 = 500;
/// How the loop waits for the clients while it listens to the hosts.
const TICK: Duration = Duration::from_millis(5);

/// The network, the hosts and the clients.
#[derive(Debug)]
pub(crate) struct Stand {
    pub load: Load,
    pub chain: Chain,
    pub lan: Lan,
    /// From the start of the VM to the first answer of the database.
    pub boot: Duration,
    /// What audits have found so far.
    audits: Faults,
}

/// One move from host to host as the clients saw it.
#[derive(Debug)]
pub(crate) struct Move {
    /// When the host was killed, or the operator asked for the move, in microseconds since 1970.
    pub began_at: u64,
    /// What the standby said when it went on.
    pub resumed: Stamped,
    /// From the beginning to the guest running at its new host, in microseconds.
    pub took_us: u64,
    /// The longest that a transaction took across it, in microseconds.
    pub stall_us: u64,
    pub audit: Audit,
}

/// The folder of the guest.
fn guest(args: &DatabaseArgs) -> anyhow::Result<PathBuf> {
    let guest = &args.lab.guest;
    let guest = guest.canonicalize().unwrap_or_else(|_| guest.clone());
    for file in ["vmlinuz", "initrd.gz", "cmdline", "root.img", "data.img"] {
        if !guest.join(file).is_file() {
            return Err(Usage(format!(
                "there is no {} (the guest with the database); build it with `make guest-db`, or name its folder with --guest",
                guest.join(file).display()
            ))
            .into());
        }
    }
    Ok(guest)
}

impl Stand {
    /// Boots the guest, waits until its database answers, and starts the clients. The VM is not protected yet.
    pub(crate) fn start(
        args: &DatabaseArgs,
        seed: u64,
        started: impl FnOnce(&Report),
    ) -> anyhow::Result<Self> {
        let guest = guest(args)?;
        namespaces::allowed()
            .map_err(|why| Usage(format!("{why} and taps: run it as root, or with sudo")))?;
        let lan = Lan::start()?;
        let plan = Plan {
            lab: &args.lab,
            output: args.output,
            rhythm: args.rhythm,
            interval_ms: args.lab.interval,
            disks: Disks::Copied,
            append: String::new(),
        };
        let mut chain = Chain::start(&plan, &guest, Some(&lan))?;
        let began = Instant::now();
        let result = (|| {
            started(&chain.boot(false)?.report);
            until_it_answers(&lan.outside, || chain.follow(TICK))?;
            Load::start(&lan.outside, args.connections, seed)
        })();
        let load = match result {
            Ok(load) => load,
            Err(error) => return Err(keep(&mut chain, args, error)),
        };
        let stand = Self {
            load,
            chain,
            lan,
            boot: began.elapsed(),
            audits: Faults::default(),
        };
        stand.load.take_times_us();
        Ok(stand)
    }

    /// Starts a standby, and waits until the VM is protected.
    pub(crate) fn protect(&mut self, progress: impl FnMut(&Report)) -> anyhow::Result<()> {
        self.chain.start_standby()?;
        self.chain.until_protected(progress)?;
        Ok(())
    }

    /// Lets all go on for a while.
    pub(crate) fn run(&mut self, length: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + length;
        while Instant::now() < end {
            self.chain.follow(TICK.min(end - Instant::now()))?;
        }
        Ok(())
    }

    /// Kills the host, and waits until the guest goes on at the other one and each client with it.
    pub(crate) fn fail_over(&mut self) -> anyhow::Result<Move> {
        self.load.take_worst_us();
        let killed_at = self.chain.kill_host()?;
        let resumed = self.chain.resumed()?;
        self.moved(killed_at, resumed)
    }

    /// The same with an operator who moves the VM.
    pub(crate) fn switch_over(&mut self) -> anyhow::Result<Move> {
        self.load.take_worst_us();
        let (asked_at, resumed) = self.chain.switch_over()?;
        self.moved(asked_at, resumed)
    }

    fn moved(&mut self, began_at: u64, resumed: Stamped) -> anyhow::Result<Move> {
        let chain = &mut self.chain;
        self.load.until_all_go_on(GOES_ON, || chain.follow(TICK))?;
        let stall_us = self.load.take_worst_us();
        let (here, learned) = (self.chain.host(), self.lan.learned()?);
        let name = |host: Option<usize>| host.map_or("nowhere", |host| HOSTS[host].0);
        ensure!(
            here == learned,
            "the guest runs on {}, and the switch has learned that it is on {}",
            name(here),
            name(learned)
        );
        let audit = audit(&self.load, NEWEST)?;
        self.audits.add(&audit.faults);
        Ok(Move {
            began_at,
            took_us: resumed.t_us.saturating_sub(began_at),
            resumed,
            stall_us,
            audit,
        })
    }

    /// Stops the clients, and looks at all that they were promised.
    pub(crate) fn settle(&mut self) -> anyhow::Result<Audit> {
        self.load.stop()?;
        self.audit_all()
    }

    /// Kills all hosts, boots the VM from its disks, and looks at all that the clients were promised: what the database has then, it
    /// has read from its file.
    pub(crate) fn boot_from_disk(&mut self) -> anyhow::Result<Audit> {
        self.chain.kill_standby();
        self.chain.kill_host()?;
        self.chain.boot(true)?;
        let chain = &mut self.chain;
        until_it_answers(&self.lan.outside, || chain.follow(TICK))?;
        self.audit_all()
    }

    fn audit_all(&mut self) -> anyhow::Result<Audit> {
        let audit = audit(&self.load, u64::MAX).context("the last audit")?;
        self.audits.add(&audit.faults);
        Ok(audit)
    }

    /// All broken promises, those that the clients noticed and those that audits found.
    pub(crate) fn faults(&self) -> Faults {
        let mut all = self.load.faults();
        all.add(&self.audits);
        all
    }
}

/// Keeps the working directory if it is worth a look, and adds where it is to the error.
pub(crate) fn keep(chain: &mut Chain, args: &DatabaseArgs, error: anyhow::Error) -> anyhow::Error {
    if args.keep
        && let Some(kept) = chain.keep()
    {
        return error.context(format!("all logs are kept in {}", kept.display()));
    }
    error
}
