"""gpt-triton's ops under the referee's names: each is a pair of functions already, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
from gpt_data.batch import IGNORE
from gpt_triton import reference
from gpt_triton.residuals import Dropout
from torch import Tensor

Arrays = dict[str, np.ndarray]
Op = Callable[[Arrays], Arrays]


def plant(error: str) -> None:
    """Break the reference ops in one place: the matrix must see it."""
    norm, norm_back, attend = reference.layer_norm_fwd, reference.layer_norm_bwd, reference.attention_fwd
    if error == "epsilon":
        reference.layer_norm_fwd = lambda x, gain, bias, eps=1e-3: norm(x, gain, bias, eps)
    elif error == "gain":
        reference.layer_norm_bwd = lambda res, gain, *rest: norm_back(res, 1.01 * gain, *rest)
    elif error == "bias":
        linear = reference.linear_fwd
        reference.linear_fwd = lambda x, weight, bias: linear(x, weight, 0.0 * bias)
    elif error == "mask":

        def off_by_one(
            qkv: Tensor,
            n_head: int,
            starts: Tensor | None,
            dropout: Dropout | None = None,
            prefix_lengths: Tensor | None = None,
        ) -> tuple:
            index = torch.arange(qkv.shape[1], dtype=torch.int32)
            late = torch.minimum(torch.ones_like(index), index).expand(qkv.shape[:2])
            starts = late if starts is None else torch.maximum(starts, late)
            return attend(qkv, n_head, starts, dropout, prefix_lengths)

        reference.attention_fwd = off_by_one
    else:
        raise ValueError(f"unknown error {error!r}")


def chosen_ops(options: list[str]) -> ModuleType:
    """The kernels if the variant asks for them, else the reference."""
    if "kernels=triton" not in options:
        return reference
    from gpt_triton import kernels

    return kernels


def ops(precision: str, device: str, options: list[str]) -> dict[str, Op]:
    """Every op of the package as a function of the case's arrays."""
    dtype, where = getattr(torch, precision), "cuda" if device == "gpu" else "cpu"
    op = chosen_ops(options)

    def activation(inputs: Arrays, name: str) -> Tensor:
        return torch.from_numpy(inputs[name]).to(where, dtype).contiguous()

    def master(inputs: Arrays, name: str) -> Tensor:
        return torch.from_numpy(inputs[name]).to(where)

    def ids(inputs: Arrays, name: str) -> Tensor:
        return torch.from_numpy(inputs[name].astype(np.int32)).to(where)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, device=where)

    def arrays(**tensors: Tensor) -> Arrays:
        return {name: value.float().cpu().numpy() for name, value in tensors.items()}

    def mask_of(inputs: Arrays) -> Dropout | None:
        rate = float(inputs["rate"][0])
        key = torch.from_numpy(inputs["key"].astype(np.int64)).to(where)
        return Dropout(rate, key) if rate else None

    def layer_norm(inputs: Arrays) -> Arrays:
        gain, d_gain, d_bias = master(inputs, "gain"), *(zeros(len(inputs["gain"])) for _ in range(2))
        y, residuals = op.layer_norm_fwd(activation(inputs, "x"), gain, master(inputs, "bias"))
        d_x = op.layer_norm_bwd(residuals, gain, activation(inputs, "d_y"), d_gain, d_bias)
        return arrays(y=y, d_x=d_x, d_gain=d_gain, d_bias=d_bias)

    def gelu(inputs: Arrays) -> Arrays:
        x = activation(inputs, "x")
        return arrays(y=op.gelu_fwd(x), d_x=op.gelu_bwd(x, activation(inputs, "d_y")))

    def linear(inputs: Arrays) -> Arrays:
        x, weight, d_y = (activation(inputs, name) for name in ("x", "weight", "d_y"))
        d_weight, d_bias = zeros(*weight.shape), zeros(weight.shape[1])
        op.linear_bwd_dwdb(x, d_y, d_weight, d_bias)
        y, d_x = op.linear_fwd(x, weight, master(inputs, "bias")), op.linear_bwd_dx(d_y, weight)
        return arrays(y=y, d_x=d_x, d_weight=d_weight, d_bias=d_bias)

    def attention(inputs: Arrays) -> Arrays:
        n_head, starts, dropout = int(inputs["n_head"][0]), ids(inputs, "segment_starts"), mask_of(inputs)
        given = starts if starts.any() else None
        out, residuals = op.attention_fwd(activation(inputs, "qkv"), n_head, given, dropout)
        return arrays(
            out=out, d_qkv=op.attention_bwd(residuals, activation(inputs, "d_out"), n_head, dropout)
        )

    def cross_entropy(inputs: Arrays) -> Arrays:
        x, wte, targets = activation(inputs, "x"), activation(inputs, "wte"), ids(inputs, "targets")
        vocab = len(wte)
        padded = torch.cat([wte, wte.new_zeros(-vocab % 128, wte.shape[1])])
        scale = torch.tensor(1.0 / int((targets != IGNORE).sum()), device=where)
        d_wte = zeros(*padded.shape)
        # chunks of 16 tokens: several, the last one short
        nll, d_x = op.linear_cross_entropy(x, padded, targets, vocab, scale, d_wte, chunk=16)
        return arrays(nll=nll, d_x=d_x, d_wte=d_wte[:vocab])

    def embedding(inputs: Arrays) -> Arrays:
        tokens, positions = ids(inputs, "tokens"), ids(inputs, "positions")
        wte, wpe = activation(inputs, "wte"), activation(inputs, "wpe")
        d_wte, d_wpe = zeros(*wte.shape), zeros(*wpe.shape)
        x = op.embedding_fwd(tokens, positions, wte, wpe)
        op.embedding_bwd(tokens, positions, activation(inputs, "d_x").flatten(0, 1), d_wte, d_wpe)
        return arrays(x=x.view(*tokens.shape, -1), d_wte=d_wte, d_wpe=d_wpe)

    def dropout(inputs: Arrays) -> Arrays:
        x, mask = activation(inputs, "x"), mask_of(inputs)
        kept = op.dropout_fwd(torch.ones_like(x), mask) != 0
        y, d_x = op.dropout_fwd(x, mask), op.dropout_bwd(activation(inputs, "d_y"), mask)
        return arrays(y=y, d_x=d_x, mask=kept)

    return {
        "layer_norm": layer_norm,
        "gelu": gelu,
        "linear": linear,
        "attention": attention,
        "cross_entropy": cross_entropy,
        "embedding": embedding,
        "dropout": dropout,
    }
