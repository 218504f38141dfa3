//! What a service manager hears from `epochgate` (sd_notify(3)): the test stands in its place, at the other end of NOTIFY_SOCKET.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::net::UnixDatagram;
use std::path::Path;

use epochgate_tests::command::run_well;
use epochgate_tests::process::Process;
use epochgate_tests::site::{Options, Site, make_image, tempdir};
use epochgate_tests::waiting::PATIENCE;
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

/// The socket that a service manager listens on.
struct Manager {
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn new(dir: &Path) -> Self {
        let path = dir.join("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let path = path.display().to_string();
        Self { socket, path }
    }

    fn env(&self) -> [(&str, &str); 1] {
        [("NOTIFY_SOCKET", &self.path)]
    }

    /// The assignments of the next message, in their order.
    #[track_caller]
    fn hears(&self) -> Vec<String> {
        let mut message = [0; 4096];
        let len = self.socket.recv(&mut message).expect("a message");
        let text = std::str::from_utf8(&message[..len]).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn hears_ready(&self) -> String {
        let said = self.hears();
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(said[0], "READY=1", "{said:?}");
        let status = said[1].strip_prefix("STATUS=").expect("a status");
        status.to_owned()
    }

    /// When the reload began, in µs of the monotonic clock.
    #[track_caller]
    fn hears_of_a_reload(&self) -> u64 {
        let said = self.hears();
        assert_eq!(said[0], "RELOADING=1", "{said:?}");
        let at = said[1].strip_prefix("MONOTONIC_USEC=").expect("a time");
        at.parse().unwrap()
    }

    #[track_caller]
    fn hears_of_the_stop(&self) {
        assert_eq!(self.hears(), ["STOPPING=1"]);
    }
}

fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000 + u64::try_from(now.tv_nsec).unwrap() / 1000
}

#[test]
fn a_gateway_is_ready_when_it_accepts_and_again_after_each_reload() {
    let dir = tempdir();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let manager = Manager::new(dir.path());
    let configure = |exports: &[&str]| {
        let mut text = format!("listen = [\"unix:{}\"]\n", file("nbd.sock"));
        for name in exports {
            make_image(&dir.path().join(name), 1 << 20);
            let image = file(name);
            text.push_str(&format!(
                "[[export]]\nname = \"{name}\"\nimage = \"{image}\"\n"
            ));
        }
        std::fs::write(file("gateway.toml"), text).unwrap();
    };
    let size = |export: &str| {
        let uri = format!("nbd+unix:///{export}?socket={}", file("nbd.sock"));
        run_well("nbdinfo", ["--size", &uri])
    };
    configure(&["first"]);
    let config = file("gateway.toml");
    let arguments = ["gateway", "--config", &config];
    let mut gateway = Process::epochgate("gateway", dir.path(), arguments, &manager.env());
    manager.hears_ready();
    assert_eq!(size("first").trim(), "1048576");

    configure(&["first", "second"]);
    let asked = monotonic_us();
    gateway.signal(Signal::HUP);
    let began = manager.hears_of_a_reload();
    assert!((asked..=monotonic_us()).contains(&began));
    let status = manager.hears_ready();
    assert!(status.ends_with("last reload: added: second"), "{status}");
    assert_eq!(size("second").trim(), "1048576");

    // A reload that changes nothing is over as well.
    std::fs::write(&config, "listen = 7").unwrap();
    gateway.signal(Signal::HUP);
    manager.hears_of_a_reload();
    let status = manager.hears_ready();
    assert!(
        status.contains("the last reload changed nothing"),
        "{status}"
    );
    assert_eq!(size("first").trim(), "1048576");

    gateway.signal(Signal::TERM);
    manager.hears_of_the_stop();
    assert!(gateway.wait().success());
}

#[test]
fn serve_is_ready_when_it_accepts_and_a_manager_that_is_gone_is_no_matter() {
    let dir = tempdir();
    let file = |name: &str| dir.path().join(name).display().to_string();
    make_image(&dir.path().join("image"), 1 << 20);
    let (image, socket) = (file("image"), file("nbd.sock"));
    let arguments = ["serve", &image, "--unix", &socket];
    let manager = Manager::new(dir.path());
    let mut server = Process::epochgate("serve", dir.path(), arguments, &manager.env());
    manager.hears_ready();
    let uri = format!("nbd+unix:///?socket={socket}");
    assert_eq!(run_well("nbdinfo", ["--size", &uri]).trim(), "1048576");
    drop(manager);
    server.stop();
}

#[test]
fn a_source_and_a_standby_say_when_they_are_there_and_when_they_stop() {
    let mut site = Site::new(&Options::default());
    let manager = Manager::new(site.path());
    site.start_gateway(&[]);
    for (role, config) in [("standby", "standby.toml"), ("protect", "vm.toml")] {
        let config = site.file(config);
        let arguments = [role, "--config", &config];
        let mut process = Process::epochgate(role, site.path(), arguments, &manager.env());
        manager.hears_ready();
        process.signal(Signal::TERM);
        manager.hears_of_the_stop();
        // A guest that boots may not hear of its power button.
        process.signal(Signal::TERM);
        process.wait();
    }
}
