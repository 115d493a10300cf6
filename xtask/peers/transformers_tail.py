"""Measures what transformers takes for the tail of a Llama-3.1-8B: its last 16 layers, final norm and lm_head.

    python transformers_tail.py > peer.jsonl
    python transformers_tail.py --decode 8x512 --prefill 2048 --compile-decode '' --compile-prefill ''

Random weights in bf16. Rows come as hidden states (`inputs_embeds`), so the embedding is not read. Each case is one
line of JSON on standard output, flushed as it is measured; a case that fails is a line too. Two ways of running it:

- `transformers eager`: attention by `scaled_dot_product_attention`, a DynamicCache that grows by concatenation;
- `transformers compiled`: `torch.compile(mode="reduce-overhead")` (CUDA graphs) with a StaticCache as long as the
  context needs. Compiling takes about a minute a case: `--compile-decode` and `--compile-prefill` choose the cases, and
  none is begun after `--limit-seconds`.

Decode: `BATCHxCONTEXT`, one row for each session on caches that hold CONTEXT positions of random keys and values.
Prefill: a prompt of one session in one pass, logits of the last row. `wall_ms` is from the call to the end of the
device's work, `device_ms` between two events around it; medians. Logits stay on the device, unlike those of the tail.
"""

import argparse
import json
import statistics
import sys
import time

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

LAYERS = 16
NUM_LAYERS = 32
DTYPE = torch.bfloat16
DEVICE = "cuda"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decode", type=pairs, default="1x512,8x512,64x512,256x512,1x8192,8x8192,64x8192")
    parser.add_argument("--prefill", type=numbers, default="512,2048,8192")
    parser.add_argument("--compile-decode", type=pairs, default="1x512,8x512,64x512")
    parser.add_argument("--compile-prefill", type=numbers, default="")
    parser.add_argument("--limit-seconds", type=float, default=1800, help="no case is begun after so long")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    started = time.monotonic()
    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device")

    say(
        "transformers",
        kind="machine",
        device=torch.cuda.get_device_name(),
        versions=f"torch {torch.__version__}, transformers {transformers.__version__}, CUDA {torch.version.cuda}",
    )
    model = tail()
    cases = [("transformers eager", "decode", *case) for case in args.decode]
    cases += [("transformers eager", "prefill", 1, tokens) for tokens in args.prefill]
    cases += [("transformers compiled", "decode", *case) for case in args.compile_decode]
    cases += [("transformers compiled", "prefill", 1, tokens) for tokens in args.compile_prefill]
    for by, kind, batch, length in cases:
        name = f"decode of {batch} sessions at {length}" if kind == "decode" else f"a prompt of {length} tokens"
        if time.monotonic() - started > args.limit_seconds:
            say(by, kind="left_out", case=name, reason=f"{args.limit_seconds:.0f} s had passed")
            continue
        try:
            rows, context = (1, length) if kind == "decode" else (length, 0)
            run = eager(model, batch, rows, context) if by.endswith("eager") else compiled(model, batch, rows, context)
            wall_ms, device_ms = measure(*run, args.repeats)
            say(
                by,
                kind=kind,
                split_layer=NUM_LAYERS - LAYERS,
                layers=LAYERS,
                context=context,
                batch=batch,
                tokens=batch * rows,
                wall_ms=wall_ms,
                device_ms=device_ms,
            )
        except Exception as error:  # The other cases are worth having.
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            say(by, kind="left_out", case=name, reason=reason)
        # What the case held goes before the next one, also where it failed.
        run = None
        torch.compiler.reset()
        torch.cuda.empty_cache()


def tail() -> LlamaForCausalLM:
    """The shape's last layers; the values of random weights do not matter, their spread does."""
    config = LlamaConfig(
        num_hidden_layers=LAYERS,
        hidden_size=4096,
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPE)
    try:
        with torch.device(DEVICE):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def eager(model: LlamaForCausalLM, batch: int, rows: int, context: int) -> tuple:
    """What is run, and what comes before each run."""
    states = torch.randn(batch, rows, model.config.hidden_size, dtype=DTYPE, device=DEVICE)
    held = {"cache": None}
    values = [keys_and_values(model, batch, context) for _ in range(LAYERS)] if context else []

    def prepare() -> None:
        held["cache"] = DynamicCache(config=model.config)
        for layer, (keys, value) in enumerate(values):
            # Without a copy: the first step makes one, as each later one does.
            held["cache"].layers[layer].lazy_initialization(keys, value)
            held["cache"].layers[layer].keys = keys
            held["cache"].layers[layer].values = value

    def run() -> torch.Tensor:
        return model(inputs_embeds=states, past_key_values=held["cache"], use_cache=True, logits_to_keep=1).logits

    return prepare, run


def compiled(model: LlamaForCausalLM, batch: int, rows: int, context: int) -> tuple:
    """As `eager`, in CUDA graphs."""
    states = torch.randn(batch, rows, model.config.hidden_size, dtype=DTYPE, device=DEVICE)
    # A multiple of 8, which the attention kernels want of a mask.
    cache = StaticCache(config=model.config, max_cache_len=-(-(context + rows) // 8) * 8)
    position_ids = torch.arange(context, context + rows, device=DEVICE).unsqueeze(0)
    for layer in cache.layers:
        keys, values = keys_and_values(model, batch, 1)
        layer.lazy_initialization(keys, values)
        layer.keys.normal_()
        layer.values.normal_()
    forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=False)

    def prepare() -> None:
        for layer in cache.layers:
            layer.cumulative_length.fill_(context)
        torch.compiler.cudagraph_mark_step_begin()

    def run() -> torch.Tensor:
        output = forward(
            inputs_embeds=states, position_ids=position_ids, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return output.logits

    return prepare, run


def keys_and_values(model: LlamaForCausalLM, batch: int, positions: int) -> list[torch.Tensor]:
    shape = (batch, model.config.num_key_value_heads, positions, model.config.head_dim)
    return [torch.randn(shape, dtype=DTYPE, device=DEVICE) for _ in range(2)]


@torch.no_grad()
def measure(prepare, run, repeats: int) -> tuple[float, float]:
    """Medians in milliseconds: wall, and between events on the device."""
    wall, device = [], []
    for index in range(repeats + 5):
        prepare()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begun = time.perf_counter()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        elapsed = time.perf_counter() - begun
        if index >= 5:
            wall.append(elapsed * 1e3)
            device.append(start.elapsed_time(end))
    return statistics.median(wall), statistics.median(device)


def say(by: str, **fields) -> None:
    print(json.dumps({"by": by, **fields}), flush=True)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def pairs(text: str) -> list[tuple[int, ...]]:
    return [tuple(int(number) for number in part.split("x")) for part in text.split(",") if part]


if __name__ == "__main__":
    main()
