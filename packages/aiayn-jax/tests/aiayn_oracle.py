"""The encoder-decoder in float64 NumPy, one row, head and query at a time: written for the tests."""

from __future__ import annotations

import numpy as np
from aiayn_jax.config import TransformerConfig
from aiayn_jax.model import init_parameters
from aiayn_jax.parameters import PairBatch
from aiayn_jax.tree import to_named
from gpt_data.batch import IGNORE

Values = dict[str, np.ndarray]
# odd sizes: 61 ids do not fill the padded vocabulary
SMALL = TransformerConfig(vocab_size=61, n_layer=2, n_head=2, d_model=12, d_ff=20, dropout=0.0, longest=32)


def noisy_values(config: TransformerConfig = SMALL) -> Values:
    """Gains and biases away from one and zero, so that none of them can be left out unseen."""
    rng = np.random.default_rng(1)
    values = to_named(init_parameters(config, 0), config)
    return {n: v + rng.normal(0, 0.1, v.shape).astype(np.float32) for n, v in values.items()}


def make_batch(seed: int = 0) -> PairBatch:
    """Sources of 7, 3, 1 and 5 ids and one that only fills up; targets of 9, 4, 9, 1 and none."""
    rng = np.random.default_rng(seed)
    source, target = (rng.integers(0, 61, (5, length)).astype(np.int32) for length in (7, 10))
    target_in, target_out = target[:, :-1].copy(), target[:, 1:].copy()
    for row, length in enumerate((9, 4, 9, 1, 0)):
        target_out[row, length:] = IGNORE
    return PairBatch(source, np.array([7, 3, 1, 5, 0], np.int32), target_in, target_out)


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    got, want = (np.asarray(a, np.float64) for a in (got, want))
    assert got.shape == want.shape, f"{got.shape} != {want.shape}"
    assert np.isfinite(got).all()
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


def assert_close(name: str, got: np.ndarray, want: np.ndarray, *, rel: float) -> None:
    error = relative_error(got, want)
    assert error <= rel, f"{name}: relative error {error:.1e} > {rel:.0e}"


def norm(x: np.ndarray, p: Values) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["norm_gain"] + p["norm_bias"]


def attend(p: Values, x: np.ndarray, y: np.ndarray, causal: bool, heads: int) -> np.ndarray:
    """Queries from ``x`` [T, D], keys and values from ``y`` [S, D]."""
    width = x.shape[1]
    w, b = p["qkv_weight"], p["qkv_bias"]
    q = x @ w[:, :width] + b[:width]
    k, v = (y @ w[:, s] + b[s] for s in (slice(width, 2 * width), slice(2 * width, None)))
    out, head_width = np.zeros_like(x), width // heads
    for head in range(heads):
        s = slice(head * head_width, (head + 1) * head_width)
        for t in range(len(x)):
            stop = t + 1 if causal else len(y)
            score = k[:stop, s] @ q[t, s] / np.sqrt(head_width)
            weight = np.exp(score - score.max())
            out[t, s] = weight / weight.sum() @ v[:stop, s]
    return out @ p["out_weight"] + p["out_bias"]


def feed_forward(p: Values, x: np.ndarray) -> np.ndarray:
    return np.maximum(x @ p["up_weight"] + p["up_bias"], 0) @ p["down_weight"] + p["down_bias"]


def embed(values: Values, ids: np.ndarray) -> np.ndarray:
    table, width = values["embedding"], values["embedding"].shape[1]
    rows = np.zeros((len(ids), width))
    for t, token in enumerate(ids):
        for i in range(width):
            angle = t / 10000 ** (i // 2 * 2 / width)
            rows[t, i] = table[token, i] * np.sqrt(width) + (np.cos(angle) if i % 2 else np.sin(angle))
    return rows


def part(values: Values, name: str) -> Values:
    return {n.removeprefix(name + "."): v for n, v in values.items() if n.startswith(name + ".")}


def hidden(values: Values, batch: PairBatch, config: TransformerConfig = SMALL) -> np.ndarray:
    """[B, T, D]; every row by itself, without its filling."""
    values = {n: v.astype(np.float64) for n, v in values.items()}
    out = []
    for row, length in enumerate(np.maximum(batch.source_lengths, 1)):
        x = embed(values, batch.source[row, :length])
        for layer in range(config.n_layer):
            p, q = (part(values, f"encoder.{layer}.{name}") for name in ("attention", "network"))
            x = norm(x + attend(p, x, x, False, config.n_head), p)
            x = norm(x + feed_forward(q, x), q)
        y = embed(values, batch.target_in[row])
        for layer in range(config.n_layer):
            p, c, q = (part(values, f"decoder.{layer}.{name}") for name in ("attention", "cross", "network"))
            y = norm(y + attend(p, y, y, True, config.n_head), p)
            y = norm(y + attend(c, y, x, False, config.n_head), c)
            y = norm(y + feed_forward(q, y), q)
        out.append(y)
    return np.stack(out)


def losses(
    values: Values, batch: PairBatch, smoothing: float, config: TransformerConfig = SMALL
) -> tuple[float, float]:
    """Mean over the targets: cross-entropy with the smoothed distribution, and with the target alone."""
    z = hidden(values, batch, config) @ values["embedding"].astype(np.float64).T
    z = z - z.max(-1, keepdims=True)
    log_probs = z - np.log(np.exp(z).sum(-1, keepdims=True))
    smoothed, plain = [], []
    for row, column in zip(*np.nonzero(batch.target_out != IGNORE), strict=True):
        q = np.full(config.vocab_size, smoothing / config.vocab_size)
        q[batch.target_out[row, column]] += 1 - smoothing
        smoothed.append(-(q * log_probs[row, column]).sum())
        plain.append(-log_probs[row, column, batch.target_out[row, column]])
    return float(np.mean(smoothed)), float(np.mean(plain))
