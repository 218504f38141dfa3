//! Configuration files of the three roles: text is read and checked without a panic, whether it is right or not; the message about a
//! wrong one can be written; what is let through keeps what the checks promise; and a gateway's comes back the same after it is
//! written and read again. No file is opened: what only names files is taken out first.
//!
//! Input: a byte that chooses the role, then TOML.

use std::collections::BTreeSet;

use coordinator::config::{Output, ProtectionPolicy};
use coordinator::{ProtectConfig, StandbyConfig};
use nbd_server::GatewayConfig;
use nbd_server::access::Pattern;
use nbd_server::group::valid_name;
use qemu_glue::VmDescription;
use serde::de::DeserializeOwned;

/// Runs one input.
pub fn run(data: &[u8]) {
    let Some((&role, text)) = data.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    match role {
        b'g' => gateway(text),
        b'v' => source(text),
        b's' => standby(text),
        _ => {}
    }
}

/// As the command reads it, with the message that it would show.
fn read<T: DeserializeOwned>(text: &str) -> Option<T> {
    toml::from_str(text)
        .inspect_err(|error| {
            let shown = error.to_string();
            assert!(!shown.is_empty(), "an error without a word");
        })
        .ok()
}

fn gateway(text: &str) {
    let Some(mut config) = read::<GatewayConfig>(text) else {
        return;
    };
    comes_back(&config);
    let advice = config.advice();
    assert!(advice.iter().all(|advice| !advice.is_empty()));
    // Certificates are read from files.
    config.tls = None;
    match config.check() {
        Ok(()) => checked(&config),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    for rule in &config.access {
        let pattern = Pattern::new(&rule.client);
        let fits = pattern.matches(&rule.export);
        assert_eq!(fits, fits_slowly(&rule.client, &rule.export), "{rule:?}");
    }
}

fn comes_back(config: &GatewayConfig) {
    let Ok(written) = toml::to_string(config) else {
        // A number beyond what TOML has: it did not come from there.
        panic!("what was read can't be written");
    };
    let again: GatewayConfig = toml::from_str(&written).expect("what was written can be read");
    assert_eq!(&again, config);
}

/// What [`GatewayConfig::check`] promises to those who open it.
fn checked(config: &GatewayConfig) {
    assert!(!config.listen.is_empty());
    let mut names = BTreeSet::new();
    for group in &config.groups {
        assert!(valid_name(&group.name) && names.insert(group.name.as_str()));
        assert!(!group.disks.is_empty() && group.memory_budget_mib > 0);
        assert!(group.epoch_interval_ms > 0);
        let mut disks = BTreeSet::new();
        for disk in &group.disks {
            assert!(valid_name(&disk.name) && disks.insert(&disk.name));
            assert!(disk.export.iter().all(|export| names.insert(export)));
        }
    }
    for export in &config.exports {
        assert!(export.name.is_empty() || valid_name(&export.name));
        assert!(names.insert(&export.name));
    }
}

/// Patterns by their definition.
fn fits_slowly(pattern: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    // Whether what was looked at of the pattern fits the first so many characters.
    let mut fits = vec![false; name.len() + 1];
    fits[0] = true;
    for wanted in pattern.chars() {
        let mut next = vec![false; name.len() + 1];
        if wanted == '*' {
            let mut any = false;
            for (fits, next) in fits.iter().zip(&mut next) {
                any |= fits;
                *next = any;
            }
        } else {
            for (at, found) in name.iter().enumerate() {
                next[at + 1] = fits[at] && *found == wanted;
            }
        }
        fits = next;
    }
    fits[name.len()]
}

fn source(text: &str) {
    let Some(config) = read::<ProtectConfig>(text) else {
        return;
    };
    match config.check() {
        Ok(()) => {
            assert!((1..=60_000).contains(&config.interval_ms) && !config.standby.is_empty());
            assert!(config.suspicion_ms >= 3 * config.heartbeat_ms);
            held(&config.protection(), &config.vm);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    vm(config.vm);
}

fn standby(text: &str) {
    let Some(config) = read::<StandbyConfig>(text) else {
        return;
    };
    match config.check() {
        Ok(()) => {
            assert!(config.insecure || !config.listen.is_exposed());
            if let Some(protect) = &config.protect {
                assert!((1..=60_000).contains(&protect.interval_ms) && !protect.standby.is_empty());
                held(protect, &config.vm);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    vm(config.vm);
}

/// A gate is in front of every interface whose packets are to be held.
fn held(protection: &ProtectionPolicy, vm: &VmDescription) {
    assert!((1..=65_536).contains(&protection.output_limit_mib));
    if protection.output == Output::Hold {
        let netdevs = vm.gated_netdevs().expect("the check has looked at them");
        assert!(netdevs.iter().all(|id| !id.is_empty()));
    }
}

fn vm(mut vm: VmDescription) {
    (vm.kernel, vm.initrd, vm.firmware) = (None, None, None);
    vm.append = None;
    match vm.validate(&[]) {
        Ok(()) => {
            assert!(!vm.name.is_empty() && vm.name.len() <= 24);
            assert!((1..=1 << 24).contains(&vm.memory_mib) && vm.cpus > 0);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    assert!(vm.memory_bytes() >= vm.memory_mib);
}
