//! Bodies of the control API and configurations: whatever is parsed comes back the same after it is written and parsed again, and a
//! configuration is checked without a panic.
//!
//! Input: a byte that chooses the type, then JSON.

use nbd_server::GatewayConfig;
use nbd_server::control::api;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Runs one input.
pub fn run(data: &[u8]) {
    let Some((&kind, json)) = data.split_first() else {
        return;
    };
    match kind {
        b'a' => comes_back::<api::AttachRequest>(json),
        b'p' => comes_back::<api::ParkRequest>(json),
        b'g' => comes_back::<api::GenerationRequest>(json),
        b'y' => comes_back::<api::SyncRequest>(json),
        b'l' => comes_back::<api::SealRequest>(json),
        b'c' => comes_back::<api::CommitRequest>(json),
        b't' => comes_back::<api::TakeoverRequest>(json),
        b'e' => comes_back::<api::Event>(json),
        b's' => comes_back::<api::GatewayStatus>(json),
        b'x' => comes_back::<api::ErrorBody>(json),
        b'G' => {
            comes_back::<GatewayConfig>(json);
            if let Ok(config) = serde_json::from_slice::<GatewayConfig>(json) {
                // Whether it is good or not.
                let _ = config.check();
            }
        }
        _ => {}
    }
}

fn comes_back<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(json: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(json) else {
        return;
    };
    let written = serde_json::to_vec(&value).expect("what was read can be written");
    let again: T = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(value, again);
}
