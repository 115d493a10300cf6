"""A GGUF file of the `llama` architecture as a transformers model and a `tokenizers` tokenizer.

Nothing here shares code with the Rust workspace: the block formats are decoded by the `gguf` package,
the forward pass is transformers' and the merges are applied by `tokenizers`.
"""

from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# llama.cpp's token types: control tokens are special, user-defined ones are matched as they stand.
TOKEN_TYPE_CONTROL = 3
TOKEN_TYPE_USER_DEFINED = 4


def read_metadata(reader: gguf.GGUFReader) -> dict:
    """All key-value pairs, arrays as lists."""
    return {name: field.contents() for name, field in reader.fields.items()}


def permute_for_interleaved_rope(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorders the rows of a q or k projection as llama.cpp's `llama` architecture stores them.

    transformers rotates the pairs (i, i + head_dim / 2); llama.cpp rotates (2i, 2i + 1).
    """
    rows = weight.shape[0]
    halves = weight.reshape(num_heads, 2, rows // num_heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def undo_permutation(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """The inverse of [permute_for_interleaved_rope]."""
    rows = weight.shape[0]
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, -1)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def transformers_name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    outside = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if gguf_name in outside:
        return outside[gguf_name]
    _, layer, kind, suffix = gguf_name.split(".")
    return f"model.layers.{layer}.{LAYER_TENSORS[kind]}.{suffix}"


def load_model(path: Path, attention: str = "sdpa") -> LlamaForCausalLM:
    """The model with every tensor dequantised to f32."""
    reader = gguf.GGUFReader(path)
    metadata = read_metadata(reader)
    assert metadata["general.architecture"] == "llama"
    num_heads = metadata["llama.attention.head_count"]
    num_kv_heads = metadata["llama.attention.head_count_kv"]

    state = {}
    for tensor in reader.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        weight = weight.reshape([int(size) for size in reversed(tensor.shape)])
        if tensor.name.endswith("attn_q.weight"):
            weight = undo_permutation(weight, num_heads)
        elif tensor.name.endswith("attn_k.weight"):
            weight = undo_permutation(weight, num_kv_heads)
        state[transformers_name(tensor.name)] = torch.from_numpy(weight.copy())

    tied = "lm_head.weight" not in state
    config = LlamaConfig(
        vocab_size=metadata["llama.vocab_size"],
        hidden_size=metadata["llama.embedding_length"],
        intermediate_size=metadata["llama.feed_forward_length"],
        num_hidden_layers=metadata["llama.block_count"],
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        max_position_embeddings=metadata["llama.context_length"],
        rms_norm_eps=float(np.float32(metadata["llama.attention.layer_norm_rms_epsilon"])),
        rope_theta=float(metadata["llama.rope.freq_base"]),
        bos_token_id=metadata["tokenizer.ggml.bos_token_id"],
        eos_token_id=metadata["tokenizer.ggml.eos_token_id"],
        tie_word_embeddings=tied,
        attn_implementation=attention,
    )
    assert config.rope_parameters["rope_theta"] == metadata["llama.rope.freq_base"]
    model = LlamaForCausalLM(config).to(torch.float32)
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model.eval()


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The byte-level BPE of the file's metadata with the `smollm` pre-tokenizer."""
    metadata = read_metadata(gguf.GGUFReader(path))
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == "smollm"
    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata["tokenizer.ggml.token_type"]

    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for token, token_type in zip(tokens, types, strict=True):
        if token_type == TOKEN_TYPE_CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif token_type == TOKEN_TYPE_USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    assert tokenizer.get_vocab_size() == len(tokens)

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[metadata["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[metadata["tokenizer.ggml.eos_token_id"]],
        chat_template=metadata["tokenizer.chat_template"],
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The ids of `text` alone, special tokens in it recognised; this vocabulary adds no BOS."""
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def decode(tokenizer: PreTrainedTokenizerFast, token_ids: list[int]) -> str:
    """The text of `token_ids`, special tokens included."""
    return tokenizer.backend_tokenizer.decode(token_ids, skip_special_tokens=False)
