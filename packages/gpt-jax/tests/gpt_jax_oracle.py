"""GPT-2's forward pass in float64 NumPy, by loops where the package has none: written for the tests."""

from __future__ import annotations

import numpy as np
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.model_config import ModelConfig

Values = dict[str, np.ndarray]


def norm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gain + bias


def logits(values: Values, batch: Batch, config: ModelConfig) -> np.ndarray:
    p = {name.removeprefix("transformer."): v.astype(np.float64) for name, v in values.items()}
    x = p["wte.weight"][batch.tokens] + p["wpe.weight"][batch.positions]
    for layer in range(config.n_layer):
        w = {n.removeprefix(f"h.{layer}."): v for n, v in p.items() if n.startswith(f"h.{layer}.")}
        h = norm(x, w["ln_1.weight"], w["ln_1.bias"])
        mixed = mix(h @ w["attn.c_attn.weight"] + w["attn.c_attn.bias"], batch, config)
        x = x + mixed @ w["attn.c_proj.weight"] + w["attn.c_proj.bias"]
        u = norm(x, w["ln_2.weight"], w["ln_2.bias"]) @ w["mlp.c_fc.weight"] + w["mlp.c_fc.bias"]
        u = u / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
        x = x + u @ w["mlp.c_proj.weight"] + w["mlp.c_proj.bias"]
    return norm(x, p["ln_f.weight"], p["ln_f.bias"]) @ p["wte.weight"].T


def mix(qkv: np.ndarray, batch: Batch, config: ModelConfig) -> np.ndarray:
    """Attention, one row, head and query at a time."""
    rows, context, _ = qkv.shape
    out = np.zeros((rows, context, config.d_model))
    for row in range(rows):
        for head in range(config.n_head):
            at = [slice(i * config.d_model + head * config.head_width, None) for i in range(3)]
            q, k, v = (qkv[row][:, s][:, : config.head_width] for s in at)
            for t in range(context):
                first = 0 if batch.segment_starts is None else batch.segment_starts[row, t]
                score = k[first : t + 1] @ q[t] / np.sqrt(config.head_width)
                weight = np.exp(score - score.max())
                out[row, t, at[0].start : at[0].start + config.head_width] = (
                    weight / weight.sum() @ v[first : t + 1]
                )
    return out


def log_probs(values: Values, batch: Batch, config: ModelConfig) -> np.ndarray:
    z = logits(values, batch, config)
    z = z - z.max(-1, keepdims=True)
    z = z - np.log(np.exp(z).sum(-1, keepdims=True))
    picked = np.take_along_axis(z, np.maximum(batch.targets, 0)[..., None], -1)[..., 0]
    return np.where(batch.targets == IGNORE, 0.0, picked)


def mean_loss(values: Values, batch: Batch, config: ModelConfig) -> float:
    return -float(log_probs(values, batch, config).sum()) / batch.target_count
