//! The few columns of a row that are far larger than the rest, and that one scale should not have to cover.

use super::reader::Reader;
use crate::error::CodecError;

/// Bytes of one listed outlier: u16 column, f32 value.
pub(super) const OUTLIER_BYTES: usize = 6;

/// How many times the mean magnitude of the others a value must exceed.
const MEAN_MULTIPLE: f64 = 8.0;

/// How often the mean is taken at most; bounds the work on one row.
const ROUNDS: usize = 4;

/// Columns looked at together.
const CHUNK: usize = 64;

/// The most outliers of one row.
pub(super) fn max_count(columns: usize) -> usize {
    (columns / 64).max(1)
}

/// A row's outliers, by column. Keeps its memory from row to row.
#[derive(Default)]
pub(super) struct Outliers {
    by_column: Vec<(u16, f32)>,
}

impl Outliers {
    /// Chooses the outliers of one row of finite values, whose magnitudes sum to `magnitude_sum`.
    pub(super) fn choose(&mut self, row: &[f32], magnitude_sum: f64) -> &[(u16, f32)] {
        self.by_column.clear();
        let Some(threshold) = inliers(row, magnitude_sum).threshold else {
            return &self.by_column;
        };
        for (chunk, start) in row.chunks(CHUNK).zip((0..=u16::MAX).step_by(CHUNK)) {
            // Most chunks have none: one vector pass finds that out.
            if chunk
                .iter()
                .fold(false, |any, value| any | (value.abs() > threshold))
            {
                let columns = (start..=u16::MAX).zip(chunk.iter().copied());
                self.by_column
                    .extend(columns.filter(|(_, value)| value.abs() > threshold));
            }
        }
        let max_count = max_count(row.len());
        if self.by_column.len() > max_count {
            // A total order, so that the choice is the same however the selection proceeds.
            self.by_column
                .sort_unstable_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(&b.0)));
            self.by_column.truncate(max_count);
            self.by_column.sort_unstable_by_key(|(column, _)| *column);
        }
        &self.by_column
    }

    /// Reads the list of row `row` and checks it: columns rise, values are finite.
    pub(super) fn read(
        &mut self,
        reader: &mut Reader<'_>,
        row: usize,
        columns: usize,
    ) -> Result<&[(u16, f32)], CodecError> {
        let count = usize::from(u16::from_le_bytes(reader.take_array(row)?));
        let max = max_count(columns);
        if count > max {
            return Err(CodecError::OutlierCount {
                row,
                max,
                got: count,
            });
        }
        self.by_column.clear();
        let mut column_min = 0;
        for _ in 0..count {
            let column = u16::from_le_bytes(reader.take_array(row)?);
            let value = f32::from_le_bytes(reader.take_array(row)?);
            let got = usize::from(column);
            if !(column_min..columns).contains(&got) {
                return Err(CodecError::OutlierColumn {
                    row,
                    min: column_min,
                    columns,
                    got,
                });
            }
            if !value.is_finite() {
                return Err(CodecError::NotFinite {
                    row,
                    column: got,
                    got: value,
                });
            }
            column_min = got + 1;
            self.by_column.push((column, value));
        }
        Ok(&self.by_column)
    }
}

/// The mean magnitude of a row's values without those that are outliers. `magnitude_sum` is that of all.
pub(super) fn typical_magnitude(row: &[f32], magnitude_sum: f64) -> f64 {
    let Inliers { sum, count, .. } = inliers(row, magnitude_sum);
    sum / count as f64
}

/// The values of a row that are no outliers.
struct Inliers {
    /// The magnitude above which a value is an outlier; `None` where no value is.
    threshold: Option<f32>,
    /// Of the magnitudes.
    sum: f64,
    /// Not 0: no mean is below all values.
    count: usize,
}

/// Massive values lift the mean and hide lesser ones, so the mean is taken again without them.
fn inliers(row: &[f32], magnitude_sum: f64) -> Inliers {
    let (mut sum, mut count) = (magnitude_sum, row.len());
    let mut threshold = None;
    for _ in 0..ROUNDS {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "rounds; infinity where no f32 is above"
        )]
        let next = (MEAN_MULTIPLE * sum / count as f64) as f32;
        let (sum_below, count_below) = sum_at_most(row, next);
        if count_below == count {
            break;
        }
        threshold = Some(next);
        (sum, count) = (sum_below, count_below);
        if row.len() - count >= max_count(row.len()) {
            break;
        }
    }
    Inliers {
        threshold,
        sum,
        count,
    }
}

/// Sum and number of the magnitudes that are at most `threshold`.
fn sum_at_most(row: &[f32], threshold: f32) -> (f64, usize) {
    // Eight independent sums: vector code, in an order that is the same on every machine.
    let mut sums = [0.0_f64; 8];
    let mut counts = [0_u32; 8];
    let (chunks, rest) = row.as_chunks::<8>();
    for chunk in chunks {
        for lane in 0..8 {
            let magnitude = chunk[lane].abs();
            let is_below = magnitude <= threshold;
            sums[lane] += f64::from(if is_below { magnitude } else { 0.0 });
            counts[lane] += u32::from(is_below);
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        let is_below = value.abs() <= threshold;
        sums[lane] += f64::from(if is_below { value.abs() } else { 0.0 });
        counts[lane] += u32::from(is_below);
    }
    (sums.iter().sum(), counts.iter().sum::<u32>() as usize)
}

/// Writes the list: count, then column and value of each.
pub(super) fn write(outliers: &[(u16, f32)], data: &mut Vec<u8>) {
    let count = u16::try_from(outliers.len()).expect("one outlier for 64 of at most 65535 columns");
    data.extend(count.to_le_bytes());
    for (column, value) in outliers {
        data.extend(column.to_le_bytes());
        data.extend(value.to_le_bytes());
    }
}
