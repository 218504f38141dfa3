//! Puts the output gate between the guest's network interfaces and their backends in a QEMU that is there.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use qapi::qmp;

use super::{OutputGate, Sockets};
use crate::device_state::bind_private;
use crate::error::{Error, Result};
use crate::qmp::Qmp;

/// Attaches a gate to the netdevs `ids`. Its sockets are `path` followed by a number, only while QEMU connects. Packets pass
/// until the gate is told to hold.
///
/// # Errors
/// QEMU refuses a filter on one of the netdevs.
pub(crate) async fn attach(
    qmp: &Qmp,
    ids: &[String],
    path: impl Fn(&str) -> PathBuf,
    limit: u64,
) -> Result<OutputGate> {
    let mut sockets = Vec::new();
    for (index, id) in ids.iter().enumerate() {
        let (out, back) = (format!("gate{index}-out"), format!("gate{index}-back"));
        sockets.push(Sockets {
            outgoing: connect(qmp, &out, &path(&out)).await?,
            released: connect(qmp, &back, &path(&back)).await?,
        });
        let filter = qmp::FilterRedirectorProperties {
            base: qmp::NetfilterProperties {
                // What the netdev receives from the guest.
                queue: Some(qmp::NetFilterDirection::rx),
                netdev: id.clone(),
                insert: None,
                position: None,
                status: None,
            },
            indev: Some(device(&back)),
            outdev: Some(device(&out)),
            vnet_hdr_support: None,
        };
        let add = qmp::object_add(qmp::ObjectOptions::filter_redirector {
            id: format!("epochgate-gate{index}"),
            filter_redirector: filter,
        });
        qmp.execute(&add).await?;
    }
    OutputGate::start(sockets, limit).map_err(|source| Error::Gate {
        problem: "it could not be started",
        source,
    })
}

fn device(name: &str) -> String {
    format!("epochgate-{name}")
}

/// Has QEMU connect a character device to a socket of ours. QEMU connects before it answers.
async fn connect(qmp: &Qmp, name: &str, path: &Path) -> Result<UnixStream> {
    let listener =
        bind_private(path).map_err(Error::file("listen for the guest's packets at", path))?;
    let asked = add_device(qmp, name, path).await;
    // Nobody else is to come.
    let _ = fs::remove_file(path);
    asked?;
    // The connection is in the queue already.
    let accepted = listener.accept().await;
    let socket = accepted.and_then(|(socket, _)| socket.into_std());
    socket.map_err(|source| Error::Gate {
        problem: "QEMU did not connect to it",
        source,
    })
}

async fn add_device(qmp: &Qmp, name: &str, path: &Path) -> Result<()> {
    let address = qmp::UnixSocketAddress {
        path: path.to_string_lossy().into_owned(),
        abstract_: None,
        tight: None,
    };
    let socket = qmp::ChardevSocket {
        base: qmp::ChardevCommon {
            logfile: None,
            logappend: None,
        },
        addr: qmp::SocketAddressLegacy::unix(address.into()),
        server: Some(false),
        nodelay: None,
        reconnect: None,
        telnet: None,
        tls_authz: None,
        tls_creds: None,
        tn3270: None,
        wait: None,
        websocket: None,
    };
    let add = qmp::chardev_add {
        id: device(name),
        backend: qmp::ChardevBackend::socket(socket.into()),
    };
    qmp.execute(&add).await.map(drop)
}
