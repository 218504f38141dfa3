//! The kinds of fault. What happens in the guest for each is in tests/guest/lab/commands. Starts nothing.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::spec::{Size, Way};

/// A kind of fault.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Its name: the label of a recording.
    pub name: &'static str,
    /// What it is, for people.
    pub about: &'static str,
    /// Whether it is a fault of a service: without clients nobody outside could ever tell, so there are some.
    pub needs_clients: bool,
    /// Whether the guest must have a disk to swap to.
    pub needs_swap: bool,
    draw: fn(&mut StdRng, Size) -> Way,
}

impl Fault {
    /// Draws its parameters for a VM of this size.
    pub fn draw(&self, random: &mut StdRng, size: Size) -> Way {
        (self.draw)(random, size)
    }
}

const fn fault(
    name: &'static str,
    about: &'static str,
    draw: fn(&mut StdRng, Size) -> Way,
) -> Fault {
    Fault {
        name,
        about,
        needs_clients: false,
        needs_swap: false,
        draw,
    }
}

const fn of_service(mut fault: Fault) -> Fault {
    fault.needs_clients = true;
    fault
}

const fn with_swap(mut fault: Fault) -> Fault {
    fault.needs_swap = true;
    fault
}

/// All kinds.
pub const FAULTS: [Fault; 20] = [
    fault(
        "kernel_panic",
        "the kernel panics (sysrq c) and stays so",
        |_, _| line("fault_panic"),
    ),
    fault(
        "panic_loop",
        "the kernel panics, reboots, and panics again some seconds after each start",
        |r, _| line(&format!("AFTER={} fault_oops_loop", r.random_range(2..=12))),
    ),
    fault(
        "hard_lockup",
        "one CPU, or all, spin in the kernel with interrupts off",
        |r, s| line(&format!("CPUS={} fault_hard_lockup", cpus(r, s))),
    ),
    fault(
        "soft_lockup",
        "one CPU, or all, spin in the kernel without preemption, interrupts on",
        |r, s| line(&format!("CPUS={} fault_soft_lockup", cpus(r, s))),
    ),
    fault("fork_bomb", "processes that fork for ever", |_, _| {
        line("fault_fork_bomb")
    }),
    fault(
        "leak",
        "a service leaks until the OOM killer ends it, is started again, and so on",
        |r, s| {
            // The memory is full after 10 to 30 s, and after as long again what can be swapped to.
            let kib = s.memory_mib * 1024 / r.random_range(10..=30);
            line(&format!("RATE={kib} fault_leak"))
        },
    ),
    with_swap(fault(
        "swap_storm",
        "a working set larger than the memory, written at random",
        |r, s| {
            let mib = s.memory_mib * r.random_range(65..=85) / 100;
            line(&format!("MIB={mib} fault_swap_storm"))
        },
    )),
    of_service(fault(
        "deadlock",
        "two threads of the application hold each other's lock; all clients wait",
        |_, _| line("fault_deadlock"),
    )),
    of_service(fault(
        "livelock",
        "the application's threads spin on a lock that is never given back",
        |_, _| line("fault_livelock"),
    )),
    fault(
        "spin",
        "a process whose threads spin on a lock that its owner has left behind",
        |r, s| {
            line(&format!(
                "JOBS={} fault_spin",
                r.random_range(s.cpus..=s.cpus * 2)
            ))
        },
    ),
    of_service(fault(
        "stopped",
        "all services stand still (SIGSTOP), the kernel is well",
        |_, _| line("fault_stopped"),
    )),
    of_service(fault(
        "disk_hangs",
        "requests of the data disk do not come back",
        |_, _| Way::DiskHangs,
    )),
    of_service(fault(
        "disk_fails",
        "requests of the data disk fail; QEMU stops the guest, as it is told to",
        |_, _| Way::DiskFails,
    )),
    of_service(fault(
        "frozen",
        "the file system is frozen and not thawed, as by a backup that died",
        |_, _| line("fault_frozen"),
    )),
    of_service(fault(
        "read_only",
        "the file system finds an error and goes read-only",
        |_, _| line("fault_read_only"),
    )),
    of_service(fault(
        "disk_full",
        "the file system is full; services fail, start again and fail",
        |r, _| {
            line(&format!(
                "LEFT={} AFTER={} fault_disk_full",
                r.random_range(5..=30),
                r.random_range(2..=10)
            ))
        },
    )),
    of_service(fault(
        "network_dead",
        "the interfaces are down, without addresses, or without a driver",
        |r, _| {
            let way = ["link", "driver", "address"]
                .choose(r)
                .copied()
                .unwrap_or("link");
            line(&format!("WAY={way} fault_net_dead"))
        },
    )),
    of_service(fault(
        "crash_loop",
        "the application crashes soon after each start",
        |r, _| {
            let pause = ["0", "0.2", "1"].choose(r).copied().unwrap_or("1");
            line(&format!(
                "MS={} PAUSE={pause} fault_crash_loop",
                r.random_range(50..=800)
            ))
        },
    )),
    fault(
        "runaway_log",
        "a service writes to its log as fast as it can, until the disk is full",
        |_, _| line("fault_runaway_log"),
    ),
    fault(
        "zombies",
        "children that nobody waits for, until there can be no more processes",
        |r, _| {
            line(&format!(
                "RATE={} fault_zombies",
                r.random_range(100..=1_000)
            ))
        },
    ),
];

/// The fault of this name.
pub fn named(name: &str) -> Option<&'static Fault> {
    FAULTS.iter().find(|fault| fault.name == name)
}

fn line(line: &str) -> Way {
    Way::Guest { line: line.into() }
}

fn cpus(random: &mut StdRng, size: Size) -> u32 {
    if random.random_bool(0.5) {
        1
    } else {
        size.cpus
    }
}
