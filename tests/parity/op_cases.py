"""What every op is asked by itself: inputs, and the answers of the referee in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import referee
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.philox import Site, dropout_keys, dropout_mask

Array = np.ndarray
FIRST_ROW = 5


def op_cases(seed: int) -> dict[str, tuple[referee.Tree, referee.Tree]]:
    """Every op's inputs (float32, int32) and expected outputs (float64), by op name."""
    draw = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return draw.standard_normal(shape).astype(np.float32)

    # 38 is no multiple of any tile, but even: cuDNN's attention has no derivative for rows of odd length
    rows, time, width, heads, vocab = 2, 38, 48, 3, 211
    flat = rows * time
    cases: dict[str, tuple[referee.Tree, referee.Tree]] = {}

    def add(name: str, expect: Callable[..., referee.Tree], **given: Array) -> None:
        wide = {each: v.astype(np.float64) if v.dtype.kind == "f" else v for each, v in given.items()}
        cases[name] = given, expect(**wide)

    x, gain, bias, d_y = normal(flat, width), normal(width), normal(width), normal(flat, width)
    add("layer_norm", expect_layer_norm, x=x, gain=gain, bias=bias, d_y=d_y)
    add("gelu", expect_gelu, x=3 * x, d_y=d_y)
    add("linear", expect_linear, x=x, weight=normal(width, 80), bias=normal(80), d_y=normal(flat, 80))
    qkv, d_out = normal(rows, time, 3 * width), normal(rows, time, width)
    opens = draw.random((rows, time)) < 0.15
    opens[:, 0] = True
    starts = np.maximum.accumulate(np.where(opens, np.arange(time), 0), axis=1).astype(np.int32)
    key = dropout_keys(seed, 1, FIRST_ROW, 4)[3, Site.ATTENTION]
    given = {"qkv": qkv, "d_out": d_out, "key": key, "n_head": np.array([heads], np.int32)}
    for name, segment_starts, rate in (
        ("attention", np.zeros_like(starts), 0.0),
        ("attention-documents", starts, 0.0),
        ("attention-dropout", starts, 0.25),
    ):
        more = {"segment_starts": segment_starts, "rate": np.array([rate], np.float32)}
        add(name, expect_attention, **given, **more)
    wte, targets = normal(vocab, width), draw.integers(0, vocab, flat, dtype=np.int32)
    targets[::9] = IGNORE
    add("cross_entropy", expect_head, x=x, wte=wte, targets=targets)
    tokens = draw.integers(0, 31, (rows, time), dtype=np.int32)
    positions = np.arange(time, dtype=np.int32) - starts
    wpe = normal(64, width)
    add("embedding", expect_embedding, tokens=tokens, positions=positions, wte=wte, wpe=wpe, d_x=d_out)
    key = dropout_keys(seed, 4, FIRST_ROW, 2)[1, Site.ATTENTION_RESIDUAL]
    given = {"key": key, "rate": np.array([0.1], np.float32), "rows": np.array([rows], np.int32)}
    add("dropout", expect_dropout, x=x, d_y=d_y, **given)
    for name, shape in (("orthogonalize", (3, 24, 70)), ("orthogonalize-tall", (2, 70, 24))):
        add(name, lambda x: {"y": np.stack([referee.orthogonalize(each) for each in x])}, x=normal(*shape))
    return cases


def keep_factor(shape: tuple[int, ...], key: Array, rate: Array) -> Array:
    """What the shared mask of a key of three words multiplies with at a rate."""
    (k0, k1, first_row), at = key.tolist(), float(rate[0])
    return dropout_mask(shape, (k0, k1), at, first_row) / (1.0 - at)


def expect_layer_norm(x: Array, gain: Array, bias: Array, d_y: Array) -> referee.Tree:
    """Forward and VJP."""
    y, saved = referee.layer_norm(x, gain, bias)
    d_x, d_gain, d_bias = referee.layer_norm_vjp(saved, gain, d_y)
    return {"y": y, "d_x": d_x, "d_gain": d_gain, "d_bias": d_bias}


def expect_gelu(x: Array, d_y: Array) -> referee.Tree:
    """Forward and VJP."""
    return {"y": referee.gelu(x), "d_x": referee.gelu_vjp(x, d_y)}


def expect_linear(x: Array, weight: Array, bias: Array, d_y: Array) -> referee.Tree:
    """Forward and VJP."""
    d_x, d_weight, d_bias = referee.linear_vjp(x, weight, d_y)
    return {"y": referee.linear(x, weight, bias), "d_x": d_x, "d_weight": d_weight, "d_bias": d_bias}


def expect_attention(
    qkv: Array,
    d_out: Array,
    segment_starts: Array,
    n_head: Array,
    key: Array,
    rate: Array,
) -> referee.Tree:
    """Forward and VJP, dropout on the weights at ``rate``."""
    rows, time, _ = qkv.shape
    heads, seen = int(n_head[0]), referee.visible(Batch(segment_starts, segment_starts, segment_starts))
    factor = keep_factor((rows, heads, time, time), key, rate) if rate[0] else 1.0
    out, saved = referee.attention(qkv, heads, seen, factor)
    return {"out": out, "d_qkv": referee.attention_vjp(saved, d_out)}


def expect_head(x: Array, wte: Array, targets: Array) -> referee.Tree:
    """Losses and the gradient of their mean over targets."""
    nll, d_logits = referee.cross_entropy(x @ wte.T, targets)
    d_logits = d_logits / np.count_nonzero(targets != IGNORE)
    return {"nll": nll, "d_x": d_logits @ wte, "d_wte": d_logits.T @ x}


def expect_embedding(tokens: Array, positions: Array, wte: Array, wpe: Array, d_x: Array) -> referee.Tree:
    """Sum of the two rows, and the rows' gradients."""
    d_wte, d_wpe = np.zeros_like(wte), np.zeros_like(wpe)
    np.add.at(d_wte, tokens, d_x)
    np.add.at(d_wpe, positions, d_x)
    return {"x": wte[tokens] + wpe[positions], "d_wte": d_wte, "d_wpe": d_wpe}


def expect_dropout(x: Array, d_y: Array, key: Array, rate: Array, rows: Array) -> referee.Tree:
    """Forward and VJP, and the mask."""
    factor = keep_factor((int(rows[0]), len(x) // int(rows[0]), x.shape[1]), key, rate).reshape(x.shape)
    return {"y": x * factor, "d_x": d_y * factor, "mask": (factor > 0).astype(np.float64)}
