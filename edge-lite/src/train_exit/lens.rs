//! Where training begins: the affine map that comes nearest, by least squares, from the hidden states behind the split
//! layer to those before the model's last layers.
//!
//! Rows are weighted by the inverse of their length, because a few positions have hidden states a hundred times as long
//! as the others'.

use candle_core::{D, Device, Result, Tensor};

use super::own_text::{AT_EXIT_LAYERS, AT_SPLIT, Text};

/// What is added to the diagonal, in parts of its mean.
const RIDGE: f64 = 1e-4;
/// The first positions of a text are unlike the others and many of them are the same.
const SKIPPED_POSITIONS: usize = 4;

/// Weight `[hidden_size, hidden_size]` and bias `[hidden_size]` of the map.
pub(super) fn fit(texts: &[Text], hidden_size: usize) -> Result<(Vec<f32>, Vec<f32>)> {
    let size = hidden_size + 1;
    // Of the inputs with a 1 behind them: sums of their products with themselves and with the targets.
    let mut own = vec![0.0_f64; size * size];
    let mut crossed = vec![0.0_f64; size * hidden_size];
    for text in texts {
        let states = |place: usize| {
            let skipped = SKIPPED_POSITIONS * hidden_size;
            let values = text.hidden_states[place].get(skipped..).unwrap_or_default();
            let values: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
            let rows = values.len() / hidden_size;
            Tensor::from_vec(values, (rows, hidden_size), &Device::Cpu)
        };
        let (x, y) = (states(AT_SPLIT)?, states(AT_EXIT_LAYERS)?);
        let rows = x.dim(0)?;
        if rows == 0 {
            continue;
        }
        let ones = Tensor::ones((rows, 1), x.dtype(), &Device::Cpu)?;
        let x = Tensor::cat(&[x, ones], 1)?;
        let length = (y.sqr()?.sum_keepdim(D::Minus1)?.sqrt()? + 1e-6)?;
        let (x, y) = (x.broadcast_div(&length)?, y.broadcast_div(&length)?);
        let transposed = x.t()?.contiguous()?;
        add(&mut own, &transposed.matmul(&x)?)?;
        add(&mut crossed, &transposed.matmul(&y)?)?;
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "the width of the residual stream"
    )]
    let mean = own.iter().step_by(size + 1).sum::<f64>() / size as f64;
    own.iter_mut()
        .step_by(size + 1)
        .for_each(|value| *value += RIDGE * mean + f64::MIN_POSITIVE);
    let solution = solve(own, crossed, size);
    // `[size, hidden_size]` is the map's transpose with the bias as its last row.
    let mut weight = vec![0.0; hidden_size * hidden_size];
    for (output, row) in weight.chunks_exact_mut(hidden_size).enumerate() {
        for (input, value) in row.iter_mut().enumerate() {
            *value = single(solution[input * hidden_size + output]);
        }
    }
    let bias = solution[hidden_size * hidden_size..].iter();
    Ok((weight, bias.map(|value| single(*value)).collect()))
}

fn add(sums: &mut [f64], products: &Tensor) -> Result<()> {
    let products = products.flatten_all()?.to_vec1::<f32>()?;
    for (sum, product) in sums.iter_mut().zip(products) {
        *sum += f64::from(product);
    }
    Ok(())
}

#[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
const fn single(value: f64) -> f32 {
    value as f32
}

/// Solves `A X = B` by Cholesky's decomposition. `a`: `[size, size]`, symmetric and positive definite; `b`:
/// `[size, columns]`. Returns `[size, columns]`.
fn solve(mut a: Vec<f64>, mut b: Vec<f64>, size: usize) -> Vec<f64> {
    let columns = b.len() / size;
    // A = L Lᵀ, L in the lower triangle of `a`.
    for column in 0..size {
        for row in column..size {
            let (row_start, column_start) = (row * size, column * size);
            let dot: f64 = a[row_start..row_start + column]
                .iter()
                .zip(&a[column_start..column_start + column])
                .map(|(x, y)| x * y)
                .sum();
            let value = a[row_start + column] - dot;
            a[row_start + column] = match row == column {
                true => value.max(f64::MIN_POSITIVE).sqrt(),
                false => value / a[column_start + column],
            };
        }
    }
    // L Y = B from the top, then Lᵀ X = Y from the bottom; a row of B at a time.
    let eliminate = |b: &mut [f64], from: usize, to: usize, factor: f64| {
        for column in 0..columns {
            b[to * columns + column] -= factor * b[from * columns + column];
        }
    };
    for row in 0..size {
        for before in 0..row {
            eliminate(&mut b, before, row, a[row * size + before]);
        }
        let pivot = a[row * size + row];
        b[row * columns..][..columns]
            .iter_mut()
            .for_each(|value| *value /= pivot);
    }
    for row in (0..size).rev() {
        for behind in row + 1..size {
            eliminate(&mut b, behind, row, a[behind * size + row]);
        }
        let pivot = a[row * size + row];
        b[row * columns..][..columns]
            .iter_mut()
            .for_each(|value| *value /= pivot);
    }
    b
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn a_system_is_solved() {
        // A = [[4, 2, 0], [2, 5, 1], [0, 1, 3]], X = [[1, 2], [3, 4], [5, 6]].
        let a = vec![4.0, 2.0, 0.0, 2.0, 5.0, 1.0, 0.0, 1.0, 3.0];
        let b = vec![10.0, 16.0, 22.0, 30.0, 18.0, 22.0];
        let x = solve(a, b, 3);
        for (found, expected) in x.iter().zip([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) {
            assert!((found - expected).abs() < 1e-12, "{x:?}");
        }
    }

    #[test]
    fn an_affine_map_is_found_again() {
        // y = [2 x₀ + 1, x₁ - x₀]
        let rows: Vec<[f32; 2]> = (0..64_u8)
            .map(|i| [f32::from(i * 37 % 64), f32::from(i * 11 % 64)])
            .collect();
        let values = |of: fn(&[f32; 2]) -> [f32; 2]| {
            let values = rows.iter().flat_map(of);
            values.map(bf16::from_f32).collect::<Vec<_>>()
        };
        let (input, target) = (values(|x| *x), values(|x| [2.0 * x[0] + 1.0, x[1] - x[0]]));
        let text = Text {
            token_ids: vec![0; rows.len()],
            hidden_states: [input, target, Vec::new()],
        };
        let (weight, bias) = fit(&[text], 2).unwrap();
        for (found, expected) in weight.iter().zip([2.0, 0.0, -1.0, 1.0]) {
            assert!((found - expected).abs() < 0.05, "{weight:?} {bias:?}");
        }
        assert!(
            (bias[0] - 1.0).abs() < 0.5 && bias[1].abs() < 0.5,
            "{bias:?}"
        );
    }
}
