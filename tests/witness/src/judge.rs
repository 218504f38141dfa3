//! The judge: compares what a block holds with what memory believes. Pure; it neither reads nor reports.

use std::fmt;

use crate::block::{Observed, Place};
use crate::memory::{Belief, Content};

/// How a block differs from what memory says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The disk lacks a write that returned before the memory image was taken. Zeros where data must be count as older.
    Older,
    /// The disk has a write that this memory has not made yet.
    Newer,
    /// The block is mixed from several writes.
    Torn,
    /// The block is another run's, another block's, or a write of this version that a failover should have undone.
    Foreign,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Older => "older",
            Self::Newer => "newer",
            Self::Torn => "torn",
            Self::Foreign => "foreign",
        })
    }
}

/// A block that is not what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mismatch {
    /// Which block.
    pub place: Place,
    /// What memory says.
    pub memory_version: u64,
    /// What the block says; 0 for zeros and for blocks without a readable version.
    pub disk_version: u64,
    /// How they differ.
    pub kind: Kind,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            place,
            memory_version,
            disk_version,
            kind,
        } = self;
        let Place { disk, block } = place;
        write!(
            f,
            "disk={disk} block={block} memory_version={memory_version} disk_version={disk_version} kind={kind}"
        )
    }
}

/// Judges one block, and returns the legal content that was found in it.
///
/// # Errors
/// [`Mismatch`] if the block holds nothing that memory allows.
pub fn judge(
    run: u64,
    place: Place,
    belief: &Belief,
    observed: Observed,
) -> Result<Content, Mismatch> {
    let memory_version = belief.settled().version();
    let mismatch = |kind, disk_version| {
        Err(Mismatch {
            place,
            memory_version,
            disk_version,
            kind,
        })
    };
    match observed {
        Observed::Zeros => match belief
            .legal()
            .find(|content| matches!(content, Content::Zeros { .. }))
        {
            Some(content) => Ok(content),
            None => mismatch(Kind::Older, 0),
        },
        Observed::Torn(version) => mismatch(Kind::Torn, version.unwrap_or(0)),
        Observed::Unknown => mismatch(Kind::Foreign, 0),
        Observed::Image(image) => {
            let written = Content::Written {
                version: image.version,
                stamp: image.stamp,
            };
            if image.run != run || image.place != place {
                mismatch(Kind::Foreign, image.version)
            } else if belief.legal().any(|content| content == written) {
                Ok(written)
            } else {
                let kind = match image.version.cmp(&memory_version) {
                    std::cmp::Ordering::Less => Kind::Older,
                    std::cmp::Ordering::Equal => Kind::Foreign,
                    std::cmp::Ordering::Greater => Kind::Newer,
                };
                mismatch(kind, image.version)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Image;

    const RUN: u64 = 7;
    const PLACE: Place = Place { disk: 0, block: 17 };

    fn belief(version: u64) -> Belief {
        let mut belief = Belief::fresh();
        let content = Content::Written {
            version,
            stamp: version * 10,
        };
        belief.begin(content);
        belief.settle(content);
        belief
    }

    fn image(version: u64) -> Observed {
        Observed::Image(Image {
            run: RUN,
            place: PLACE,
            version,
            stamp: version * 10,
        })
    }

    fn kind(belief: &Belief, observed: Observed) -> Option<Kind> {
        judge(RUN, PLACE, belief, observed)
            .err()
            .map(|mismatch| mismatch.kind)
    }

    #[test]
    fn exactly_the_version_in_memory_is_good() {
        assert_eq!(kind(&belief(5), image(5)), None);
        assert_eq!(kind(&belief(5), image(4)), Some(Kind::Older));
        assert_eq!(kind(&belief(5), image(6)), Some(Kind::Newer));
        assert_eq!(kind(&belief(5), Observed::Zeros), Some(Kind::Older));
        assert_eq!(kind(&Belief::fresh(), Observed::Zeros), None);
        assert_eq!(kind(&Belief::fresh(), image(1)), Some(Kind::Newer));
    }

    #[test]
    fn what_is_not_ours_is_foreign() {
        let good = Image {
            run: RUN,
            place: PLACE,
            version: 5,
            stamp: 50,
        };
        let belief = belief(5);
        assert_eq!(kind(&belief, Observed::Image(good)), None);
        let undone_twin = Image { stamp: 51, ..good };
        let other_run = Image {
            run: RUN + 1,
            ..good
        };
        let other_block = Image {
            place: Place { block: 18, ..PLACE },
            ..good
        };
        let other_disk = Image {
            place: Place { disk: 1, ..PLACE },
            ..good
        };
        for image in [undone_twin, other_run, other_block, other_disk] {
            assert_eq!(
                kind(&belief, Observed::Image(image)),
                Some(Kind::Foreign),
                "{image:?}"
            );
        }
        assert_eq!(kind(&belief, Observed::Unknown), Some(Kind::Foreign));
        assert_eq!(kind(&belief, Observed::Torn(Some(5))), Some(Kind::Torn));
    }

    #[test]
    fn a_discard_leaves_old_and_zeros_legal_until_a_read_decides() {
        let mut belief = belief(5);
        belief.begin(Content::Zeros { version: 6 });
        assert_eq!(kind(&belief, image(5)), None);
        let found = judge(RUN, PLACE, &belief, Observed::Zeros);
        assert_eq!(found, Ok(Content::Zeros { version: 6 }));
        belief.settle(Content::Zeros { version: 6 });
        assert_eq!(kind(&belief, image(5)), Some(Kind::Older));
    }

    #[test]
    fn the_line_has_the_agreed_form() {
        let mismatch =
            judge(RUN, PLACE, &belief(5), image(4)).map_err(|mismatch| mismatch.to_string());
        assert_eq!(
            mismatch,
            Err("disk=0 block=17 memory_version=5 disk_version=4 kind=older".to_owned())
        );
    }
}
