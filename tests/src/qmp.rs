//! A plain QEMU on files, and as much of QMP as a test needs: commands that are answered, one after another. Knows nothing
//! of gateways and epochs.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::paths;
use crate::process::Process;
use crate::serial::Serial;
use crate::site::wait_for_socket;
use crate::waiting::{PATIENCE, wait_until};

/// The files of one machine: its RAM and its two disks.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Directory of the files.
    pub dir: PathBuf,
    /// The file of the guest's RAM.
    pub ram: PathBuf,
    /// The two images.
    pub disks: [PathBuf; 2],
}

/// RAM of such a machine.
pub const MEMORY_MIB: u64 = 128;

/// A running QEMU.
#[derive(Debug)]
pub struct Qemu {
    process: Process,
    stream: BufReader<UnixStream>,
    /// Its guest's serial line.
    pub serial: Serial,
}

impl Qemu {
    /// Starts a guest on the files of `machine`. `incoming`: it waits for its state instead of booting.
    pub fn start(name: &str, machine: &Machine, incoming: bool) -> Self {
        let dir = &machine.dir;
        let (socket, serial) = (
            dir.join(format!("{name}.qmp")),
            dir.join(format!("{name}.serial")),
        );
        let guest = paths::guest();
        let mut command = Command::new(paths::qemu());
        command
            .args([
                "-accel",
                "tcg",
                "-nodefaults",
                "-no-user-config",
                "-vga",
                "none",
                "-display",
                "none",
                "-S",
            ])
            .args([
                "-machine",
                "pc,memory-backend=ram",
                "-m",
                &format!("{MEMORY_MIB}M"),
                "-object",
            ])
            .arg(format!(
                "memory-backend-file,id=ram,size={MEMORY_MIB}M,share=on,mem-path={}",
                machine.ram.display()
            ))
            .arg("-kernel")
            .arg(guest.join("vmlinuz"))
            .arg("-initrd")
            .arg(guest.join("initrd.gz"))
            .args(["-append", &paths::cmdline()])
            .args(["-serial", &format!("file:{}", serial.display())])
            .args([
                "-qmp",
                &format!("unix:{},server=on,wait=off", socket.display()),
            ]);
        for disk in &machine.disks {
            command.args([
                "-drive",
                &format!("file={},if=virtio,format=raw,discard=unmap", disk.display()),
            ]);
        }
        if incoming {
            command.args(["-incoming", "defer"]);
        }
        let mut process = Process::start(name, dir, command);
        wait_for_socket(&socket, &mut process);
        let stream = UnixStream::connect(&socket).expect("QEMU listens");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket has timeouts");
        let mut qemu = Self {
            process,
            stream: BufReader::new(stream),
            serial: Serial::new(serial),
        };
        qemu.line();
        qemu.ask("qmp_capabilities", json!({}));
        qemu.ask(
            "migrate-set-capabilities",
            json!({"capabilities": [{"capability": "x-ignore-shared", "state": true}]}),
        );
        qemu
    }

    /// A command; returns what it returns.
    #[track_caller]
    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.stream.get_mut(), "{request}").expect("QEMU takes commands");
        loop {
            let answer = self.line();
            assert!(answer["error"].is_null(), "{command}: {answer}");
            if answer.get("return").is_some() {
                return answer["return"].clone();
            }
        }
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        assert!(
            read.is_ok_and(|len| len > 0),
            "QEMU ended:\n{}",
            self.process.log_tail()
        );
        serde_json::from_str(&line).expect("QMP is JSON")
    }

    /// Saves the state of the devices of a stopped guest. The RAM is in its file.
    #[track_caller]
    pub fn save_devices(&mut self, file: &Path) {
        self.ask(
            "migrate",
            json!({"uri": format!("exec:cat > {}", file.display())}),
        );
        self.wait_for_migration();
    }

    /// Loads what [`save_devices`](Self::save_devices) saved, into a QEMU that waits for it, and lets the guest run.
    #[track_caller]
    pub fn resume_from(&mut self, file: &Path) {
        self.ask(
            "migrate-incoming",
            json!({"uri": format!("exec:cat {}", file.display())}),
        );
        self.wait_for_migration();
        self.ask("cont", json!({}));
    }

    fn wait_for_migration(&mut self) {
        wait_until(
            "the device state",
            || {
                let info = self.ask("query-migrate", json!({}));
                assert_ne!(info["status"], "failed", "{info}");
                (info["status"] == "completed").then_some(())
            },
            String::new,
        );
    }

    /// Ends it.
    pub fn quit(mut self) {
        // In one write: QEMU is gone as soon as it has the closing brace.
        let quit = format!("{}\n", json!({"execute": "quit"}));
        let sent = self.stream.get_mut().write_all(quit.as_bytes());
        sent.expect("QEMU takes commands");
        self.process.wait();
    }
}
