//! What tensors are called.

/// The embedding matrix, `[vocab_size, hidden_size]`.
pub const EMBEDDING: &str = "token_embd.weight";
/// Weights of the norm before the lm_head, `[hidden_size]`.
pub const OUTPUT_NORM: &str = "output_norm.weight";
/// The lm_head, `[vocab_size, hidden_size]`; absent where embeddings are tied.
pub const LM_HEAD: &str = "output.weight";
/// One divisor a RoPE frequency, `[head_dim / 2]`; GGUF only.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The GGUF name of a layer's tensor: `in_layer(3, "attn_q.weight")` is `blk.3.attn_q.weight`.
#[must_use]
pub fn in_layer(layer: usize, name: &str) -> String {
    format!("blk.{layer}.{name}")
}

/// The name of the tensor `layers` layers further up: `shifted("blk.0.attn_q.weight", 3)` is `blk.3.attn_q.weight`.
/// Names outside of layers stay.
#[must_use]
pub fn shifted(name: &str, layers: usize) -> String {
    let in_a_layer = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'))
        .and_then(|(layer, rest)| Some((layer.parse::<usize>().ok()?, rest)));
    match in_a_layer {
        Some((layer, rest)) => in_layer(layer + layers, rest),
        None => name.to_owned(),
    }
}

/// The name a tensor has in a safetensors checkpoint of the Llama family.
#[must_use]
pub fn in_safetensors(name: &str) -> String {
    match name {
        EMBEDDING => return "model.embed_tokens.weight".to_owned(),
        OUTPUT_NORM => return "model.norm.weight".to_owned(),
        LM_HEAD => return "lm_head.weight".to_owned(),
        _ => {}
    }
    let Some((layer, rest)) = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'))
    else {
        return name.to_owned();
    };
    let (module, kind) = rest.rsplit_once('.').unwrap_or((rest, "weight"));
    let module = match module {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "attn_output" => "self_attn.o_proj",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => other,
    };
    format!("model.layers.{layer}.{module}.{kind}")
}
