//! The streams of tests/streams, for unit tests.
#![allow(clippy::unwrap_used)]

/// QEMU 7.2, machine `pc`.
pub(super) fn pc_7_2() -> Vec<u8> {
    expand(include_bytes!("../../tests/streams/pc-7.2.rle"))
}

/// QEMU 10.0, machine `pc`.
pub(super) fn pc_10_0() -> Vec<u8> {
    expand(include_bytes!("../../tests/streams/pc-10.0.rle"))
}

/// QEMU 10.0, machine `q35` with a virtio network card, which has a ROM.
pub(super) fn q35_net_10_0() -> Vec<u8> {
    expand(include_bytes!("../../tests/streams/q35-net-10.0.rle"))
}

/// QEMU 7.2 with its firmware in flash.
pub(super) fn pflash_7_2() -> Vec<u8> {
    expand(include_bytes!("../../tests/streams/pflash-7.2.rle"))
}

/// QEMU 7.2 with VGA memory.
pub(super) fn vga_7_2() -> Vec<u8> {
    expand(include_bytes!("../../tests/streams/vga-7.2.rle"))
}

fn expand(mut packed: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    while let Some((lengths, rest)) = packed.split_first_chunk::<8>() {
        let length = |half: &[u8]| u32::from_be_bytes(half.try_into().unwrap()) as usize;
        let (literal, rest) = rest.split_at(length(&lengths[..4]));
        stream.extend_from_slice(literal);
        stream.resize(stream.len() + length(&lengths[4..]), 0);
        packed = rest;
    }
    stream
}
