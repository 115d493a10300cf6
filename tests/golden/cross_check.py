"""Compares the golden files with llama.cpp, which shares no code with what wrote them.

    pip install -r ../../xtask/peers/requirements.txt
    python f32_gguf.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --out f32.gguf
    python cross_check.py --gguf f32.gguf

Prints differences and changes nothing. With the Q4_1 file itself the differences are some tenths, not
some ten-thousandths: llama.cpp rounds activations to 8 bits before a product with quantised weights.
Likewise to f16 with f16 weights, which is why of the tiny files only the f32 one agrees to 1e-5.
"""

import argparse
import json
from pathlib import Path

import llama_cpp
import numpy as np

GOLDEN = Path(__file__).parent
POSITIONS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    args = parser.parse_args()
    model = load(args.gguf)
    check_tokenizer(model)
    check_smollm2(model)
    check_perplexity(model)
    for name in ("llama", "llama3_rope", "qwen2", "qwen3"):
        check_tiny(name)


def load(path: Path) -> llama_cpp.Llama:
    return llama_cpp.Llama(
        str(path),
        n_ctx=POSITIONS,
        n_batch=POSITIONS,
        n_ubatch=POSITIONS,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
        verbose=False,
    )


def read(name: str) -> dict:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def logits_of(model: llama_cpp.Llama, token_ids: list[int]) -> np.ndarray:
    """`[seq_len, vocab_size]`, f32."""
    model.reset()
    model.eval(token_ids)
    return model.scores[: len(token_ids)].copy()


def greedy(model: llama_cpp.Llama, token_ids: list[int], count: int) -> list[int]:
    row = logits_of(model, token_ids)[-1]
    tokens = []
    for position in range(len(token_ids), len(token_ids) + count):
        tokens.append(int(np.argmax(row)))
        model.eval(tokens[-1:])
        row = model.scores[position]
    return tokens


def equal_steps(ours: list[int], theirs: list[int]) -> int:
    """How many tokens agree from the first on."""
    return next((index for index, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]), len(ours))


def check_tokenizer(model: llama_cpp.Llama) -> None:
    cases = read("tokenizer.json_cases.json")["cases"] + [
        {"text": case["text"], "token_ids": case["token_ids"]} for case in read("smollm2.json")["prompts"] if case["text"]
    ]
    cases += [
        {"text": case["rendered"], "token_ids": case["token_ids"]}
        for case in read("chat_template.json")["cases"]
        if "token_ids" in case
    ]
    differing = 0
    for case in cases:
        theirs = model.tokenize(case["text"].encode(), add_bos=False, special=True)
        if theirs != case["token_ids"]:
            differing += 1
            print(f"tokenizer: {case['text'][:60]!r}: golden {case['token_ids'][:12]}, llama.cpp {theirs[:12]}")
        decoded = model.detokenize(case["token_ids"], special=True).decode("utf-8", errors="replace")
        if decoded != case.get("decoded", decoded):
            print(f"decoding: {case['text'][:60]!r}: golden {case['decoded'][:40]!r}, llama.cpp {decoded[:40]!r}")
    print(f"tokenizer: {len(cases)} strings, {differing} differ")


def check_smollm2(model: llama_cpp.Llama) -> None:
    golden = read("smollm2.json")
    print("prompt tokens max-difference(top,probe) rms-difference same-top1 greedy-agreement margin-at-the-difference")
    for case in golden["prompts"]:
        row = logits_of(model, case["token_ids"])[-1]
        top = np.abs(row[case["top_ids"]] - np.array(case["top_logits"]))
        probes = np.abs(row[golden["probe_token_ids"]] - np.array(case["probe_logits"]))
        rms = np.sqrt(np.mean(np.concatenate([top, probes]) ** 2))
        count = len(case["greedy"])
        same = equal_steps(case["greedy"], greedy(model, case["token_ids"], count))
        margin = "" if same == count else f"{case['margins'][same]:.3f}"
        print(
            f"{case['name']} {len(case['token_ids'])} {top.max():.1e},{probes.max():.1e} {rms:.1e}"
            f" {int(np.argmax(row)) == case['greedy'][0]} {same}/{count} {margin}"
        )


def check_perplexity(model: llama_cpp.Llama, windows: int = 4) -> None:
    golden = read("perplexity.json")
    text = (GOLDEN / golden["text"]).read_text(encoding="utf-8")
    token_ids = model.tokenize(text.encode(), add_bos=False, special=True)
    assert len(token_ids) == golden["text_token_count"], len(token_ids)
    for index in range(windows):
        size = golden["window_tokens"]
        window = token_ids[index * size : (index + 1) * size]
        logits = logits_of(model, window)[:-1].astype(np.float64)
        peak = logits.max(axis=1)
        log_sums = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
        nll_sum = (log_sums - logits[np.arange(size - 1), window[1:]]).sum()
        print(f"window {index}: loss golden {golden['window_nll_sums'][index]}, llama.cpp {nll_sum:.3f}")


def check_tiny(name: str) -> None:
    model = load(GOLDEN / "tiny" / f"{name}.gguf")
    for case in read(f"tiny/{name}/expected.json")["cases"]:
        rows = logits_of(model, case["token_ids"])[case["positions"]]
        difference = np.abs(rows - np.array(case["logits"])).max()
        same = equal_steps(case["greedy"], greedy(model, case["token_ids"], len(case["greedy"])))
        print(f"tiny/{name}.gguf, {len(case['token_ids'])} tokens: max difference {difference:.2e}, greedy {same}/{len(case['greedy'])}")


if __name__ == "__main__":
    main()
