//! smartcore learns: rows of numbers and labels in, plain trees and weights out.

use smartcore::ensemble::random_forest_regressor::{
    RandomForestRegressor, RandomForestRegressorParameters,
};
use smartcore::linalg::basic::arrays::Array;
use smartcore::linalg::basic::matrix::DenseMatrix;
use smartcore::linear::logistic_regression::{LogisticRegression, LogisticRegressionParameters};
use smartcore::xgboost::{XGRegressor, XGRegressorParameters};

use super::LearnError;
use super::export;
use crate::model::{Classifier, Linear, Method, Trees};

/// What smartcore's boosting costs grows with the rows times their logarithm for each feature and node, so it sees fewer.
const BOOSTED_ROWS: usize = 3000;
const BOOSTED_TREES: usize = 60;
const BOOSTED_RATE: f64 = 0.15;

fn library(error: impl std::fmt::Display) -> LearnError {
    LearnError::Library(error.to_string())
}

/// Rows must be of one length, as many as labels, with both labels among them.
pub(super) fn fit(
    method: Method,
    rows: &[Vec<f32>],
    labels: &[bool],
    seed: u64,
) -> Result<Classifier, LearnError> {
    Ok(match method {
        Method::Logistic => Classifier::Linear(logistic(rows, labels)?),
        Method::Forest => Classifier::Trees(forest(rows, labels, 80, seed)?),
        Method::Boosted => Classifier::Trees(boosted(rows, labels, seed)?),
    })
}

fn matrix(rows: &[Vec<f32>]) -> Result<DenseMatrix<f32>, LearnError> {
    let width = rows.first().map_or(0, Vec::len);
    // By columns, as all of them are read by column.
    let by_columns = (0..width).flat_map(|column| rows.iter().map(move |row| row[column]));
    DenseMatrix::new(rows.len(), width, by_columns.collect(), true).map_err(library)
}

fn numbers(labels: &[bool]) -> Vec<f32> {
    labels
        .iter()
        .map(|faulty| f32::from(u8::from(*faulty)))
        .collect()
}

/// Mean and standard deviation of each column; 1 where that would be 0.
#[allow(clippy::cast_precision_loss, reason = "some thousand rows")]
pub(super) fn scales(rows: &[Vec<f32>]) -> (Vec<f32>, Vec<f32>) {
    let width = rows.first().map_or(0, Vec::len);
    let count = rows.len().max(1) as f32;
    let mean: Vec<f32> = (0..width)
        .map(|at| rows.iter().map(|row| row[at]).sum::<f32>() / count)
        .collect();
    let scale = (0..width).map(|at| {
        let squares = rows.iter().map(|row| (row[at] - mean[at]).powi(2));
        let scale = (squares.sum::<f32>() / count).sqrt();
        if scale > 1e-6 { scale } else { 1.0 }
    });
    let scale = scale.collect();
    (mean, scale)
}

fn logistic(rows: &[Vec<f32>], labels: &[bool]) -> Result<Linear, LearnError> {
    let (mean, scale) = scales(rows);
    let width = mean.len();
    let standard = |at: usize, x: f32| f64::from(crate::model::standard(x, mean[at], scale[at]));
    let values = (0..width).flat_map(|at| rows.iter().map(move |row| standard(at, row[at])));
    let x = DenseMatrix::new(rows.len(), width, values.collect(), true).map_err(library)?;
    let y: Vec<i32> = labels.iter().map(|faulty| i32::from(*faulty)).collect();
    // The sum over rows is not divided by their number: this is a weak pull to 0, for features that say the same.
    #[allow(clippy::cast_precision_loss, reason = "some thousand rows")]
    let pull = rows.len() as f64 * 0.005;
    let parameters = LogisticRegressionParameters::default().with_alpha(pull);
    let fitted = LogisticRegression::fit(&x, &y, parameters).map_err(library)?;
    #[allow(clippy::cast_possible_truncation, reason = "weights need no more")]
    let weights = (0..width)
        .map(|at| *fitted.coefficients().get((0, at)) as f32)
        .collect();
    #[allow(clippy::cast_possible_truncation, reason = "the same")]
    let intercept = *fitted.intercept().get((0, 0)) as f32;
    Ok(Linear {
        mean,
        scale,
        weights,
        intercept,
    })
}

/// The mean of trees that were each grown on other rows and asked other features. For labels 0 and 1 the squared error of a regression is
/// Gini's measure, so this is the forest of the books, and answers with a share instead of a vote.
pub(super) fn forest(
    rows: &[Vec<f32>],
    labels: &[bool],
    trees: usize,
    seed: u64,
) -> Result<Trees, LearnError> {
    let (x, y) = (matrix(rows)?, numbers(labels));
    let width = rows.first().map_or(1, Vec::len);
    let parameters = RandomForestRegressorParameters::default()
        .with_n_trees(trees)
        .with_m(width.isqrt().max(1))
        .with_min_samples_leaf(5)
        .with_max_depth(14)
        .with_seed(seed);
    let fitted = RandomForestRegressor::fit(&x, &y, parameters).map_err(library)?;
    export::forest(&fitted)
}

fn boosted(rows: &[Vec<f32>], labels: &[bool], seed: u64) -> Result<Trees, LearnError> {
    let kept = thinned(labels, BOOSTED_ROWS);
    let rows: Vec<Vec<f32>> = kept.iter().map(|at| rows[*at].clone()).collect();
    let labels: Vec<bool> = kept.iter().map(|at| labels[*at]).collect();
    let (x, y) = (matrix(&rows)?, numbers(&labels));
    let parameters = XGRegressorParameters::default()
        .with_n_estimators(BOOSTED_TREES)
        .with_max_depth(4)
        .with_learning_rate(BOOSTED_RATE)
        .with_min_child_weight(5)
        .with_subsample(0.7)
        .with_seed(seed);
    let base = parameters.base_score;
    let fitted = XGRegressor::fit(&x, &y, parameters).map_err(library)?;
    export::boosted(&fitted, base, BOOSTED_RATE)
}

/// Places of at most so many labels, of each kind the same part: whatever their order is, one kind must not be left out.
fn thinned(labels: &[bool], most: usize) -> Vec<usize> {
    let every = labels.len().div_ceil(most).max(1);
    let of = |kind: bool| {
        let all = (0..labels.len()).filter(move |at| labels[*at] == kind);
        all.step_by(every)
    };
    let mut kept: Vec<usize> = of(false).chain(of(true)).collect();
    kept.sort_unstable();
    kept
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
mod tests {
    use super::super::draw::random;
    use super::*;

    fn data(count: u64) -> (Vec<Vec<f32>>, Vec<bool>) {
        let row = |at: u64| (0..6).map(|c| random(c, at) as f32).collect::<Vec<f32>>();
        let rows: Vec<Vec<f32>> = (0..count).map(row).collect();
        let labels = rows.iter().map(|r| r[0] + r[1] > 1.0).collect();
        (rows, labels)
    }

    #[test]
    fn each_method_learns_a_plain_rule_and_keeps_it_in_its_export() {
        let (rows, labels) = data(600);
        for method in Method::ALL {
            let learnt = fit(method, &rows, &labels, 1).unwrap();
            assert_eq!(learnt, fit(method, &rows, &labels, 1).unwrap());
            let (fresh, truth) = data(900);
            let scored: Vec<(f32, bool)> = fresh[600..]
                .iter()
                .map(|row| learnt.score(row))
                .zip(truth[600..].iter().copied())
                .collect();
            let auc = super::super::metrics::auc(&scored).unwrap();
            assert!(auc > 0.95, "{method:?}: {auc}");
            let weights = learnt.weights(6);
            assert!(weights[0] > 2.0 * weights[3], "{method:?}: {weights:?}");
        }
    }

    /// Training gives one normal window and one faulty one in turn: every second row would be of one kind.
    #[test]
    fn what_is_left_out_is_of_both_kinds() {
        for order in [
            |at: usize| at.is_multiple_of(2),
            |at: usize| at < 3000,
            |at: usize| at.is_multiple_of(3),
        ] {
            let labels: Vec<bool> = (0..6000).map(order).collect();
            let all = labels.iter().filter(|label| **label).count();
            let kept = thinned(&labels, 3000);
            let faulty = kept.iter().filter(|at| labels[**at]).count();
            assert_eq!((faulty, kept.len()), (all / 2, 3000));
        }
    }

    #[test]
    fn what_is_exported_answers_as_the_library_does() {
        let (rows, labels) = data(300);
        let (x, y) = (matrix(&rows).unwrap(), numbers(&labels));
        let parameters = RandomForestRegressorParameters::default().with_n_trees(7);
        let fitted = RandomForestRegressor::fit(&x, &y, parameters).unwrap();
        let ours = export::forest(&fitted).unwrap();
        for (row, theirs) in rows.iter().zip(fitted.predict(&x).unwrap()) {
            assert!((ours.sum(row) - theirs).abs() < 1e-5);
        }
        let parameters = XGRegressorParameters::default().with_n_estimators(9);
        let (base, rate) = (parameters.base_score, parameters.learning_rate);
        let fitted = XGRegressor::fit(&x, &y, parameters).unwrap();
        let ours = export::boosted(&fitted, base, rate).unwrap();
        for (row, theirs) in rows.iter().zip(fitted.predict(&x).unwrap()) {
            assert!((ours.sum(row) - theirs).abs() < 1e-4);
        }
    }
}
