"""Tiny models of each family with random weights: transformers checkpoints, GGUF copies, expected logits.

The weights are large enough, and the norms far enough from one, that a wrong head order, a missing
bias, a skipped norm or a wrong rotary frequency changes the logits in their first digit.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import compact_json
import reference_run
from gguf_reference import LAYER_TENSORS, permute_for_interleaved_rope

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
# Shorter than the prompt, so that every band of frequencies (kept, blended, stretched) is in use.
ORIGINAL_POSITIONS = 32
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": ORIGINAL_POSITIONS,
}
YARN_SCALING = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL_POSITIONS}


@dataclass
class TinyModel:
    """One folder under `tiny/`, and perhaps a GGUF file of the same name."""

    name: str
    config_class: type
    model_class: type
    seed: int
    overrides: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16
    max_shard_size: str = "1GB"
    old_rope_keys: bool = False
    gguf_type: gguf.GGMLQuantizationType | None = None
    with_tokenizer: bool = False


F32, F16 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16

TINY_MODELS = [
    TinyModel("llama", LlamaConfig, LlamaForCausalLM, seed=1, dtype=torch.float32, max_shard_size="200KB", gguf_type=F32, with_tokenizer=True),
    TinyModel("llama_bf16", LlamaConfig, LlamaForCausalLM, seed=1),
    TinyModel("llama_f16", LlamaConfig, LlamaForCausalLM, seed=1, dtype=torch.float16),
    TinyModel("llama3_rope", LlamaConfig, LlamaForCausalLM, seed=2, overrides={"rope_theta": 500000.0, "rope_scaling": LLAMA3_SCALING}, old_rope_keys=True, gguf_type=F16),
    TinyModel("llama_linear", LlamaConfig, LlamaForCausalLM, seed=3, overrides={"num_hidden_layers": 2, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, old_rope_keys=True),
    TinyModel("llama_yarn", LlamaConfig, LlamaForCausalLM, seed=4, overrides={"num_hidden_layers": 2, "rope_scaling": YARN_SCALING, "max_position_embeddings": 4 * ORIGINAL_POSITIONS}, old_rope_keys=True),
    TinyModel("mistral", MistralConfig, MistralForCausalLM, seed=5, overrides={"sliding_window": 16, "head_dim": None}),
    TinyModel("qwen2", Qwen2Config, Qwen2ForCausalLM, seed=6, overrides={"tie_word_embeddings": True, "rope_theta": 1000000.0}, gguf_type=F16),
    TinyModel("qwen3", Qwen3Config, Qwen3ForCausalLM, seed=7, overrides={"head_dim": 32, "rope_theta": 1000000.0}, gguf_type=F16),
]

PROMPT_SEED = 1000
PROMPT_TOKENS = 40
GREEDY_TOKENS = 16
RECORDED_POSITIONS = 3


def write_all(out: Path) -> None:
    """Writes every folder and file under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for tiny in TINY_MODELS:
        write_one(tiny, out)


def write_one(tiny: TinyModel, out: Path) -> None:
    folder = out / tiny.name
    folder.mkdir(exist_ok=True)
    model = build(tiny)
    model.save_pretrained(folder, max_shard_size=tiny.max_shard_size)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if tiny.old_rope_keys:
        write_old_rope_keys(folder)
    if tiny.with_tokenizer:
        write_tokenizer(folder)

    # The arithmetic is f32 on weights that were rounded to the stored type. Loaded again from what was
    # written, so that the files themselves are what the logits belong to.
    reference = tiny.model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.float(), reference.get_parameter(name)), name
    if tiny.old_rope_keys:
        old = tiny.config_class.from_json_file(folder / "config.old_keys.json")
        assert old.rope_parameters.items() >= reference.config.rope_parameters.items(), old.rope_parameters
    compact_json.write(folder / "expected.json", expected(tiny, reference))
    if tiny.gguf_type is not None:
        write_gguf(tiny, reference, out / f"{tiny.name}.gguf")


def build(tiny: TinyModel):
    """The model with its random weights in the stored type."""
    model = tiny.model_class(tiny.config_class(**{**SHAPE, **tiny.overrides}))
    generator = torch.Generator().manual_seed(tiny.seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1.0 + 0.25 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(0.2 * noise)
            if tiny.gguf_type == F16 and tiny.dtype == torch.bfloat16:
                # Below f16's normal range bf16 keeps bits that f16 does not: such weights become zero.
                parameter[parameter.abs() < 2.0**-14] = 0.0
    return model.to(tiny.dtype)


def write_old_rope_keys(folder: Path) -> None:
    """Writes `config.old_keys.json`: `rope_theta` and `rope_scaling` in place of `rope_parameters`.

    The linear one has the still older `type` in place of `rope_type`.
    """
    config = json.loads((folder / "config.json").read_text())
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    config["rope_scaling"] = scaling
    config["torch_dtype"] = config.pop("dtype")
    if scaling["rope_type"] == "linear":
        scaling["type"] = scaling.pop("rope_type")
    (folder / "config.old_keys.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def prompts_of(vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(PROMPT_SEED)
    long = torch.randint(2, vocab_size, (PROMPT_TOKENS,), generator=generator).tolist()
    return [long, [7]]


def expected(tiny: TinyModel, model) -> dict:
    cases = []
    for token_ids in prompts_of(model.config.vocab_size):
        logits = reference_run.logits_of(model, token_ids)
        tokens, margins = reference_run.greedy(model, token_ids, GREEDY_TOKENS)
        first = max(0, len(token_ids) - RECORDED_POSITIONS)
        cases.append(
            {
                "token_ids": token_ids,
                "positions": list(range(first, len(token_ids))),
                "logits": [[compact_json.seven_digits(value) for value in row] for row in logits[first:]],
                "greedy": tokens,
                "margins": [compact_json.seven_digits(margin) for margin in margins],
            }
        )
    return {"model": tiny.name, "weights_dtype": str(tiny.dtype).removeprefix("torch."), "cases": cases}


def tiny_tokenizer() -> Tokenizer:
    """128 tokens: two control tokens, printable ASCII, space and newline, and the merges that fit."""
    alphabet = [chr(code) for code in range(0x21, 0x7F)] + ["Ġ", "Ċ"]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "t"), ("Ġ", "a"), ("i", "n"), ("e", "r"), ("o", "n"), ("Ġ", "the")]
    merges += [("r", "e"), ("a", "t"), ("e", "n"), ("o", "r"), ("e", "s"), ("i", "s"), ("Ġ", "o"), ("in", "g")]
    merges += [("Ġ", "s"), ("a", "n"), ("an", "d"), ("Ġ", "w"), ("e", "d"), ("Ġo", "f"), ("a", "l"), ("i", "t")]
    merges += [("o", "u"), ("l", "l"), ("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("Ġ", "and"), ("Ċ", "Ċ")]
    tokens = ["<|bos|>", "<|eos|>", *alphabet, *(left + right for left, right in merges)]
    assert len(tokens) == len(set(tokens)) == SHAPE["vocab_size"], len(tokens)
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens[:2]])
    return tokenizer


CHAT_TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"


def write_tokenizer(folder: Path) -> None:
    PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer(),
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


GGUF_TENSORS = {value: key for key, value in LAYER_TENSORS.items()} | {
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}


def gguf_name(name: str) -> str:
    """`model.layers.3.self_attn.q_proj.bias` → `blk.3.attn_q.bias`."""
    outside = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in outside:
        return outside[name]
    _, _, layer, rest = name.split(".", 3)
    kind, suffix = rest.rsplit(".", 1)
    return f"blk.{layer}.{GGUF_TENSORS[kind]}.{suffix}"


def llama3_rope_factors(config) -> np.ndarray:
    """By how much each frequency is divided: `rope_freqs.weight` as llama.cpp's converter writes it."""
    scaling = config.rope_parameters
    head_dim = config.hidden_size // config.num_attention_heads
    low_wavelength = scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
    high_wavelength = scaling["original_max_position_embeddings"] / scaling["high_freq_factor"]
    factors = []
    for exponent in np.arange(0, head_dim, 2) / head_dim:
        wavelength = 2 * np.pi * scaling["rope_theta"] ** exponent
        if wavelength < high_wavelength:
            factors.append(1.0)
        elif wavelength > low_wavelength:
            factors.append(scaling["factor"])
        else:
            blend = (scaling["original_max_position_embeddings"] / wavelength - scaling["low_freq_factor"]) / (
                scaling["high_freq_factor"] - scaling["low_freq_factor"]
            )
            factors.append(1.0 / ((1.0 - blend) / scaling["factor"] + blend))
    return np.array(factors, dtype=np.float32)


def write_gguf(tiny: TinyModel, model, path: Path) -> None:
    """The same weights as a GGUF file: matrices in `tiny.gguf_type`, vectors in f32."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_name(f"tiny {tiny.name}")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if tiny.gguf_type == F32 else gguf.LlamaFileType.MOSTLY_F16)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(config.vocab_size)
    if head_dim != config.hidden_size // config.num_attention_heads:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    add_gguf_tokenizer(writer)

    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_rope_factors(config))
    for name, parameter in model.named_parameters():  # a tied lm_head is listed once, as the embedding
        weight = parameter.detach().numpy()
        if config.model_type == "llama" and ".q_proj." in name:
            weight = permute_for_interleaved_rope(weight, config.num_attention_heads)
        elif config.model_type == "llama" and ".k_proj." in name:
            weight = permute_for_interleaved_rope(weight, config.num_key_value_heads)
        if weight.ndim == 2 and tiny.gguf_type == F16:
            assert np.array_equal(weight.astype(np.float16).astype(np.float32), weight), name
            weight = weight.astype(np.float16)
        writer.add_tensor(gguf_name(name), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_gguf_tokenizer(writer: gguf.GGUFWriter) -> None:
    document = json.loads(tiny_tokenizer().to_str())
    tokens = sorted(document["model"]["vocab"], key=document["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(tokens) - 2))
    writer.add_token_merges([" ".join(merge) for merge in document["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
