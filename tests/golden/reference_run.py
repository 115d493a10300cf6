"""Forward passes of a transformers model: what the golden files record of one."""

import torch


@torch.no_grad()
def logits_of(model, token_ids: list[int]) -> torch.Tensor:
    """`[seq_len, vocab_size]`: one pass over the whole prompt, without a cache."""
    return model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]


@torch.no_grad()
def greedy(model, token_ids: list[int], count: int) -> tuple[list[int], list[float]]:
    """`count` greedy tokens and, for each, by how much its logit led the next best one's.

    Goes on past the end-of-sequence token. Of equal logits the lowest id wins.
    """
    tokens, margins = [], []
    step = torch.tensor([token_ids])
    cache = None
    for _ in range(count):
        output = model(input_ids=step, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits = output.logits[0, -1]
        best = torch.topk(logits, 2).values
        token = int(torch.argmax(logits))
        tokens.append(token)
        margins.append(float(best[0] - best[1]))
        step = torch.tensor([[token]])
    return tokens, margins


def negative_log_likelihood(logits: torch.Tensor, token_ids: list[int]) -> float:
    """Sum in nats over tokens 1.., each given those before it. `logits`: `[seq_len, vocab_size]`."""
    log_probabilities = torch.log_softmax(logits[:-1].double(), dim=-1)
    targets = torch.tensor(token_ids[1:]).unsqueeze(1)
    return float(-log_probabilities.gather(1, targets).sum())


def in_f64(model):
    """`model` with all arithmetic in f64, rotary angles and norms included.

    `.double()` alone is not enough: transformers computes both of those in f32 whatever the weights are.
    """
    model = model.double()
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = _rms_norm_f64.__get__(module)
        elif kind.endswith("RotaryEmbedding"):
            assert module.rope_type == "default"
            base = module.config.rope_parameters["rope_theta"]
            head_dim = 2 * module.inv_freq.shape[0]
            exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
            module.inv_freq_f64 = 1.0 / base**exponents
            module.forward = _rotary_f64.__get__(module)
    return model


def _rms_norm_f64(self, hidden_states):
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


def _rotary_f64(self, hidden_states, position_ids):
    angles = position_ids[..., None].double() * self.inv_freq_f64
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()
