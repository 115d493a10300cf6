//! The model crate against Hugging Face transformers: logits and greedy tokens.
//!
//! Tolerances are those that `golden/README.md` derives: two f32 implementations of the reference differ
//! by up to 4.5e-4 on SmolLM2 and 2e-5 on the tiny models.

use std::collections::HashMap;

use anyhow::Result;
use e2e::{golden, golden_dir, smollm2};
use headway_model::chat_template::{ChatMessage, ChatTemplate};
use headway_model::sampler::{argmax, log_sum_exp};
use headway_model::weights::{WeightDtype, Weights};
use headway_model::{Decoder, KvCache, LayerRange, ModelConfig};
use serde::Deserialize;

const SMOLLM2_TOLERANCE: f32 = 1e-3;
const TINY_TOLERANCE: f32 = 1e-4;

fn whole(weights: &Weights, dtype: WeightDtype) -> Result<Decoder> {
    let layers = LayerRange::new(0, weights.config().num_layers);
    Ok(Decoder::load(weights, layers, dtype)?)
}

/// Hidden states after the last layer; `[token_ids.len(), hidden_size]`.
fn hidden_states(decoder: &Decoder, token_ids: &[u32], cache: &mut KvCache) -> Result<Vec<f32>> {
    let mut hidden_states = decoder.embed(token_ids)?;
    decoder.forward(decoder.layers(), &mut hidden_states, cache)?;
    Ok(hidden_states)
}

fn last_logits(decoder: &Decoder, token_ids: &[u32], cache: &mut KvCache) -> Result<Vec<f32>> {
    let hidden = hidden_states(decoder, token_ids, cache)?;
    Ok(decoder.logits(&hidden[hidden.len() - decoder.config().hidden_size..])?)
}

/// Follows the expected tokens while the reference's own choice is not a near-tie.
fn check_greedy(
    decoder: &Decoder,
    cache: &mut KvCache,
    mut logits: Vec<f32>,
    expected: &[u32],
    margins: &[f32],
    tolerance: f32,
) -> Result<()> {
    for (step, (token_id, margin)) in expected.iter().zip(margins).enumerate() {
        if *margin < 2.0 * tolerance {
            return Ok(());
        }
        assert_eq!(
            argmax(&logits),
            *token_id,
            "greedy token {step} (margin {margin})"
        );
        logits = last_logits(decoder, &[*token_id], cache)?;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Tiny {
    cases: Vec<TinyCase>,
}

#[derive(Deserialize)]
struct TinyCase {
    token_ids: Vec<u32>,
    positions: Vec<usize>,
    logits: Vec<Vec<f32>>,
    greedy: Vec<u32>,
    margins: Vec<f32>,
}

fn check_tiny(name: &str, path: &str) -> Result<()> {
    let expected: Tiny = golden(&format!("tiny/{name}/expected.json"))?;
    let decoder = whole(
        &Weights::open(&golden_dir().join(path))?,
        WeightDtype::Native,
    )?;
    for case in &expected.cases {
        let mut cache = decoder.new_cache(case.token_ids.len() + case.greedy.len());
        let hidden = hidden_states(&decoder, &case.token_ids, &mut cache)?;
        let all = decoder.logits(&hidden)?;
        let vocab_size = decoder.config().vocab_size;
        for (position, expected) in case.positions.iter().zip(&case.logits) {
            let found = &all[position * vocab_size..(position + 1) * vocab_size];
            for (token_id, (found, expected)) in found.iter().zip(expected).enumerate() {
                assert!(
                    (found - expected).abs() < TINY_TOLERANCE,
                    "{path}: position {position} token {token_id}: {found}, transformers {expected}"
                );
            }
        }
        let logits = all[all.len() - vocab_size..].to_vec();
        check_greedy(
            &decoder,
            &mut cache,
            logits,
            &case.greedy,
            &case.margins,
            TINY_TOLERANCE,
        )?;
    }
    Ok(())
}

#[test]
fn every_family_from_safetensors_gives_the_logits_of_transformers() -> Result<()> {
    for name in [
        "llama",
        "llama_bf16",
        "llama_f16",
        "llama3_rope",
        "llama_linear",
        "llama_yarn",
        "mistral",
        "qwen2",
        "qwen3",
    ] {
        check_tiny(name, &format!("tiny/{name}"))?;
    }
    Ok(())
}

#[test]
fn every_family_from_gguf_gives_the_logits_of_transformers() -> Result<()> {
    for name in ["llama", "llama3_rope", "qwen2", "qwen3"] {
        check_tiny(name, &format!("tiny/{name}.gguf"))?;
    }
    Ok(())
}

#[test]
fn older_configuration_keys_say_the_same() -> Result<()> {
    for name in ["llama3_rope", "llama_linear", "llama_yarn"] {
        let read = |file: &str| -> Result<ModelConfig> {
            let json = std::fs::read_to_string(golden_dir().join("tiny").join(name).join(file))?;
            Ok(ModelConfig::from_huggingface(&json)?)
        };
        assert_eq!(
            read("config.json")?,
            read("config.old_keys.json")?,
            "{name}"
        );
    }
    Ok(())
}

#[derive(Deserialize)]
struct Reference {
    probe_token_ids: Vec<usize>,
    prompts: Vec<ReferencePrompt>,
}

#[derive(Deserialize)]
struct ReferencePrompt {
    name: String,
    text: String,
    token_ids: Vec<u32>,
    top_ids: Vec<usize>,
    top_logits: Vec<f32>,
    probe_logits: Vec<f32>,
    logsumexp: f32,
    greedy: Vec<u32>,
    margins: Vec<f32>,
}

#[test]
fn smollm2_in_f32_gives_the_logits_of_transformers() -> Result<()> {
    let reference: Reference = golden("smollm2.json")?;
    assert!(reference.prompts.len() >= 20);
    let weights = Weights::open(&smollm2())?;
    let tokenizer = weights.tokenizer()?;
    let decoder = whole(&weights, WeightDtype::F32)?;
    let mut largest = 0.0_f32;
    for prompt in &reference.prompts {
        if !prompt.text.is_empty() {
            assert_eq!(
                tokenizer.encode(&prompt.text)?,
                prompt.token_ids,
                "{}",
                prompt.name
            );
        }
        let mut cache = decoder.new_cache(prompt.token_ids.len() + prompt.greedy.len());
        let logits = last_logits(&decoder, &prompt.token_ids, &mut cache)?;
        let top = prompt.top_ids.iter().zip(&prompt.top_logits);
        let probes = reference.probe_token_ids.iter().zip(&prompt.probe_logits);
        for (token_id, expected) in top.chain(probes) {
            let error = (logits[*token_id] - expected).abs();
            largest = largest.max(error);
            assert!(
                error < SMOLLM2_TOLERANCE,
                "{}: token {token_id}: off by {error}",
                prompt.name
            );
        }
        assert!(
            (log_sum_exp(&logits) - prompt.logsumexp).abs() < SMOLLM2_TOLERANCE,
            "{}",
            prompt.name
        );
        check_greedy(
            &decoder,
            &mut cache,
            logits,
            &prompt.greedy,
            &prompt.margins,
            SMOLLM2_TOLERANCE,
        )?;
    }
    println!("largest difference of a logit: {largest:.1e}");
    Ok(())
}

#[derive(Deserialize)]
struct Loss {
    window_tokens: usize,
    window_nll_sums: Vec<f64>,
}

/// Nats lost on tokens 1.. of a window, each given those before it.
fn loss(decoder: &Decoder, window: &[u32]) -> Result<f64> {
    let hidden = hidden_states(decoder, window, &mut decoder.new_cache(window.len()))?;
    let hidden_size = decoder.config().hidden_size;
    let mut sum = 0.0;
    for (hidden, target) in hidden.chunks(hidden_size).zip(&window[1..]) {
        let logits = decoder.logits(hidden)?;
        sum += f64::from(log_sum_exp(&logits) - logits[*target as usize]);
    }
    Ok(sum)
}

#[test]
fn the_loss_on_prose_is_that_of_transformers() -> Result<()> {
    let reference: Loss = golden("perplexity.json")?;
    let text = std::fs::read_to_string(golden_dir().join("eval_text.txt"))?;
    let weights = Weights::open(&smollm2())?;
    let token_ids = weights.tokenizer()?.encode(&text)?;
    let (exact, native) = (
        whole(&weights, WeightDtype::F32)?,
        whole(&weights, WeightDtype::Native)?,
    );
    let windows = token_ids.chunks(reference.window_tokens);
    for (window, expected) in windows.zip(&reference.window_nll_sums).take(2) {
        let found = loss(&exact, window)?;
        assert!(
            (found - expected).abs() < 0.02,
            "{found} against {expected}"
        );
        // Activations rounded to 8 bits cost 0.1 % of the loss on average; a wrong kernel costs far more.
        let found = loss(&native, window)?;
        assert!(
            (found / expected - 1.0).abs() < 0.01,
            "{found} against {expected}"
        );
    }
    Ok(())
}

#[derive(Deserialize)]
struct TokenizerGolden {
    cases: Vec<TokenizerCase>,
}

#[derive(Deserialize)]
struct TokenizerCase {
    text: String,
    token_ids: Vec<u32>,
    decoded: String,
}

#[test]
fn the_tokenizer_from_gguf_metadata_agrees_with_the_reference() -> Result<()> {
    let expected: TokenizerGolden = golden("tokenizer.json_cases.json")?;
    let tokenizer = Weights::open(&smollm2())?.tokenizer()?;
    let special = tokenizer.special_tokens();
    for case in &expected.cases {
        assert_eq!(
            tokenizer.encode(&case.text)?,
            case.token_ids,
            "{:?}",
            case.text
        );
        // The reference keeps special tokens in its text, this crate leaves them out.
        let without_special = special
            .keys()
            .fold(case.decoded.clone(), |text, token| text.replace(token, ""));
        assert_eq!(tokenizer.decode(&case.token_ids)?, without_special);
        let mut stream = tokenizer.stream();
        let mut streamed = String::new();
        for token_id in &case.token_ids {
            streamed.push_str(&stream.push(*token_id)?);
        }
        streamed.push_str(&stream.finish()?);
        assert_eq!(streamed, without_special, "token by token");
    }
    Ok(())
}

#[derive(Deserialize)]
struct TemplateGolden {
    templates: HashMap<String, String>,
    bos_token: String,
    eos_token: String,
    cases: Vec<TemplateCase>,
}

#[derive(Deserialize)]
struct TemplateCase {
    template: String,
    name: String,
    messages: Vec<ChatMessage>,
    add_generation_prompt: bool,
    rendered: String,
}

#[test]
fn chat_templates_render_as_in_transformers() -> Result<()> {
    let expected: TemplateGolden = golden("chat_template.json")?;
    let weights = Weights::open(&smollm2())?;
    assert_eq!(
        weights.chat_template(),
        expected.templates.get("smollm2").map(String::as_str)
    );
    for case in &expected.cases {
        let source = &expected.templates[&case.template];
        let template = ChatTemplate::new(
            source,
            Some(expected.bos_token.clone()),
            Some(expected.eos_token.clone()),
        )?;
        let rendered = template.render(&case.messages, case.add_generation_prompt)?;
        assert_eq!(rendered, case.rendered, "{} {}", case.template, case.name);
    }
    Ok(())
}
