//! Text to token ids and back, by Hugging Face's `tokenizers`.

use std::collections::HashMap;

use tokenizers::Tokenizer as Inner;

use crate::error::LoadError;

mod gguf;

/// A model's tokenizer.
pub struct Tokenizer {
    inner: Inner,
}

impl Tokenizer {
    /// From the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] where they are not one.
    pub fn from_json(json: &[u8]) -> Result<Self, LoadError> {
        let mut inner = Inner::from_bytes(json).map_err(tokenizer_error)?;
        // Files may ask for cutting or filling up to a length; a prompt is taken as it is.
        inner.with_truncation(None).map_err(tokenizer_error)?;
        inner.with_padding(None);
        Ok(Self { inner })
    }

    /// The bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] where the tokenizer cannot be written.
    pub fn to_json(&self) -> Result<Vec<u8>, LoadError> {
        self.inner
            .to_string(false)
            .map(String::into_bytes)
            .map_err(tokenizer_error)
    }

    /// The ids of `text`. Special tokens in it are recognised; none are added.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] where the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, LoadError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(tokenizer_error)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `token_ids`, without special tokens.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] where the decoder fails.
    pub fn decode(&self, token_ids: &[u32]) -> Result<String, LoadError> {
        self.inner.decode(token_ids, true).map_err(tokenizer_error)
    }

    /// The id of a token by its exact text.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a token by its id, as it stands in the vocabulary.
    #[must_use]
    pub fn token(&self, token_id: u32) -> Option<String> {
        self.inner.id_to_token(token_id)
    }

    /// Texts and ids of the special tokens.
    #[must_use]
    pub fn special_tokens(&self) -> HashMap<String, u32> {
        let added = self.inner.get_added_tokens_decoder();
        added
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (token.content, id))
            .collect()
    }

    /// Decodes token by token.
    #[must_use]
    pub const fn stream(&self) -> TokenStream<'_> {
        TokenStream {
            tokenizer: self,
            token_ids: Vec::new(),
            emitted: 0,
        }
    }
}

/// Decoding as tokens arrive; gives out whole characters only.
pub struct TokenStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens of the last piece given out, as context for the next, and those not given out yet.
    token_ids: Vec<u32>,
    /// How many of them are context.
    emitted: usize,
}

/// A character has at most four bytes, and a token at least one: after this many tokens without a whole
/// character, what is there is not UTF-8 and never will be.
const MAX_PENDING_TOKENS: usize = 8;

impl TokenStream<'_> {
    /// Adds a token and returns the text that it completes, if any.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] where the decoder fails.
    pub fn push(&mut self, token_id: u32) -> Result<String, LoadError> {
        self.token_ids.push(token_id);
        let text = self.pending()?;
        let waits = text.ends_with(char::REPLACEMENT_CHARACTER)
            && self.token_ids.len() - self.emitted < MAX_PENDING_TOKENS;
        if waits || text.is_empty() {
            return Ok(String::new());
        }
        self.token_ids.drain(..self.emitted);
        self.emitted = self.token_ids.len();
        Ok(text)
    }

    /// The text of tokens that were held back; an incomplete character becomes U+FFFD.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] where the decoder fails.
    pub fn finish(&mut self) -> Result<String, LoadError> {
        let text = self.pending()?;
        self.token_ids.clear();
        self.emitted = 0;
        Ok(text)
    }

    /// Decoders treat the first token apart (a leading space, for one): decode with context, cut it off.
    fn pending(&self) -> Result<String, LoadError> {
        let context = self.tokenizer.decode(&self.token_ids[..self.emitted])?;
        let mut all = self.tokenizer.decode(&self.token_ids)?;
        Ok(if all.starts_with(&context) {
            all.split_off(context.len())
        } else {
            all
        })
    }
}

fn tokenizer_error(error: impl ToString) -> LoadError {
    LoadError::Tokenizer {
        reason: error.to_string(),
    }
}
