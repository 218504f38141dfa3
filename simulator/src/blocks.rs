//! What guests write: units of two sectors that say in every byte who wrote them, and where. Knows nothing of disks or epochs.

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// Bytes that a guest writes at least.
pub const UNIT: usize = 2 * SECTOR;
/// Disks of the group.
pub const DISKS: usize = 2;
/// Units of a disk.
pub const UNITS: usize = 96;
/// Places for units.
pub const PLACES: usize = DISKS * UNITS;
/// Marks a stamp that clears its unit.
pub const CLEARED: u64 = 1 << 63;

/// Which write put a unit there; 0 for none.
pub type Stamp = u64;

/// Fills a unit.
pub fn fill(stamp: Stamp, place: usize, unit: &mut [u8]) {
    if shown(stamp) == 0 {
        unit.fill(0);
        return;
    }
    for (half, sector) in unit.chunks_exact_mut(SECTOR).enumerate() {
        for (number, word) in (0..).zip(sector.chunks_exact_mut(8)) {
            word.copy_from_slice(&word_of(stamp, place * 2 + half, number).to_le_bytes());
        }
    }
}

/// The stamp of each sector of a unit; none for bytes that nobody has written like that.
pub fn stamps(place: usize, unit: &[u8]) -> [Option<Stamp>; 2] {
    let mut stamps = [None; 2];
    for (half, sector) in unit.chunks_exact(SECTOR).enumerate() {
        let mut words = sector.chunks_exact(8).map(|word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            u64::from_le_bytes(bytes)
        });
        let stamp = words.next().unwrap_or_default();
        let good = (1..).zip(words).all(|(number, word)| {
            word == if stamp == 0 {
                0
            } else {
                word_of(stamp, place * 2 + half, number)
            }
        });
        stamps[half] = good.then_some(stamp);
    }
    stamps
}

/// What a reader sees of a stamp.
pub fn shown(stamp: Stamp) -> Stamp {
    if stamp & CLEARED != 0 { 0 } else { stamp }
}

/// Whether a unit holds exactly `stamp`.
pub fn holds(stamp: Stamp, place: usize, unit: &[u8]) -> bool {
    stamps(place, unit) == [Some(shown(stamp)); 2]
}

fn word_of(stamp: Stamp, sector: usize, number: u64) -> u64 {
    if number == 0 {
        return stamp;
    }
    let mixed = stamp.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (sector as u64) << 20;
    mixed.rotate_left(17) ^ number
}

/// Where a place is: its disk and its offset there.
pub fn position(place: usize) -> (usize, u64) {
    (place / UNITS, (place % UNITS * UNIT) as u64)
}
