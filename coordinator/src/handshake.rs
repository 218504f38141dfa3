//! Hello and Welcome: how source and standby make sure that they mean the same VM on the same kind of machine before
//! anything is sent.

use std::time::Duration;

use bytes::Bytes;
use nbd_server::{Epoch, Generation};
use qemu_glue::Fingerprint;
use serde::{Deserialize, Serialize};

use crate::address::{ChannelAddress, Reader, Writer};
use crate::channel_io::{ChannelError, read_frame, write_frame};
use crate::checkpoint_channel::{Frame, Kind, Stamp, VmId};

/// A standby launches its QEMU before it answers; on a loaded host that takes a while.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(60);
/// A source has nothing to do before its Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// What a source says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Name of the VM.
    pub vm: String,
    /// Id of the source: its owner id at the gateway.
    pub source: String,
    /// Size of the guest's RAM in bytes.
    pub ram_bytes: u64,
    /// The machine, which must be the same on both sides.
    pub machine: Fingerprint,
    /// Bytes of pages that both sides remember, so that differences can be sent.
    pub cache_bytes: u64,
}

impl Hello {
    /// How many pages both sides remember: never more than the guest has, whatever the source asks for.
    pub(crate) fn cached_pages(&self) -> usize {
        usize::try_from(self.cache_bytes.min(self.ram_bytes) / 4096).unwrap_or(usize::MAX)
    }
}

/// What a standby answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// Id of the standby: the id it parked with at the gateway.
    pub standby: String,
}

/// Why a standby can't be used, or a source is turned away.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Nobody listens there.
    #[error("no standby answers at {address}; is `epochgate standby` running there?")]
    Connect {
        /// The address.
        address: ChannelAddress,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The standby said no.
    #[error("the standby refused: {0}")]
    Refused(String),
    /// Connected, but no answer in time.
    #[error("the other side did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The answer makes no sense.
    #[error("the other side sent {0}")]
    Unexpected(String),
    /// The connection failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

/// The source's half. Returns the connection and who answered.
pub(crate) async fn greet(
    address: &ChannelAddress,
    stamp: Stamp,
    hello: &Hello,
) -> Result<(Welcome, Reader, Writer), HandshakeError> {
    let connect = address.connect().await;
    let (mut reader, mut writer) = connect.map_err(|source| HandshakeError::Connect {
        address: address.clone(),
        source,
    })?;
    let frame = Frame::new(Kind::Hello, stamp, Epoch(0), encode(hello)?);
    write_frame(&mut writer, &frame)
        .await
        .map_err(ChannelError::Io)?;
    let answer = timely(WELCOME_TIMEOUT, &mut reader).await?;
    match answer.kind {
        Kind::Welcome if answer.stamp.vm == stamp.vm => {
            Ok((decode(&answer.payload)?, reader, writer))
        }
        Kind::Welcome => Err(HandshakeError::Unexpected(
            "an answer for another VM".into(),
        )),
        Kind::Refused => Err(HandshakeError::Refused(
            String::from_utf8_lossy(&answer.payload).into_owned(),
        )),
        other => Err(HandshakeError::Unexpected(format!(
            "{other:?} where Welcome was expected"
        ))),
    }
}

/// The standby's half, first step: reads the Hello.
pub(crate) async fn hear(reader: &mut Reader) -> Result<(Hello, Stamp), HandshakeError> {
    let frame = timely(HELLO_TIMEOUT, reader).await?;
    if frame.kind != Kind::Hello {
        return Err(HandshakeError::Unexpected(format!(
            "{:?} where Hello was expected",
            frame.kind
        )));
    }
    Ok((decode(&frame.payload)?, frame.stamp))
}

/// The standby's half, second step.
pub(crate) async fn welcome(
    writer: &mut Writer,
    stamp: Stamp,
    standby: &str,
) -> Result<(), HandshakeError> {
    let welcome = Welcome {
        standby: standby.to_owned(),
    };
    let frame = Frame::new(Kind::Welcome, stamp, Epoch(0), encode(&welcome)?);
    write_frame(writer, &frame)
        .await
        .map_err(ChannelError::Io)?;
    Ok(())
}

/// Turns a source away. Best effort: it may be gone.
pub(crate) async fn refuse(writer: &mut Writer, vm: &str, reason: &str) {
    let stamp = Stamp {
        vm: VmId::of(vm),
        generation: Generation(0),
    };
    let frame = Frame::new(Kind::Refused, stamp, Epoch(0), reason.to_owned());
    if let Err(error) = write_frame(writer, &frame).await {
        tracing::debug!(%error, "the refusal could not be sent");
    }
}

async fn timely(limit: Duration, reader: &mut Reader) -> Result<Frame, HandshakeError> {
    let frame = tokio::time::timeout(limit, read_frame(reader))
        .await
        .map_err(|_| HandshakeError::Timeout(limit))?;
    Ok(frame?)
}

fn encode<T: Serialize>(value: &T) -> Result<Bytes, HandshakeError> {
    let json = serde_json::to_vec(value).map_err(|e| HandshakeError::Unexpected(e.to_string()))?;
    Ok(json.into())
}

/// A greeting, from the payload of its frame.
///
/// # Errors
/// [`HandshakeError::Unexpected`].
pub fn decode<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, HandshakeError> {
    serde_json::from_slice(payload)
        .map_err(|e| HandshakeError::Unexpected(format!("a greeting that can't be read: {e}")))
}
