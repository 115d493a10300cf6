//! How alike two answers are as texts.

/// ROUGE-L: the F-measure of the longest common subsequence, here of token ids; 1 for equal answers, 0 where nothing is
/// common. C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, equations 2 to 4 with β = 1.
pub(super) fn rouge_l(one: &[u32], other: &[u32]) -> f64 {
    if one.is_empty() && other.is_empty() {
        return 1.0;
    }
    2.0 * longest_common(one, other) as f64 / (one.len() + other.len()) as f64
}

/// Length of the longest common subsequence.
fn longest_common(one: &[u32], other: &[u32]) -> usize {
    let mut row = vec![0; other.len() + 1];
    for a in one {
        let mut diagonal = 0;
        for (column, b) in other.iter().enumerate() {
            let above = row[column + 1];
            row[column + 1] = if a == b {
                diagonal + 1
            } else {
                above.max(row[column])
            };
            diagonal = above;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_answers_overlap_wholly_and_disjoint_ones_not_at_all() {
        assert!((rouge_l(&[1, 2, 3], &[1, 2, 3]) - 1.0).abs() < 1e-12);
        assert!(rouge_l(&[1, 2], &[3, 4]).abs() < 1e-12);
        assert!((rouge_l(&[], &[]) - 1.0).abs() < 1e-12);
        assert!(rouge_l(&[], &[1]).abs() < 1e-12);
    }

    #[test]
    fn order_counts_and_gaps_do_not() {
        assert_eq!(longest_common(&[1, 2, 3, 4], &[1, 9, 3, 9, 4]), 3);
        assert_eq!(longest_common(&[1, 2, 3], &[3, 2, 1]), 1);
    }
}
