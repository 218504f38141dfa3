//! Clients of a database in the guest that keep their connections, remember what they were promised, and notice when a promise is
//! broken: a transaction that was acknowledged and is gone, a connection that was reset or is dead.

pub(crate) mod audit;
mod ledger;
pub(crate) mod load;
mod redis;
pub(crate) mod stand;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::lab::lan;
use crate::lab::namespaces::Place;
use crate::lab::site::heed_interruption;
use redis::{Connection, Reply};

/// Where the database answers.
pub(crate) const SERVICE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(lan::GUEST), 6379);
/// A guest without KVM boots in seconds; this long means that something is wrong.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// Waits until the database answers those who are at `place`; calls `meanwhile` again and again.
pub(crate) fn until_it_answers(
    place: &Place,
    mut meanwhile: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + BOOT_LIMIT;
    loop {
        heed_interruption()?;
        meanwhile()?;
        let answer = at(place, || {
            Connection::open(SERVICE).and_then(|mut to| to.ask(&["PING"]))
        })?;
        match answer {
            Ok(Reply::Simple(pong)) if pong == "PONG" => return Ok(()),
            // It reads its file.
            Ok(_) | Err(_) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(other) => bail!("the database answers {other:?} to PING"),
            Err(error) => bail!("the database does not answer: {error}"),
        }
    }
}

/// Does something on a thread at `place`.
fn at<T: Send>(place: &Place, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            place.enter_now()?;
            Ok::<T, rustix::io::Errno>(work())
        });
        match thread.join() {
            Ok(done) => Ok(done?),
            Err(_) => bail!("a client panicked"),
        }
    })
}
