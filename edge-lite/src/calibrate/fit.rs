//! From features to expected agreement: least squares with a small penalty (ridge regression, A. E. Hoerl and R. W.
//! Kennard, 1970), which a few hundred prompts can carry.

use crate::router::thresholds::Predictor;
use crate::router::uncertainty::ProbeSummary;

use super::PROBE_TOKENS;
use super::record::Record;

/// Beside the sum of squares of a standardised feature over all records, which is their number.
const PENALTY: f64 = 1.0;

/// Both predictors.
#[derive(Clone, Debug)]
pub(super) struct Predictors {
    pub(super) request: Predictor,
    pub(super) probe: Predictor,
}

/// The names and values of one record's features.
pub(super) fn request_values(record: &Record) -> Vec<(&'static str, f64)> {
    record.features.values().to_vec()
}

/// The same with the first tokens.
pub(super) fn probe_values(record: &Record) -> Vec<(&'static str, f64)> {
    let first = &record.uncertainties[..record.uncertainties.len().min(PROBE_TOKENS)];
    record.features.values_with(&ProbeSummary::of(first))
}

impl Predictors {
    pub(super) fn fit(records: &[&Record]) -> Self {
        Self {
            request: fit(records, request_values),
            probe: fit(records, probe_values),
        }
    }
}

fn fit(records: &[&Record], values: impl Fn(&Record) -> Vec<(&'static str, f64)>) -> Predictor {
    let rows: Vec<Vec<(&'static str, f64)>> = records.iter().map(|record| values(record)).collect();
    let names: Vec<&'static str> = rows
        .first()
        .into_iter()
        .flatten()
        .map(|(name, _)| *name)
        .collect();
    let count = rows.len().max(1) as f64;
    let mean = |column: usize| rows.iter().map(|row| row[column].1).sum::<f64>() / count;
    // The first is the bias, which carries the mean.
    let columns: Vec<(usize, f64, f64)> = (1..names.len())
        .filter_map(|column| {
            let mean = mean(column);
            let variance = rows
                .iter()
                .map(|row| (row[column].1 - mean).powi(2))
                .sum::<f64>()
                / count;
            // A feature that is always the same says nothing.
            (variance > 1e-12).then(|| (column, mean, variance.sqrt()))
        })
        .collect();
    let target = records.iter().map(|record| record.agreement()).sum::<f64>() / count;
    let standard = |row: &[(&'static str, f64)], (column, mean, deviation): &(usize, f64, f64)| {
        (row[*column].1 - mean) / deviation
    };
    let size = columns.len();
    let (mut matrix, mut right) = (vec![vec![0.0; size]; size], vec![0.0; size]);
    for (row, record) in rows.iter().zip(records) {
        let x: Vec<f64> = columns.iter().map(|column| standard(row, column)).collect();
        for (i, xi) in x.iter().enumerate() {
            right[i] += xi * (record.agreement() - target);
            for (j, xj) in x.iter().enumerate() {
                matrix[i][j] += xi * xj;
            }
        }
    }
    for (index, row) in matrix.iter_mut().enumerate() {
        row[index] += PENALTY;
    }
    let solved = solve(matrix, right);
    let mut bias = target;
    let mut weights = Vec::new();
    for ((column, mean, deviation), weight) in columns.iter().zip(solved) {
        bias -= weight * mean / deviation;
        weights.push((names[*column], weight / deviation));
    }
    weights.push(("bias", bias));
    Predictor::new(weights)
}

/// Gaussian elimination with pivots. The penalty keeps the matrix regular.
fn solve(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let size = right.len();
    for column in 0..size {
        let largest = |a: &usize, b: &usize| {
            matrix[*a][column]
                .abs()
                .total_cmp(&matrix[*b][column].abs())
        };
        let pivot = (column..size).max_by(largest).unwrap_or(column);
        matrix.swap(column, pivot);
        right.swap(column, pivot);
        let (above, below) = matrix.split_at_mut(column + 1);
        let pivot_row = &above[column];
        for (offset, row) in below.iter_mut().enumerate() {
            let factor = row[column] / pivot_row[column];
            for (value, pivot_value) in row.iter_mut().zip(pivot_row) {
                *value -= factor * pivot_value;
            }
            right[column + 1 + offset] -= factor * right[column];
        }
    }
    for row in (0..size).rev() {
        let known: f64 = (row + 1..size).map(|at| matrix[row][at] * right[at]).sum();
        right[row] = (right[row] - known) / matrix[row][row];
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_of_equations_is_solved() {
        let solved = solve(vec![vec![0.0, 2.0], vec![4.0, 1.0]], vec![6.0, 11.0]);
        assert!((solved[0] - 2.0).abs() < 1e-12 && (solved[1] - 3.0).abs() < 1e-12);
    }
}
