//! Several VMs at one gateway and on one pair of hosts: each is protected on its own, and the loss of one harms no other.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write as _;
use std::path::Path;

use epochgate_tests::paths;
use epochgate_tests::process::{Process, signal_pid};
use epochgate_tests::serial::Serial;
use epochgate_tests::site::{make_image, tempdir, vm_lock, wait_for_socket};
use rustix::process::Signal;

/// VMs, each with two QEMUs. EPOCHGATE_TEST_VMS asks for another number.
const USUAL: usize = 4;
/// Size of the disk of each.
const DISK_BYTES: u64 = 4 << 20;

/// One VM: its source and its standby.
struct Vm {
    name: String,
    source: Process,
    standby: Process,
}

impl Vm {
    fn serial(&self, dir: &Path, role: &str) -> Serial {
        Serial::new(dir.join(format!("{}-{role}.log", self.name)))
    }

    /// Commits a second so far.
    fn pace(&self) -> f64 {
        let events = self.source.events();
        let times: Vec<f64> = events
            .iter()
            .filter(|event| event["event"] == "committed")
            .filter_map(|event| event["t_us"].as_f64())
            .collect();
        let seconds = (times.last().unwrap() - times.first().unwrap()) / 1e6;
        (times.len() - 1) as f64 / seconds
    }

    fn events_of(process: &Process, name: &str) -> usize {
        let events = process.events();
        events.iter().filter(|e| e["event"] == name).count()
    }
}

fn write_gateway(dir: &Path, names: &[String]) {
    let at = dir.display();
    let mut text = format!("control = \"{at}/gateway.sock\"\nlisten = [\"unix:{at}/nbd.sock\"]\n");
    for name in names {
        make_image(&dir.join(format!("{name}.img")), DISK_BYTES);
        write!(
            text,
            "\n[[group]]\nname = \"{name}\"\nlog = \"{at}/{name}.epochlog\"\nepoch_memory = \"{at}\"\nmode = \"async\"\n\
             \n[[group.disk]]\nname = \"root\"\nimage = \"{at}/{name}.img\"\n"
        )
        .unwrap();
    }
    std::fs::write(dir.join("gateway.toml"), text).unwrap();
}

fn start(dir: &Path, ram: &Path, name: &str, role: &str) -> Process {
    let at = dir.display();
    let (command, head) = match role {
        "source" => (
            "protect",
            format!("standby = [\"unix:{at}/{name}.standby\"]\ninterval_ms = 500\n"),
        ),
        _ => (
            "standby",
            format!("listen = \"unix:{at}/{name}.standby\"\n"),
        ),
    };
    // A guest that does little: there are many of them.
    let text = format!(
        "host = \"{role}\"\n{head}gateway = \"{at}/gateway.sock\"\nnbd = \"{at}/nbd.sock\"\nruntime_dir = \"{at}\"\n\
         heartbeat_ms = 50\nsuspicion_ms = 20000\n\n[vm]\nname = \"{name}\"\nqemu = \"{}\"\naccel = \"tcg\"\nmemory_mib = 128\n\
         kernel = \"{guest}/vmlinuz\"\ninitrd = \"{guest}/initrd.gz\"\nappend = \"{} witness.rate=40 witness.mem_mib=1\"\n\
         ram_dir = \"{}\"\nextra_args = [\"-serial\", \"file:{at}/{name}-{{role}}.log\"]\n",
        paths::qemu(),
        paths::cmdline(),
        ram.display(),
        guest = paths::guest().display(),
    );
    let file = dir.join(format!("{name}-{role}.toml"));
    std::fs::write(&file, text).unwrap();
    let args = [command, "--json", "--config", &file.display().to_string()];
    Process::epochgate(&format!("{name}-{role}"), dir, args, &[])
}

#[test]
fn the_loss_of_one_harms_no_other() {
    let count = std::env::var("EPOCHGATE_TEST_VMS").map_or(USUAL, |n| n.parse().unwrap());
    let _alone = vm_lock();
    let (dir, ram) = (
        tempdir(),
        tempfile::Builder::new()
            .prefix("epochgate-test-")
            .tempdir_in("/dev/shm")
            .unwrap(),
    );
    let dir = dir.path();
    let names: Vec<String> = (0..count).map(|n| format!("vm{n}")).collect();
    write_gateway(dir, &names);
    let config = dir.join("gateway.toml").display().to_string();
    let mut gateway = Process::epochgate("gateway", dir, ["gateway", "--config", &config], &[]);
    wait_for_socket(&dir.join("gateway.sock"), &mut gateway);

    let mut vms: Vec<Vm> = Vec::new();
    for name in &names {
        let mut source = start(dir, ram.path(), name, "source");
        source.event(&["vm_started"]);
        let mut standby = start(dir, ram.path(), name, "standby");
        standby.event(&["listening"]);
        vms.push(Vm {
            name: name.clone(),
            source,
            standby,
        });
    }
    for vm in &mut vms {
        vm.source.event(&["protected"]);
    }
    let before: Vec<_> = vms
        .iter()
        .map(|vm| vm.serial(dir, "source").at_work())
        .collect();

    let lost = count / 2;
    let others = || (0..count).filter(move |n| *n != lost);
    let pid = vms[lost].source.events()[0]["pid"].as_u64().unwrap();
    let committed = vms[lost].source.last_epoch("committed").unwrap();
    signal_pid(u32::try_from(pid).unwrap(), Signal::KILL);
    vms[lost].source.kill();
    let resumed = vms[lost].standby.event(&["resumed", "discarded"]);
    assert_eq!(resumed["event"], "resumed", "{resumed}");
    assert!(resumed["epoch"].as_u64().unwrap() >= committed);
    vms[lost]
        .serial(dir, "standby")
        .must_be_content(&before[lost]);

    for n in others() {
        let vm = &mut vms[n];
        let epoch = vm.source.last_epoch("committed").unwrap();
        let later = |event: &serde_json::Value| {
            event["event"] == "committed" && event["epoch"].as_u64() > Some(epoch)
        };
        vm.source.event_where("committed", later);
        assert_eq!(Vm::events_of(&vm.source, "standby_lost"), 0, "{}", vm.name);
        assert_eq!(Vm::events_of(&vm.standby, "source_lost"), 0, "{}", vm.name);
        vm.serial(dir, "source").must_be_content(&before[n]);
    }
    let slowest = others().map(|n| vms[n].pace()).fold(f64::MAX, f64::min);
    println!("{count} VMs, one every 500 ms: the slowest made {slowest:.2} commits a second");
}
