//! The bytes of a model.
//!
//! ```text
//! 0      6   "EGMOD\n"
//! 6      2   version of the format, little-endian as all numbers here
//! 8      4   H: length of the header
//! 12     H   header: super::Header as JSON
//! 12+H   4   U: length of the body when it is unpacked
//! 16+H   4   B: length of the body
//! 20+H   B   body: one frame of Zstandard
//! 20+H+B 8   xxh3 (64 bits) of all before
//! ```
//!
//! The body has, with F features: the classifier (logistic: means, deviations and weights, F numbers each, and the intercept; else trees);
//! trees for each kind of fault; novelty: means, deviations, the threshold, how many windows (2 bytes), F numbers for each. Numbers are `f32`.
//! Trees: base, scale, how many (2), and for each how many nodes (2) of 14 bytes: value, threshold, feature (2; 65535: a leaf),
//! left (2), right (2).
//!
//! A file may come from anywhere: nothing is taken that could not be judged with, and no more memory than the bounds below allow.

use xxhash_rust::xxh3::xxh3_64;

use super::error::ModelError;
use super::header::{Header, Method};
use super::trees::{Node, Split, Tree, Trees};
use super::{Classifier, Linear, Model, Novelty};

const MAGIC: &[u8; 6] = b"EGMOD\n";
const VERSION: u16 = 1;
const LEVEL: i32 = 19;
const LEAF: u16 = u16::MAX;

/// Bytes of a file.
pub const MAX_FILE_BYTES: usize = 16 << 20;
/// Bytes of the header.
const MAX_HEADER_BYTES: usize = 256 << 10;
/// Bytes of the body when it is unpacked: so much memory is taken for a file of a few bytes that claims to have them.
const MAX_BODY_BYTES: usize = 16 << 20;
/// Features.
pub(super) const MAX_FEATURES: usize = 4096;
/// Kinds of fault.
pub(super) const MAX_KINDS: usize = 256;
/// Trees of one sum.
const MAX_TREES: usize = 4096;
/// Windows that stand for what was learnt.
const MAX_KNOWN: usize = 4096;
/// Bytes of a name.
pub(super) const MAX_NAME_BYTES: usize = 128;

pub(super) fn encode(model: &Model) -> Result<Vec<u8>, ModelError> {
    let invalid = |e: serde_json::Error| ModelError::Invalid(e.to_string());
    let header = serde_json::to_vec(&model.header).map_err(invalid)?;
    let mut body = Vec::new();
    match &model.classifier {
        Classifier::Linear(linear) => {
            for numbers in [&linear.mean, &linear.scale, &linear.weights] {
                put_all(&mut body, numbers);
            }
            put_all(&mut body, &[linear.intercept]);
        }
        Classifier::Trees(trees) => put_trees(&mut body, trees)?,
    }
    for trees in &model.kinds {
        put_trees(&mut body, trees)?;
    }
    let novelty = &model.novelty;
    put_all(&mut body, &novelty.mean);
    put_all(&mut body, &novelty.scale);
    put_all(&mut body, &[novelty.threshold]);
    put_count(&mut body, novelty.known.len(), MAX_KNOWN, "its windows")?;
    for known in &novelty.known {
        put_all(&mut body, known);
    }
    let limits = [
        (header.len(), MAX_HEADER_BYTES, "bytes of its header"),
        (body.len(), MAX_BODY_BYTES, "bytes of its body"),
    ];
    for (length, limit, what) in limits {
        if length > limit {
            return Err(ModelError::TooLarge { what, limit });
        }
    }
    let packed = zstd::bulk::compress(&body, LEVEL)
        .map_err(|e| ModelError::Invalid(format!("its body can't be packed: {e}")))?;
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&length(&header));
    out.extend_from_slice(&header);
    out.extend_from_slice(&length(&body));
    out.extend_from_slice(&length(&packed));
    out.extend_from_slice(&packed);
    out.extend_from_slice(&xxh3_64(&out).to_le_bytes());
    Ok(out)
}

fn put_all(body: &mut Vec<u8>, numbers: &[f32]) {
    body.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

fn put_count(
    body: &mut Vec<u8>,
    count: usize,
    limit: usize,
    what: &'static str,
) -> Result<(), ModelError> {
    let small = u16::try_from(count).ok().filter(|_| count <= limit);
    let count = small.ok_or(ModelError::TooLarge { what, limit })?;
    body.extend_from_slice(&count.to_le_bytes());
    Ok(())
}

fn put_trees(body: &mut Vec<u8>, trees: &Trees) -> Result<(), ModelError> {
    put_all(body, &[trees.base, trees.scale]);
    put_count(body, trees.trees.len(), MAX_TREES, "its trees")?;
    for tree in &trees.trees {
        let nodes = tree.nodes();
        put_count(body, nodes.len(), usize::from(u16::MAX), "nodes of a tree")?;
        for node in nodes {
            let threshold = node.split.map_or(0.0, |split| split.threshold);
            put_all(body, &[node.value, threshold]);
            let places = node.split.map_or([LEAF, 0, 0], |split| {
                [split.feature, split.left, split.right]
            });
            body.extend(places.iter().flat_map(|place| place.to_le_bytes()));
        }
    }
    Ok(())
}

pub(super) fn decode(bytes: &[u8]) -> Result<Model, ModelError> {
    if bytes.len() > MAX_FILE_BYTES {
        let (what, limit) = ("bytes of the file", MAX_FILE_BYTES);
        return Err(ModelError::TooLarge { what, limit });
    }
    let mut rest = Bytes(bytes);
    if !rest.take(MAGIC.len()).is_ok_and(|magic| magic == MAGIC) {
        return Err(ModelError::NotAModel);
    }
    let version = rest.count()?;
    if version != usize::from(VERSION) {
        let found = u32::try_from(version).unwrap_or(u32::MAX);
        let (what, known) = ("format", VERSION.into());
        return Err(ModelError::Version { what, found, known });
    }
    let length = rest.length(MAX_HEADER_BYTES, "bytes of its header")?;
    let header = rest.take(length)?;
    let unpacked = rest.length(MAX_BODY_BYTES, "bytes of its body")?;
    let length = rest.length(MAX_FILE_BYTES, "bytes of its body")?;
    let body = rest.take(length)?;
    let covered = bytes.len() - rest.0.len();
    let checksum = u64::from_le_bytes(rest.array()?);
    if checksum != xxh3_64(bytes.get(..covered).unwrap_or_default()) {
        return Err(ModelError::Checksum);
    }
    if !rest.0.is_empty() {
        return Err(invalid("there is something behind its end"));
    }
    let header = read_header(header)?;
    // Not one byte more is unpacked than it says.
    let body = zstd::bulk::decompress(body, unpacked)
        .map_err(|e| ModelError::Invalid(format!("its body: {e}")))?;
    read_body(header, &body)
}

fn read_header(bytes: &[u8]) -> Result<Header, ModelError> {
    let unreadable = |e: serde_json::Error| ModelError::Invalid(format!("its header: {e}"));
    // The versions first: a header of another one may look different.
    #[derive(serde::Deserialize)]
    struct Versions {
        features_version: u32,
        signals_version: u32,
    }
    let versions: Versions = serde_json::from_slice(bytes).map_err(unreadable)?;
    let pairs = [
        (
            "features",
            versions.features_version,
            crate::features::FEATURES_VERSION,
        ),
        (
            "signals",
            versions.signals_version,
            crate::signals::SIGNALS_VERSION,
        ),
    ];
    for (what, found, known) in pairs {
        if found != known {
            return Err(ModelError::Version { what, found, known });
        }
    }
    let header: Header = serde_json::from_slice(bytes).map_err(unreadable)?;
    header.check()?;
    Ok(header)
}

fn read_body(header: Header, body: &[u8]) -> Result<Model, ModelError> {
    let mut rest = Bytes(body);
    let features = header.features.len();
    let classifier = match header.method {
        Method::Logistic => Classifier::Linear(Linear {
            mean: rest.numbers(features)?,
            scale: rest.numbers(features)?,
            weights: rest.numbers(features)?,
            intercept: rest.number()?,
        }),
        Method::Forest | Method::Boosted => Classifier::Trees(rest.trees()?),
    };
    let kinds = (0..header.kinds.len())
        .map(|_| rest.trees())
        .collect::<Result<_, _>>()?;
    let (mean, scale) = (rest.numbers(features)?, rest.numbers(features)?);
    let threshold = rest.number()?;
    let count = rest.bounded(MAX_KNOWN, "its windows")?;
    let known = (0..count)
        .map(|_| rest.numbers(features))
        .collect::<Result<_, _>>()?;
    if !rest.0.is_empty() {
        return Err(invalid("its body is longer than it should be"));
    }
    let novelty = Novelty {
        mean,
        scale,
        known,
        threshold,
    };
    Model::new(header, classifier, kinds, novelty)
}

fn invalid(what: &str) -> ModelError {
    ModelError::Invalid(what.to_owned())
}

/// What has not been read yet.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ModelError> {
        let (taken, after) = self.0.split_at_checked(count).ok_or(ModelError::CutOff)?;
        self.0 = after;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ModelError> {
        self.take(N)?.try_into().map_err(|_| ModelError::CutOff)
    }

    fn count(&mut self) -> Result<usize, ModelError> {
        Ok(u16::from_le_bytes(self.array()?).into())
    }

    fn bounded(&mut self, limit: usize, what: &'static str) -> Result<usize, ModelError> {
        let count = self.count()?;
        if count > limit {
            return Err(ModelError::TooLarge { what, limit });
        }
        Ok(count)
    }

    fn length(&mut self, limit: usize, what: &'static str) -> Result<usize, ModelError> {
        let length = u32::from_le_bytes(self.array()?);
        usize::try_from(length)
            .ok()
            .filter(|length| *length <= limit)
            .ok_or(ModelError::TooLarge { what, limit })
    }

    fn number(&mut self) -> Result<f32, ModelError> {
        Ok(f32::from_le_bytes(self.array()?))
    }

    /// As many as are there take no more memory than they do.
    fn numbers(&mut self, count: usize) -> Result<Vec<f32>, ModelError> {
        let bytes = self.take(count * 4)?;
        let (numbers, _) = bytes.as_chunks::<4>();
        Ok(numbers
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect())
    }

    fn trees(&mut self) -> Result<Trees, ModelError> {
        let (base, scale) = (self.number()?, self.number()?);
        let count = self.bounded(MAX_TREES, "its trees")?;
        let trees = (0..count).map(|_| self.tree()).collect::<Result<_, _>>()?;
        Ok(Trees { base, scale, trees })
    }

    fn tree(&mut self) -> Result<Tree, ModelError> {
        let count = self.count()?;
        let mut nodes = Vec::new();
        for _ in 0..count {
            let (value, threshold) = (self.number()?, self.number()?);
            let (feature, left, right) = (
                u16::from_le_bytes(self.array()?),
                u16::from_le_bytes(self.array()?),
                u16::from_le_bytes(self.array()?),
            );
            let split = (feature != LEAF).then_some(Split {
                feature,
                threshold,
                left,
                right,
            });
            nodes.push(Node { value, split });
        }
        Tree::new(nodes).ok_or_else(|| invalid("one of its trees is none"))
    }
}
