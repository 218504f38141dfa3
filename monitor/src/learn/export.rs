//! Takes the trees out of what smartcore has learnt. Its types keep them to themselves but for serde, so they are read as serde shows them;
//! a test of `fit` holds that they answer as the library does, and an update that changes their form makes it fail.

use serde::{Deserialize, Serialize};

use super::LearnError;
use crate::model::{Node, Split, Tree, Trees};

#[derive(Deserialize)]
struct Forest {
    forest_regressor: Grown,
}

#[derive(Deserialize)]
struct Grown {
    trees: Vec<Listed>,
}

/// Nodes that name each other by their places.
#[derive(Deserialize)]
struct Listed {
    nodes: Vec<ListedNode>,
}

#[derive(Deserialize)]
struct ListedNode {
    output: f64,
    split_feature: usize,
    split_value: Option<f64>,
    true_child: Option<usize>,
    false_child: Option<usize>,
}

#[derive(Deserialize)]
struct Boosted {
    regressors: Vec<Nested>,
}

/// A node with those below it.
#[derive(Deserialize)]
struct Nested {
    left: Option<Box<Nested>>,
    right: Option<Box<Nested>>,
    value: f64,
    threshold: f64,
    split_feature_idx: usize,
}

fn shown<T: for<'de> Deserialize<'de>>(fitted: &impl Serialize) -> Result<T, LearnError> {
    let form = |e: serde_json::Error| LearnError::Library(format!("its trees: {e}"));
    serde_json::from_value(serde_json::to_value(fitted).map_err(form)?).map_err(form)
}

#[allow(clippy::cast_possible_truncation, reason = "answers need no more")]
fn short(x: f64) -> f32 {
    x as f32
}

/// The largest `f32` that is not above it: then no `f32` goes another way than it did.
fn below(threshold: f64) -> f32 {
    let near = short(threshold);
    if f64::from(near) > threshold {
        near.next_down()
    } else {
        near
    }
}

/// Collects nodes so that each comes before those below it.
#[derive(Default)]
struct Builder(Vec<Node>);

impl Builder {
    fn add(&mut self, value: f64) -> usize {
        self.0.push(Node {
            value: short(value),
            split: None,
        });
        self.0.len() - 1
    }

    fn ask(
        &mut self,
        at: usize,
        feature: usize,
        threshold: f64,
        below_it: [usize; 2],
    ) -> Result<(), LearnError> {
        let place = |x: usize| {
            u16::try_from(x).map_err(|_| LearnError::Library("a tree is too large".to_owned()))
        };
        let split = Split {
            feature: place(feature)?,
            threshold: below(threshold),
            left: place(below_it[0])?,
            right: place(below_it[1])?,
        };
        if let Some(node) = self.0.get_mut(at) {
            node.split = Some(split);
        }
        Ok(())
    }

    fn listed(
        &mut self,
        nodes: &[ListedNode],
        at: usize,
        depth: usize,
    ) -> Result<usize, LearnError> {
        let node = nodes
            .get(at)
            .filter(|_| depth < 500)
            .ok_or_else(|| LearnError::Library("a tree leads nowhere".to_owned()))?;
        let here = self.add(node.output);
        if let (Some(threshold), Some(yes), Some(no)) =
            (node.split_value, node.true_child, node.false_child)
        {
            let left = self.listed(nodes, yes, depth + 1)?;
            let right = self.listed(nodes, no, depth + 1)?;
            self.ask(here, node.split_feature, threshold, [left, right])?;
        }
        Ok(here)
    }

    fn nested(&mut self, node: &Nested) -> Result<usize, LearnError> {
        let here = self.add(node.value);
        if let (Some(left), Some(right)) = (&node.left, &node.right) {
            let below_it = [self.nested(left)?, self.nested(right)?];
            self.ask(here, node.split_feature_idx, node.threshold, below_it)?;
        }
        Ok(here)
    }

    fn done(self) -> Result<Tree, LearnError> {
        Tree::new(self.0).ok_or_else(|| LearnError::Library("a tree is none".to_owned()))
    }
}

/// A forest: the mean of its trees.
pub(super) fn forest(fitted: &impl Serialize) -> Result<Trees, LearnError> {
    let forest: Forest = shown(fitted)?;
    let trees: Vec<Tree> = forest
        .forest_regressor
        .trees
        .iter()
        .map(|tree| {
            let mut builder = Builder::default();
            builder.listed(&tree.nodes, 0, 0)?;
            builder.done()
        })
        .collect::<Result<_, _>>()?;
    #[allow(clippy::cast_precision_loss, reason = "some hundred trees")]
    let scale = 1.0 / trees.len().max(1) as f32;
    Ok(Trees {
        base: 0.0,
        scale,
        trees,
    })
}

/// Boosted trees: a sum.
pub(super) fn boosted(fitted: &impl Serialize, base: f64, rate: f64) -> Result<Trees, LearnError> {
    let boosted: Boosted = shown(fitted)?;
    let trees = boosted.regressors.iter().map(|tree| {
        let mut builder = Builder::default();
        builder.nested(tree)?;
        builder.done()
    });
    Ok(Trees {
        base: short(base),
        scale: short(rate),
        trees: trees.collect::<Result<_, _>>()?,
    })
}
