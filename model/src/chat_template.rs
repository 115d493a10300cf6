//! The model's own chat template, a Jinja text as Hugging Face writes them.

use minijinja::{Environment, context};
use serde::{Deserialize, Serialize};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A template that does not compile, or that refuses a conversation.
#[derive(Debug, thiserror::Error)]
#[error("the model's chat template: {0:#}")]
pub struct TemplateError(#[from] minijinja::Error);

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

/// A template is code from a model file: this many instructions are enough for any conversation.
const TEMPLATE_FUEL: u64 = 50_000_000;

impl ChatTemplate {
    /// Compiles `source`. The tokens are what the template knows as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`TemplateError`] with the place where the text is not Jinja.
    pub fn new(source: &str, bos_token: Option<String>, eos_token: Option<String>) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(TEMPLATE_FUEL));
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_template_owned("chat", source.to_owned())?;
        Ok(Self { environment, bos_token, eos_token })
    }

    /// The conversation as the text the model was trained on.
    ///
    /// # Errors
    /// [`TemplateError`] where the template refuses the conversation (roles out of order, for one).
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String, TemplateError> {
        let template = self.environment.get_template("chat")?;
        Ok(template.render(context! {
            messages,
            add_generation_prompt,
            bos_token => self.bos_token.as_deref().unwrap_or_default(),
            eos_token => self.eos_token.as_deref().unwrap_or_default(),
        })?)
    }
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(content: &str) -> ChatMessage {
        ChatMessage { role: "user".to_owned(), content: content.to_owned() }
    }

    #[test]
    fn a_template_sees_messages_and_special_tokens() {
        let source = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'].strip() }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}";
        let template = ChatTemplate::new(source, Some("<s>".to_owned()), None).unwrap();
        assert_eq!(template.render(&[user(" hi ")], true).unwrap(), "<s>user: hi\n>");
    }

    #[test]
    fn a_refusal_of_the_template_is_passed_on() {
        let template = ChatTemplate::new("{{ raise_exception('no system turn') }}", None, None).unwrap();
        assert!(template.render(&[user("hi")], false).unwrap_err().to_string().contains("no system turn"));
    }

    #[test]
    fn an_endless_template_is_stopped() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
        let template = ChatTemplate::new(source, None, None).unwrap();
        assert!(template.render(&[user("hi")], false).is_err());
    }
}
