//! From the exports that the gateway offers to the disks that QEMU attaches, in the order in which the guest sees them.

use std::collections::BTreeMap;
use std::path::Path;

use qemu_glue::DiskAttachment;

/// Why the disks of a configuration can't be attached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DisksError {
    /// `nbd` is no address.
    #[error("`nbd = \"{0}\"` is neither the path of a unix socket nor host:port")]
    Address(String),
    /// `disks` names one that the group does not have.
    #[error("`disks` names \"{disk}\", but the group has {known}")]
    Unknown {
        /// The name.
        disk: String,
        /// What there is.
        known: String,
    },
    /// `disks` leaves one out: it would not be part of the VM, but of its epochs.
    #[error(
        "`disks` leaves out \"{0}\" of the group; name all disks of the group, or none for the order of their names"
    )]
    LeftOut(String),
}

/// The attachments for `exports` (disk name to export name). `order` names all disks, or is empty.
pub(crate) fn attachments(
    nbd: &str,
    order: &[String],
    exports: &BTreeMap<String, String>,
) -> Result<Vec<DiskAttachment>, DisksError> {
    let names: Vec<&String> = if order.is_empty() {
        exports.keys().collect()
    } else {
        order.iter().collect()
    };
    if let Some(left_out) = exports.keys().find(|name| !names.contains(name)) {
        return Err(DisksError::LeftOut(left_out.clone()));
    }
    names
        .into_iter()
        .map(|name| attachment(nbd, name, exports))
        .collect()
}

fn attachment(
    nbd: &str,
    name: &str,
    exports: &BTreeMap<String, String>,
) -> Result<DiskAttachment, DisksError> {
    let export = exports.get(name).ok_or_else(|| DisksError::Unknown {
        disk: name.to_owned(),
        known: exports.keys().cloned().collect::<Vec<_>>().join(", "),
    })?;
    if nbd.starts_with('/') {
        return Ok(DiskAttachment::unix(name, Path::new(nbd), export));
    }
    let address = nbd.rsplit_once(':');
    match address.and_then(|(host, port)| Some((host, port.parse().ok()?))) {
        Some((host, port)) if !host.is_empty() => {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            Ok(DiskAttachment::tcp(name, host, port, export))
        }
        _ => Err(DisksError::Address(nbd.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn exports() -> BTreeMap<String, String> {
        [("data", "vm1/data@a"), ("root", "vm1/root@a")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into()
    }

    #[test]
    fn the_guest_sees_the_disks_in_the_order_of_the_configuration() {
        let order = ["root".to_owned(), "data".to_owned()];
        let ids: Vec<String> = attachments("/run/nbd.sock", &order, &exports())
            .unwrap()
            .into_iter()
            .map(|disk| disk.id)
            .collect();
        assert_eq!(ids, order);
    }

    #[test]
    fn a_wrong_list_of_disks_says_what_is_wrong() {
        let list = |names: &[&str]| {
            let order: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            attachments("/run/nbd.sock", &order, &exports()).unwrap_err()
        };
        assert_eq!(list(&["root"]), DisksError::LeftOut("data".into()));
        assert!(matches!(
            list(&["root", "data", "swap"]),
            DisksError::Unknown { .. }
        ));
    }

    #[test]
    fn a_server_is_a_path_or_an_address() {
        for good in ["/run/nbd.sock", "storage:10809", "[::1]:10809"] {
            assert!(attachments(good, &[], &exports()).is_ok(), "{good}");
        }
        for bad in ["", "storage", ":10809", "storage:port"] {
            assert!(attachments(bad, &[], &exports()).is_err(), "{bad}");
        }
    }
}
