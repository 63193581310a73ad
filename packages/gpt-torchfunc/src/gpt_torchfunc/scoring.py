"""Log-probabilities of targets on a processor, with nothing computed in vain or twice.

A row of a batch is read as a tree of tokens: each hangs from the one that it continues, and two that
continue the same one with the same token are one node, whatever follows them. A node sees its ancestors.
Nodes from which no target is predicted, such as padding, are dropped, the rest of all rows stand one
behind the other in one matrix, and only attention tells the rows apart. Nothing is compiled, so that every
batch may have sizes of its own.

    log p(target | node) = h . w_target - log sum_v exp(h . w_v)

The sum goes over blocks of the vocabulary, with the largest logit so far taken out, so that no block
leaves the cache. The formulas are those of ``model.py``, which the tests hold them to.

Shapes: B rows, T positions, N nodes of all rows, n of one row, S of those a target is predicted from, M
targets, D width, H heads, K head width, V vocabulary (padded).

References:
    Milakov and Gimelshein 2018, "Online normalizer calculation for softmax".
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from gpt_data.batch import IGNORE, Batch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor

from gpt_torchfunc.model import EPSILON, Block, Parameters, Plan, statistics_dtype, unstack

POSITIONS_AT_A_TIME = 2048
"""Positions of rows that are packed together: products are large, and no temporary is fresh memory."""
VOCABULARY_BLOCK = 2048
ROWS_IN_CACHE = 64
ROOT = -1


class Tree(NamedTuple):
    """The nodes of one row, each behind its parent.

    Attributes:
        tokens: Token of each node.
        depths: Number of its ancestors, which is its position in the model.
        mask: 0 where a node (row) may see another (column), minus infinity elsewhere.
        origins: For each position of the row that has a target, the node it is.
    """

    tokens: Int64[np.ndarray, " n"]
    depths: Int64[np.ndarray, " n"]
    mask: Float32[np.ndarray, "n n"]
    origins: Int64[np.ndarray, " m"]


class Forest(NamedTuple):
    """The nodes of several rows.

    Attributes:
        tokens: Token of each node.
        depths: Its position in the model.
        masks: For each row what is added to the scores of its nodes.
        scored: Nodes from which a target is predicted.
        origins: For each target, in the batch's order, its node's place in ``scored``.
        targets: Token ids.
    """

    tokens: Int[Tensor, " N"]
    depths: Int[Tensor, " N"]
    masks: list[Float[Tensor, "_ _"]]
    scored: Int[Tensor, " S"]
    origins: Int[Tensor, " M"]
    targets: Int[Tensor, " M"]


def log_probs(params: Parameters, batch: Batch, plan: Plan) -> Float32[np.ndarray, "B T"]:
    """Log-probability of each target given what its position may see, 0 where ignored; no dropout.

    Args:
        params: Float32 parameters on the host.
    """
    rows, width = batch.tokens.shape
    step = max(1, POSITIONS_AT_A_TIME // width)
    values = np.zeros((rows, width), np.float32)
    for start in range(0, rows, step):
        part = batch.rows(start, start + step)
        scored = part.targets != IGNORE
        if scored.any():
            found = node_log_probs(params, plant(part, plan), plan)
            values[start : start + step][scored] = found.float().numpy()
    return values


def plant(batch: Batch, plan: Plan) -> Forest:
    """The rows as trees, behind each other.

    Args:
        batch: Rows; at least one target.
    """
    trees = [row_tree(batch.rows(row, row + 1)) for row in range(len(batch.tokens))]
    firsts = np.cumsum([0, *(len(tree.tokens) for tree in trees[:-1])])
    nodes = np.concatenate([tree.origins + first for tree, first in zip(trees, firsts, strict=True)])
    scored, origins = np.unique(nodes, return_inverse=True)
    joined = (np.concatenate([getattr(tree, name) for tree in trees]) for name in ("tokens", "depths"))
    targets = batch.targets[batch.targets != IGNORE].astype(np.int64)
    tokens, depths, *rest = map(torch.from_numpy, (*joined, scored, origins, targets))
    masks = [torch.from_numpy(tree.mask).to(plan.dtype) for tree in trees]
    return Forest(tokens, depths, masks, *rest)


def row_tree(row: Batch) -> Tree:
    """One row's nodes that a target is predicted from, and their ancestors."""
    tokens, before = row.tokens[0].tolist(), predecessors(row)
    nodes: dict[tuple[int, int], int] = {}
    node_of: list[int] = []
    for token, last in zip(tokens, before, strict=True):
        parent = ROOT if last == ROOT else node_of[last]
        node_of.append(nodes.setdefault((parent, token), len(nodes)))
    origins = np.array(node_of)[row.targets[0] != IGNORE]
    parents, ids = np.array(list(nodes), np.int64).T
    sees = np.eye(len(ids), dtype=bool)
    for node, parent in enumerate(parents):
        if parent != ROOT:
            sees[node] |= sees[parent]
    kept = sees[origins].any(axis=0)
    mask = np.where(sees[np.ix_(kept, kept)], np.float32(0.0), np.float32(-np.inf))
    return Tree(ids[kept], sees.sum(axis=1)[kept] - 1, mask, (np.cumsum(kept) - 1)[origins])


def predecessors(row: Batch) -> list[int]:
    """For each position of a row the one that it continues, or ``ROOT``."""
    index = np.arange(row.tokens.shape[1])
    before = index - 1
    if row.segment_starts is not None:
        opens = index == row.segment_starts[0]
        prefix = 0 if row.prefix_lengths is None else int(row.prefix_lengths[0])
        before = np.where(opens, np.where(index < prefix, ROOT, prefix - 1), before)
    return before.tolist()


def node_log_probs(params: Parameters, forest: Forest, plan: Plan) -> Float[Tensor, " M"]:
    """Log-probability of each target.

    Args:
        params: Float32 parameters.
    """
    x = (F.embedding(forest.tokens, params.wte) + F.embedding(forest.depths, params.wpe)).to(plan.dtype)
    *blocks, last = unstack(params.blocks)
    for block in blocks:
        x = apply_block(block, x, forest.masks, plan)
    x = apply_block(last, x, forest.masks, plan, forest.scored)
    x = layer_norm(x, params.ln_f_gain, params.ln_f_bias)
    head = params.wte[: plan.vocab_size].to(plan.dtype)
    wide = x.to(statistics_dtype(x.dtype))
    target_logits = (wide[forest.origins] * head[forest.targets]).sum(-1)
    return target_logits - log_normaliser(x, head)[forest.origins]


def apply_block(
    block: Block,
    x: Float[Tensor, "N D"],
    masks: list[Float[Tensor, "_ _"]],
    plan: Plan,
    scored: Int[Tensor, " S"] | None = None,
) -> Float[Tensor, "S D"]:
    """One block; behind the last one's attention only some nodes are of use.

    Args:
        scored: Nodes that go on from the attention; all if ``None``.
    """
    h = layer_norm(x, block.ln1_gain, block.ln1_bias)
    h = attend(linear(h, block.qkv_weight, block.qkv_bias), masks, plan)
    if scored is not None:
        x, h = x[scored], h[scored]  # [S, D]
    x = x + linear(h, block.out_weight, block.out_bias)
    h = layer_norm(x, block.ln2_gain, block.ln2_bias)
    h = gelu_(linear(h, block.up_weight, block.up_bias))
    return x + linear(h, block.down_weight, block.down_bias)


def linear(
    x: Float[Tensor, "N i"], weight: Float[Tensor, "i o"], bias: Float[Tensor, " o"]
) -> Float[Tensor, "N o"]:
    """``model.linear``, the bias added in place."""
    return (x @ weight.to(x.dtype)).add_(bias.to(x.dtype))


def layer_norm(
    x: Float[Tensor, "N D"], gain: Float[Tensor, " D"], bias: Float[Tensor, " D"]
) -> Float[Tensor, "N D"]:
    """``model.layer_norm`` as one of torch's kernels."""
    return F.layer_norm(x, gain.shape, gain, bias, EPSILON)


def gelu_(x: Float[Tensor, "N i"]) -> Float[Tensor, "N i"]:
    """``model.gelu`` in place, as ``x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))``.

    By a few nodes at a time, whose values stay in a core's cache from one operation to the next: that takes
    60 % of the time of torch's own kernel.
    """
    scale = 2.0 * math.sqrt(2.0 / math.pi)
    for rows in x.split(ROWS_IN_CACHE):
        rows.mul_(rows.square().mul_(0.044715 * scale).add_(scale).mul_(rows).sigmoid_())
    return x


def attend(qkv: Float[Tensor, "N W"], masks: list[Float[Tensor, "_ _"]], plan: Plan) -> Float[Tensor, "N D"]:
    """Attention of every row's nodes to their ancestors, all heads of a row at a time; W = 3 D."""
    heads = qkv.unflatten(-1, (3, plan.n_head, -1))  # [N, 3, H, K]
    out = torch.empty_like(heads[:, 0])  # [N, H, K]
    lengths = [len(mask) for mask in masks]
    for part, into, mask in zip(heads.split(lengths), out.split(lengths), masks, strict=True):
        q, k, v = part.permute(1, 2, 0, 3)  # each [H, n, K]
        scores = torch.baddbmm(mask, q, k.mT, alpha=1.0 / math.sqrt(q.shape[-1]))  # [H, n, n]
        into.copy_(
            torch.bmm(torch.softmax(scores, -1, statistics_dtype(q.dtype)).to(v.dtype), v).transpose(0, 1)
        )
    return out.flatten(1)


def log_normaliser(h: Float[Tensor, "S D"], head: Float[Tensor, "V D"]) -> Float[Tensor, " S"]:
    """``log sum_v exp(h . w_v)`` over blocks of the vocabulary, in float32 from the logits on."""
    dtype = statistics_dtype(h.dtype)
    peak, total = h.new_full((len(h),), -math.inf, dtype=dtype), h.new_zeros(len(h), dtype=dtype)
    for rows in head.split(VOCABULARY_BLOCK):
        logits = (h @ rows.T).to(dtype)
        higher = torch.maximum(peak, logits.amax(-1))
        share = logits.sub_(higher[:, None]).exp_().sum(-1)
        total, peak = total * (peak - higher).exp() + share, higher
    return peak + total.log()
