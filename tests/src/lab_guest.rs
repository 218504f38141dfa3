//! The laboratory's guest (tests/guest/lab) in a protected site with a network: a Debian that can be loaded, and broken, line by line.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::command::run_for;
use crate::network::GUEST;
use crate::paths;
use crate::site::{Options, Site};
use crate::waiting::wait_until;

/// Making it fetches packages, if it is not there.
const BUILD_LIMIT_S: u32 = 900;
/// Where its application answers.
const APPLICATION: u16 = 8080;
/// Between two questions of a client.
const BETWEEN: Duration = Duration::from_millis(150);
/// A busy guest takes its time, without KVM.
const HEAR: Duration = Duration::from_secs(120);

/// A site whose VM is that guest. Its disks are new.
#[track_caller]
pub fn site(options: &Options) -> Site {
    run_for(
        BUILD_LIMIT_S,
        paths::workspace().join("tests/guest/build-lab.sh"),
        [""; 0],
    )
    .with(0);
    let guest = paths::workspace().join("target/guest-lab");
    let site = Site::new(options);
    // With its holes: it is nearly empty.
    let (from, to) = (guest.join("data.img"), site.path().join("root.img"));
    run_for(
        BUILD_LIMIT_S,
        "cp",
        ["--sparse=always".as_ref(), from.as_os_str(), to.as_os_str()],
    )
    .with(0);
    let cmdline = std::fs::read_to_string(guest.join("cmdline")).expect("the guest is complete");
    for config in ["vm.toml", "standby.toml"] {
        let text = std::fs::read_to_string(site.path().join(config)).expect("it was written");
        let lines = text
            .lines()
            .map(|line| adapt(line, &guest, &cmdline, site.path()));
        site.write(config, &(lines.collect::<Vec<_>>().join("\n") + "\n"));
    }
    site
}

/// A line of a configuration, for this guest.
fn adapt(line: &str, guest: &Path, cmdline: &str, dir: &Path) -> String {
    let file = |name: &str| guest.join(name).display().to_string();
    match line.split_once(" = ") {
        Some(("kernel", _)) => format!("kernel = \"{}\"", file("vmlinuz")),
        Some(("initrd", _)) => format!("initrd = \"{}\"", file("initrd.gz")),
        Some(("append", _)) => format!(
            "append = \"{} lab.address={GUEST}/24 lab.swap=off\"",
            cmdline.trim()
        ),
        Some(("extra_args", list)) => {
            let list = list.trim_end_matches(']');
            let (root, dir) = (file("root.img"), dir.display());
            format!(
                "extra_args = {list}, \"-chardev\", \"socket,id=shell,path={dir}/shell-{{role}}.sock,server=on,wait=off\", \
                 \"-serial\", \"chardev:shell\", \
                 \"-drive\", \"file={root},if=none,id=root,format=raw,readonly=on\", \"-device\", \"virtio-blk-pci,drive=root\"]"
            )
        }
        _ => line.to_owned(),
    }
}

/// The guest's shell at its second serial line.
#[derive(Debug)]
pub struct Shell {
    reader: BufReader<UnixStream>,
    next: u64,
}

impl Shell {
    /// Connects to the shell of the guest at its `source` or `standby`, and waits until it answers.
    #[track_caller]
    pub fn open(site: &Site, role: &str) -> Self {
        let path = site.path().join(format!("shell-{role}.sock"));
        let stream = wait_until(
            "the guest's serial line",
            || UnixStream::connect(&path).ok(),
            String::new,
        );
        stream
            .set_read_timeout(Some(Duration::from_millis(500)))
            .expect("a socket has timeouts");
        let mut shell = Self {
            reader: BufReader::new(stream),
            next: 1,
        };
        let serial = site.serial(role);
        wait_until(
            "the guest's shell",
            || {
                shell.send("0 :");
                shell.says("done 0 0", Duration::from_secs(1)).then_some(())
            },
            || serial.text(),
        );
        shell
    }

    /// Has the guest begin a line, and waits until it says so. What the line does may take effect at once.
    #[track_caller]
    pub fn begin(&mut self, line: &str) {
        let id = self.next;
        self.next += 1;
        self.send(&format!("{id} {line}"));
        assert!(
            self.says(&format!("begun {id}"), HEAR),
            "the guest did not begin: {line}"
        );
    }

    /// The same, and waits until it is done.
    #[track_caller]
    pub fn run(&mut self, line: &str) {
        self.begin(line);
        let done = format!("done {} 0", self.next - 1);
        assert!(self.says(&done, HEAR), "the guest did not do: {line}");
    }

    fn send(&mut self, line: &str) {
        let sent = writeln!(self.reader.get_mut(), "{line}");
        sent.expect("the serial line takes what is written");
    }

    fn says(&mut self, words: &str, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut line = String::new();
        while Instant::now() < deadline {
            // A timeout leaves what has come so far in the line.
            match self.reader.read_line(&mut line) {
                Ok(0) => return false,
                Ok(_) if line.trim_end().ends_with(words) => return true,
                Ok(_) => line.clear(),
                Err(_) => {}
            }
        }
        false
    }
}

/// Somebody outside who asks the guest's application for something, some times a second, as long as this is not dropped.
#[derive(Debug)]
pub struct Client {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    /// Begins to ask.
    pub fn start(site: &Site) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread = site.lan().spawn_outside(move || {
            while !until.load(Ordering::Relaxed) {
                // Whether it answers is for others to see.
                let _ = ask(GUEST);
                std::thread::sleep(BETWEEN);
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic of it has been reported by itself.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// Whether the guest's application answers to somebody outside.
pub fn answers(site: &Site) -> bool {
    site.lan().outside(|| ask(GUEST).is_some())
}

fn ask(guest: Ipv4Addr) -> Option<()> {
    let limit = Duration::from_secs(5);
    let address = SocketAddrV4::new(guest, APPLICATION).into();
    let mut stream = TcpStream::connect_timeout(&address, limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    stream
        .write_all(b"GET /work?5 HTTP/1.1\r\nHost: guest\r\n\r\n")
        .ok()?;
    let mut start = [0; 12];
    stream.read_exact(&mut start).ok()?;
    start.starts_with(b"HTTP/1.").then_some(())
}
