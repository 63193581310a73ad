"""What a block keeps from its forward for its backward: found by running one in each dialect, and drawn."""

from __future__ import annotations

from html import escape
from typing import Any, Literal, NamedTuple

import numpy as np

ROWS, CONTEXT, HEADS, WIDTH = 3, 20, 2, 56
GIGABYTES = 12 * 64 * 1024 * 768 * 2 / 1e9
"""One width of gpt2-124m's 12 blocks, in bfloat16, at 64 rows of 1,024 tokens."""
UNIT, HEIGHT, LINE = 52, 26, 58
"""Pixels: a model width, a bar, and from one dialect to the next."""


class Strip(NamedTuple):
    """What one dialect holds of a block.

    Attributes:
        kept: Names and widths of what the forward leaves, in the order in which it comes about.
        again: The same of what the backward computes again.
    """

    kept: list[tuple[str, int]]
    again: list[tuple[str, int]]

    @property
    def widths(self) -> int:
        """Numbers kept for each token, in model widths."""
        return sum(widths for _, widths in self.kept)


def strips() -> dict[str, Strip]:
    """Every dialect's block, run once; a row's statistics, which are a few numbers, are left out."""
    rng = np.random.default_rng(0)
    d, e = WIDTH, 4 * WIDTH
    shapes = ((d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,), (d,), (d,), (d, e), (e,), (e, d), (d,))
    block = [rng.normal(0.0, 0.3, shape).astype(np.float32) for shape in shapes]
    x = rng.normal(size=(ROWS * CONTEXT, d)).astype(np.float32)
    values = block_values(block, x)
    runs = {"JAX": of_jax(block, x), "torch.func": of_torchfunc(block, x)}
    forms: tuple[Literal["all", "less"], ...] = ("less", "all")
    runs |= {f"Triton, --keep {keep}": of_triton(block, x, keep) for keep in forms}
    return {dialect: _strip(held, values) for dialect, held in runs.items()}


def block_values(block: list[np.ndarray], x: np.ndarray) -> dict[str, np.ndarray]:
    """All that comes about in a block, by name, in float64: what a dialect holds is told by its values."""
    g1, b1, w_qkv, b_qkv, w_out, b_out, g2, b2, w_up, b_up, *_ = (part.astype(np.float64) for part in block)

    def norm(v: np.ndarray) -> np.ndarray:
        return (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)

    normed1 = norm(x.astype(np.float64)) * g1 + b1
    q, k, v = np.split(normed1 @ w_qkv + b_qkv, 3, -1)
    heads = [part.reshape(ROWS, CONTEXT, HEADS, -1).swapaxes(1, 2) for part in (q, k, v)]
    s = heads[0] @ heads[1].swapaxes(2, 3) / np.sqrt(WIDTH // HEADS)
    p = np.exp(np.where(np.tri(CONTEXT, dtype=bool), s, -np.inf))
    attended = (p / p.sum(-1, keepdims=True) @ heads[2]).swapaxes(1, 2).reshape(x.shape)
    y = x + attended @ w_out + b_out
    normed2 = norm(y) * g2 + b2
    hidden = normed2 @ w_up + b_up
    gate = 1 / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    slope = gate + hidden * gate * (1 - gate) * 2 * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * hidden**2)
    return {
        "x": x, "norm(x)": normed1, "q": q, "k": k, "v": v, "attended": attended, "y": y,
        "norm(y)": normed2, "hidden": hidden, "gelu": hidden * gate, "gelu slope": slope,
    }  # fmt: skip


def of_jax(block: list[np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    """Leaves of the pull-back."""
    import jax
    import jax.numpy as jnp
    from gpt_jax.model import Block, Inputs, Plan, apply_block

    tokens = jnp.zeros((ROWS, CONTEXT), jnp.int32)
    inputs, plan = Inputs(tokens, tokens), Plan(HEADS, 64)
    _, pull = jax.vjp(lambda b, x: apply_block(b, x, inputs, plan, None), Block(*map(jnp.array, block)), x)
    return [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(pull)]


def of_torchfunc(block: list[np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    """What the forward hands on."""
    import torch
    from gpt_torchfunc.gradients import PLAIN, _forward
    from gpt_torchfunc.model import Block, Inputs, Plan, visibility

    tokens = torch.zeros((ROWS, CONTEXT), dtype=torch.int64)
    inputs, plan = Inputs(tokens, tokens), Plan(HEADS, 64)
    parts = Block(*map(torch.from_numpy, block))
    mask = visibility(inputs, plan)
    kept, _ = _forward(parts, torch.from_numpy(x), inputs, mask, plan, None, PLAIN)
    return _arrays(kept)


def of_triton(block: list[np.ndarray], x: np.ndarray, keep: Literal["all", "less"]) -> list[np.ndarray]:
    """What the forward hands on, as ``--keep`` says."""
    import torch
    from gpt_triton import reference
    from gpt_triton.dropout import NO_DROPS
    from gpt_triton.model import Block, Inputs, Plan, apply_block_fwd
    from gpt_triton.plan import KEEPS

    tokens = torch.zeros((ROWS, CONTEXT), dtype=torch.int64)
    parts, plan = Block(*map(torch.from_numpy, block)), Plan(HEADS, 64, reference)
    inputs = Inputs(tokens, tokens, tokens)
    _, kept = apply_block_fwd(parts, torch.from_numpy(x), inputs, plan, NO_DROPS, KEEPS[keep])
    return _arrays(kept)


def _arrays(kept: Any) -> list[np.ndarray]:
    """The arrays in nested tuples of tensors."""
    if isinstance(kept, tuple):
        return [array for part in kept for array in _arrays(part)]
    return [kept.numpy()] if hasattr(kept, "numpy") else []


def _strip(held: list[np.ndarray], values: dict[str, np.ndarray]) -> Strip:
    """The values that are among the arrays, and those that a backward reads and that are not."""
    parts = [piece for array in held for piece in _thirds(array)]
    found = [name for name, value in values.items() if any(_same(part, value) for part in parts)]
    # what GELU starts from is read for its value and its slope alone
    needed = [name for name in values if name != "hidden"]
    sizes = {name: value.shape[-1] // WIDTH for name, value in values.items()}
    again = [name for name in needed if name not in found]
    return Strip([(name, sizes[name]) for name in found], [(name, sizes[name]) for name in again])


def _thirds(array: np.ndarray) -> list[np.ndarray]:
    """Queries, keys and values, where they lie side by side."""
    return np.split(array, 3, -1) if array.shape[-1:] == (3 * WIDTH,) and array.ndim > 1 else [array]


def _same(array: np.ndarray, value: np.ndarray) -> bool:
    """Whether both hold the same numbers, in whatever order."""
    if array.size != value.size:
        return False
    return bool(np.abs(np.sort(array, None) - np.sort(value, None)).max() < 1e-3)


def drawn(found: dict[str, Strip]) -> str:
    """The strips as one SVG: filled is kept, dashed is computed again."""
    longest = max(sum(widths for _, widths in [*strip.kept, *strip.again]) for strip in found.values())
    width, height = longest * UNIT + 2, len(found) * LINE + 4
    lines = "".join(_line(row, dialect, strip) for row, (dialect, strip) in enumerate(found.items()))
    size = f'viewBox="0 0 {width} {height}" style="min-width:{width * 0.7:.0f}px"'
    return f'<div class="kept"><svg {size} role="img" aria-label="What a block keeps">{lines}</svg></div>'


def _line(row: int, dialect: str, strip: Strip) -> str:
    top, left, parts = row * LINE + 20, 1, []
    for kind, held in (("held", strip.kept), ("again", strip.again)):
        for name, widths in held:
            wide = widths * UNIT
            parts.append(f'<rect class="{kind}" x="{left}" y="{top}" width="{wide - 3}" height="{HEIGHT}"/>')
            parts.append(f'<text x="{left + wide / 2 - 1.5}" y="{top + 17}">{escape(name)}</text>')
            left += wide
    words = f"{dialect}: {strip.widths} D, {strip.widths * GIGABYTES:.1f} GB"
    return f'<text class="dialect" x="1" y="{top - 6}">{escape(words)}</text>{"".join(parts)}'
