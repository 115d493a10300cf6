//! What devices ask in a soak: many lengths, split layers, codecs, and ways to sample.

use fastrand::Rng;
use headway_model::sampler::SamplingParams;
use headway_wire::Codec;
use headway_wire::codec::DEFAULT_GROUP_SIZE;

use crate::load::answers::Question;

const PROMPT_TOKENS: [usize; 9] = [1, 260, 33, 64, 512, 9, 130, 350, 96];
const LONG_PROMPT_TOKENS: usize = 900;
const ANSWER_TOKENS: [usize; 5] = [24, 48, 6, 32, 64];
const CODECS: [Codec; 4] = [
    Codec::F32,
    Codec::F16,
    Codec::Int8 {
        group_size: DEFAULT_GROUP_SIZE,
    },
    Codec::F32,
];

/// So many questions, always the same ones of a seed. `num_layers`: of the model.
pub(super) fn draw(seed: u64, count: usize, num_layers: usize) -> Vec<Question> {
    let mut random = Rng::with_seed(seed);
    let splits = [0, num_layers / 3, num_layers / 2, 1, num_layers - 1, 0];
    (0..count)
        .map(|index| Question {
            start: random.usize(..20_000),
            prompt_tokens: if index % 12 == 11 {
                LONG_PROMPT_TOKENS
            } else {
                PROMPT_TOKENS[index % PROMPT_TOKENS.len()]
            },
            answer_tokens: ANSWER_TOKENS[index % ANSWER_TOKENS.len()],
            split_layer: splits[index % splits.len()],
            codec: CODECS[index % CODECS.len()],
            sampling: sampling(index, &mut random),
        })
        .collect()
}

fn sampling(index: usize, random: &mut Rng) -> SamplingParams {
    let greedy = SamplingParams::default();
    let drawn = SamplingParams {
        temperature: 0.8,
        top_p: 0.9,
        seed: random.u64(..),
        ..SamplingParams::default()
    };
    match index % 7 {
        1 => drawn,
        3 => SamplingParams {
            logprobs: true,
            top_logprobs: 2,
            ..greedy
        },
        // Looks at everything a sampler can look at.
        4 => SamplingParams {
            repetition_penalty: 1.1,
            frequency_penalty: 0.2,
            min_p: 0.02,
            ..drawn
        },
        6 => SamplingParams {
            top_k: 40,
            logprobs: true,
            ..drawn
        },
        _ => greedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_depend_on_the_seed_alone_and_are_of_all_kinds() {
        let questions = draw(7, 28, 30);
        assert_eq!(format!("{questions:?}"), format!("{:?}", draw(7, 28, 30)));
        for codec in CODECS {
            assert!(
                questions
                    .iter()
                    .any(|question| question.codec == codec && question.split_layer > 0)
            );
        }
        assert!(
            questions
                .iter()
                .any(|question| question.sampling.needs_history() && question.split_layer > 0)
        );
    }
}
