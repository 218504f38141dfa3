//! The beginning of `devices.img`: of which instant memory and devices are. Bytes in, values out.
//!
//! ```text
//! ├ magic 8 ┼ length of the text u64 ┼ its xxh3 u64 ┼ the text: JSON ┤ … 64 KiB ┼ device state ┤ … 64 MiB more
//! ```

use nbd_server::{Epoch, Generation};
use qemu_glue::Fingerprint;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"EGMEMPT1";
/// Where the text begins.
const TEXT: usize = 24;
/// Length of the head, in bytes.
pub(super) const HEAD_BYTES: u64 = HEAD as u64;
/// The same for buffers.
pub(super) const HEAD: usize = 64 << 10;
/// Most device state, in bytes: some hundred KB are usual.
pub(super) const DEVICE_BYTES: u64 = 64 << 20;

/// One kept instant of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPoint {
    /// Epoch of the group: disks of this epoch belong to it.
    pub epoch: Epoch,
    /// Generation of the group then.
    pub generation: Generation,
    /// When it was merged at the standby, in milliseconds since 1970.
    pub time_ms: u64,
    /// Size of the guest's memory in bytes.
    pub ram_bytes: u64,
    /// Length of the device state in bytes.
    pub device_bytes: u64,
    /// Name of the pin that keeps the disks of this epoch at the gateway.
    pub pin: String,
}

/// A point with all that is needed to go on from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// The point.
    #[serde(flatten)]
    pub point: MemoryPoint,
    /// xxh3 of the device state.
    pub device_sum: u64,
    /// What a QEMU must be like to continue it.
    pub machine: Fingerprint,
}

impl Head {
    /// The head as it is stored. None: it does not fit, as a command line of some ten thousand characters would not.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let text = serde_json::to_vec(self).ok()?;
        let mut bytes = Vec::with_capacity(HEAD);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&xxh3_64(&text).to_le_bytes());
        bytes.extend_from_slice(&text);
        if bytes.len() > HEAD {
            return None;
        }
        bytes.resize(HEAD, 0);
        Some(bytes)
    }

    /// Reads what [`Head::encode`] wrote. None: that is no head.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        if bytes.get(..8)? != MAGIC {
            return None;
        }
        let len = usize::try_from(word(8)?).ok()?;
        let text = bytes.get(TEXT..TEXT.checked_add(len)?)?;
        if xxh3_64(text) != word(16)? {
            return None;
        }
        let head: Self = serde_json::from_slice(text).ok()?;
        (head.point.device_bytes <= DEVICE_BYTES).then_some(head)
    }
}
