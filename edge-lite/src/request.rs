//! What to generate.

use headway_model::chat_template::ChatMessage;
use headway_model::sampler::SamplingParams;

use crate::error::RequestError;

/// The most stop strings of one request.
pub const MAX_STOP_STRINGS: usize = 16;
/// The longest stop string, in bytes. What could become one is held back, so this bounds the delay.
pub const MAX_STOP_STRING_BYTES: usize = 256;
/// Tokens of an answer where the request names no other number.
pub const DEFAULT_MAX_TOKENS: usize = 256;

/// Where the generation starts from.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Messages, put into the model's chat template.
    Chat(Vec<ChatMessage>),
    /// Text as it is, behind the model's BOS token where it wants one.
    Raw(String),
    /// Token ids as they are.
    TokenIds(Vec<u32>),
}

impl Prompt {
    /// A chat of one message, the user's.
    #[must_use]
    pub fn user(content: impl Into<String>) -> Self {
        Self::Chat(vec![ChatMessage {
            role: "user".to_owned(),
            content: content.into(),
        }])
    }
}

/// W3C trace context of the caller's span; goes to the tail with the session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// `traceparent` header.
    pub traceparent: String,
    /// `tracestate` header.
    pub tracestate: String,
}

/// One generation.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// Where it starts from.
    pub prompt: Prompt,
    /// The most tokens of the answer, 1 or more.
    pub max_tokens: usize,
    /// How tokens are chosen. The default is greedy.
    pub sampling: SamplingParams,
    /// Strings that end the answer, and are not part of it.
    pub stop: Vec<String>,
    /// Goes on behind the model's end of turn; for measurements of a fixed length.
    pub ignore_end_of_turn: bool,
    /// Nothing of it may leave this device: where no model here can answer it, it fails. No count of it is reported
    /// either.
    pub local_only: bool,
    /// The caller's trace, if it has one.
    pub trace: Option<TraceContext>,
}

impl GenerateRequest {
    /// A greedy answer of at most [`DEFAULT_MAX_TOKENS`] tokens.
    #[must_use]
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            max_tokens: DEFAULT_MAX_TOKENS,
            sampling: SamplingParams::default(),
            stop: Vec::new(),
            ignore_end_of_turn: false,
            local_only: false,
            trace: None,
        }
    }

    /// Checks what needs no model to be checked.
    pub(crate) fn check(&self) -> Result<(), RequestError> {
        let refuse = |name, got: usize, expected: String| {
            Err(RequestError::Value {
                name,
                got: got.to_string(),
                expected,
            })
        };
        if self.max_tokens == 0 {
            return refuse("max_tokens", 0, "1 or more".to_owned());
        }
        if self.stop.len() > MAX_STOP_STRINGS {
            return refuse(
                "number of stop strings",
                self.stop.len(),
                format!("at most {MAX_STOP_STRINGS}"),
            );
        }
        for stop in &self.stop {
            if stop.is_empty() || stop.len() > MAX_STOP_STRING_BYTES {
                let expected = format!("1 to {MAX_STOP_STRING_BYTES}");
                return refuse("bytes of a stop string", stop.len(), expected);
            }
        }
        Ok(())
    }
}
