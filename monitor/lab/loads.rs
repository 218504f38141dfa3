//! The kinds of normal load. What the guest does for each is in tests/guest/lab/commands; here are the parameters, drawn at random, and what
//! clients outside of the VM add. Starts nothing.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::spec::{Client, Size};

/// A kind of load.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Its name: the label of a recording.
    pub name: &'static str,
    /// What it is, for people.
    pub about: &'static str,
    draw: fn(&mut StdRng, Size) -> Drawn,
}

/// A load with its parameters.
#[derive(Debug, Clone, Default)]
pub struct Drawn {
    /// Lines for the guest's shell.
    pub lines: Vec<String>,
    /// What goes on outside.
    pub clients: Vec<Client>,
    /// Loads that are part of it, by name.
    pub parts: Vec<&'static str>,
}

impl Drawn {
    /// Adds another one, beside this.
    pub fn add(&mut self, load: &Load, other: Drawn) {
        self.lines.extend(other.lines);
        self.clients.extend(other.clients);
        self.parts.push(load.name);
        self.parts.extend(other.parts);
    }
}

/// Ends all loads, for the guest's shell: they are its children, each in a session of its own, but for those that made another one.
pub const STOP: &str = "for load in $(cat /proc/$$/task/$$/children); do kill -KILL -- -$load; done; \
    killall -KILL nginx fio stress-ng make cc1 2>/dev/null; :";

/// Loads that a VM of any size can have beside another one.
const LIGHT: [&str; 10] = [
    "night",
    "db_write",
    "db_read",
    "web",
    "app",
    "log",
    "disk_random",
    "memory_stream",
    "bursts",
    "pipes",
];

/// One of those.
pub fn light(random: &mut StdRng) -> &'static Load {
    let name = LIGHT.choose(random).copied().unwrap_or("night");
    named(name).unwrap_or(&LOADS[0])
}

impl Load {
    /// Draws its parameters for a VM of this size.
    pub fn draw(&self, random: &mut StdRng, size: Size) -> Drawn {
        (self.draw)(random, size)
    }
}

const fn load(
    name: &'static str,
    about: &'static str,
    draw: fn(&mut StdRng, Size) -> Drawn,
) -> Load {
    Load { name, about, draw }
}

/// All kinds. `boot` is the first: faults are not put into it.
pub const LOADS: [Load; 21] = [
    load(
        "boot",
        "starts, is idle for a while, is reset by its administrator, starts again",
        boot,
    ),
    load("idle", "nothing but the services that wait", |_, _| {
        guest("load_idle".into())
    }),
    load(
        "night",
        "nothing, and now and then a small job: files read, packed, synced",
        night,
    ),
    load(
        "compile",
        "gcc on the single-file C libraries of libstb-dev, by make",
        compile,
    ),
    load(
        "db_write",
        "SQLite, transactions of five updates, each on the disk when it is answered",
        |r, s| database(r, s, "write"),
    ),
    load("db_read", "SQLite, range queries and scans", |r, s| {
        database(r, s, "read")
    }),
    load("web", "nginx, pages of 1 to 512 KiB, clients outside", web),
    load(
        "app",
        "the lab's application: threads, locks, a journal that is synced for each request; clients outside",
        app,
    ),
    load(
        "download",
        "nginx, one large file again and again",
        download,
    ),
    load(
        "upload",
        "clients send, the guest writes what it gets to its disk",
        upload,
    ),
    load(
        "disk_random",
        "fio, random writes or a mix, 4 to 64 KiB",
        disk_random,
    ),
    load(
        "disk_sequential",
        "fio, sequential direct reads",
        disk_sequential,
    ),
    load(
        "backup",
        "tar of the system, packed, to the data disk",
        backup,
    ),
    load("cpu", "stress-ng on all CPUs", cpu),
    load("crunch", "xz of a large file, again and again", crunch),
    load(
        "memory",
        "stress-ng: most of the memory written and verified, without swapping",
        memory,
    ),
    load(
        "memory_stream",
        "a large working set that is written in order or at random",
        memory_stream,
    ),
    load(
        "pipes",
        "pairs of processes that throw a byte to and fro: context switches",
        pipes,
    ),
    load(
        "log",
        "a service that writes its log, rotated and packed",
        log,
    ),
    load(
        "bursts",
        "CPU and disk for a few seconds, then nothing",
        bursts,
    ),
    load("mixed", "two of the others at once", mixed),
];

/// The load of this name.
pub fn named(name: &str) -> Option<&'static Load> {
    LOADS.iter().find(|load| load.name == name)
}

fn guest(line: String) -> Drawn {
    Drawn {
        lines: vec![line],
        ..Drawn::default()
    }
}

/// From `low` to `high`, evenly on a scale of ratios.
fn log_uniform(random: &mut StdRng, low: f64, high: f64) -> f64 {
    (random.random_range(low.ln()..=high.ln())).exp()
}

fn whole(random: &mut StdRng, low: f64, high: f64) -> f64 {
    log_uniform(random, low, high).round()
}

fn boot(random: &mut StdRng, _: Size) -> Drawn {
    Drawn {
        lines: Vec::new(),
        clients: vec![Client::Reset {
            every: random.random_range(45..=100),
        }],
        ..Drawn::default()
    }
}

fn night(random: &mut StdRng, _: Size) -> Drawn {
    guest(format!(
        "PERIOD={} load_night",
        random.random_range(15..=60)
    ))
}

fn compile(random: &mut StdRng, size: Size) -> Drawn {
    let jobs = random.random_range(1..=size.cpus + 1).min(jobs_for(size));
    guest(format!(
        "JOBS={jobs} OPT={} load_compile",
        random.random_range(0..=2)
    ))
}

/// A compiler takes some 100 MiB.
fn jobs_for(size: Size) -> u32 {
    u32::try_from(size.memory_mib / 128).unwrap_or(1).max(1)
}

fn database(random: &mut StdRng, _: Size, what: &str) -> Drawn {
    let rate = whole(random, 2.0, 100.0);
    let rows = whole(random, 2_000.0, 20_000.0);
    let seed = random.random_range(1..10_000);
    guest(format!(
        "SEED={seed} RATE={rate} ROWS={rows} load_db_{what}"
    ))
}

fn web(random: &mut StdRng, _: Size) -> Drawn {
    let kib = [1, 8, 64, 512].choose(random).copied().unwrap_or(8);
    let most = if kib > 8 { 20.0 } else { 80.0 };
    Drawn {
        lines: vec!["load_web".into()],
        clients: vec![Client::Get {
            port: 80,
            path: format!("/page-{kib}"),
            rate: log_uniform(random, 2.0, most),
            connections: random.random_range(2..=16),
        }],
        ..Drawn::default()
    }
}

/// Clients of the lab's application; also beside other loads.
pub fn app_clients(random: &mut StdRng, most: f64) -> Client {
    Client::Get {
        port: 8080,
        path: format!("/work?{}", random.random_range(1..=60)),
        rate: log_uniform(random, 1.0, most),
        connections: random.random_range(4..=12),
    }
}

fn app(random: &mut StdRng, _: Size) -> Drawn {
    Drawn {
        lines: vec!["load_app".into()],
        clients: vec![app_clients(random, 40.0)],
        ..Drawn::default()
    }
}

fn download(random: &mut StdRng, _: Size) -> Drawn {
    Drawn {
        lines: vec!["load_download".into()],
        clients: vec![Client::Get {
            port: 80,
            path: "/large".into(),
            rate: log_uniform(random, 0.2, 4.0),
            connections: random.random_range(1..=3),
        }],
        ..Drawn::default()
    }
}

fn upload(random: &mut StdRng, _: Size) -> Drawn {
    Drawn {
        lines: vec!["load_upload".into()],
        clients: vec![Client::Send {
            port: 9000,
            rate: random.random_range(200..=6_000),
        }],
        ..Drawn::default()
    }
}

fn disk_random(random: &mut StdRng, _: Size) -> Drawn {
    let kind = ["randwrite", "randrw"]
        .choose(random)
        .copied()
        .unwrap_or("randwrite");
    let block = ["4k", "16k", "64k"].choose(random).copied().unwrap_or("4k");
    let fsync = [0, 1, 8, 32].choose(random).copied().unwrap_or(0);
    guest(format!(
        "MIB={} RW={kind} BS={block} RATE={} FSYNC={fsync} load_randwrite",
        random.random_range(32..=200),
        whole(random, 10.0, 400.0)
    ))
}

fn disk_sequential(random: &mut StdRng, _: Size) -> Drawn {
    guest(format!(
        "MIB={} RATE={}m load_seqread",
        random.random_range(64..=200),
        random.random_range(2..=60)
    ))
}

fn backup(random: &mut StdRng, _: Size) -> Drawn {
    let pack = ["cat", "'gzip -1'", "'gzip -6'"]
        .choose(random)
        .copied()
        .unwrap_or("cat");
    guest(format!(
        "PACK={pack} PAUSE={} load_backup",
        random.random_range(1..=20)
    ))
}

fn cpu(random: &mut StdRng, size: Size) -> Drawn {
    let method = ["all", "matrixprod", "fft", "int64", "prime", "float"]
        .choose(random)
        .copied()
        .unwrap_or("all");
    guest(format!("JOBS={} METHOD={method} load_batch_cpu", size.cpus))
}

fn crunch(random: &mut StdRng, size: Size) -> Drawn {
    let level = random.random_range(0..=2);
    guest(format!(
        "JOBS={} LEVEL={level} load_crunch",
        size.cpus.min(jobs_for(size))
    ))
}

/// Of the RAM, what a guest of this size can give to one program without swapping.
fn honest_mib(random: &mut StdRng, size: Size, low: f64, high: f64) -> u64 {
    let share = random.random_range(low..=high);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    let mib = ((size.memory_mib - 90) as f64 * share) as u64;
    mib
}

fn memory(random: &mut StdRng, size: Size) -> Drawn {
    let method = ["flip", "incdec", "walk-0d", "rand-set", "ror"]
        .choose(random)
        .copied()
        .unwrap_or("flip");
    let jobs = random.random_range(1..=size.cpus);
    guest(format!(
        "JOBS={jobs} MIB={} METHOD={method} load_batch_mem",
        honest_mib(random, size, 0.6, 0.9)
    ))
}

fn memory_stream(random: &mut StdRng, size: Size) -> Drawn {
    let order = ["random", "stream"]
        .choose(random)
        .copied()
        .unwrap_or("random");
    let rate = whole(random, 500.0, 60_000.0);
    guest(format!(
        "MIB={} ORDER={order} RATE={rate} load_memstream",
        honest_mib(random, size, 0.2, 0.8)
    ))
}

fn pipes(random: &mut StdRng, size: Size) -> Drawn {
    let pause = [0, 0, 500, 5_000].choose(random).copied().unwrap_or(0);
    guest(format!(
        "JOBS={} PAUSE={pause} load_pipes",
        random.random_range(1..=size.cpus * 3)
    ))
}

fn log(random: &mut StdRng, _: Size) -> Drawn {
    guest(format!("RATE={} load_log", whole(random, 20.0, 3_000.0)))
}

fn bursts(random: &mut StdRng, size: Size) -> Drawn {
    guest(format!(
        "PAUSE={} LENGTH={} JOBS={} load_bursts",
        random.random_range(4..=25),
        random.random_range(2..=12),
        random.random_range(1..=size.cpus)
    ))
}

fn mixed(random: &mut StdRng, size: Size) -> Drawn {
    let mut both = Drawn::default();
    for name in LIGHT.choose_multiple(random, 2) {
        if let Some(part) = named(name) {
            let drawn = part.draw(random, size);
            both.add(part, drawn);
        }
    }
    both
}
