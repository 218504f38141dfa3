//! Starting a VM from its disks while it runs, or while a standby holds its memory: never by accident, and when it is
//! asked for, whoever had the VM is fenced and stops it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use epochgate_tests::command::epochgate;
use epochgate_tests::process::Process;
use epochgate_tests::site::{Options, Site};
use epochgate_tests::waiting::wait_until;

/// The configuration of the same VM on a third host. Returns its path.
fn third_host(site: &Site) -> String {
    let here = format!("runtime_dir = \"{}\"", site.path().display());
    let there = format!("runtime_dir = \"{}/third\"", site.path().display());
    site.derive("vm.toml", "third.toml", &here, &there);
    site.file("third.toml")
}

/// Waits until the gateway has seen that the killed source's connections are closed: until then the VM runs, for all it knows.
fn until_the_source_is_gone(site: &Site) {
    let has_source = || {
        let group = site.group();
        let attached = group["attachments"].as_array().unwrap().clone();
        attached.iter().any(|one| one["kind"] == "source")
    };
    wait_until(
        "the end of the source's connections",
        || (!has_source()).then_some(()),
        || site.group().to_string(),
    );
}

#[test]
fn a_vm_that_runs_elsewhere_is_left_alone() {
    let mut site = Site::new(&Options::default());
    let before = site.start_protected(&[]);
    let third = third_host(&site);
    let generation = site.group()["generation"].clone();
    epochgate(["protect", "--config", &third])
        .with(1)
        .says(&["runs already", "--cold-start"]);
    assert_eq!(site.group()["generation"], generation);
    site.serial("source").must_be_content(&before);
}

#[test]
fn memory_at_a_standby_is_given_up_only_when_asked_to() {
    let mut site = Site::new(&Options::default());
    let before = site.start_protected(&[]);
    let third = third_host(&site);
    // It gets no answer from the gateway until later, so it holds the memory and is about to take over.
    let standby = site.standby().pid();
    epochgate_tests::process::signal_pid(standby, rustix::process::Signal::STOP);
    let committed = site.kill_source();
    until_the_source_is_gone(&site);
    epochgate(["protect", "--config", &third])
        .with(1)
        .says(&["holds the memory", "--cold-start"]);
    epochgate_tests::process::signal_pid(standby, rustix::process::Signal::CONT);
    assert!(site.resumed() >= committed);
    site.serial("standby").must_be_content(&before);
}

#[test]
fn a_guest_that_was_taken_over_is_fenced_by_a_cold_start() {
    let mut site = Site::new(&Options::default());
    site.start_protected(&[]);
    site.kill_source();
    site.resumed();
    let third = third_host(&site);
    let args = ["protect", "--json", "--cold-start", "--config", &third];
    let mut other = Process::epochgate("third", site.path(), args, &[]);
    other.event(&["vm_started"]);
    let status = site.standby().wait();
    assert_eq!(status.code(), Some(1), "{}", site.standby().log_tail());
    assert_eq!(site.standby().last_event()["event"], "fenced");
    other.stop();
}
