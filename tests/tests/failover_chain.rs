//! Protection that comes back by itself: after a failover the guest's new host finds the next standby, and the next failover goes
//! there. Two hosts take turns; a client keeps one connection all the while.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use epochgate_tests::client::Client;
use epochgate_tests::network::Lan;
use epochgate_tests::process::{Process, signal_pid};
use epochgate_tests::site::{Options, Site};
use rustix::process::Signal;

/// Failovers in a row. More are asked for by EPOCHGATE_TEST_FAILOVERS.
const FAILOVERS: usize = 3;

/// Writes the configuration of a standby on `host` that protects the VM again once it runs there, by the standby on `next`.
fn write_standby(site: &Site, host: &str, next: &str) {
    let dir = site.path().display();
    let file = format!("standby-{host}.toml");
    let text = std::fs::read_to_string(site.path().join("standby.toml")).unwrap();
    let text = text
        .replace("host = \"host-b\"", &format!("host = \"{host}\""))
        .replace(
            &format!("listen = \"unix:{dir}/standby.sock\""),
            &format!("listen = \"unix:{dir}/{host}.sock\""),
        )
        .replace(
            &format!("runtime_dir = \"{dir}\""),
            &format!("runtime_dir = \"{dir}/{host}\""),
        )
        .replace(
            "\n[vm]\n",
            &format!("\n[protect]\nstandby = [\"unix:{dir}/{next}.sock\"]\n\n[vm]\n"),
        )
        .replace("serial-{role}", "serial-{host}");
    site.write(&file, &text);
}

/// A standby on `host`, listening.
fn start_standby(site: &Site, host: &str) -> Process {
    let config = site.file(&format!("standby-{host}.toml"));
    let args = ["standby", "--json", "--config", &config];
    let mut standby = Process::epochgate(host, site.path(), args, &[]);
    standby.event(&["listening"]);
    standby
}

#[test]
fn after_each_failover_the_guest_is_protected_again() {
    let failovers = std::env::var("EPOCHGATE_TEST_FAILOVERS");
    let failovers = failovers.map_or(FAILOVERS, |count| count.parse().unwrap());
    let lan = Lan::enter();
    let mut site = Site::new(&Options {
        output: Some("hold"),
        ..Options::default()
    });
    write_standby(&site, "host-a", "host-b");
    write_standby(&site, "host-b", "host-a");
    let dir = site.path().display().to_string();
    site.derive("vm.toml", "vm-a.toml", "standby.sock", "host-b.sock");
    site.derive("vm-a.toml", "vm.toml", "serial-{role}", "serial-{host}");
    site.start_gateway(&[]);
    site.start_source();
    site.serial("host-a").at_work();

    let asked = Client::default();
    std::thread::scope(|scope| {
        let mut hosts = ["host-a", "host-b"];
        let mut running = site.source.take().unwrap();
        let mut qemu = running.events()[0]["pid"].clone();
        let mut waiting = start_standby(&site, hosts[1]);
        running.event(&["protected"]);
        let client = lan.beside(scope, || asked.ask());
        let asking = asked.asking();
        for round in 0..failovers {
            asked.wait_for_more(20);
            let committed = running.last_epoch("committed").unwrap();
            signal_pid(u32::try_from(qemu.as_u64().unwrap()).unwrap(), Signal::KILL);
            running.kill();
            let resumed = waiting.event(&["resumed", "discarded"]);
            assert_eq!(resumed["event"], "resumed", "failover {round}: {resumed}");
            assert!(resumed["epoch"].as_u64().unwrap() >= committed);
            let joined = waiting.events();
            let joined = joined.iter().find(|e| e["event"] == "source_joined");
            qemu = joined.unwrap()["pid"].clone();
            let before = asked.answers();
            running = std::mem::replace(&mut waiting, start_standby(&site, hosts[0]));
            hosts.swap(0, 1);
            running.event(&["protected"]);
            asked.wait_for_more(20);
            println!(
                "failover {round}: {before} answers before, {} now",
                asked.answers()
            );
        }
        drop(asking);
        assert_eq!(client.join().unwrap(), Ok(()));
        let verdict = site.serial(hosts[0]).latest().unwrap();
        assert!(verdict.good(), "{verdict:?} in {dir}");
    });
}
