"""gpt-triton's ops under the referee's names: each is a pair of functions already, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from gpt_data.batch import IGNORE
from gpt_triton import reference
from gpt_triton.dropout import Dropout
from gpt_triton.reference import layers, optimizer
from torch import Tensor

Arrays = dict[str, np.ndarray]


def plant(error: str) -> None:
    """Break the reference ops in one place: the matrix must see it."""
    norm_back, attend = reference.layer_norm_bwd, reference.attention_fwd
    if error == "newton-schulz":
        optimizer.NEWTON_SCHULZ = (3.4445, -4.7750, 2.0325)
    elif error == "momentum":
        optimizer.MUON_MOMENTUM = 0.9
    elif error == "epsilon":
        layers.EPSILON = 1e-3
    elif error == "gain":
        reference.layer_norm_bwd = lambda res, gain, *rest: norm_back(res, 1.01 * gain, *rest)
    elif error == "bias":
        linear = reference.linear_fwd
        reference.linear_fwd = lambda x, weight, bias: linear(x, weight, 0.0 * bias)
    elif error == "mask":

        def off_by_one(
            qkv: Tensor, n_head: int, starts: Tensor | None, dropout: Dropout | None = None
        ) -> tuple:
            index = torch.arange(qkv.shape[1], dtype=torch.int32)
            late = torch.minimum(torch.ones_like(index), index).expand(qkv.shape[:2])
            starts = late if starts is None else torch.maximum(starts, late)
            return attend(qkv, n_head, starts, dropout)

        reference.attention_fwd = off_by_one
    else:
        raise ValueError(f"unknown error {error!r}")


def chosen_ops(options: list[str]) -> ModuleType:
    """The kernels if the variant asks for them, else the reference."""
    if "kernels=triton" not in options:
        return reference
    from gpt_triton import kernels

    return kernels


@dataclass(frozen=True)
class Ops:
    """Every op of the package as a method of the case's arrays.

    Attributes:
        dtype: Of the activations and of the matrices.
        where: Device.
        op: Triton's kernels or their reference.
    """

    dtype: torch.dtype
    where: str
    op: ModuleType

    @classmethod
    def of_run(cls, precision: str, device: str, options: list[str]) -> Ops:
        """The ops as one variant runs them."""
        return cls(getattr(torch, precision), "cuda" if device == "gpu" else "cpu", chosen_ops(options))

    def layer_norm(self, inputs: Arrays) -> Arrays:
        """Of every row."""
        x, d_y = (self._activation(inputs, name) for name in ("x", "d_y"))
        gain, bias = (self._master(inputs, name) for name in ("gain", "bias"))
        d_gain, d_bias = self._zeros(len(gain)), self._zeros(len(gain))
        y, residuals = self.op.layer_norm_fwd(x, gain, bias)
        d_x = self.op.layer_norm_bwd(residuals, gain, d_y, d_gain, d_bias)
        return _arrays(y=y, d_x=d_x, d_gain=d_gain, d_bias=d_bias)

    def gelu(self, inputs: Arrays) -> Arrays:
        """Element by element, by way of a map that leaves them as they are."""
        x, d_y = (self._activation(inputs, name).view(-1, 1) for name in ("x", "d_y"))
        one = torch.ones_like(x[:1])
        y, slope = self.op.linear_gelu_fwd(x, one, self._zeros(1))
        d_x = self.op.linear_gelu_bwd_dx(d_y, one, slope)
        return _arrays(**{name: z.view(inputs["x"].shape) for name, z in (("y", y), ("d_x", d_x))})

    def linear(self, inputs: Arrays) -> Arrays:
        """Of every row."""
        x, weight, d_y = (self._activation(inputs, name) for name in ("x", "weight", "d_y"))
        d_weight, d_bias = self._zeros(*weight.shape), self._zeros(weight.shape[1])
        self.op.linear_bwd_dwdb(x, d_y, d_weight, d_bias)
        y, d_x = (
            self.op.linear_fwd(x, weight, self._master(inputs, "bias")),
            self.op.linear_bwd_dx(d_y, weight),
        )
        return _arrays(y=y, d_x=d_x, d_weight=d_weight, d_bias=d_bias)

    def attention(self, inputs: Arrays) -> Arrays:
        """Of every head, with dropout and documents where the case has them."""
        n_head, dropout = int(inputs["n_head"][0]), self._dropout_of(inputs, inputs["qkv"].shape[1])
        starts = self._ids(inputs, "segment_starts") if inputs["segment_starts"].any() else None
        out, residuals = self.op.attention_fwd(self._activation(inputs, "qkv"), n_head, starts, dropout)
        d_qkv = self.op.attention_bwd(residuals, self._activation(inputs, "d_out"), n_head, dropout)
        return _arrays(out=out, d_qkv=d_qkv)

    def cross_entropy(self, inputs: Arrays) -> Arrays:
        """Losses token by token, and the gradients of their mean."""
        x, wte = (self._activation(inputs, name) for name in ("x", "wte"))
        targets, vocab = self._ids(inputs, "targets"), len(wte)
        padded = torch.cat([wte, wte.new_zeros(-vocab % 128, wte.shape[1])])
        scale = torch.tensor(1.0 / int((targets != IGNORE).sum()), device=self.where)
        d_wte = self._zeros(*padded.shape)
        # chunks of 16 tokens: several, the last one short
        nll, d_x = self.op.linear_cross_entropy(x, padded, targets, vocab, scale, d_wte, chunk=16)
        return _arrays(nll=nll, d_x=d_x, d_wte=d_wte[:vocab])

    def embedding(self, inputs: Arrays) -> Arrays:
        """Rows of both tables, added."""
        tokens, positions = self._ids(inputs, "tokens"), self._ids(inputs, "positions")
        wte, wpe, d_x = (self._activation(inputs, name) for name in ("wte", "wpe", "d_x"))
        d_wte, d_wpe = self._zeros(*wte.shape), self._zeros(*wpe.shape)
        x = self.op.embedding_fwd(tokens, positions, wte, wpe)
        self.op.embedding_bwd(tokens, positions, d_x.flatten(0, 1), d_wte, d_wpe)
        return _arrays(x=x.view(*tokens.shape, -1), d_wte=d_wte, d_wpe=d_wpe)

    def dropout(self, inputs: Arrays) -> Arrays:
        """The branch, and its mask."""
        x, d_y = (self._activation(inputs, name) for name in ("x", "d_y"))
        site = self._dropout_of(inputs, len(x) // int(inputs["rows"][0]))
        kept = self.op.dropout_fwd(torch.ones_like(x), site) != 0
        return _arrays(y=self.op.dropout_fwd(x, site), d_x=self.op.dropout_bwd(d_y, site), mask=kept)

    def orthogonalize(self, inputs: Arrays) -> Arrays:
        """Of every matrix."""
        return _arrays(y=self.op.orthogonalize(self._master(inputs, "x"), self.dtype))

    def _activation(self, inputs: Arrays, name: str) -> Tensor:
        return torch.from_numpy(inputs[name]).to(self.where, self.dtype).contiguous()

    def _master(self, inputs: Arrays, name: str) -> Tensor:
        return torch.from_numpy(inputs[name]).to(self.where)

    def _ids(self, inputs: Arrays, name: str) -> Tensor:
        return torch.from_numpy(inputs[name].astype(np.int32)).to(self.where)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.where)

    def _dropout_of(self, inputs: Arrays, context: int) -> Dropout | None:
        rate = float(inputs["rate"][0])
        key = torch.from_numpy(inputs["key"].astype(np.int64)).to(self.where)
        return Dropout(rate, key, context) if rate else None


def _arrays(**tensors: Tensor) -> Arrays:
    return {name: value.float().cpu().numpy() for name, value in tensors.items()}
