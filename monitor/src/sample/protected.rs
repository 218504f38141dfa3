//! What the process that protects a VM says of it: the status that `epochgate status` shows. Only the fields that matter here are known;
//! docs/monitor.md names them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use qemu_glue::DirtySummary;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use super::Values;
use super::growth::{Growth, per};
use crate::signals::Signal;

/// A status is shorter, in bytes.
const LIMIT: u64 = 64 << 10;

/// The status, as far as it matters.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Status {
    state: String,
    pub(crate) qemu_pid: Option<u32>,
    #[serde(default)]
    pub(crate) watch_socket: Option<PathBuf>,
    #[serde(default)]
    pub(crate) activity: Option<Activity>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Activity {
    t_us: u64,
    pub(crate) dirty: DirtySummary,
    output: Option<OutputCounts>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct OutputCounts {
    packets: u64,
    bytes: u64,
    held_bytes: u64,
}

impl Status {
    /// Asks at a status socket.
    pub(crate) async fn ask(socket: &Path, limit: Duration) -> Option<Self> {
        let ask = async {
            let stream = UnixStream::connect(socket).await.ok()?;
            let mut text = Vec::new();
            stream.take(LIMIT).read_to_end(&mut text).await.ok()?;
            serde_json::from_slice(&text).ok()
        };
        tokio::time::timeout(limit, ask).await.ok().flatten()
    }

    /// Whether checkpoints are taken.
    pub(crate) fn takes_checkpoints(&self) -> bool {
        matches!(self.state.as_str(), "protected" | "filling")
    }
}

/// The output gate as one second after the other shows it. Rates are those of the seconds in which they were counted, so they last until the
/// next one.
#[derive(Debug, Default)]
pub(crate) struct Output {
    t_us: u64,
    counters: Growth<2>,
    rates: Option<(f32, f32)>,
}

impl Output {
    pub(crate) fn sample(&mut self, activity: Option<&Activity>, values: &mut Values) {
        let Some((t_us, output)) =
            activity.and_then(|activity| Some((activity.t_us, activity.output?)))
        else {
            *self = Self::default();
            return;
        };
        if t_us != self.t_us {
            let seconds = t_us.saturating_sub(self.t_us) as f64 / 1e6;
            self.t_us = t_us;
            let grown = self.counters.step([output.packets, output.bytes]);
            self.rates = grown
                .filter(|_| seconds > 0.0)
                .map(|[packets, bytes]| (per(packets, seconds), per(bytes, seconds)));
        }
        values.set(Signal::GatePackets, self.rates.map(|(packets, _)| packets));
        values.set(Signal::GateBytes, self.rates.map(|(_, bytes)| bytes));
        values.set(Signal::GateHeld, output.held_bytes as f32);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn activity(t_us: u64, packets: u64) -> Activity {
        let text = format!(
            r#"{{"t_us":{t_us},"dirty":{{"number":1,"window_ms":1000,"pages":1,"ram_pages":2,"regions":1,"ram_regions":1,"runs":1,
               "repeated":null,"entropy":0.0}},"output":{{"packets":{packets},"bytes":{},"held_bytes":7,"dropped":0}}}}"#,
            packets * 100
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn rates_are_of_the_time_between_two_counts_and_last_until_the_next() {
        let mut output = Output::default();
        let mut sample = |activity: Option<Activity>| {
            let mut values = Values::MISSING;
            output.sample(activity.as_ref(), &mut values);
            (
                values.get(Signal::GatePackets),
                values.get(Signal::GateBytes),
                values.get(Signal::GateHeld),
            )
        };
        assert_eq!(
            sample(Some(activity(1_000_000, 50))),
            (None, None, Some(7.0))
        );
        let second = (Some(5.0), Some(500.0), Some(7.0));
        assert_eq!(sample(Some(activity(3_000_000, 60))), second);
        assert_eq!(sample(Some(activity(3_000_000, 60))), second);
        assert_eq!(sample(None), (None, None, None));
        assert_eq!(sample(Some(activity(4_000_000, 70))).0, None);
    }
}
