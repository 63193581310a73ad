"""Every op that has a derivative, as a case: our pair over ``ops``, and a plain forward of the same function.

A case is a function from float64 tensors to one tensor. Sizes are tiny and odd, so that whole Jacobians can
be compared: 3, 5 and 7 divide nothing, and 67 queries are one tile and a tail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from gpt_triton.dropout import Dropout
from gpt_triton.ops import Ops
from gpt_triton_plain import plain_attention, plain_scale
from torch import Tensor

KEY = (0x89ABCDEF, 0x01234567)
RATE = 0.25


def masks(context: int) -> Dropout:
    """Of rows of so many positions."""
    return Dropout(RATE, torch.tensor((*KEY, 0)), context)


class Case(NamedTuple):
    """One differentiable function, three times.

    Attributes:
        inputs: Where it is evaluated.
        plain: The function in plain torch.
        forward: The function through ``ops``.
        backward: Gradients of all inputs, from the inputs and the gradient of the output.
    """

    inputs: tuple[Tensor, ...]
    plain: Callable[..., Tensor]
    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, ...]]


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _zeros(*like: Tensor) -> list[Tensor]:
    return [torch.zeros_like(x) for x in like]


def gelu_of(ops: Ops, x: Tensor) -> tuple[Tensor, Tensor]:
    """GELU and its slope, by way of a map that leaves ``x`` as it is."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y, slope = ops.linear_gelu_fwd(x.reshape(-1, 1), x.new_ones(1, 1), x.new_zeros(1, dtype=wide))
    assert slope is not None
    return y.view(x.shape), slope.view(x.shape)


def gelu(ops: Ops) -> Case:
    def backward(x: Tensor, d_y: Tensor) -> tuple[Tensor, ...]:
        slope = gelu_of(ops, x)[1][:, None]
        return (ops.linear_gelu_bwd_dx(d_y[:, None], d_y.new_ones(1, 1), slope)[:, 0],)

    # values on both tails, at zero and between
    x = torch.cat([_normal(20), torch.tensor([-30.0, -5.0, 0.0, 5.0, 30.0], dtype=torch.float64)])
    return Case((x,), lambda x: F.gelu(x, approximate="tanh"), lambda x: gelu_of(ops, x)[0], backward)


def layer_norm(ops: Ops) -> Case:
    def backward(x: Tensor, gain: Tensor, bias: Tensor, d_y: Tensor) -> tuple[Tensor, ...]:
        d_gain, d_bias = _zeros(gain, bias)
        _, res = ops.layer_norm_fwd(x, gain, bias)
        return ops.layer_norm_bwd(res, gain, d_y, d_gain, d_bias), d_gain, d_bias

    return Case(
        (_normal(3, 7), _normal(7, seed=1), _normal(7, seed=2)),
        lambda x, gain, bias: F.layer_norm(x, x.shape[-1:], gain, bias, 1e-5),
        lambda x, gain, bias: ops.layer_norm_fwd(x, gain, bias)[0],
        backward,
    )


def norm_and_skip(ops: Ops) -> Case:
    def backward(x: Tensor, d_y: Tensor) -> tuple[Tensor, ...]:
        gain, bias = torch.ones(7, dtype=x.dtype), torch.zeros(7, dtype=x.dtype)
        _, res = ops.layer_norm_fwd(x, gain, bias)
        return (ops.layer_norm_bwd(res, gain, d_y, *_zeros(gain, bias), d_y),)

    def forward(x: Tensor) -> Tensor:
        return x + ops.layer_norm_fwd(x, torch.ones(7, dtype=x.dtype), torch.zeros(7, dtype=x.dtype))[0]

    return Case((_normal(3, 7),), lambda x: x + F.layer_norm(x, (7,), eps=1e-5), forward, backward)


def linear(ops: Ops) -> Case:
    def backward(x: Tensor, w: Tensor, b: Tensor, d_y: Tensor) -> tuple[Tensor, ...]:
        d_w, d_b = _zeros(w, b)
        ops.linear_bwd_dwdb(x, d_y, d_w, d_b)
        return ops.linear_bwd_dx(d_y, w), d_w, d_b

    inputs = (_normal(3, 5), _normal(5, 7, seed=1), _normal(7, seed=2))
    return Case(inputs, lambda x, w, b: x @ w + b, ops.linear_fwd, backward)


def gelu_linear(ops: Ops) -> Case:
    def backward(pre: Tensor, w: Tensor, d_y: Tensor) -> tuple[Tensor, ...]:
        hidden, slope = gelu_of(ops, pre)
        d_pre = ops.linear_gelu_bwd_dx(d_y, w, slope)
        return d_pre, _weight_gradient(ops, hidden, d_y, w)

    return Case(
        (_normal(3, 5), _normal(5, 7, seed=1)),
        lambda pre, w: F.gelu(pre, approximate="tanh") @ w,
        lambda pre, w: ops.linear_fwd(gelu_of(ops, pre)[0], w, None),
        backward,
    )


def mlp(ops: Ops) -> Case:
    def backward(x: Tensor, w: Tensor, b: Tensor, out: Tensor, d_y: Tensor) -> tuple[Tensor, ...]:
        hidden, slope = ops.linear_gelu_fwd(x, w, b)
        d_w, d_b = _zeros(w, b)
        d_pre = ops.linear_gelu_bwd_dx(d_y, out, slope)
        ops.linear_bwd_dwdb(x, d_pre, d_w, d_b)
        return ops.linear_bwd_dx(d_pre, w), d_w, d_b, _weight_gradient(ops, hidden, d_y, out)

    return Case(
        (_normal(3, 5), _normal(5, 7, seed=1), _normal(7, seed=2), _normal(7, 4, seed=3)),
        lambda x, w, b, out: F.gelu(x @ w + b, approximate="tanh") @ out,
        lambda x, w, b, out: ops.linear_fwd(ops.linear_gelu_fwd(x, w, b, False)[0], out, None),
        backward,
    )


def linear_residual(ops: Ops) -> Case:
    scale, drop = plain_scale((1, 3, 7), KEY, RATE)[0], masks(3)

    def backward(x: Tensor, w: Tensor, b: Tensor, r: Tensor, d_y: Tensor) -> tuple[Tensor, ...]:
        d_w, d_b = _zeros(w, b)
        d_branch = ops.dropout_bwd(d_y, drop)
        ops.linear_bwd_dwdb(x, d_branch, d_w, d_b)
        return ops.linear_bwd_dx(d_branch, w), d_w, d_b, d_y

    return Case(
        (_normal(3, 5), _normal(5, 7, seed=1), _normal(7, seed=2), _normal(3, 7, seed=3)),
        lambda x, w, b, r: r + (x @ w + b) * scale,
        lambda x, w, b, r: ops.linear_residual_fwd(x, w, b, r, drop),
        backward,
    )


def dropout(ops: Ops) -> Case:
    scale, drop = plain_scale((2, 3, 7), KEY, RATE).view(6, 7), masks(3)
    return Case(
        (_normal(6, 7),),
        lambda x: x * scale,
        lambda x: ops.dropout_fwd(x, drop),
        lambda x, d_y: (ops.dropout_bwd(d_y, drop),),
    )


def attention_case(
    ops: Ops, rows: int, context: int, heads: int, width: int, *, segments: bool, drop: bool
) -> Case:
    starts = None
    if segments:  # documents of 3, the first of them cut short by one in the second row
        starts = (
            torch.stack([(torch.arange(context) + r) // 3 * 3 - r for r in range(rows)]).clamp(min=0).int()
        )
    scale = plain_scale((rows, heads, context, context), KEY, RATE) if drop else None
    mask = masks(context) if drop else None

    def backward(qkv: Tensor, d_out: Tensor) -> tuple[Tensor, ...]:
        _, res = ops.attention_fwd(qkv, heads, starts, mask)
        return (ops.attention_bwd(res, d_out, heads, mask),)

    return Case(
        (_normal(rows, context, 3 * heads * width),),
        lambda qkv: plain_attention(qkv, heads, starts, scale),
        lambda qkv: ops.attention_fwd(qkv, heads, starts, mask)[0],
        backward,
    )


def attention(ops: Ops) -> Case:
    return attention_case(ops, 2, 5, 3, 3, segments=False, drop=False)


def attention_segments(ops: Ops) -> Case:
    return attention_case(ops, 2, 7, 1, 3, segments=True, drop=False)


def attention_dropout(ops: Ops) -> Case:
    return attention_case(ops, 2, 5, 3, 3, segments=True, drop=True)


def attention_two_tiles(ops: Ops) -> Case:
    return attention_case(ops, 1, 67, 1, 2, segments=False, drop=True)


def cross_entropy(ops: Ops) -> Case:
    targets = torch.tensor([3, -1, 0, 6, 6], dtype=torch.int32)
    step_scale = torch.tensor(0.3, dtype=torch.float64)

    def backward(x: Tensor, wte: Tensor, d_loss: Tensor) -> tuple[Tensor, ...]:
        padded = torch.cat([wte, torch.zeros(121, 3, dtype=wte.dtype)])
        (d_wte,) = _zeros(padded)
        scale = step_scale.to(x.dtype) * d_loss
        _, d_x = ops.linear_cross_entropy(x, padded, targets, 7, scale.view(()), d_wte, chunk=2)
        assert not d_wte[7:].any(), "padding rows got a gradient"
        return d_x, d_wte[:7]

    def forward(x: Tensor, wte: Tensor) -> Tensor:
        padded = torch.cat([wte, torch.zeros(121, 3, dtype=wte.dtype)])
        nll, _ = ops.linear_cross_entropy(
            x, padded, targets, 7, step_scale.to(x.dtype), torch.zeros_like(padded), chunk=2
        )
        return (nll.sum() * step_scale).view(1)

    def plain(x: Tensor, wte: Tensor) -> Tensor:
        losses = F.cross_entropy(x @ wte.T, targets.long(), ignore_index=-1, reduction="sum")
        return (losses * step_scale).view(1)

    return Case((_normal(5, 3), _normal(7, 3, seed=1)), plain, forward, backward)


def embedding(ops: Ops) -> Case:
    # a token twice in one row and once in another; a position that no token has
    tokens = torch.tensor([[1, 4, 1], [0, 1, 2]], dtype=torch.int32)
    positions = torch.tensor([[0, 1, 2], [0, 0, 1]], dtype=torch.int32)
    scale, drop = plain_scale((2, 3, 3), KEY, RATE).view(6, 3), masks(3)

    def backward(wte: Tensor, wpe: Tensor, d_x: Tensor) -> tuple[Tensor, ...]:
        d_wte, d_wpe = _zeros(wte, wpe)
        ops.embedding_bwd(tokens, positions, d_x, d_wte, d_wpe, drop)
        return d_wte, d_wpe

    return Case(
        (_normal(5, 3), _normal(4, 3, seed=1)),
        lambda wte, wpe: (wte[tokens.long()] + wpe[positions.long()]).view(6, 3) * scale,
        lambda wte, wpe: ops.embedding_fwd(tokens, positions, wte, wpe, drop),
        backward,
    )


def _weight_gradient(ops: Ops, x: Tensor, d_y: Tensor, w: Tensor) -> Tensor:
    (d_w,) = _zeros(w)
    ops.linear_bwd_dwdb(x, d_y, d_w, d_y.new_zeros(d_y.shape[1]))
    return d_w


CASES = {
    case.__name__: case
    for case in (
        gelu, layer_norm, norm_and_skip, linear, gelu_linear, mlp, linear_residual, dropout,
        attention, attention_segments, attention_dropout, attention_two_tiles, cross_entropy, embedding,
    )
}  # fmt: skip


def jacobians(case: Case) -> tuple[Tensor, ...]:
    """Our whole Jacobian with respect to each input: one backward per element of the output."""
    out = case.forward(*case.inputs)
    units = torch.eye(out.numel(), dtype=out.dtype).view(-1, *out.shape)
    rows = [case.backward(*case.inputs, unit) for unit in units]
    return tuple(torch.stack(column).view(*out.shape, *column[0].shape) for column in zip(*rows, strict=True))
