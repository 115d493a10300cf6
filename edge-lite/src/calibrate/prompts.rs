//! The prompts of a calibration: one JSON object a line.

use std::path::Path;

use headway_model::chat_template::ChatMessage;
use serde::{Deserialize, Serialize};

use crate::error::RequestError;

/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// One prompt, which goes through the chat template.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationPrompt {
    /// A name of its own.
    pub id: String,
    /// What kind of work it is, for the tables.
    pub task: String,
    /// The user's message.
    pub prompt: String,
    /// The most tokens of the answer.
    pub max_tokens: usize,
    /// The messages before it, by turns of user and assistant, or a system message first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<ChatMessage>,
}

impl CalibrationPrompt {
    /// All messages.
    #[must_use]
    pub fn messages(&self) -> Vec<ChatMessage> {
        let last = ChatMessage {
            role: "user".to_owned(),
            content: self.prompt.clone(),
        };
        self.earlier.iter().cloned().chain([last]).collect()
    }
}

/// Reads the prompts at `path`.
///
/// # Errors
/// [`RequestError::Read`]; [`RequestError::Value`] with the line that is none.
pub fn read(path: &Path) -> Result<Vec<CalibrationPrompt>, RequestError> {
    let failed = |source| RequestError::Read {
        path: path.to_owned(),
        source,
    };
    let bytes = std::fs::metadata(path).map_err(failed)?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(RequestError::Value {
            name: "bytes of prompts",
            got: bytes.to_string(),
            expected: format!("at most {MAX_FILE_BYTES}"),
        });
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let prompts = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    let prompts: Vec<CalibrationPrompt> = prompts
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|error| RequestError::Value {
                name: "prompt",
                got: format!("line {}: {error}", index + 1),
                expected: "an object with id, task, prompt and max_tokens".to_owned(),
            })
        })
        .collect::<Result<_, _>>()?;
    if prompts.len() < super::sweep::FOLDS * 2 {
        return Err(RequestError::Value {
            name: "number of prompts",
            got: prompts.len().to_string(),
            expected: format!(
                "{} or more; hundreds say something",
                super::sweep::FOLDS * 2
            ),
        });
    }
    Ok(prompts)
}
