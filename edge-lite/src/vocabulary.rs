//! A model's text side: tokenizer, chat template and special tokens.

use headway_model::Tokenizer;
use headway_model::chat_template::{ChatMessage, ChatTemplate};
use headway_model::manifest::Identity;
use headway_model::weights::Weights;

use crate::error::{DeviceError, Error, RequestError};
use crate::request::Prompt;

/// Turns prompts into token ids, and knows which ids end a turn.
pub struct Vocabulary {
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
    bos_token_id: Option<u32>,
    eos_token_ids: Vec<u32>,
    vocab_size: usize,
}

impl Vocabulary {
    /// That of the model a manifest names.
    ///
    /// # Errors
    /// [`RequestError::ChatTemplate`] where the model's template cannot be read.
    pub fn of_identity(identity: &Identity, tokenizer: Tokenizer) -> Result<Self, Error> {
        Self::new(Parts {
            tokenizer,
            chat_template: identity.chat_template.as_deref(),
            bos_token_id: identity.bos_token_id,
            eos_token_ids: &identity.eos_token_ids,
            vocab_size: identity.config.vocab_size,
        })
    }

    /// That of a model on this device.
    ///
    /// # Errors
    /// [`DeviceError::Load`] for the tokenizer, [`RequestError::ChatTemplate`] for the template.
    pub fn of_weights(weights: &Weights) -> Result<Self, Error> {
        Self::new(Parts {
            tokenizer: weights.tokenizer()?,
            chat_template: weights.chat_template(),
            bos_token_id: weights.bos_token_id(),
            eos_token_ids: weights.eos_token_ids(),
            vocab_size: weights.config().vocab_size,
        })
    }

    fn new(parts: Parts<'_>) -> Result<Self, Error> {
        let Parts {
            tokenizer,
            chat_template,
            bos_token_id,
            eos_token_ids,
            vocab_size,
        } = parts;
        let token = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
        let eos_token = token(eos_token_ids.first().copied());
        let chat_template = chat_template
            .map(|source| ChatTemplate::new(source, token(bos_token_id), eos_token))
            .transpose()
            .map_err(RequestError::ChatTemplate)?;
        let eos_token_ids = eos_token_ids.to_vec();
        Ok(Self {
            tokenizer,
            chat_template,
            bos_token_id,
            eos_token_ids,
            vocab_size,
        })
    }

    /// The tokenizer.
    #[must_use]
    pub const fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Number of token ids.
    pub(crate) const fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The token that texts begin with, and those that end a turn, in order.
    pub(crate) fn roles(&self) -> (Option<u32>, Vec<u32>) {
        let mut ends = self.eos_token_ids.clone();
        ends.sort_unstable();
        (self.bos_token_id, ends)
    }

    /// The tokens that end a turn.
    #[must_use]
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.eos_token_ids
    }

    /// True where `token_id` ends a turn.
    #[must_use]
    pub fn ends_turn(&self, token_id: u32) -> bool {
        self.eos_token_ids.contains(&token_id)
    }

    /// The prompt's token ids, one or more.
    ///
    /// Where the model wants a BOS token, text gets it in front, unless the chat template has put it there.
    /// An empty prompt becomes the BOS token, or else the first token that ends a turn: what follows the
    /// end of a text is the start of another.
    ///
    /// # Errors
    /// [`RequestError`] where the model has no chat template, the template fails, a token id does not
    /// exist, or the prompt is empty and the model names neither token.
    pub fn token_ids(&self, prompt: &Prompt) -> Result<Vec<u32>, Error> {
        let mut token_ids = match prompt {
            Prompt::Chat(messages) => self.encode(&self.render(messages)?)?,
            Prompt::Raw(text) => self.encode(text)?,
            Prompt::TokenIds(token_ids) => token_ids.clone(),
        };
        if let Some(token_id) = token_ids
            .iter()
            .copied()
            .find(|id| *id as usize >= self.vocab_size)
        {
            return Err(RequestError::TokenId {
                token_id,
                vocab_size: self.vocab_size,
            }
            .into());
        }
        if token_ids.is_empty() {
            let start = self
                .bos_token_id
                .or_else(|| self.eos_token_ids.first().copied());
            token_ids.push(start.ok_or(RequestError::EmptyPrompt)?);
        }
        Ok(token_ids)
    }

    fn render(&self, messages: &[ChatMessage]) -> Result<String, RequestError> {
        let template = self
            .chat_template
            .as_ref()
            .ok_or(RequestError::NoChatTemplate)?;
        Ok(template.render(messages, true)?)
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, DeviceError> {
        let mut token_ids = self.tokenizer.encode(text)?;
        if let Some(bos_token_id) = self.bos_token_id
            && token_ids.first() != Some(&bos_token_id)
        {
            token_ids.insert(0, bos_token_id);
        }
        Ok(token_ids)
    }
}

struct Parts<'a> {
    tokenizer: Tokenizer,
    chat_template: Option<&'a str>,
    bos_token_id: Option<u32>,
    eos_token_ids: &'a [u32],
    vocab_size: usize,
}
