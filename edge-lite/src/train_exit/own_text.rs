//! Text that the model writes itself, with the hidden states that it has on the way.
//!
//! For a model with a chat template each text is a question that the model thinks of, by going on where a user's message
//! begins, and its answer; so the text is what devices will ask for, and no prompts have to be brought along. Half of
//! the answers are greedy, the others are drawn at two temperatures. A model without a template writes from the
//! beginning of a text.

use half::bf16;
use headway_model::KvTable;
use headway_model::chat_template::ChatMessage;
use headway_model::config::ModelConfig;
use headway_model::kv_cache::store::BlockId;
use headway_model::layer_range::LayerRange;
use headway_model::sampler::{Sampler, SamplingParams};
use rayon::prelude::*;

use super::writer::{Part, Writer};
use crate::error::{DeviceError, Error, RequestError};
use crate::request::Prompt;
use crate::vocabulary::Vocabulary;

/// The most positions of a text.
pub(super) const MAX_POSITIONS: usize = 384;
/// The most rows of a step, more than a text has positions.
pub(super) const MAX_ROWS: usize = 4096;
/// Tokens of a question.
const MAX_QUESTION_TOKENS: usize = 96;
/// How questions are drawn.
const QUESTION_TEMPERATURE: f32 = 0.9;
/// How answers are drawn, in turns.
const ANSWER_TEMPERATURES: [f32; 4] = [0.0, 0.0, 0.7, 1.0];
/// Tokens less likely than this beside the most likely one are not drawn.
const MIN_P: f32 = 0.02;

/// A text and its hidden states.
pub(super) struct Text {
    pub(super) token_ids: Vec<u32>,
    /// Behind each layer of [`OwnText::layers`], `[token_ids.len(), hidden_size]`.
    pub(super) hidden_states: [Vec<bf16>; 3],
}

/// Where the hidden states of a text are taken.
#[derive(Clone, Copy)]
pub(super) struct Taps {
    /// Behind the split layer, which is what an exit sees.
    pub(super) split_layer: usize,
    /// Where the exit's own layers stand in the model.
    pub(super) exit_layers: usize,
}

/// Places of [`Text::hidden_states`].
pub(super) const AT_SPLIT: usize = 0;
/// Before the model's last layers.
pub(super) const AT_EXIT_LAYERS: usize = 1;
/// Behind the last layer.
pub(super) const AT_END: usize = 2;

/// Writes texts.
pub(super) struct OwnText<'a> {
    writer: &'a mut dyn Writer,
    config: &'a ModelConfig,
    vocabulary: &'a Vocabulary,
    max_positions: usize,
    /// Where every question begins; `None` for a model without a chat template.
    before_question: Option<Vec<u32>>,
    begun: u64,
    seed: u64,
}

struct Draft {
    table: KvTable,
    text: Text,
    /// Where the question begins, while it is written.
    question: Option<usize>,
    sampler: Sampler,
    temperature: f32,
}

impl Draft {
    /// Those that no cache holds yet.
    fn new_tokens(&self) -> &[u32] {
        &self.text.token_ids[self.table.len()..]
    }
}

impl<'a> OwnText<'a> {
    pub(super) fn new(
        writer: &'a mut dyn Writer,
        config: &'a ModelConfig,
        vocabulary: &'a Vocabulary,
        seed: u64,
    ) -> Result<Self, Error> {
        Ok(Self {
            writer,
            config,
            vocabulary,
            max_positions: max_positions(config),
            before_question: before_question(vocabulary)?,
            begun: 0,
            seed,
        })
    }

    /// Writes texts of at least `tokens` tokens in all. `progress` is told how many there are.
    pub(super) fn write(
        &mut self,
        tokens: usize,
        mut progress: impl FnMut(usize),
    ) -> Result<Vec<Text>, Error> {
        let mut drafts = (0..self.writer.texts_at_a_time())
            .map(|slot| self.begin(self.table(slot)))
            .collect::<Result<Vec<_>, _>>()?;
        let (mut texts, mut written) = (Vec::new(), 0);
        while written < tokens {
            let sampled = self.step(&mut drafts)?;
            for (draft, token_id) in drafts.iter_mut().zip(sampled) {
                if self.push(draft, token_id)? {
                    let mut table = KvTable::new(self.layers());
                    std::mem::swap(&mut table, &mut draft.table);
                    table.truncate(0);
                    let done = std::mem::replace(draft, self.begin(table)?);
                    written += done.text.token_ids.len();
                    texts.push(done.text);
                    progress(written);
                }
            }
        }
        Ok(texts)
    }

    fn layers(&self) -> LayerRange {
        LayerRange::new(0, self.config.num_layers)
    }

    /// The blocks of one slot: those of a layer, of all slots, follow one another.
    fn table(&self, slot: usize) -> KvTable {
        let columns = KvTable::columns_for(self.max_positions);
        let of_layer = self.writer.texts_at_a_time() * columns;
        let mut table = KvTable::new(self.layers());
        for column in 0..columns {
            let blocks: Vec<_> = self
                .layers()
                .iter()
                .map(|layer| layer * of_layer + slot * columns + column)
                .map(|block| BlockId(u32::try_from(block).expect("a store of few blocks")))
                .collect();
            table.push_column(&blocks);
        }
        table
    }

    fn begin(&mut self, table: KvTable) -> Result<Draft, Error> {
        let token_ids = match &self.before_question {
            Some(before) => before.clone(),
            None => self.vocabulary.token_ids(&Prompt::Raw(String::new()))?,
        };
        let turn = usize::try_from(self.begun).unwrap_or_default() % ANSWER_TEMPERATURES.len();
        self.begun += 1;
        let question = self.before_question.as_ref().map(Vec::len);
        let temperature = ANSWER_TEMPERATURES[turn];
        let now = match question {
            Some(_) => QUESTION_TEMPERATURE,
            // Greedy, every text would be the same.
            None => temperature.max(QUESTION_TEMPERATURE),
        };
        Ok(Draft {
            table,
            sampler: self.sampler(now, token_ids.len())?,
            text: Text {
                token_ids,
                hidden_states: Default::default(),
            },
            question,
            temperature,
        })
    }

    fn sampler(&self, temperature: f32, position: usize) -> Result<Sampler, RequestError> {
        let params = SamplingParams {
            temperature,
            min_p: MIN_P,
            seed: self.seed.wrapping_mul(1 << 32).wrapping_add(self.begun),
            ..SamplingParams::default()
        };
        Sampler::new(params, position).map_err(RequestError::Sampling)
    }

    /// Runs what no draft's cache holds yet; the next token of each.
    fn step(&mut self, drafts: &mut [Draft]) -> Result<Vec<u32>, DeviceError> {
        let mut sampled = Vec::with_capacity(drafts.len());
        let mut rest = drafts;
        while !rest.is_empty() {
            let mut rows = 0;
            let together = rest.iter().take_while(|draft| {
                rows += draft.new_tokens().len();
                rows <= MAX_ROWS
            });
            let together = together.count().max(1);
            let (group, behind) = rest.split_at_mut(together);
            sampled.extend(self.step_together(group)?);
            rest = behind;
        }
        Ok(sampled)
    }

    fn step_together(&mut self, drafts: &mut [Draft]) -> Result<Vec<u32>, DeviceError> {
        let (hidden_size, vocab_size) = (self.config.hidden_size, self.config.vocab_size);
        let parts: Vec<_> = drafts
            .iter()
            .map(|draft| Part {
                token_ids: draft.new_tokens(),
                table: &draft.table,
            })
            .collect();
        let counts: Vec<usize> = parts.iter().map(|part| part.token_ids.len()).collect();
        let mut states: [Vec<bf16>; 3] = Default::default();
        let mut sampled = Vec::new();
        self.writer.step(
            &parts,
            &mut |place, rows| {
                let rows = rows.par_iter().map(|value| bf16::from_f32(*value));
                states[place].par_extend(rows);
            },
            &mut |logits| {
                let of_drafts = logits.par_chunks_exact_mut(vocab_size).zip(&*drafts);
                sampled = of_drafts
                    .map(|(logits, draft)| {
                        let position = draft.text.token_ids.len();
                        draft.sampler.sample(logits, position).token_id
                    })
                    .collect();
            },
        )?;
        let mut first = 0;
        for (draft, rows) in drafts.iter_mut().zip(counts) {
            let of_draft = first * hidden_size..(first + rows) * hidden_size;
            for (to, from) in draft.text.hidden_states.iter_mut().zip(&states) {
                to.extend_from_slice(&from[of_draft.clone()]);
            }
            draft.table.advance(rows);
            first += rows;
        }
        Ok(sampled)
    }

    /// Takes a draft's next token; true where the text is done.
    fn push(&self, draft: &mut Draft, token_id: u32) -> Result<bool, Error> {
        let text = &mut draft.text;
        let ends = self.vocabulary.ends_turn(token_id);
        let Some(question) = draft.question else {
            if ends || text.token_ids.len() + 1 >= self.max_positions {
                return Ok(true);
            }
            text.token_ids.push(token_id);
            return Ok(false);
        };
        if !ends && text.token_ids.len() < question + MAX_QUESTION_TOKENS {
            text.token_ids.push(token_id);
            return Ok(false);
        }
        // The question as the template has it, and the beginning of an answer.
        let tokenizer = self.vocabulary.tokenizer();
        let content = tokenizer
            .decode(&text.token_ids[question..])
            .map_err(DeviceError::from)?;
        let message = user(content.trim());
        let prompt = self.vocabulary.token_ids(&Prompt::Chat(vec![message]))?;
        if prompt.len() + 2 > self.max_positions {
            return Ok(true);
        }
        let pairs = prompt.iter().zip(&text.token_ids);
        let same = pairs.take_while(|(a, b)| a == b).count();
        let kept = same.min(prompt.len() - 1);
        draft.table.truncate(kept);
        for states in &mut text.hidden_states {
            states.truncate(kept * self.config.hidden_size);
        }
        draft.sampler = self.sampler(draft.temperature, prompt.len())?;
        text.token_ids = prompt;
        draft.question = None;
        Ok(false)
    }
}

/// The most positions of a text of this model.
pub(super) fn max_positions(config: &ModelConfig) -> usize {
    MAX_POSITIONS.min(config.max_positions)
}

/// What stands before a user's first message, whatever it is.
fn before_question(vocabulary: &Vocabulary) -> Result<Option<Vec<u32>>, Error> {
    let with = |content: &str| {
        let message = user(content);
        vocabulary.token_ids(&Prompt::Chat(vec![message]))
    };
    let (one, other) = match (with("a"), with("7")) {
        (Ok(one), Ok(other)) => (one, other),
        (Err(Error::Request(RequestError::NoChatTemplate)), _) => return Ok(None),
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    let same = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
    Ok(Some(one[..same].to_vec()).filter(|before| !before.is_empty()))
}

fn user(content: &str) -> ChatMessage {
    ChatMessage {
        role: "user".to_owned(),
        content: content.to_owned(),
    }
}
