//! Frames over a socket: one task writes, the reader hands out frames that are checked. Knows the frames of
//! [`checkpoint_channel`](crate::checkpoint_channel) and nothing of what they mean.

use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use crate::address::{Reader, Writer};
use crate::checkpoint_channel::{Frame, FrameError, HEADER_BYTES, Header, Kind, Stamp};
use crate::packing::{Packer, Unpackable, Unpacker};
use nbd_server::Epoch;

/// Frames that wait for the socket before a sender has to wait: at 4 MiB each this bounds the memory of a slow link,
/// and it is enough to keep a fast one busy.
const QUEUE_FRAMES: usize = 16;

/// Why no further frame comes.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The peer closed the connection, or it broke.
    #[error("the checkpoint channel was closed by the other side")]
    Closed,
    /// The socket failed.
    #[error("the checkpoint channel broke")]
    Io(#[source] io::Error),
    /// Nothing came for longer than the suspicion time.
    #[error("nothing came over the checkpoint channel for {} ms", .0.as_millis())]
    Silent(Duration),
    /// What came is not a good frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// What came can't be restored.
    #[error(transparent)]
    Packed(#[from] Unpackable),
}

/// Reads one frame, checked. Payload memory is allocated only after the header's checksum and bounds are good.
pub async fn read_frame(reader: &mut Reader) -> Result<Frame, ChannelError> {
    let mut raw = [0; HEADER_BYTES];
    reader.read_exact(&mut raw).await.map_err(ended)?;
    let header = Header::decode(&raw)?;
    let mut payload = BytesMut::zeroed(header.payload_len());
    reader.read_exact(&mut payload).await.map_err(ended)?;
    Ok(header.with_payload(payload.freeze())?)
}

/// As [`read_frame`], but the peer is suspected when nothing comes for `suspicion`.
///
/// Bytes count, not frames: a large checkpoint on a slow link is no silence. A frame that makes no progress is.
pub(crate) async fn read_frame_within(
    reader: &mut Reader,
    suspicion: Duration,
) -> Result<Frame, ChannelError> {
    let mut raw = [0; HEADER_BYTES];
    read_all_within(reader, &mut raw, suspicion).await?;
    let header = Header::decode(&raw)?;
    let mut payload = BytesMut::zeroed(header.payload_len());
    read_all_within(reader, &mut payload, suspicion).await?;
    Ok(header.with_payload(payload.freeze())?)
}

/// Payloads below this are packed where they are written.
const PACK_IN_PLACE: usize = 64 << 10;
/// Frames that were read and not taken yet.
const READ_AHEAD_FRAMES: usize = 4;

/// A connection that is read by a task of its own. A frame is never lost half-way because whoever waits for it turned to
/// something else, as it would be if reading itself were cancelled.
#[derive(Debug)]
pub(crate) struct Incoming {
    frames: mpsc::Receiver<Result<Frame, ChannelError>>,
    _task: JoinSet<()>,
}

impl Incoming {
    /// Starts reading, and restores what was packed; the peer is suspected when nothing comes for `suspicion`.
    pub(crate) fn start(mut reader: Reader, suspicion: Duration, mut unpacker: Unpacker) -> Self {
        let (queue, frames) = mpsc::channel(READ_AHEAD_FRAMES);
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                let frame = read_frame_within(&mut reader, suspicion).await;
                let frame = frame.and_then(|frame| Ok(unpacker.unpack(frame)?));
                let last = frame.is_err();
                if queue.send(frame).await.is_err() || last {
                    return;
                }
            }
        });
        Self {
            frames,
            _task: task,
        }
    }

    /// The next frame, or why there is none. May be cancelled.
    pub(crate) async fn next(&mut self) -> Result<Frame, ChannelError> {
        self.frames
            .recv()
            .await
            .unwrap_or(Err(ChannelError::Closed))
    }
}

async fn read_all_within(
    reader: &mut Reader,
    mut buffer: &mut [u8],
    suspicion: Duration,
) -> Result<(), ChannelError> {
    while !buffer.is_empty() {
        let read = tokio::time::timeout(suspicion, reader.read(buffer))
            .await
            .map_err(|_| ChannelError::Silent(suspicion))?;
        match read.map_err(ended)? {
            0 => return Err(ChannelError::Closed),
            n => buffer = &mut buffer[n..],
        }
    }
    Ok(())
}

fn ended(error: io::Error) -> ChannelError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => ChannelError::Closed,
        _ => ChannelError::Io(error),
    }
}

/// A checkpoint that has been packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packed {
    pub epoch: Epoch,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// What packing them took.
    pub took: Duration,
}

/// How a source makes its frames small, and whom it tells.
pub(crate) struct Packing {
    packer: Packer,
    sum: Packed,
    tell: Box<dyn Fn(Packed) + Send>,
}

impl Packing {
    /// `tell` is called for each checkpoint, on its way out; it must not block.
    pub(crate) fn new(packer: Packer, tell: impl Fn(Packed) + Send + 'static) -> Self {
        let sum = Packed {
            epoch: Epoch(0),
            wire_bytes: 0,
            took: Duration::ZERO,
        };
        Self {
            packer,
            sum,
            tell: Box::new(tell),
        }
    }

    fn note(&mut self, frame: &Frame, took: Duration) {
        if frame.epoch != self.sum.epoch {
            self.sum = Packed {
                epoch: frame.epoch,
                wire_bytes: 0,
                took: Duration::ZERO,
            };
        }
        self.sum.wire_bytes += frame.wire_len();
        self.sum.took += took;
        if frame.kind == Kind::Commit1 {
            (self.tell)(self.sum);
        }
    }
}

/// Where frames are handed in for sending. Dropping all of them closes the connection after the last frame.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    queue: mpsc::Sender<Frame>,
    stamp: Stamp,
}

impl Sender {
    /// Starts the task that writes to the socket and sends a heartbeat whenever `heartbeat` passes without a frame.
    /// The task ends when the socket fails or all senders are gone and what they queued is sent.
    pub(crate) fn start(
        writer: Writer,
        stamp: Stamp,
        heartbeat: Duration,
        packing: Option<Packing>,
    ) -> (Self, JoinHandle<()>) {
        let (queue, frames) = mpsc::channel(QUEUE_FRAMES);
        let task = tokio::spawn(write_frames(writer, frames, stamp, heartbeat, packing));
        (Self { queue, stamp }, task)
    }

    /// Queues a frame; waits while the link is busy.
    pub(crate) async fn send(&self, frame: Frame) -> Result<(), ChannelError> {
        self.queue
            .send(frame)
            .await
            .map_err(|_| ChannelError::Closed)
    }

    /// Queues a frame made from its parts.
    pub(crate) async fn send_new(
        &self,
        kind: Kind,
        epoch: Epoch,
        payload: impl Into<bytes::Bytes>,
    ) -> Result<(), ChannelError> {
        self.send(Frame::new(kind, self.stamp, epoch, payload))
            .await
    }
}

async fn write_frames(
    mut writer: Writer,
    mut frames: mpsc::Receiver<Frame>,
    stamp: Stamp,
    heartbeat: Duration,
    mut packing: Option<Packing>,
) {
    loop {
        let frame = match tokio::time::timeout(heartbeat, frames.recv()).await {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(_) => Frame::new(Kind::Heartbeat, stamp, Epoch(0), Vec::new()),
        };
        let frame = match packing.take() {
            None => frame,
            Some(mut with) => {
                let began = Instant::now();
                // A large frame takes some milliseconds, in which nothing else would happen on this thread.
                let packed = if frame.payload.len() < PACK_IN_PLACE {
                    Ok((with.packer.pack(frame), with))
                } else {
                    let pack = move || (with.packer.pack(frame), with);
                    tokio::task::spawn_blocking(pack).await
                };
                let Ok((frame, with)) = packed else {
                    tracing::error!("checkpoint channel: packing a frame failed");
                    return;
                };
                packing.insert(with).note(&frame, began.elapsed());
                frame
            }
        };
        if let Err(error) = write_frame(&mut writer, &frame).await {
            tracing::debug!(%error, "checkpoint channel: write failed");
            return;
        }
    }
    let _ = writer.shutdown().await;
}

/// Header and payload in one system call where the socket takes them.
pub(crate) async fn write_frame(writer: &mut Writer, frame: &Frame) -> io::Result<()> {
    let header = frame.header();
    let mut sent = 0;
    let total = HEADER_BYTES + frame.payload.len();
    while sent < total {
        let n = if sent < HEADER_BYTES {
            let parts = [IoSlice::new(&header[sent..]), IoSlice::new(&frame.payload)];
            writer.write_vectored(&parts).await?
        } else {
            writer.write(&frame.payload[sent - HEADER_BYTES..]).await?
        };
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        sent += n;
    }
    writer.flush().await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::checkpoint_channel::VmId;
    use nbd_server::Generation;

    fn stamp() -> Stamp {
        Stamp {
            vm: VmId::of("vm1"),
            generation: Generation(1),
        }
    }

    fn pair() -> (Reader, Writer) {
        let (a, b) = tokio::io::duplex(1 << 16);
        (Box::pin(a), Box::pin(b))
    }

    #[tokio::test]
    async fn frames_arrive_in_order_and_heartbeats_fill_the_silence() {
        let (mut reader, writer) = pair();
        let (sender, _task) = Sender::start(writer, stamp(), Duration::from_millis(5), None);
        let payload = vec![7u8; 1 << 20];
        sender
            .send_new(Kind::Pages, Epoch(3), payload.clone())
            .await
            .unwrap();
        let first = read_frame(&mut reader).await.unwrap();
        assert_eq!((first.kind, first.epoch), (Kind::Pages, Epoch(3)));
        assert_eq!(first.payload, payload);
        assert_eq!(read_frame(&mut reader).await.unwrap().kind, Kind::Heartbeat);
    }

    #[tokio::test]
    async fn a_truncated_frame_is_a_closed_channel() {
        let (mut reader, mut writer) = pair();
        let frame = Frame::new(Kind::Pages, stamp(), Epoch(3), vec![1u8; 100]);
        writer.write_all(&frame.header()).await.unwrap();
        writer.write_all(&frame.payload[..50]).await.unwrap();
        drop(writer);
        assert!(matches!(
            read_frame(&mut reader).await,
            Err(ChannelError::Closed)
        ));
    }

    /// A standby waits for frames and for other things at once; whatever else happens, no byte of a frame may be lost.
    #[tokio::test]
    async fn a_wait_that_is_given_up_half_way_loses_nothing() {
        let (reader, mut writer) = pair();
        let mut incoming = Incoming::start(reader, Duration::from_secs(60), Unpacker::new(0));
        let frame = Frame::new(Kind::Pages, stamp(), Epoch(3), vec![1u8; 100]);
        let mut wire = frame.header().to_vec();
        wire.extend_from_slice(&frame.payload);
        for byte in wire {
            writer.write_all(&[byte]).await.unwrap();
            // Given up at once, but only after it was polled.
            let next = tokio::time::timeout(Duration::from_micros(1), incoming.next()).await;
            if let Ok(got) = next {
                assert_eq!(got.unwrap(), frame);
                return;
            }
        }
        assert_eq!(incoming.next().await.unwrap(), frame);
    }

    #[tokio::test]
    async fn silence_is_suspected() {
        let (mut reader, _writer) = pair();
        let read = read_frame_within(&mut reader, Duration::from_millis(10)).await;
        assert!(matches!(read, Err(ChannelError::Silent(_))));
    }
}
