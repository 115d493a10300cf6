//! A tokenizer from GGUF metadata: byte-level BPE (`gpt2`) and sentencepiece BPE (`llama`).

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use tokenizers::decoders::{
    DecoderWrapper, byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as Decoders,
    strip::Strip,
};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{
    NormalizerWrapper, Prepend, Replace, Sequence as Normalizers, unicode::NFC,
};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::{Tokenizer, tokenizer_error};
use crate::error::LoadError;

type Metadata = HashMap<String, Value>;

/// Splits words as Llama 3 does; Qwen2 differs in taking digits one by one.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN_SPLIT: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// GGUF's token types (`llama_token_type`).
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

impl Tokenizer {
    /// From the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] where a key is missing, or the kind of tokenizer is not known.
    pub(crate) fn from_gguf(metadata: &Metadata) -> Result<Self, LoadError> {
        let tokens = strings(metadata, "tokenizer.ggml.tokens")?;
        let mut inner = match string(metadata, "tokenizer.ggml.model")? {
            "gpt2" => byte_level(metadata, &tokens)?,
            "llama" => sentencepiece(metadata, &tokens)?,
            other => {
                return Err(tokenizer_error(format!(
                    "model {other:?} is not supported; expected gpt2 or llama"
                )));
            }
        };
        let added = added_tokens(metadata, &tokens);
        inner.add_tokens(added).map_err(tokenizer_error)?;
        Ok(Self { inner })
    }
}

/// Byte-level BPE with the splitting rule that `tokenizer.ggml.pre` names.
fn byte_level(metadata: &Metadata, tokens: &[&str]) -> Result<Inner, LoadError> {
    let merges = strings(metadata, "tokenizer.ggml.merges")?
        .into_iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(tokenizer_error(format!(
                "merge {merge:?}: expected two tokens with a space between"
            ))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let pre = string(metadata, "tokenizer.ggml.pre").unwrap_or("default");
    let split = |pattern: &str| -> Result<PreTokenizerWrapper, LoadError> {
        let pattern = SplitPattern::Regex(pattern.to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            .map_err(tokenizer_error)?;
        Ok(Sequence::new(vec![
            split.into(),
            ByteLevel::new(false, true, false).into(),
        ])
        .into())
    };
    let words: PreTokenizerWrapper = match pre {
        "default" | "gpt-2" | "gpt2" => ByteLevel::new(false, true, true).into(),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            Sequence::new(vec![
                Digits::new(true).into(),
                ByteLevel::new(false, true, true).into(),
            ])
            .into()
        }
        "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" | "lfm2" => split(LLAMA3_SPLIT)?,
        "qwen2" | "deepseek-r1-qwen" | "megrez" => split(QWEN2_SPLIT)?,
        "tekken" => split(TEKKEN_SPLIT)?,
        other => {
            return Err(tokenizer_error(format!(
                "splitting rule {other:?} is not supported; expected default, smollm, llama-bpe, qwen2 or tekken"
            )));
        }
    };
    let whole_words_first = matches!(pre, "llama-bpe" | "llama3" | "llama-v3" | "tekken");
    let model = BPE::builder()
        .vocab_and_merges(vocabulary::<Vocab>(tokens), merges)
        .ignore_merges(whole_words_first)
        .build()
        .map_err(tokenizer_error)?;
    let mut inner = Inner::new(model);
    if pre == "qwen2" {
        inner.with_normalizer(Some(NFC)).map_err(tokenizer_error)?;
    }
    inner.with_pre_tokenizer(Some(words));
    inner.with_decoder(Some(ByteLevel::new(true, true, true)));
    Ok(inner)
}

/// Sentencepiece BPE: a pair of tokens merges if the whole is a token, the best-scored whole first.
fn sentencepiece(metadata: &Metadata, tokens: &[&str]) -> Result<Inner, LoadError> {
    let scores = match metadata.get("tokenizer.ggml.scores") {
        Some(Value::Array(scores)) if scores.len() == tokens.len() => scores,
        _ => {
            return Err(tokenizer_error(
                "tokenizer.ggml.scores is missing, or not one score for each token",
            ));
        }
    };
    let vocab: Vocab = vocabulary(tokens);
    let mut merges = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        let score = score.to_f32().unwrap_or(f32::NEG_INFINITY);
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(left_id), Some(right_id)) = (vocab.get(left), vocab.get(right)) {
                merges.push((
                    score,
                    *left_id,
                    *right_id,
                    left.to_owned(),
                    right.to_owned(),
                ));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let unknown = tokens
        .iter()
        .find(|token| **token == "<unk>")
        .map(|token| (*token).to_owned());
    let mut model = BPE::builder()
        .vocab_and_merges(
            vocab,
            merges
                .into_iter()
                .map(|(_, _, _, left, right)| (left, right))
                .collect::<Vec<_>>(),
        )
        .byte_fallback(true)
        .fuse_unk(true);
    if let Some(unknown) = unknown {
        model = model.unk_token(unknown);
    }
    let mut inner = Inner::new(model.build().map_err(tokenizer_error)?);
    let prefix = metadata
        .get("tokenizer.ggml.add_space_prefix")
        .and_then(|v| v.to_bool().ok())
        .unwrap_or(true);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    if prefix {
        normalizers.push(Prepend::new("▁".to_owned()).into());
    }
    normalizers.push(Replace::new(" ", "▁").map_err(tokenizer_error)?.into());
    inner
        .with_normalizer(Some(Normalizers::new(normalizers)))
        .map_err(tokenizer_error)?;
    let mut decoders: Vec<DecoderWrapper> = vec![
        Replace::new("▁", " ").map_err(tokenizer_error)?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if prefix {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    inner.with_decoder(Some(Decoders::new(decoders)));
    Ok(inner)
}

/// Control tokens are special (left out of text); user-defined ones are matched whole and shown.
fn added_tokens(metadata: &Metadata, tokens: &[&str]) -> Vec<AddedToken> {
    let Some(Value::Array(types)) = metadata.get("tokenizer.ggml.token_type") else {
        return Vec::new();
    };
    tokens
        .iter()
        .zip(types)
        .filter_map(|(token, kind)| match integer(kind) {
            Some(UNKNOWN | CONTROL) => Some(AddedToken::from(*token, true).normalized(false)),
            Some(USER_DEFINED) => Some(AddedToken::from(*token, false).normalized(false)),
            _ => None,
        })
        .collect()
}

fn vocabulary<V: FromIterator<(String, u32)>>(tokens: &[&str]) -> V {
    (0_u32..)
        .zip(tokens)
        .map(|(id, token)| ((*token).to_owned(), id))
        .collect()
}

fn integer(value: &Value) -> Option<i64> {
    value
        .to_i32()
        .map(i64::from)
        .ok()
        .or_else(|| value.to_u32().map(i64::from).ok())
}

fn string<'a>(metadata: &'a Metadata, key: &str) -> Result<&'a str, LoadError> {
    metadata
        .get(key)
        .and_then(|value| value.to_string().ok())
        .map(String::as_str)
        .ok_or_else(|| tokenizer_error(format!("{key} is missing; expected a string")))
}

fn strings<'a>(metadata: &'a Metadata, key: &str) -> Result<Vec<&'a str>, LoadError> {
    let Some(Value::Array(values)) = metadata.get(key) else {
        return Err(tokenizer_error(format!(
            "{key} is missing; expected a list of strings"
        )));
    };
    values
        .iter()
        .map(|value| match value {
            Value::String(text) => Ok(text.as_str()),
            other => Err(tokenizer_error(format!(
                "{key} holds {other:?}; expected strings"
            ))),
        })
        .collect()
}
