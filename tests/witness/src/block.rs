//! The format of one block on a disk, and of one page of the memory table. Knows nothing of what ought to be there.
//!
//! ```text
//!  0        8        16       20       24        32       40         48                      4096
//!  ├ magic ─┼ run id ┼ disk ──┼ block ─┼ version ┼ stamp ─┼ checksum ┼ body: 506 words ──────┤
//! ```
//! All numbers are little-endian. The checksum (xxh3) covers the 40 bytes before it and seeds the generator of the
//! body, so each 512-byte sector depends on every field of the header: a block mixed from two writes never decodes.

use xxhash_rust::xxh3::xxh3_64;

/// Bytes in a block.
pub const BLOCK_SIZE: usize = 4096;

const MAGIC: u64 = u64::from_le_bytes(*b"WITNESS1");
const CHECKSUM_AT: usize = 40;
const BODY_AT: usize = 48;

/// Where a block belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index of the disk, from 0; [`Place::MEMORY`] for a page of the memory table.
    pub disk: u32,
    /// Index of the block on its disk.
    pub block: u32,
}

impl Place {
    /// The disk number of pages in memory.
    pub const MEMORY: u32 = u32::MAX;
}

/// All that one write puts into a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    /// The run of the witness that wrote it.
    pub run: u64,
    /// Where it was written to.
    pub place: Place,
    /// Counts the writes of this block, from 1.
    pub version: u64,
    /// The guest's monotonic clock at the write, in nanoseconds. It tells two writes of the same version apart:
    /// one that a failover undid, and the one that the guest made in its stead.
    pub stamp: u64,
}

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    /// Nothing but zeros.
    Zeros,
    /// One whole write.
    Image(Image),
    /// Parts of a write. The version is the header's, when the header is whole.
    Torn(Option<u64>),
    /// Something that no witness wrote.
    Unknown,
}

/// Knuth's MMIX generator: one multiplication and one addition a word, and nothing that needs vector instructions,
/// which are slow under emulation.
fn next_word(word: u64) -> u64 {
    word.wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407)
}

/// Fills `block` with `image`.
///
/// # Panics
/// If `block` is shorter than [`BLOCK_SIZE`].
pub fn encode(block: &mut [u8], image: &Image) {
    assert!(block.len() == BLOCK_SIZE, "a block has {BLOCK_SIZE} bytes");
    block[0..8].copy_from_slice(&MAGIC.to_le_bytes());
    block[8..16].copy_from_slice(&image.run.to_le_bytes());
    block[16..20].copy_from_slice(&image.place.disk.to_le_bytes());
    block[20..24].copy_from_slice(&image.place.block.to_le_bytes());
    block[24..32].copy_from_slice(&image.version.to_le_bytes());
    block[32..40].copy_from_slice(&image.stamp.to_le_bytes());
    let checksum = xxh3_64(&block[..CHECKSUM_AT]);
    block[CHECKSUM_AT..BODY_AT].copy_from_slice(&checksum.to_le_bytes());
    let mut word = checksum;
    for slot in block[BODY_AT..].chunks_exact_mut(8) {
        word = next_word(word);
        slot.copy_from_slice(&word.to_le_bytes());
    }
}

/// Says what `block` holds.
///
/// # Panics
/// If `block` is shorter than [`BLOCK_SIZE`].
pub fn decode(block: &[u8]) -> Observed {
    assert!(block.len() == BLOCK_SIZE, "a block has {BLOCK_SIZE} bytes");
    let magic = word_at(block, 0);
    if magic == 0 && is_zero(block) {
        return Observed::Zeros;
    }
    let checksum = word_at(block, CHECKSUM_AT);
    if magic != MAGIC || checksum != xxh3_64(&block[..CHECKSUM_AT]) {
        // The start of the block may be one write's, or discarded, and the rest another's.
        return if magic == MAGIC || has_body_in_sequence(block) {
            Observed::Torn(None)
        } else {
            Observed::Unknown
        };
    }
    let version = word_at(block, 24);
    let mut word = checksum;
    for slot in block[BODY_AT..].chunks_exact(8) {
        word = next_word(word);
        if word_at(slot, 0) != word {
            return Observed::Torn(Some(version));
        }
    }
    Observed::Image(Image {
        run: word_at(block, 8),
        place: Place {
            disk: half_word_at(block, 16),
            block: half_word_at(block, 20),
        },
        version,
        stamp: word_at(block, 32),
    })
}

/// Whether the last two words follow each other as in the body of some write.
fn has_body_in_sequence(block: &[u8]) -> bool {
    next_word(word_at(block, BLOCK_SIZE - 16)) == word_at(block, BLOCK_SIZE - 8)
}

fn is_zero(block: &[u8]) -> bool {
    block.chunks_exact(8).all(|slot| word_at(slot, 0) == 0)
}

fn word_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn half_word_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: Image = Image {
        run: 7,
        place: Place { disk: 1, block: 17 },
        version: 5,
        stamp: 99,
    };

    fn encoded(image: &Image) -> Vec<u8> {
        let mut block = vec![0xee; BLOCK_SIZE];
        encode(&mut block, image);
        block
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        assert_eq!(decode(&encoded(&IMAGE)), Observed::Image(IMAGE));
        assert_eq!(decode(&[0; BLOCK_SIZE]), Observed::Zeros);
        assert_eq!(decode(&[0xa5; BLOCK_SIZE]), Observed::Unknown);
    }

    #[test]
    fn any_mix_of_two_writes_at_a_sector_is_torn() {
        let old = encoded(&IMAGE);
        let new = encoded(&Image {
            version: 6,
            ..IMAGE
        });
        let twin = encoded(&Image {
            stamp: 100,
            ..IMAGE
        });
        let zeros = vec![0; BLOCK_SIZE];
        for other in [&new, &twin, &zeros] {
            for sector in 1..BLOCK_SIZE / 512 {
                let at = sector * 512;
                let head_of_other = [&other[..at], &old[at..]].concat();
                let head_of_old = [&old[..at], &other[at..]].concat();
                assert!(
                    matches!(decode(&head_of_other), Observed::Torn(_)),
                    "sector {sector}"
                );
                assert!(
                    matches!(decode(&head_of_old), Observed::Torn(Some(5))),
                    "sector {sector}"
                );
            }
        }
    }

    #[test]
    fn no_flipped_bit_goes_unseen() {
        let good = encoded(&IMAGE);
        for byte in 0..BLOCK_SIZE {
            let mut bad = good.clone();
            bad[byte] ^= 0x10;
            assert!(matches!(decode(&bad), Observed::Torn(_)), "byte {byte}");
        }
    }
}
