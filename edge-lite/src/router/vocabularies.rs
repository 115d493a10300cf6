//! Whether two models speak the same tokens, so that one can go on where the other stopped.

use headway_model::chat_template::ChatMessage;

use crate::error::{Error, RequestError};
use crate::request::Prompt;
use crate::vocabulary::Vocabulary;

/// Text with many kinds of characters, so that tokenizers of one vocabulary and different rules differ on it.
const SAMPLE: &str = "It's 3.14 % of 1,024 – naïve café, 東京 and Москва!\n\n\tfn main() { println!(\"{}\", x[0] >= 10); }  \
                      can't we'll  🙂  https://example.org/a?b=c#d";

/// Checks that token ids mean the same in both: the vocabularies, the tokens with a role, and what becomes of text and
/// of a chat.
///
/// # Errors
/// [`RequestError::OtherTokenizer`].
pub(crate) fn check_same(tail: &Vocabulary, local: &Vocabulary) -> Result<(), Error> {
    let differ = |what: String| Err(RequestError::OtherTokenizer { what }.into());
    let sizes = (tail.vocab_size(), local.vocab_size());
    if sizes.0 != sizes.1 {
        return differ(format!(
            "it has {} tokens, and the tail's has {}",
            sizes.1, sizes.0
        ));
    }
    let ids = 0..u32::try_from(sizes.0).unwrap_or(u32::MAX);
    let other = |id: &u32| tail.tokenizer().token(*id) != local.tokenizer().token(*id);
    if let Some(id) = ids.into_iter().find(other) {
        return differ(format!(
            "token {id} is {:?} here and {:?} there",
            local.tokenizer().token(id).unwrap_or_default(),
            tail.tokenizer().token(id).unwrap_or_default()
        ));
    }
    if tail.tokenizer().special_tokens() != local.tokenizer().special_tokens() {
        return differ("their special tokens differ".to_owned());
    }
    if tail.roles() != local.roles() {
        return differ(format!(
            "its first token and its ends of a turn are {:?}, and the tail's {:?}",
            local.roles(),
            tail.roles()
        ));
    }
    let raw = Prompt::Raw(SAMPLE.to_owned());
    if tail.token_ids(&raw)? != local.token_ids(&raw)? {
        return differ("it splits text into tokens by other rules".to_owned());
    }
    let [system, user, assistant] = ["system", "user", "assistant"].map(|role| ChatMessage {
        role: role.to_owned(),
        content: SAMPLE.to_owned(),
    });
    let alone = vec![user.clone()];
    let whole = vec![system, user.clone(), assistant, user];
    for messages in [alone, whole] {
        // A template that refuses such a chat refuses it on both sides.
        let rendered = [tail, local]
            .map(|vocabulary| vocabulary.token_ids(&Prompt::Chat(messages.clone())).ok());
        if rendered[0] != rendered[1] {
            return differ("its chat template gives other tokens".to_owned());
        }
    }
    Ok(())
}
