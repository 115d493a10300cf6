//! The model's own chat template, a Jinja text as Hugging Face writes them.

use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};
use serde_json::Serializer;
use serde_json::ser::{Formatter, PrettyFormatter};

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
    pub fn new(
        source: &str,
        bos_token: Option<String>,
        eos_token: Option<String>,
    ) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(TEMPLATE_FUEL));
        // The two settings that the models' own code renders its templates with.
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()?,
        );
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        environment.add_template_owned("chat", source.to_owned())?;
        Ok(Self {
            environment,
            bos_token,
            eos_token,
        })
    }

    /// The conversation as the text the model was trained on.
    ///
    /// # Errors
    /// [`TemplateError`] where the template refuses the conversation (roles out of order, for one).
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let template = self.environment.get_template("chat")?;
        Ok(template.render(context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt,
            bos_token => self.bos_token.as_deref().unwrap_or_default(),
            eos_token => self.eos_token.as_deref().unwrap_or_default(),
        })?)
    }
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(
        minijinja::ErrorKind::InvalidOperation,
        message,
    ))
}

/// As Python's `json.dumps(value, ensure_ascii=False, indent=indent)`: minijinja's own filter escapes for
/// HTML and leaves the spaces out, which is not what models were trained on.
fn to_json(value: Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let failed =
        |e| minijinja::Error::new(ErrorKind::BadSerialization, "tojson failed").with_source(e);
    let mut json = Vec::new();
    match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value
                .serialize(&mut Serializer::with_formatter(&mut json, formatter))
                .map_err(failed)?;
        }
        None => value
            .serialize(&mut Serializer::with_formatter(&mut json, Spaced))
            .map_err(failed)?,
    }
    Ok(Value::from_safe_string(
        String::from_utf8_lossy(&json).into_owned(),
    ))
}

/// JSON on one line with a space after each comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(content: &str) -> ChatMessage {
        ChatMessage {
            role: "user".to_owned(),
            content: content.to_owned(),
        }
    }

    #[test]
    fn a_template_sees_messages_and_special_tokens() {
        let source = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'].strip() }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}";
        let template = ChatTemplate::new(source, Some("<s>".to_owned()), None).unwrap();
        assert_eq!(
            template.render(&[user(" hi ")], true).unwrap(),
            "<s>user: hi\n>"
        );
    }

    #[test]
    fn a_refusal_of_the_template_is_passed_on() {
        let template =
            ChatTemplate::new("{{ raise_exception('no system turn') }}", None, None).unwrap();
        assert!(
            template
                .render(&[user("hi")], false)
                .unwrap_err()
                .to_string()
                .contains("no system turn")
        );
    }

    #[test]
    fn an_endless_template_is_stopped() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
        let template = ChatTemplate::new(source, None, None).unwrap();
        assert!(template.render(&[user("hi")], false).is_err());
    }
}
