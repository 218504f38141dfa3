//! Trees of questions, and sums of them: what random forests and gradient boosting come down to once they are trained.

/// A node of a tree. A question goes left for values that are not above its threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Node {
    /// What its rows were worth on average in training: the answer, if it is a leaf.
    pub value: f32,
    /// The question.
    pub split: Option<Split>,
}

/// A question.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Split {
    /// Which feature, in the order of the model.
    pub feature: u16,
    /// A finite number.
    pub threshold: f32,
    /// Index of a later node, for values that are not above the threshold.
    pub left: u16,
    /// The same for the others.
    pub right: u16,
}

/// One tree. Its first node is the root; questions lead to later nodes only, so every walk ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Tree(Vec<Node>);

impl Tree {
    /// The tree of these nodes; None if they are not one.
    pub fn new(nodes: Vec<Node>) -> Option<Self> {
        let is_good = |(at, node): (usize, &Node)| {
            node.value.is_finite()
                && node.split.is_none_or(|split| {
                    let leads_on = |to: u16| usize::from(to) > at && usize::from(to) < nodes.len();
                    split.threshold.is_finite() && leads_on(split.left) && leads_on(split.right)
                })
        };
        let good = !nodes.is_empty()
            && nodes.len() <= usize::from(u16::MAX)
            && nodes.iter().enumerate().all(is_good);
        good.then_some(Self(nodes))
    }

    /// Its nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.0
    }

    /// From the root to a leaf: each node, with the feature that led to it.
    fn walk<'a>(&'a self, x: &'a [f32]) -> impl Iterator<Item = (Option<u16>, f32)> + 'a {
        let mut next = Some((None, 0_u16));
        std::iter::from_fn(move || {
            let (by, at) = next?;
            let node = self.0.get(usize::from(at))?;
            next = node.split.map(|split| {
                let value = x.get(usize::from(split.feature)).copied();
                let left = value.is_some_and(|value| value <= split.threshold);
                let to = if left { split.left } else { split.right };
                (Some(split.feature), to)
            });
            Some((by, node.value))
        })
    }
}

/// `base + scale · (sum of the trees' answers)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Trees {
    /// Of no tree.
    pub base: f32,
    /// Of each tree: 1 / (how many there are) for a mean.
    pub scale: f32,
    /// The trees.
    pub trees: Vec<Tree>,
}

impl Trees {
    /// Whether its questions are about so many features, and its numbers are numbers.
    pub(super) fn fits(&self, features: usize) -> bool {
        let of_them = |node: &Node| {
            node.split
                .is_none_or(|split| usize::from(split.feature) < features)
        };
        self.base.is_finite()
            && self.scale.is_finite()
            && self.trees.iter().all(|tree| tree.0.iter().all(of_them))
    }

    /// The sum for a row.
    pub fn sum(&self, x: &[f32]) -> f32 {
        let of_trees = self.trees.iter();
        let answers = of_trees.map(|tree| tree.walk(x).last().map_or(0.0, |(_, value)| value));
        let sum = self.base + self.scale * answers.sum::<f32>();
        // Sums of huge answers of a hostile file may be no number.
        if sum.is_nan() { self.base } else { sum }
    }

    /// What each feature adds to it: at each question, by how much the answer changes with the way that is taken.
    pub(super) fn contributions(&self, x: &[f32]) -> Vec<f32> {
        let mut of = vec![0.0; x.len()];
        for tree in &self.trees {
            let mut before = None;
            for (by, value) in tree.walk(x) {
                if let (Some(feature), Some(before)) = (by, before)
                    && let Some(slot) = of.get_mut(usize::from(feature))
                {
                    *slot += self.scale * (value - before);
                }
                before = Some(value);
            }
        }
        of
    }

    /// How much it asks each of so many features: a question at the root counts 1, one below it a half, and so on.
    pub(super) fn weights(&self, features: usize) -> Vec<f32> {
        let mut of = vec![0.0; features];
        for tree in &self.trees {
            let mut reach = vec![0.0_f32; tree.0.len()];
            if let Some(root) = reach.first_mut() {
                *root = 1.0;
            }
            for (at, node) in tree.0.iter().enumerate() {
                let Some(split) = node.split else { continue };
                let here = reach[at];
                if let Some(slot) = of.get_mut(usize::from(split.feature)) {
                    *slot += here;
                }
                for to in [split.left, split.right] {
                    if let Some(slot) = reach.get_mut(usize::from(to)) {
                        *slot = (*slot).max(here / 2.0);
                    }
                }
            }
        }
        of
    }
}
