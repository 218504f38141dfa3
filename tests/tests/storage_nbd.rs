//! Images behind another NBD server: a qcow2 through qemu-nbd, and nbdkit with a cache that forgets what was not flushed. The server is killed
//! and started again under load, and nothing that was answered is lost.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use epochgate_tests::below::{Below, Places};
use epochgate_tests::command::run_well;
use epochgate_tests::ledger::BYTES;
use epochgate_tests::nbd::{FLUSH, NO_HOLE, READ, Request, TRIM, ZEROES};
use epochgate_tests::process::Process;
use epochgate_tests::random::Random;
use epochgate_tests::site::{make_image, tempdir};
use epochgate_tests::waiting::wait_until;
use rustix::process::Signal;

fn nap(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

fn here(program: &Path) -> Command {
    Command::new(program)
}

/// A server at a unix socket.
struct Server {
    process: Option<Process>,
    dir: PathBuf,
    command: Vec<String>,
}

impl Server {
    fn start(dir: &Path, command: &[&str]) -> Self {
        let mut server = Self {
            process: None,
            dir: dir.to_owned(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
        };
        server.start_again();
        server
    }

    fn start_again(&mut self) {
        let socket = self.dir.join("below.sock");
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]);
        let mut process = Process::start("server", &self.dir, command);
        // To connect would be to take the one place that qemu-nbd has.
        wait_until(
            "the server's socket",
            || {
                assert!(!process.ended(), "{}", process.log_tail());
                socket.exists().then_some(())
            },
            String::new,
        );
        self.process = Some(process);
    }

    fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    fn signal(&self, signal: Signal) {
        self.process.as_ref().unwrap().signal(signal);
    }
}

fn places(dir: &Path, mode: &'static str) -> Places {
    Places {
        image: format!("nbd+unix:///disk?socket={}/below.sock", dir.display()),
        log: dir.join("log").display().to_string(),
        mode,
    }
}

#[test]
fn a_qcow2_behind_qemu_nbd_holds_what_the_disk_held() {
    let dir = tempdir();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (qcow2, raw) = (file("disk.qcow2"), file("disk.raw"));
    run_well(
        "qemu-img",
        ["create", "-q", "-f", "qcow2", &qcow2, &BYTES.to_string()],
    );
    let mut server = Server::start(
        dir.path(),
        &[
            "qemu-nbd",
            "--persistent",
            "--export-name",
            "disk",
            "--socket",
            &file("below.sock"),
            "--format",
            "qcow2",
            &qcow2,
        ],
    );
    let random = Random::new("a_qcow2_behind_qemu_nbd_holds_what_the_disk_held");
    let mut below = Below::start(dir.path(), &places(dir.path(), "async"), &here);
    for round in 0..3 {
        below.under_load(&random.fork(round), |below| {
            nap(150 + 90 * round);
            server.kill();
            below.wait_for_trouble(&["nbd+unix://", "no connection"]);
            server.start_again();
            below.wait_for_trouble(&[]);
        });
    }
    below.under_load(&random.fork(9), |below| {
        server.signal(Signal::STOP);
        below.wait_for_trouble(&["does not answer"]);
        nap(1500);
        server.signal(Signal::CONT);
        below.wait_for_trouble(&[]);
    });
    below.stop();
    // It lets go of the file in order.
    let mut process = server.process.take().unwrap();
    process.signal(Signal::TERM);
    process.wait();
    run_well("qemu-img", ["check", "-q", &qcow2]);
    run_well(
        "qemu-img",
        ["convert", "-f", "qcow2", "-O", "raw", &qcow2, &raw],
    );
    below.assert_image(&std::fs::read(&raw).unwrap());
    run_well(
        "qemu-img",
        ["compare", "-f", "qcow2", "-F", "raw", &qcow2, &raw],
    );
}

/// nbdkit's cache in front of the file: a server that is killed has really lost what was not flushed.
fn forgetful(dir: &Path) -> Server {
    let file = |name: &str| dir.join(name).display().to_string();
    make_image(&dir.join("disk.raw"), BYTES);
    let (socket, raw) = (file("below.sock"), file("disk.raw"));
    Server::start(
        dir,
        &[
            "nbdkit",
            "--foreground",
            "--unix",
            &socket,
            "--filter=cache",
            "file",
            &raw,
            "cache=writeback",
        ],
    )
}

fn survives_a_forgetful_server(mode: &'static str) {
    let dir = tempdir();
    let mut server = forgetful(dir.path());
    let random = Random::new("survives_a_forgetful_server");
    let mut below = Below::start(dir.path(), &places(dir.path(), mode), &here);
    for round in 0..5 {
        below.under_load(&random.fork(round), |below| {
            nap(100 + 57 * round);
            server.kill();
            server.start_again();
            below.wait_for_trouble(&[]);
        });
    }
    if mode == "sync" {
        assert!(
            below.log().contains("may have restarted before a flush"),
            "no kill hit writes that were not flushed:\n{}",
            below.log()
        );
    }
    below.stop();
    server.kill();
    below.assert_image(&std::fs::read(dir.path().join("disk.raw")).unwrap());
}

#[test]
fn what_a_killed_server_had_not_flushed_is_written_again_in_sync_mode() {
    survives_a_forgetful_server("sync");
}

#[test]
fn what_a_killed_server_had_not_flushed_is_written_again_in_async_mode() {
    survives_a_forgetful_server("async");
}

/// Reads between the loss and the flush that mends it see what was written, and zeros and trims go where they should.
#[test]
fn reads_see_what_the_server_has_forgotten() {
    let dir = tempdir();
    let mut server = forgetful(dir.path());
    let below = Below::start(dir.path(), &places(dir.path(), "sync"), &here);
    let mut client = below.client();
    let mut ask = |request: &Request| {
        let answer = client.ask(request).unwrap();
        assert_eq!(answer.error, 0, "{request:?}");
        answer.data
    };
    let mut model = vec![0; BYTES as usize];
    let mut random = Random::from_seed(7);
    for round in 0..60 {
        let at = random.within(0..BYTES - 70_000);
        let len = random.within(1..70_000);
        let span = at as usize..(at + len) as usize;
        match round % 6 {
            0 => {
                let flags = if round % 4 == 0 { NO_HOLE } else { 0 };
                ask(&Request::new(ZEROES, at, len as u32).with(flags));
                model[span].fill(0);
            }
            1 => {
                ask(&Request::new(TRIM, at, len as u32));
                // What is there now is anything: written anew, so that the model knows.
                let data = random.bytes(len as usize);
                model[span].copy_from_slice(&data);
                ask(&Request::write(at, data));
            }
            _ => {
                let data = random.bytes(len as usize);
                model[span].copy_from_slice(&data);
                ask(&Request::write(at, data));
            }
        }
        if random.one_in(7) {
            ask(&Request::new(FLUSH, 0, 0));
        }
        if random.one_in(5) {
            server.kill();
            server.start_again();
        }
        if random.one_in(3) {
            let found = ask(&Request::new(READ, 0, BYTES as u32));
            assert!(found == model, "round {round}");
        }
    }
    ask(&Request::new(FLUSH, 0, 0));
    server.kill();
    assert!(std::fs::read(dir.path().join("disk.raw")).unwrap() == model);
}
