//! A guest that goes from host to host, each in a network namespace of its own: its host dies, or the operator moves it. Each time the new
//! host finds the next standby by itself and the guest is protected again, the switch between the hosts learns where the guest is, and a client
//! keeps one connection all the while.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use epochgate_tests::client::Client;
use epochgate_tests::command;
use epochgate_tests::network::HOSTS;
use epochgate_tests::process::{Process, signal_pid};
use epochgate_tests::site::{Options, Site, VM};
use rustix::process::Signal;

/// Moves in a row. More are asked for by EPOCHGATE_TEST_FAILOVERS and EPOCHGATE_TEST_SWITCHOVERS.
const USUAL: usize = 3;

/// Writes the configuration of a standby on `host` that protects the VM again once it runs there, by the standby on `next`.
fn write_standby(site: &Site, host: &str, next: &str) {
    let dir = site.path().display();
    let file = format!("standby-{host}.toml");
    let text = std::fs::read_to_string(site.path().join("standby.toml")).unwrap();
    let there = HOSTS[1];
    let text = text
        .replace(
            &format!("host = \"{there}\""),
            &format!("host = \"{host}\""),
        )
        .replace(&site.gateway_lines(there), &site.gateway_lines(host))
        .replace(&site.channel(there), &site.channel(host))
        .replace(
            &format!("runtime_dir = \"{dir}\""),
            &format!("runtime_dir = \"{dir}/{host}\""),
        )
        .replace(
            "\n[vm]\n",
            &format!(
                "\n[protect]\nstandby = [\"{}\"]\n\n[vm]\n",
                site.channel(next)
            ),
        )
        .replace("serial-{role}", "serial-{host}");
    site.write(&file, &text);
}

/// A standby on `host`, listening.
fn start_standby(site: &Site, host: &str) -> Process {
    let config = site.file(&format!("standby-{host}.toml"));
    let args = ["standby", "--json", "--config", &config];
    let mut standby = site.start(host, host, args, &[]);
    standby.event(&["listening"]);
    standby
}

/// How the guest leaves its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaves {
    /// The host dies.
    Killed,
    /// The operator moves it.
    Moved,
}

/// The guest goes from host to host, `times` times, and is protected again each time; a client keeps its connection.
fn from_host_to_host(leaves: Leaves, times: usize) {
    let mut site = Site::new(&Options {
        output: Some("hold"),
        ..Options::default()
    });
    let mut hosts = HOSTS;
    write_standby(&site, hosts[0], hosts[1]);
    write_standby(&site, hosts[1], hosts[0]);
    site.derive("vm.toml", "vm.toml", "serial-{role}", "serial-{host}");
    site.start_gateway(&[]);
    site.start_source();
    site.serial(hosts[0]).at_work();

    let asked = Client::default();
    std::thread::scope(|scope| {
        let mut running = site.source.take().unwrap();
        let mut qemu = running.events()[0]["pid"].as_u64();
        // Where the one that runs has its sockets.
        let mut runtime_dir = site.file("");
        let mut waiting = start_standby(&site, hosts[1]);
        running.event(&["protected"]);
        let client = site.lan().beside(scope, || asked.ask());
        let asking = asked.asking();
        for round in 0..times {
            asked.wait_for_more(20);
            assert_eq!(site.lan().learned().as_deref(), Some(hosts[0]));
            let expected = match leaves {
                Leaves::Killed => {
                    let committed = running.last_epoch("committed").unwrap();
                    signal_pid(u32::try_from(qemu.unwrap()).unwrap(), Signal::KILL);
                    running.kill();
                    committed..=u64::MAX
                }
                Leaves::Moved => {
                    let args = ["switchover", VM, "--json", "--runtime-dir", &runtime_dir];
                    let asked = site.lan().on(hosts[0], || command::epochgate(args));
                    let moved = asked.with(0).out;
                    let moved: serde_json::Value = serde_json::from_str(&moved).unwrap();
                    assert_eq!(moved["answer"], "moved", "{moved}");
                    assert!(running.wait().success(), "{}", running.log_tail());
                    // Nothing at all is rolled back.
                    let epoch = moved["epoch"].as_u64().unwrap();
                    epoch..=epoch
                }
            };
            let resumed = waiting.event(&["resumed", "discarded"]);
            assert_eq!(resumed["event"], "resumed", "{leaves:?} {round}: {resumed}");
            let epoch = resumed["epoch"].as_u64().unwrap();
            assert!(expected.contains(&epoch), "{epoch}, not in {expected:?}");
            let events = waiting.events();
            let joined = events.iter().find(|e| e["event"] == "source_joined");
            qemu = joined.unwrap()["pid"].as_u64();
            runtime_dir = site.file(hosts[1]);
            running = std::mem::replace(&mut waiting, start_standby(&site, hosts[0]));
            hosts.swap(0, 1);
            running.event(&["protected"]);
        }
        asked.wait_for_more(20);
        assert_eq!(site.lan().learned().as_deref(), Some(hosts[0]));
        drop(asking);
        assert_eq!(client.join().unwrap(), Ok(()));
        let verdict = site.serial(hosts[0]).latest().unwrap();
        assert!(verdict.good(), "{verdict:?}");
    });
}

fn times(variable: &str) -> usize {
    std::env::var(variable).map_or(USUAL, |times| times.parse().unwrap())
}

#[test]
fn after_each_failover_the_guest_is_protected_again() {
    from_host_to_host(Leaves::Killed, times("EPOCHGATE_TEST_FAILOVERS"));
}

#[test]
fn a_switchover_loses_nothing_and_can_be_done_again_and_again() {
    from_host_to_host(Leaves::Moved, times("EPOCHGATE_TEST_SWITCHOVERS"));
}

#[test]
fn only_a_protected_vm_can_be_switched_over() {
    let mut site = Site::new(&Options::default());
    let args = ["switchover", VM, "--runtime-dir", &site.file("")];
    let nobody = command::epochgate(args).with(2);
    assert!(nobody.err.contains("no source of"), "{}", nobody.err);
    site.start_gateway(&[]);
    site.start_source();
    let refused = command::epochgate(args).with(1);
    assert!(refused.err.contains("not protected"), "{}", refused.err);
    site.start_standby();
    site.source().event(&["protected"]);
    let moved = command::epochgate(args).with(0);
    assert!(moved.out.contains("goes on at host-b"), "{}", moved.out);
    site.resumed();
    assert!(site.source().wait().success());
}
