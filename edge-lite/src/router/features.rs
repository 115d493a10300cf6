//! What a request looks like before anything of it is computed: counts and shares of characters, the same in any
//! language.

use serde::{Deserialize, Serialize};

use crate::request::{GenerateRequest, Prompt};
use crate::router::uncertainty::ProbeSummary;

/// Of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestFeatures {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// The most tokens of the answer.
    pub max_tokens: usize,
    /// Of the last message's characters, the share of its longest piece between line ends and colons, where there are
    /// several pieces: text that is handed over to be worked on, beside what is to be done with it.
    pub material_share: f64,
    /// Characters of the last message outside of that piece: the question itself.
    pub question_chars: usize,
    /// Share of digits among the last message's characters that are no space.
    pub digit_share: f64,
    /// Share of brackets, operators and the like among them: code, tables, formulas.
    pub symbol_share: f64,
    /// It has a question mark.
    pub asks: bool,
    /// Messages before the last one.
    pub earlier_messages: usize,
}

impl RequestFeatures {
    /// Of `request`, whose prompt has `prompt_tokens` tokens.
    #[must_use]
    pub fn of(request: &GenerateRequest, prompt_tokens: usize) -> Self {
        let (text, earlier_messages) = match &request.prompt {
            Prompt::Chat(messages) => (
                messages
                    .last()
                    .map_or("", |message| message.content.as_str()),
                messages.len().saturating_sub(1),
            ),
            Prompt::Raw(text) => (text.as_str(), 0),
            Prompt::TokenIds(_) => ("", 0),
        };
        let chars = text.chars().count();
        let pieces = text
            .split(['\n', ':', '：'])
            .map(|piece| piece.trim().chars().count())
            .filter(|chars| *chars > 0);
        let material = match pieces.clone().count() {
            0 | 1 => 0,
            _ => pieces.max().unwrap_or(0),
        };
        let visible = || text.chars().filter(|char| !char.is_whitespace());
        let share = |of: usize, all: usize| of as f64 / all.max(1) as f64;
        let visible_chars = visible().count();
        Self {
            prompt_tokens,
            max_tokens: request.max_tokens,
            material_share: share(material, chars),
            question_chars: chars - material,
            digit_share: share(
                visible().filter(|char| char.is_numeric()).count(),
                visible_chars,
            ),
            symbol_share: share(
                visible().filter(|char| is_symbol(*char)).count(),
                visible_chars,
            ),
            asks: text.contains(['?', '？', '؟']),
            earlier_messages,
        }
    }

    /// The numbers that a prediction is made of, with their names, in this order.
    #[must_use]
    pub fn values(&self) -> [(&'static str, f64); 9] {
        let log = |count: usize| (1.0 + count as f64).ln();
        [
            ("bias", 1.0),
            ("log_prompt_tokens", log(self.prompt_tokens)),
            ("log_max_tokens", log(self.max_tokens)),
            ("material_share", self.material_share),
            ("log_question_chars", log(self.question_chars)),
            ("digit_share", self.digit_share),
            ("symbol_share", self.symbol_share),
            ("asks", f64::from(u8::from(self.asks))),
            ("log_earlier_messages", log(self.earlier_messages)),
        ]
    }

    /// The same, and what the first tokens of the local model say.
    #[must_use]
    pub fn values_with(&self, probe: &ProbeSummary) -> Vec<(&'static str, f64)> {
        let mut values = self.values().to_vec();
        values.extend([
            ("mean_entropy", probe.mean_entropy),
            ("max_entropy", probe.max_entropy),
            ("mean_margin", probe.mean_margin),
            ("min_margin", probe.min_margin),
        ]);
        values
    }
}

fn is_symbol(char: char) -> bool {
    matches!(
        char,
        '{' | '}'
            | '['
            | ']'
            | '('
            | ')'
            | '<'
            | '>'
            | '='
            | '+'
            | '*'
            | '/'
            | '\\'
            | '|'
            | '_'
            | '#'
            | '$'
            | '%'
            | '&'
            | '^'
            | '~'
            | '`'
            | ';'
            | '@'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(text: &str) -> RequestFeatures {
        RequestFeatures::of(&GenerateRequest::new(Prompt::Raw(text.to_owned())), 10)
    }

    #[test]
    fn text_that_is_handed_over_is_told_from_the_question() {
        let found =
            features("Summarise this text: The old harbour has three piers and twelve boats.");
        assert!(found.material_share > 0.6, "{found:?}");
        assert!((15..30).contains(&found.question_chars), "{found:?}");
        let found = features("Why is the sky blue?");
        assert_eq!((found.material_share, found.question_chars), (0.0, 20));
        assert!(found.asks);
    }

    #[test]
    fn arithmetic_has_digits_and_code_has_symbols() {
        assert!(features("127 + 4894 = ").digit_share > 0.5);
        let code = features("fn f(x: &[u8]) -> u8 { x[0] + 1 }");
        let prose = features("The cat sat on the mat and looked at the moon.");
        assert!(code.symbol_share > 0.2 && prose.symbol_share == 0.0);
    }

    #[test]
    fn a_question_in_another_script_is_one() {
        assert!(features("空はなぜ青いのですか？").asks);
        assert!(!features("空は青い。").asks);
    }

    #[test]
    fn nothing_is_divided_by_nothing() {
        assert!(
            features("")
                .values()
                .iter()
                .all(|(_, value)| value.is_finite())
        );
    }
}
