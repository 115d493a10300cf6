"""Measures llama.cpp on a GGUF file: prefill and decode speed, as JSON on standard output.

    export CFLAGS="-fno-tree-dse -fno-dse" CXXFLAGS="-fno-tree-dse -fno-dse"    # see below
    CMAKE_ARGS="-DGGML_NATIVE=ON -DMTMD_BUILD=OFF" pip install -r requirements.txt    # compiles llama.cpp
    python llama_cpp.py --model MODEL.gguf --threads 2 --prefill 128,512 --decode 64 --repeats 5

Prefill: `n` random token ids in one batch into an empty KV cache, logits of the last position only.
Decode: greedy, one token a step, from a context of `--context` random tokens; the prefill before it is
not in its time, the argmax over the vocabulary is. Each is run once unmeasured, then `--repeats` times;
the median is reported, and every run in `seconds`. Other load slows the run on all cores most: llama.cpp's
threads wait for each other after every operation.

The flags: GCC 12 takes the AMX tile configuration's `ldtilecfg` to read 8 of its 64 bytes and drops the
stores of the rest, so that on a processor with AMX the first prefill ends in a segmentation fault. Instead,
`-mno-amx-tile -mno-amx-int8 -mno-amx-bf16` leaves AMX out, at about a fifth of the prefill speed.
"""

import sys

# A script's own folder comes first on the path, and this file has the package's name.
sys.path.pop(0)

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import llama_cpp
import numpy as np

TOKEN_SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2, help="for prefill and decode alike")
    parser.add_argument("--prefill", type=lambda text: [int(part) for part in text.split(",")], default=[128, 512])
    parser.add_argument("--context", type=int, default=128, help="tokens in the KV cache before the first decode step")
    parser.add_argument("--decode", type=int, default=64, help="decode steps; 0 for none")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.repeats < 1 or args.context < 1 or args.threads < 1 or min(args.prefill) < 1:
        parser.error("--repeats, --context, --threads and every --prefill must be at least 1")

    model = Model(args.model, args.threads, max([*args.prefill, args.context + args.decode]))
    prefill = [measure_prefill(model, count, args.repeats) for count in args.prefill]
    decode = measure_decode(model, args.context, args.decode, args.repeats) if args.decode else None
    report = {
        "peer": "llama.cpp",
        "llama_cpp_python": llama_cpp.__version__,
        "system": llama_cpp.llama_print_system_info().decode().strip(),
        "model": args.model.name,
        "threads": args.threads,
        "batch_tokens": model.batch_tokens,
        "repeats": args.repeats,
        "prefill": prefill,
        "decode": decode,
    }
    print(json.dumps(report, indent=2))


class Model:
    """A model with one context that is emptied between runs."""

    def __init__(self, path: Path, threads: int, positions: int) -> None:
        # Kept in the object: llama.cpp holds a pointer to it.
        self._quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
        llama_cpp.llama_log_set(self._quiet, None)
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

        self.batch_tokens = max(512, positions)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = max(512, positions)
        context.n_batch = context.n_ubatch = self.batch_tokens
        context.n_threads = context.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            raise SystemExit(f"llama.cpp cannot make a context of {context.n_ctx} positions")
        self._batch = llama_cpp.llama_batch_init(self.batch_tokens, 0, 1)

    def clear(self) -> None:
        """Empties the KV cache."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def forward(self, token_ids: list[int], position: int) -> np.ndarray:
        """Runs `token_ids` from `position` on; a view of the last one's logits, `[vocab_size]`, f32."""
        batch = self._batch
        batch.n_tokens = len(token_ids)
        for index, token in enumerate(token_ids):
            batch.token[index] = token
            batch.pos[index] = position + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index == len(token_ids) - 1
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode of {len(token_ids)} tokens at {position} returned {status}")
        # Waits for the result, so that the time ends when the logits are there.
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, shape=(self.vocab_size,))

    def random_tokens(self, count: int) -> list[int]:
        """The same `count` ids in every run."""
        generator = random.Random(TOKEN_SEED)
        return [generator.randrange(self.vocab_size) for _ in range(count)]


def measure_prefill(model: Model, count: int, repeats: int) -> dict:
    tokens = model.random_tokens(count)

    def run() -> float:
        model.clear()
        start = time.perf_counter()
        model.forward(tokens, 0)
        return time.perf_counter() - start

    return summary(count, [run() for _ in range(repeats + 1)][1:])


def measure_decode(model: Model, context: int, steps: int, repeats: int) -> dict:
    tokens = model.random_tokens(context)

    def run() -> float:
        model.clear()
        token = int(np.argmax(model.forward(tokens, 0)))
        start = time.perf_counter()
        for step in range(steps):
            token = int(np.argmax(model.forward([token], context + step)))
        return time.perf_counter() - start

    return {"context_tokens": context, **summary(steps, [run() for _ in range(repeats + 1)][1:])}


def summary(tokens: int, seconds: list[float]) -> dict:
    median = statistics.median(seconds)
    return {
        "tokens": tokens,
        "tokens_per_second": round(tokens / median, 2),
        "median_seconds": round(median, 6),
        "seconds": [round(value, 6) for value in seconds],
    }


if __name__ == "__main__":
    main()
