//! A gateway with one group that keeps its history, and a client that writes to its disks all the time.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;

use crate::command::epochgate;
use crate::history::HISTORY;
use crate::nbd::{Client, FLUSH, Request, TRIM, ZEROES};
use crate::process::Process;
use crate::random::Random;
use crate::site::{make_image, tempdir, wait_for_socket};
use crate::waiting::wait_until;

/// Its disks.
pub const DISKS: [&str; 2] = ["root", "data"];
/// Which of the mebibytes of a disk that is filled stays empty.
const HOLE: u64 = 20;

/// The group, called `vm`. Dropping it removes its files.
#[derive(Debug)]
pub struct BusyGroup {
    dir: tempfile::TempDir,
    /// Of each disk.
    bytes: u64,
    /// Writes that were answered.
    writes: AtomicU64,
    over: AtomicBool,
}

impl BusyGroup {
    /// Its configuration and its disks, of so many bytes each.
    pub fn new(bytes: u64) -> Self {
        let group = Self {
            dir: tempdir(),
            bytes,
            writes: AtomicU64::new(0),
            over: AtomicBool::new(false),
        };
        let mut text = format!(
            "control = \"{}\"\nlisten = [\"unix:{}\"]\n[[group]]\nname = \"vm\"\nlog = \"{}\"\nmode = \"async\"\n\
             epoch_interval_ms = 20\nepoch_memory = \"\"\n{HISTORY}age = \"1d\"\n",
            group.control(),
            group.file("nbd.sock"),
            group.file("log"),
        );
        for disk in DISKS {
            let image = group.path(&format!("{disk}.img"));
            make_image(&image, bytes);
            text += &format!(
                "[[group.disk]]\nname = \"{disk}\"\nimage = \"{}\"\n",
                image.display()
            );
        }
        std::fs::write(group.path("gateway.toml"), text).expect("a file can be written");
        group
    }

    /// Starts its gateway, and waits until it answers.
    #[track_caller]
    pub fn start(&self) -> Process {
        let config = self.file("gateway.toml");
        let arguments = ["gateway", "--config", &config];
        let mut gateway = Process::epochgate("gateway", self.dir(), arguments, &[]);
        wait_for_socket(&self.path("gateway.sock"), &mut gateway);
        gateway
    }

    /// Where everything lies.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A file there.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// The same as text.
    pub fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The gateway's control socket.
    pub fn control(&self) -> String {
        self.file("gateway.sock")
    }

    /// An export, as NBD clients have it.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.file("nbd.sock"))
    }

    /// A client of a disk.
    pub fn client(&self, disk: &str) -> Client {
        Client::attach(&self.path("nbd.sock"), &format!("vm/{disk}"), false)
    }

    /// Gives all disks a content, mebibyte by mebibyte but for a hole, and the last bytes, which are no whole block.
    #[track_caller]
    pub fn fill(&self) {
        let mut random = Random::new("fill");
        for disk in DISKS {
            let mut client = self.client(disk);
            for piece in (0..self.bytes >> 20).filter(|piece| *piece != HOLE) {
                let request = Request::write(piece << 20, random.bytes(1 << 20));
                do_well(&mut client, &request);
            }
            let end = Request::write(self.bytes - 1000, random.bytes(1000));
            do_well(&mut client, &end);
            do_well(&mut client, &Request::new(FLUSH, 0, 0));
        }
    }

    /// Does something while the disks are written all the time.
    #[track_caller]
    pub fn while_written<T>(&self, work: impl FnOnce() -> T) -> T {
        self.over.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let _ends = Ends(&self.over);
            let writer = scope.spawn(|| self.write());
            let done = work();
            assert!(!writer.is_finished(), "the writer has ended too early");
            done
        })
    }

    /// Writes, trims and zeroes on both disks until it is over. Most of each stays as it is.
    fn write(&self) {
        let mut random = Random::new("writer");
        let mut clients = DISKS.map(|disk| self.client(disk));
        let part = self.bytes / 18;
        while !self.over.load(Ordering::Relaxed) {
            let client = &mut clients[usize::from(random.one_in(2))];
            let offset = random.within(0..part) + 16 * part * random.within(0..2);
            let len = u32::try_from(random.within(1..64 << 10)).expect("it is small");
            let request = match random.within(0..12) {
                0 => Request::new(TRIM, offset, len),
                1 => Request::new(ZEROES, offset, len),
                2 => Request::new(FLUSH, 0, 0),
                _ => Request::write(offset, random.bytes(len as usize)),
            };
            do_well(client, &request);
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits for some more writes.
    #[track_caller]
    pub fn wait_for_writes(&self) {
        let enough = self.writes.load(Ordering::Relaxed) + 40;
        wait_until(
            "more writes",
            || (self.writes.load(Ordering::Relaxed) >= enough).then_some(()),
            String::new,
        );
    }

    /// Names of all pins.
    #[track_caller]
    pub fn pins(&self) -> Vec<String> {
        let control = self.control();
        let list = epochgate(["log", "list", "vm", "--json", "--control", &control]).with(0);
        let list: Value = serde_json::from_str(&list.out).expect("a list is JSON");
        let pins = list["status"]["pins"].as_array().expect("a list has pins");
        let names = pins.iter().filter_map(|pin| pin["name"].as_str());
        names.map(str::to_owned).collect()
    }

    /// Gives the point of a pin another name, with which it stays.
    #[track_caller]
    pub fn keep(&self, pin: &str, name: &str) {
        let (control, at) = (self.control(), format!("pin={pin}"));
        epochgate(["log", "pin", "vm", name, "--at", &at, "--control", &control]).with(0);
    }

    /// Takes a pin away.
    #[track_caller]
    pub fn unpin(&self, pin: &str) {
        epochgate(["log", "unpin", "vm", pin, "--control", &self.control()]).with(0);
    }
}

/// Sends a request that must be done.
#[track_caller]
pub fn do_well(client: &mut Client, request: &Request) {
    let reply = client.ask(request).expect("the gateway answers");
    assert_eq!(reply.error, 0);
}

/// Ends the writer, also when the test fails beside it.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
