//! Compression of a frame's body. Bounded in what it makes of a few bytes.

use serde::Deserialize;

use super::Unpackable;

/// How what goes over the checkpoint channel is compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Not at all; differences are sent all the same.
    None,
    /// LZ4: a few hundred MB/s and more of one core.
    #[default]
    Lz4,
    /// Zstandard at level 1: smaller, at several times the CPU time.
    Zstd,
}

/// Numbers on the wire.
const NONE: u32 = 0;
const LZ4: u32 = 1;
const ZSTD: u32 = 2;

/// Most bytes that LZ4 makes of one: a byte of a match's length says as much.
const LZ4_MOST: usize = 255;

/// Fast enough for what is sent many times a second.
const ZSTD_LEVEL: i32 = 1;

/// Appends `body`, compressed if that makes it smaller, to `out`. Returns how it was.
pub(super) fn compress(compression: Compression, body: &[u8], out: &mut Vec<u8>) -> u32 {
    let start = out.len();
    let done = match compression {
        Compression::None => None,
        Compression::Lz4 => {
            out.resize(
                start + lz4_flex::block::get_maximum_output_size(body.len()),
                0,
            );
            let size = lz4_flex::block::compress_into(body, &mut out[start..]);
            size.ok().map(|size| (LZ4, size))
        }
        Compression::Zstd => {
            out.resize(start + zstd::zstd_safe::compress_bound(body.len()), 0);
            let size = zstd::bulk::compress_to_buffer(body, &mut out[start..], ZSTD_LEVEL);
            size.ok().map(|size| (ZSTD, size))
        }
    };
    match done {
        Some((codec, size)) if size < body.len() => {
            out.truncate(start + size);
            codec
        }
        _ => {
            out.truncate(start);
            out.extend_from_slice(body);
            NONE
        }
    }
}

/// Undoes it. The body has exactly `length` bytes, which the caller has bounded; a claim alone costs next to nothing.
pub(super) fn decompress(codec: u32, bytes: &[u8], length: usize) -> Result<Vec<u8>, Unpackable> {
    let body = match codec {
        NONE => Some(bytes.to_vec()),
        LZ4 if length > bytes.len().saturating_mul(LZ4_MOST) => None,
        LZ4 => {
            let mut body = vec![0; length];
            let size = lz4_flex::block::decompress_into(bytes, &mut body);
            size.is_ok_and(|size| size == length).then_some(body)
        }
        // What it makes room for is not cleared.
        ZSTD => zstd::bulk::decompress(bytes, length).ok(),
        other => return Err(Unpackable::Codec(other)),
    };
    let exact = body.filter(|body| body.len() == length);
    exact.ok_or(Unpackable::Damaged)
}
