//! The source's connection to one standby: found, greeted, written to and listened to. Knows frames and checkpoints,
//! nothing of when to take one.

use std::time::Duration;

use nbd_server::control::api::Protection;
use nbd_server::{Epoch, failpoint};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use crate::address::{ChannelAddress, Reader};
use crate::channel_io::{ChannelError, Packed, Packing, Sender, read_frame_within};
use crate::checkpoint_channel::{Frame, Kind, Stamp};
use crate::failpoints;
use crate::handshake::{HandshakeError, Hello, greet};
use crate::packing::{Compression, Packer};

/// Between two rounds over the list of standbys.
const SEEK_AGAIN: Duration = Duration::from_millis(500);
/// The same after one of them refused: it started a QEMU to find out, and its reason will not pass by itself.
const REFUSED_AGAIN: Duration = Duration::from_secs(5);

/// Distinguishes the connection that counts from earlier ones whose last words may still be on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinkNumber(pub u64);

impl LinkNumber {
    /// What the gateway knows it by: every standby is a protection of its own.
    pub(crate) fn protection(self) -> Protection {
        Protection(self.0)
    }
}

/// What a link tells.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// No standby answers yet.
    Seeking { reason: String },
    /// A standby answered; the link is ready.
    Joined(Link),
    /// A checkpoint is on its way, packed.
    Packed(Packed),
    /// COMMIT 1 acknowledged.
    Commit1Acked { epoch: Epoch },
    /// The link is dead.
    Lost { reason: String },
}

/// A captured checkpoint on its way out.
#[derive(Debug)]
pub(crate) struct Shipment {
    pub epoch: Epoch,
    /// COMMIT 1 last.
    pub frames: Vec<Frame>,
}

/// What leaves over a link, in this order: checkpoints are never interleaved.
#[derive(Debug)]
enum Outgoing {
    Checkpoint(Shipment),
    Commit3(Epoch),
}

/// A connection to a standby that said Welcome. Dropping it closes the connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub standby: String,
    pub sender: Sender,
    /// Unbounded, but never more than the protocol's epochs in flight.
    outbox: mpsc::UnboundedSender<Outgoing>,
    /// The listener and the shipper end with the link.
    tasks: JoinSet<()>,
    writer: JoinHandle<()>,
}

impl Link {
    /// Sends a checkpoint, beside the running guest. If that fails, the listener finds the link dead.
    pub(crate) fn ship(&self, shipment: Shipment) {
        let _ = self.outbox.send(Outgoing::Checkpoint(shipment));
    }

    /// Sends COMMIT 3.
    pub(crate) fn commit3(&self, epoch: Epoch) {
        let _ = self.outbox.send(Outgoing::Commit3(epoch));
    }

    /// Says a last word and closes, after at most `limit`. Checkpoints that are not sent yet are dropped.
    pub(crate) async fn finish(mut self, last: Kind, reason: &str, limit: Duration) {
        self.tasks.shutdown().await;
        let farewell = async {
            let _ = self
                .sender
                .send_new(last, Epoch(0), reason.to_owned())
                .await;
            drop(self.sender);
            let _ = (&mut self.writer).await;
        };
        if tokio::time::timeout(limit, farewell).await.is_err() {
            tracing::debug!("the standby did not take the last word");
            self.writer.abort();
        }
    }
}

/// The timing of a link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub heartbeat: Duration,
    pub suspicion: Duration,
}

impl Timing {
    /// From the milliseconds of a configuration.
    pub(crate) fn new(heartbeat_ms: u64, suspicion_ms: u64) -> Self {
        Self {
            heartbeat: Duration::from_millis(heartbeat_ms),
            suspicion: Duration::from_millis(suspicion_ms),
        }
    }
}

/// Tries the standbys in order, over and over, until one says Welcome.
pub(crate) async fn seek(
    number: LinkNumber,
    addresses: Vec<ChannelAddress>,
    stamp: Stamp,
    hello: Hello,
    timing: Timing,
    compression: Compression,
    events: mpsc::Sender<(LinkNumber, LinkEvent)>,
) {
    // Per address: a list of several must not say the same things again in every round.
    let mut last_reasons = vec![String::new(); addresses.len()];
    loop {
        let mut pause = SEEK_AGAIN;
        for (address, last_reason) in addresses.iter().zip(&mut last_reasons) {
            match greet(address, stamp, &hello).await {
                Ok((welcome, reader, writer)) => {
                    let packer = Packer::new(compression, hello.cached_pages());
                    let teller = events.clone();
                    let packing = Packing::new(packer, move |packed| {
                        // Only for those who watch.
                        let _ = teller.try_send((number, LinkEvent::Packed(packed)));
                    });
                    let (sender, writer) =
                        Sender::start(writer, stamp, timing.heartbeat, Some(packing));
                    let (outbox, outgoing) = mpsc::unbounded_channel();
                    let mut tasks = JoinSet::new();
                    tasks.spawn(listen(number, reader, stamp, timing, events.clone()));
                    tasks.spawn(send_outgoing(sender.clone(), outgoing));
                    let link = Link {
                        standby: welcome.standby,
                        sender,
                        outbox,
                        tasks,
                        writer,
                    };
                    let _ = events.send((number, LinkEvent::Joined(link))).await;
                    return;
                }
                Err(error) => {
                    if matches!(error, HandshakeError::Refused(_)) {
                        pause = REFUSED_AGAIN;
                    }
                    let reason = chain(&error);
                    if reason != *last_reason {
                        last_reason.clone_from(&reason);
                        let seeking = LinkEvent::Seeking { reason };
                        if events.send((number, seeking)).await.is_err() {
                            return;
                        }
                    }
                }
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

async fn listen(
    number: LinkNumber,
    mut reader: Reader,
    stamp: Stamp,
    timing: Timing,
    events: mpsc::Sender<(LinkNumber, LinkEvent)>,
) {
    let reason = loop {
        match read_frame_within(&mut reader, timing.suspicion).await {
            Ok(frame) if frame.stamp.vm != stamp.vm => {
                break "the standby sent a frame for another VM".to_owned();
            }
            Ok(frame) => match frame.kind {
                Kind::Commit1Ack => {
                    let acked = LinkEvent::Commit1Acked { epoch: frame.epoch };
                    if events.send((number, acked)).await.is_err() {
                        return;
                    }
                }
                Kind::Heartbeat => {}
                Kind::Refused => {
                    break format!(
                        "the standby gave up: {}",
                        String::from_utf8_lossy(&frame.payload)
                    );
                }
                other => {
                    break format!("the standby sent a {other:?} frame, which only a source may");
                }
            },
            Err(error) => break chain(&error),
        }
    };
    let _ = events.send((number, LinkEvent::Lost { reason })).await;
}

async fn send_outgoing(sender: Sender, mut outgoing: mpsc::UnboundedReceiver<Outgoing>) {
    while let Some(next) = outgoing.recv().await {
        let sent = match next {
            Outgoing::Checkpoint(shipment) => send_checkpoint(&sender, shipment).await,
            Outgoing::Commit3(epoch) => {
                let sent = sender.send_new(Kind::Commit3, epoch, Vec::new()).await;
                failpoint::hit(failpoints::AFTER_COMMIT3);
                sent
            }
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "the link to the standby broke while sending");
            return;
        }
    }
}

/// The frames of a checkpoint, COMMIT 1 last.
async fn send_checkpoint(sender: &Sender, shipment: Shipment) -> Result<(), ChannelError> {
    for frame in shipment.frames {
        if frame.kind == Kind::Commit1 {
            failpoint::hit(failpoints::MID_SEND);
        }
        sender.send(frame).await?;
    }
    failpoint::hit(failpoints::AFTER_SEND);
    Ok(())
}
