"""Loss and gradient of a micro-batch: the chain rule over the pieces of a block, each by ``torch.func``.

A block is five pieces: ``norm_linear``, attention, ``linear``, ``norm_linear`` and ``gelu_linear``. Forward
keeps what they start from: x, the heads, what attention gives, y, and the network's hidden layer; that is ten
widths for each token. Backward takes ``vjp`` of each piece at what was kept. What the piece computes on the
way and its derivative needs, such as LayerNorm and GELU, is thereby computed again; its product is not, since
nobody reads it. Only the fused attention keeps its own pull-back, whose kernel wants the forward kernel's
statistics.

Forward and backward of a block are one compiled function before attention and one behind it, the same for
all blocks, however many there are.

Shapes: M tokens of all rows (B T), B rows, T positions, D width, E hidden width, H heads, K head width,
Vp padded vocabulary, C longest context, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from gpt_trainer.philox import Site
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor
from torch.func import vjp

from gpt_torchfunc.attention import Bits, mix, spread_tile, spread_weights
from gpt_torchfunc.dropout import draw_rows, dropout
from gpt_torchfunc.gathering import sum_by_index
from gpt_torchfunc.loss import chunk_loss_and_gradients, head_loss_and_gradients
from gpt_torchfunc.model import (
    Block,
    Inputs,
    Masks,
    Parameters,
    Plan,
    draw_masks,
    embed,
    gelu_linear,
    hidden_states,
    layer_norm,
    leave,
    linear,
    norm_linear,
    positions,
    project,
    unstack,
    visibility,
    written,
)
from gpt_torchfunc.repeatable import attend_repeatably, takes
from gpt_torchfunc.tree import leaves, map_leaves

QKV = tuple[Float[Tensor, "B H T K"], Float[Tensor, "B H T K"], Float[Tensor, "B H T K"]]
Keys = Int64[Tensor, "4 3"] | None
Packed = UInt8[Tensor, "M R"] | None


class Kept(NamedTuple):
    """What a block's backward pass starts from."""

    x: Float[Tensor, "M D"]
    heads: QKV | tuple[()]
    masks: Masks
    pull_mix: Callable[[Tensor], QKV] | None
    mixed: Float[Tensor, "M D"]
    y: Float[Tensor, "M D"]
    hidden: Float[Tensor, "M E"]


def leave_gradients(
    block: Block,
    sums: Block,
    kept: tuple[Tensor, Tensor, Tensor],
    d_out: Tensor,
    plan: Plan,
    out_bits: Packed,
    down_bits: Packed,
) -> tuple[Float[Tensor, "M D"], Float[Tensor, "M D"]]:
    """Derivative of ``leave`` by what attention gave and by x; those by parameters are added to ``sums``.

    Args:
        sums: Their gradients so far, changed in place.
    """
    mixed, y, hidden = kept
    rate = plan.dropout
    pull = _pull_back(lambda *given: dropout(gelu_linear(*given), down_bits, rate), hidden, *block[10:])
    d_hidden, *shares = pull(d_out)
    _add(sums[10:], shares)
    pull = _pull_back(lambda y, g, c, w, b: norm_linear(y, g, c, w, b, 1)[0], y, *block[6:10])
    d_branch, *shares = pull(d_hidden)
    _add(sums[6:10], shares)
    d_y = d_out + d_branch
    pull = _pull_back(lambda *given: dropout(linear(*given), out_bits, rate), mixed, *block[4:6])
    d_mixed, *shares = pull(d_y)
    _add(sums[4:6], shares)
    return d_mixed, d_y


def mix_gradients(
    heads: QKV,
    mask: Shaped[Tensor, "#B T T"] | None,
    d_mixed: Float[Tensor, "M D"],
    bits: Bits | None,
    rate: float,
) -> QKV:
    """Derivative of written attention, whose weights are formed again."""
    pull = _pull_back(lambda q, k, v: mix(q, k, v, mask, None, bits, rate, fused=False), *heads)
    d_q, d_k, d_v = pull(d_mixed)
    return d_q, d_k, d_v


def project_gradients(
    block: Block, sums: Block, x: Tensor, d_heads: QKV, d_y: Tensor, shape: tuple[int, int, int]
) -> Float[Tensor, "M D"]:
    """Derivative of ``project`` by x, and what comes past attention; those by parameters go into ``sums``.

    Args:
        sums: Their gradients so far, changed in place.
        shape: Rows, positions, heads.
    """
    pull = _pull_back(lambda *given: project(*given, shape=shape), x, *block[:4])
    d_branch, *shares = pull(d_heads)
    _add(sums[:4], shares)
    return d_y + d_branch


def norm_gradients(params: Parameters, sums: Parameters, x: Tensor, d_hidden: Tensor) -> Float[Tensor, "M D"]:
    """Derivative of the last LayerNorm by x; those by its parameters are added to ``sums``."""
    pull = _pull_back(layer_norm, x, params.ln_f_gain, params.ln_f_bias)
    d_x, *shares = pull(d_hidden)
    _add(sums[3:], shares)
    return d_x


def embed_gradients(
    params: Parameters, inputs: Inputs, d_x: Float[Tensor, "M D"], plan: Plan, bits: Packed = None
) -> tuple[Float[Tensor, "Vp D"], Float[Tensor, "C D"]]:
    """Derivative of ``embed`` by both tables."""
    (d_sum,) = _pull_back(lambda x: dropout(x, bits, plan.dropout), d_x)(d_x)
    wide, context = d_sum.to(params.wpe.dtype), inputs.tokens.shape[1]
    d_wte = sum_by_index(wide, inputs.tokens.flatten(), len(params.wte))
    if inputs.segment_starts is not None:
        return d_wte, sum_by_index(wide, positions(inputs).flatten(), len(params.wpe))
    d_rows = wide.unflatten(0, inputs.tokens.shape).sum(0)
    return d_wte, F.pad(d_rows, (0, 0, 0, len(params.wpe) - context))


class Functions(NamedTuple):
    """What a micro-batch is made of, as it is, or compiled."""

    embed: Callable[..., Any] = embed
    draw_rows: Callable[..., Any] = draw_rows
    draw_masks: Callable[..., Any] = draw_masks
    project: Callable[..., Any] = project
    mix: Callable[..., Any] = mix
    spread_tile: Callable[..., Any] = spread_tile
    leave: Callable[..., Any] = leave
    norm: Callable[..., Any] = layer_norm
    of_chunk: Callable[..., Any] = chunk_loss_and_gradients
    norm_gradients: Callable[..., Any] = norm_gradients
    leave_gradients: Callable[..., Any] = leave_gradients
    mix_gradients: Callable[..., Any] = mix_gradients
    project_gradients: Callable[..., Any] = project_gradients
    embed_gradients: Callable[..., Any] = embed_gradients


PLAIN = Functions()


def add_gradients(
    params: Parameters,
    sums: Parameters,
    inputs: Inputs,
    plan: Plan,
    weight: Float[Tensor, ""],
    keys: Int64[Tensor, "L 4 3"] | None = None,
    run: Functions = PLAIN,
) -> Float[Tensor, ""]:
    """A micro-batch's share of the loss; its share of the gradient is added to ``sums``.

    Args:
        params: Float32 parameters.
        sums: Gradients so far, changed in place.
        weight: One over the number of targets in the whole step, so that shares add up to the mean.
        keys: Dropout keys; ``None`` means no dropout.
    """
    if keys is not None and not takes(plan, inputs, params.wte.shape[1] // plan.n_head, drops=True):
        plan = written(plan)
    blocks, block_sums = unstack(params.blocks), unstack(sums.blocks)
    block_keys = [None] * len(blocks) if keys is None else keys.unbind(0)
    first_bits = None
    if keys is not None:
        shape = (*inputs.tokens.shape, params.wte.shape[1])
        first_bits = run.draw_rows(shape, keys[0, Site.EMBEDDING], plan.dropout)
    mask = visibility(inputs, plan)

    x, kept = run.embed(params, inputs, plan, first_bits), []
    for block, its_keys in zip(blocks, block_keys, strict=True):
        kept.append(_forward(block, x, inputs, mask, plan, its_keys, run))
        x = kept[-1][1]
    hidden = run.norm(x, params.ln_f_gain, params.ln_f_bias)
    loss, d_hidden, d_wte = head_loss_and_gradients(
        hidden, params.wte, inputs.targets.flatten(), plan, weight, run.of_chunk
    )
    d_x = run.norm_gradients(params, sums, x, d_hidden)
    for block, block_sum in reversed(list(zip(blocks, block_sums, strict=True))):
        d_x = _backward(block, block_sum, kept.pop()[0], d_x, inputs, mask, plan, run)
    # the embedding is used at both ends of the model
    _add((sums.wte, sums.wte, sums.wpe), (d_wte, *run.embed_gradients(params, inputs, d_x, plan, first_bits)))
    return loss


def add_gradients_of_whole(
    params: Parameters,
    sums: Parameters,
    inputs: Inputs,
    plan: Plan,
    weight: Float[Tensor, ""],
    keys: Int64[Tensor, "L 4 3"] | None = None,
) -> Float[Tensor, ""]:
    """``add_gradients`` by one ``vjp`` of the whole model, which keeps what every operation leaves.

    The quicker form where nothing is compiled: only a compiler leaves a piece's unread product out.
    """
    hidden, pull = vjp(lambda params: hidden_states(params, inputs, plan, keys), params)  # type: ignore[misc]
    loss, d_hidden, d_wte = head_loss_and_gradients(
        hidden, params.wte, inputs.targets.flatten(), plan, weight
    )
    (shares,) = pull(d_hidden)
    _add((sums.wte, *leaves(sums)), (d_wte, *leaves(shares)))
    return loss


def loss_and_gradients(
    params: Parameters,
    inputs: Inputs,
    plan: Plan,
    weight: Float[Tensor, ""],
    keys: Int64[Tensor, "L 4 3"] | None = None,
    add: Callable[..., Tensor] = add_gradients,
) -> tuple[Float[Tensor, ""], Parameters]:
    """``add_gradients``, or its other form, to nothing: a function of its arguments."""
    sums = map_leaves(torch.zeros_like, params)
    return add(params, sums, inputs, plan, weight, keys), sums


def _forward(
    block: Block, x: Tensor, inputs: Inputs, mask: Tensor | None, plan: Plan, keys: Keys, run: Functions
) -> tuple[Kept, Tensor]:
    """One block; beside its result what its backward pass needs."""
    shape = (*inputs.tokens.shape, plan.n_head)
    heads = run.project(x, *block[:4], shape=shape)
    masks = Masks() if keys is None else run.draw_masks(keys, (*shape, x.shape[1]), plan.dropout)
    if plan.attention == "written":
        mixed, pull = run.mix(*heads, mask, None, masks.attention, plan.dropout, fused=False), None
    elif takes(plan, inputs, heads[0].shape[-1], drops=keys is not None):
        write = masks.attention and partial(spread_weights, masks.attention, run.spread_tile)
        mixed, pull = attend_repeatably(*heads, write, plan.dropout)  # type: ignore[call-arg]
    else:
        mixed, pull = vjp(  # type: ignore[misc]
            lambda q, k, v: mix(q, k, v, mask, inputs.boundaries, None, 0.0, fused=True), *heads
        )
    y, hidden, out = run.leave(block, x, mixed, plan, *masks[1:])
    return Kept(x, heads if pull is None else (), masks, pull, mixed, y, hidden), out


def _backward(
    block: Block,
    sums: Block,
    kept: Kept,
    d_out: Tensor,
    inputs: Inputs,
    mask: Tensor | None,
    plan: Plan,
    run: Functions,
) -> Float[Tensor, "M D"]:
    """The gradient before one block; those of its parameters are added to ``sums``."""
    d_mixed, d_y = run.leave_gradients(block, sums, kept[4:], d_out, plan, *kept.masks[1:])
    if kept.pull_mix is None:
        d_heads = run.mix_gradients(kept.heads, mask, d_mixed, kept.masks.attention, plan.dropout)
    else:
        d_heads = kept.pull_mix(d_mixed)
    shape = (*inputs.tokens.shape, plan.n_head)
    return run.project_gradients(block, sums, kept.x, d_heads, d_y, shape)


def _pull_back(function: Callable[..., Any], *primals: Tensor) -> Callable[..., tuple[Tensor, ...]]:
    """The derivative of ``function`` at ``primals``; its own result is nobody's."""
    _, pull = vjp(function, *primals)  # type: ignore[misc]
    return pull


def _add(totals: Iterable[Tensor], shares: Iterable[Tensor]) -> None:
    for total, share in zip(totals, shares, strict=True):
        total.add_(share)
