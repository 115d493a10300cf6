//! Biases and penalties as a list, for a device that has the logits.

use super::Sampler;

/// What happens to one token's logit before anything is chosen. In this order, each result rounded to f32:
/// `bias` is added, a logit above zero is divided by `repetition` and another one multiplied by it, `penalty` is
/// subtracted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adjustment {
    /// The token; one outside the vocabulary is passed over.
    pub token_id: u32,
    /// -0.0 changes nothing.
    pub bias: f32,
    /// 1.0 changes nothing.
    pub repetition: f32,
    /// 0.0 changes nothing.
    pub penalty: f32,
}

impl Sampler {
    /// Appends what [`Sampler::sample`] does to single logits, once for each token, in any order. `guessed`: tokens
    /// that stand before `position`, the last one right before it, and count as observed.
    ///
    /// Returns false, and appends nothing, where there may be more than `most` or where a token has several biases:
    /// those are added one after another, which a list without order does not say.
    #[must_use]
    pub fn adjustments(
        &self,
        position: usize,
        guessed: &[u32],
        most: usize,
        out: &mut Vec<Adjustment>,
    ) -> bool {
        let guessed = if self.params.needs_history() {
            // What was observed is among the counts.
            let first = position - guessed.len();
            &guessed[self.observed.saturating_sub(first).min(guessed.len())..]
        } else {
            &[]
        };
        let is_listed_once = self.biases.len() == self.params.logit_bias.len();
        if !is_listed_once || self.biases.len() + self.counts.len() + guessed.len() > most {
            return false;
        }
        let first = position - guessed.len();
        for token_id in self.biases.keys() {
            out.push(self.adjustment(*token_id, first, guessed));
        }
        for (index, token_id) in guessed.iter().enumerate() {
            if !self.biases.contains_key(token_id) && !guessed[..index].contains(token_id) {
                out.push(self.adjustment(*token_id, first, guessed));
            }
        }
        for token_id in self.counts.keys() {
            if !self.biases.contains_key(token_id) && !guessed.contains(token_id) {
                out.push(self.adjustment(*token_id, first, &[]));
            }
        }
        true
    }

    /// `guessed`: not yet counted, from position `first` on.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^24")]
    fn adjustment(&self, token_id: u32, first: usize, guessed: &[u32]) -> Adjustment {
        let (mut total, mut answer) = self.counts.get(&token_id).copied().unwrap_or_default();
        for (position, guess) in (first..).zip(guessed) {
            if *guess == token_id {
                total += 1;
                answer += u32::from(position >= self.prompt_tokens);
            }
        }
        let params = &self.params;
        Adjustment {
            token_id,
            bias: self.biases.get(&token_id).copied().unwrap_or(-0.0),
            repetition: if total > 0 {
                params.repetition_penalty
            } else {
                1.0
            },
            penalty: if answer > 0 {
                params.presence_penalty + params.frequency_penalty * answer as f32
            } else {
                0.0
            },
        }
    }
}
