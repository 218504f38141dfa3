//! Socket activation: `epochgate serve` on sockets that somebody else has opened, as systemd does (sd_listen_fds(3)).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

use epochgate_tests::command::{epochgate, run_well};
use epochgate_tests::paths;
use epochgate_tests::process::Process;
use epochgate_tests::site::{make_image, tempdir, wait_for_socket};

/// Opens a unix socket and a TCP socket, puts them where systemd does, and becomes the command.
const LAUNCHER: &str = r#"
import os, socket, sys
path, port_file = sys.argv[1:3]
tcp = socket.socket(); tcp.bind(("127.0.0.1", 0)); tcp.listen()
with open(port_file, "w") as file:
    file.write(str(tcp.getsockname()[1]))
# Last, and only now may it be connected to: whoever waits for this socket finds the port written down.
unix = socket.socket(socket.AF_UNIX); unix.bind(path); unix.listen()
kept = [os.dup2(os.dup(s.fileno()), 10 + i) for i, s in enumerate((unix, tcp))]
for i, fd in enumerate(kept):
    os.dup2(fd, 3 + i, inheritable=True)
os.environ.update(LISTEN_FDS="2", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[3], sys.argv[3:])
"#;

#[test]
fn inherited_sockets_are_served_and_left_alone() {
    let dir = tempdir();
    let file = |name: &str| dir.path().join(name);
    make_image(&file("image"), 1 << 20);
    let mut command = Command::new("python3");
    command.args(["-c", LAUNCHER]);
    command.args([file("nbd.sock"), file("port")]);
    command
        .arg(paths::epochgate())
        .arg("serve")
        .arg(file("image"));
    let mut server = Process::start("serve", dir.path(), command);
    wait_for_socket(&file("nbd.sock"), &mut server);
    let unix = format!("nbd+unix:///?socket={}", file("nbd.sock").display());
    let port = std::fs::read_to_string(file("port")).unwrap();
    for uri in [unix, format!("nbd://127.0.0.1:{port}")] {
        let info = run_well("nbdinfo", ["--size", &uri]);
        assert_eq!(info.trim(), "1048576", "{uri}");
    }
    server.stop();
    assert!(
        file("nbd.sock").exists(),
        "the socket is systemd's, not ours"
    );
}

#[test]
fn without_an_address_and_without_systemd_it_says_what_to_do() {
    let dir = tempdir();
    let image = dir.path().join("image");
    make_image(&image, 1 << 20);
    let image = image.display().to_string();
    epochgate(["serve", &image]).with(2).says(&[
        "--unix PATH",
        "--vsock CID:PORT",
        "socket activation",
    ]);
    let config = dir.path().join("gateway.toml");
    let text = format!("listen = [\"systemd:0\"]\n[[export]]\nname = \"\"\nimage = \"{image}\"\n");
    std::fs::write(&config, text).unwrap();
    let config = config.display().to_string();
    epochgate(["gateway", "--config", &config]).says(&["systemd:0", "LISTEN_FDS"]);
}
