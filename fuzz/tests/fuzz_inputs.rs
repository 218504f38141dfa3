//! The fuzz targets without a fuzzer: on their seeds, on every input that once failed, and on some thousand inputs that are made from them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    missing_docs
)]

use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use fuzz_targets::{
    backup, bounds, checkpoint, configuration, control, device_head, history, log, model,
    negotiation, packing, recording, session, transmission,
};

/// The inputs that are kept for a target.
fn kept(target: &str) -> Vec<(String, Vec<u8>)> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut inputs = Vec::new();
    for folder in ["seeds", "failed"] {
        let Ok(entries) = std::fs::read_dir(fuzz.join(folder).join(target)) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            inputs.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
    assert!(!inputs.is_empty(), "there are no seeds for {target}");
    inputs.sort();
    inputs
}

fn changed(input: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut input = input.to_vec();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=input.len());
        match rng.random_range(0..5) {
            0 => input.truncate(at),
            1 => input.insert(at, rng.random()),
            2 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)],
            3 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
            _ => {
                let piece: Vec<u8> = input[at..].iter().copied().take(40).collect();
                input.extend(piece);
            }
        }
    }
    input
}

fn runs(target: &str, run: fn(&[u8]), more: usize) {
    let inputs = kept(target);
    for (name, input) in &inputs {
        try_one(run, input, name);
    }
    let mut rng = StdRng::seed_from_u64(1);
    for index in 0..more {
        let (name, input) = &inputs[index % inputs.len()];
        try_one(run, &changed(input, &mut rng), name);
    }
}

/// Runs an input and shows it if it fails. With FUZZ_SHOW it is shown before, as too much memory ends the process.
fn try_one(run: fn(&[u8]), input: &[u8], from: &str) {
    let show = || eprintln!("{from}, or made from it: {input:02x?}");
    if std::env::var_os("FUZZ_SHOW").is_some() {
        show();
    }
    let ended = std::panic::catch_unwind(|| bounds::within(run, input));
    if let Err(panic) = ended {
        show();
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn the_handshake_takes_every_kept_input() {
    runs("negotiation", negotiation::run, 20_000);
}

#[test]
fn the_requests_take_every_kept_input() {
    runs("transmission", transmission::run, 20_000);
}

#[test]
fn a_whole_server_takes_every_kept_input() {
    runs("session", session::run, 10_000);
}

#[test]
fn a_server_with_threads_takes_every_kept_input() {
    runs("session", session::run_with_threads, 1_000);
}

#[test]
fn the_control_api_takes_every_kept_input() {
    runs("control", control::run, 20_000);
}

#[test]
fn the_checkpoint_channel_takes_every_kept_input() {
    runs("checkpoint", checkpoint::run, 50_000);
}

#[test]
fn packed_frames_take_every_kept_input() {
    runs("packing", packing::run, 20_000);
}

#[test]
fn recordings_take_every_kept_input() {
    runs("recording", recording::run, 10_000);
}

#[test]
fn models_take_every_kept_input() {
    runs("model", model::run, 10_000);
}

#[test]
fn the_head_of_a_device_stream_takes_every_kept_input() {
    runs("device_head", device_head::run, 50_000);
}

#[test]
fn the_log_takes_every_kept_input() {
    runs("log", log::run_thoroughly, 20_000);
}

#[test]
fn a_log_of_real_files_takes_every_kept_input() {
    runs("log", log::run_with_files, 500);
}

#[test]
fn a_history_takes_every_kept_input() {
    runs("history", history::run, 5_000);
}

#[test]
fn the_configurations_take_every_kept_input() {
    runs("configuration", configuration::run, 5_000);
}

#[test]
fn backups_take_every_kept_input() {
    runs("backup", backup::run, 5_000);
}
