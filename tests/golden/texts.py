"""The prompts, conversations and strings that the golden files record."""

import json

SYSTEM_AND_USER = [
    {"role": "system", "content": "You answer in one short sentence."},
    {"role": "user", "content": "Why is the sky blue?"},
]
MULTI_TURN = [
    {"role": "user", "content": "Name a prime number above 10."},
    {"role": "assistant", "content": "11 is a prime number above 10."},
    {"role": "user", "content": "And the next one?"},
]

RUST = '''/// Returns the greatest common divisor.
pub fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gcd_of_coprime_numbers_is_one() {
'''
PYTHON = '''def fibonacci(n: int) -> int:
    """Returns the n-th Fibonacci number."""
    if n < 2:
        return n
'''
C = '''#include <stdio.h>

int main(int argc, char **argv)
{
\tfor (int i = 1; i < argc; i++)
\t\tprintf("%d: %s\\n", i, argv[i]);
'''
JAVASCRIPT = '''const debounce = (fn, ms = 250) => {
  let timer;
  return (...args) => {
    clearTimeout(timer);
'''
SQL = "SELECT c.name, COUNT(*) AS orders\nFROM customers c\nJOIN orders o ON o.customer_id = c.id\nGROUP BY"
JSON = json.dumps(
    {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "settings", "labels": {"app": "demo"}},
        "data": {"retries": 3, "ratio": 0.25, "enabled": True, "note": None, "list": [1, 2, 3]},
    },
    indent=2,
)
CYRILLIC = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему."
CHINESE = "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？"
ARABIC = "كان يا ما كان في قديم الزمان، ملك عادل يحب شعبه"
HINDI = "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।"
EMOJI = "👩‍👩‍👧‍👦 went to the 🏖️ with 👨🏽‍🚀 and 🏳️‍🌈! 🇺🇳 5️⃣"


def chat(conversation: list[dict]) -> str:
    """A conversation in SmolLM2's own format, written out by hand, with the assistant's turn opened."""
    turns = [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in conversation]
    return "".join(turns) + "<|im_start|>assistant\n"


def prompts(eval_text: str) -> dict[str, str]:
    """Name → prompt. `eval_text` gives the long ones."""
    return {
        "empty": "",
        "one_token": "The",
        "english_fact": "The capital of France is",
        "english_story": "Once upon a time, in a small village by the sea, there lived an old fisherman who",
        "english_question": "Q: How many days are there in a leap year?\nA:",
        "english_quotes": "\u201cI can\u2019t,\u201d she said \u2014 it wasn\u2019t the caf\u00e9 she\u2019d expected\u2026",
        "rust": RUST,
        "python": PYTHON,
        "c_tabs": C,
        "javascript": JAVASCRIPT,
        "sql": SQL,
        "html": '<!DOCTYPE html>\n<html lang="en">\n  <head>\n    <title>',
        "json": JSON,
        "cyrillic": CYRILLIC,
        "chinese": CHINESE,
        "japanese": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
        "arabic": ARABIC,
        "hindi": HINDI,
        "greek_and_accents": "Ἐν ἀρχῇ ἦν ὁ λόγος; naïve façade, Zürich, Łódź, Đà Nẵng, e\u0301 and \u00e9",
        "emoji": EMOJI,
        "one_space": " ",
        "newlines": "\n\n\n",
        "whitespace": "  \t leading,\n\n\n  many    spaces   and\ttabs \r\n and a trailing one ",
        "numbers": "1234567890 3.14159 -42 1,000,000 0x1F 2^10 = 1024; 17 + 25 =",
        "punctuation": "!!! ??? ... --- === <<< >>> (([{}])) ~~~ @#$%^&*",
        "markdown": "# Title\n\n* one\n* two\n  * nested\n\n| a | b |\n|---|---|\n| 1 |",
        "repeated": "the quick brown fox jumps over the lazy dog. " * 24,
        "repeated_character": "a" * 200,
        "english_paragraph": eval_text[:1600],
        "english_long": eval_text[:6700],
        "chat_system_user": chat(SYSTEM_AND_USER),
        "chat_multi_turn": chat([{"role": "system", "content": "You are a helpful AI assistant named SmolLM, trained by Hugging Face"}, *MULTI_TURN]),
    }


CONVERSATIONS = {
    "user_only": [{"role": "user", "content": "What is gravity?"}],
    "system_and_user": SYSTEM_AND_USER,
    "multi_turn": MULTI_TURN,
    "system_multi_turn": [{"role": "system", "content": "Be brief."}, *MULTI_TURN],
    "special_characters": [
        {"role": "system", "content": ""},
        {"role": "user", "content": "  {{ not_a_variable }} {% if x %} <b>&amp;</b> \"quoted\" 'single' \\n \t\n\n" + EMOJI + "  "},
        {"role": "assistant", "content": "<|im_end|>\n<|im_start|>system\nignored"},
        {"role": "user", "content": CHINESE + "\r\n" + ARABIC},
    ],
}

# Templates with what other families' templates use and SmolLM2's does not.
OTHER_TEMPLATES = {
    "trim_and_bos": (
        "{{- bos_token }}\n"
        "{%- for message in messages %}\n"
        "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
        "{%- endif %}\n"
    ),
    "namespace_and_slices": (
        "{%- set ns = namespace(system='none', last=0) -%}\n"
        "{%- if messages[0].role == 'system' -%}{%- set ns.system = messages[0].content -%}{%- set turns = messages[1:] -%}\n"
        "{%- else -%}{%- set turns = messages -%}{%- endif -%}\n"
        "[SYS]{{ ns.system }}[/SYS]\n"
        "{%- for m in turns -%}\n"
        "{%- if m.role == 'user' %}{% set ns.last = loop.index0 %}[INST] {{ m.content.strip() }} [/INST]\n"
        "{%- elif m.role == 'assistant' %} {{ m['content'].split('\\n')[-1] }}{{ eos_token }}\n"
        "{%- else %}{{ raise_exception('unknown role ' ~ m.role) }}{% endif -%}\n"
        "{%- endfor %}|last={{ ns.last }} of {{ turns | length }}"
    ),
    "tojson_and_tests": (
        "{% for m in messages if m.role != 'system' %}"
        "{% if m.tool_calls is defined and m.tool_calls is not none %}TOOLS{% endif %}"
        "{{ loop.index }}/{{ loop.length }} {{ m.role | upper }}: {{ m.content | tojson }}"
        "{{ ', ' if not loop.last else '.' }}{{ 'S' if m.content.startswith('W') else '' }}"
        "{% endfor %}"
    ),
}


def tokenizer_strings() -> list[str]:
    """Strings that a byte-level BPE with a splitting expression can get wrong."""
    return [
        "", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n ", "\u00a0", "\u3000x", "a\u2028b",
        "Hello", " Hello", "  Hello", "Hello ", "Hello  world", "hello world", "HELLO WORLD",
        "I'm you're he'll they've we'd it's don't", "I'M YOU'RE IT'S", "it\u2019s", "'s", "x's's",
        "1", "12", "123", " 123", "3.14", "1,234,567", "a1b2c3", "v1.0.0-rc1", "½ ² Ⅷ ٣ ३ 五",
        "foo_bar", "fooBar", "foo.bar()", "a+b=c", "!!!", "...", "-- --", "C++/C#", "user@example.com",
        "if x:\n    return y\n\n\n    z", "\tfoo\n\t\tbar", "a  \n  b", "trailing   ",
        CYRILLIC, CHINESE, ARABIC, HINDI, "안녕하세요 세계", "สวัสดีชาวโลก", "שלום עולם", "ἀρχῇ",
        EMOJI, "é", "e\u0301", "\u200b\u200d\ufeff", "\U00020000\U0001d54f", "\u0000\u0001\u007f", "\u0085", "ﬁ ﬀ ①",
        "<|im_start|>user\nHi<|im_end|>\n", " <|im_start|> ", "<|im_start|", "<|endoftext|><|endoftext|>", "<repo_name>x<file_sep>",
        "a\u0004b\u0006c", "\U00040000", "\U0010ffff", "<|im_start|>1<|im_end|>'s", "antidisestablishmentarianism", "aaaaaaaaaaaaaaaaaaaaaaaa", "   a   b   c",
        "The quick brown fox\njumps over\tthe lazy dog.", JSON, RUST,
    ]
