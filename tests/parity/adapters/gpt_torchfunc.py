"""gpt-torchfunc's ops under the referee's names, differentiated as the package does: by ``torch.func``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
import torch
from gpt_data.batch import IGNORE
from gpt_torchfunc import attention, gradients, loss, model, optimizer
from gpt_torchfunc.dropout import draw_rows, dropout, unpack
from gpt_torchfunc.model import Block, Inputs, Parameters, Plan
from torch import Tensor

Arrays = dict[str, np.ndarray]


def plant(error: str) -> None:
    """Break one place of the model: the matrix must see it."""
    linear = model.linear
    if error == "newton-schulz":
        optimizer.NEWTON_SCHULZ = (3.4445, -4.7750, 2.0325)
    elif error == "momentum":
        optimizer.MUON_MOMENTUM = 0.9
    elif error == "epsilon":
        model.EPSILON = 1e-3
    elif error == "gain":
        _replace(model.layer_norm, lambda x, gain, bias: honest(x, 1.01 * gain, bias))  # type: ignore[name-defined] # noqa: F821
    elif error == "mask":
        _replace(attention._causal, lambda *of: honest(*of).roll(1, 1))  # type: ignore[name-defined] # noqa: F821
    elif error == "bias":
        model.linear = lambda x, weight, bias: linear(x, weight, 0.0 * bias)
    else:
        raise ValueError(f"unknown error {error!r}")


def _replace(function: Any, broken: Any) -> None:
    """Put other code into a function, for those too that imported it; ``honest`` is the old."""
    function.__globals__["honest"] = FunctionType(function.__code__, function.__globals__)
    function.__code__ = broken.__code__


@dataclass(frozen=True)
class Ops:
    """Every op of the package as a method of the case's arrays.

    Attributes:
        dtype: Of the activations.
        where: Device.
        attention_kind: As the variant asks.
    """

    dtype: torch.dtype
    where: str
    attention_kind: str

    @classmethod
    def of_run(cls, precision: str, device: str, options: list[str]) -> Ops:
        """The ops as one variant runs them."""
        kind = dict(option.split("=") for option in options).get("attention", "written")
        return cls(getattr(torch, precision), "cuda" if device == "gpu" else "cpu", kind)

    def layer_norm(self, inputs: Arrays) -> Arrays:
        """Of every row."""
        given = self._floats(inputs, "x") | self._masters(inputs, "gain", "bias")
        return _answers("y", model.layer_norm, given, self._upstream(inputs))

    def gelu(self, inputs: Arrays) -> Arrays:
        """Element by element."""
        return _answers("y", model.gelu, self._floats(inputs, "x"), self._upstream(inputs))

    def linear(self, inputs: Arrays) -> Arrays:
        """Of every row."""
        given = self._floats(inputs, "x") | self._masters(inputs, "weight", "bias")
        return _answers("y", model.linear, given, self._upstream(inputs))

    def attention(self, inputs: Arrays) -> Arrays:
        """Of every head, with dropout and documents where the case has them."""
        starts, rate = self._ids(inputs, "segment_starts"), float(inputs["rate"][0])
        plan = Plan(int(inputs["n_head"][0]), 1, self.dtype, self.attention_kind, rate)
        packed = Inputs(starts, starts, starts if starts.any() else None)
        # the model writes attention out when there is dropout, and then it needs the mask
        plan = model.written(plan) if rate else plan
        mask = model.visibility(packed, plan)
        key = self._ids(inputs, "key") if rate else None

        def function(qkv: Tensor) -> Tensor:
            heads = attention.split_heads(qkv, plan.n_head)
            bits = None if key is None else attention.draw_weights(heads[0].shape[:3], key, rate)
            fused = plan.attention != "written"
            return attention.mix(*heads, mask, None, bits, rate, fused=fused).view(*qkv.shape[:2], -1)

        return _answers("out", function, self._floats(inputs, "qkv"), self._upstream(inputs, "d_out"))

    def cross_entropy(self, inputs: Arrays) -> Arrays:
        """Losses token by token, and the gradients of their mean."""
        x, wte = self._floats(inputs, "x")["x"], self._masters(inputs, "wte")["wte"]
        targets, vocab = self._ids(inputs, "targets"), len(wte)
        # chunks of 16 tokens: several, the last one short
        plan = Plan(1, vocab, self.dtype, chunk=16 * vocab)
        weight = torch.tensor(1.0 / int((targets != IGNORE).sum()), device=self.where)
        _, d_x, d_wte = loss.head_loss_and_gradients(x, wte, targets, plan, weight)
        nll = loss.token_nll(x, wte, targets, plan)
        return _arrays({"nll": nll, "d_x": d_x, "d_wte": d_wte})

    def embedding(self, inputs: Arrays) -> Arrays:
        """Rows of both tables, added."""
        tokens, positions = self._ids(inputs, "tokens"), self._ids(inputs, "positions")
        starts = torch.arange(tokens.shape[1], device=self.where) - positions
        packed, plan = Inputs(tokens, tokens, starts), Plan(1, len(inputs["wte"]), self.dtype)

        masters = self._masters(inputs, "wte", "wpe")
        none = Block(*[masters["wte"].new_zeros(1)] * len(Block._fields))
        params = Parameters(**masters, blocks=none, ln_f_gain=none.ln1_gain, ln_f_bias=none.ln1_bias)
        x, d_x = model.embed(params, packed, plan), self._upstream(inputs, "d_x")
        d_wte, d_wpe = gradients.embed_gradients(params, packed, d_x.to(x.dtype).flatten(0, 1), plan)
        return _arrays({"x": x.view_as(d_x), "d_wte": d_wte, "d_wpe": d_wpe})

    def dropout(self, inputs: Arrays) -> Arrays:
        """The branch, and its mask."""
        key, rate = self._ids(inputs, "key"), float(inputs["rate"][0])
        given, d_y, rows = self._floats(inputs, "x"), self._upstream(inputs), int(inputs["rows"][0])
        count, width = given["x"].shape
        bits = draw_rows((rows, count // rows, width), key, rate)
        found = _answers("y", lambda x: dropout(x, bits, rate), given, d_y)
        return found | _arrays({"mask": unpack(bits, width)})

    def orthogonalize(self, inputs: Arrays) -> Arrays:
        """Of every matrix."""
        return _arrays({"y": optimizer.orthogonalize(self._masters(inputs, "x")["x"], self.dtype)})

    def _floats(self, inputs: Arrays, name: str) -> dict[str, Tensor]:
        """One of the activations, by its name."""
        return {name: torch.from_numpy(inputs[name]).to(self.where, self.dtype)}

    def _masters(self, inputs: Arrays, *names: str) -> dict[str, Tensor]:
        """Parameters, which are float32 in every precision, by their names."""
        return {name: torch.from_numpy(inputs[name]).to(self.where, torch.float32) for name in names}

    def _ids(self, inputs: Arrays, name: str) -> Tensor:
        return torch.from_numpy(inputs[name].astype(np.int64)).to(self.where)

    def _upstream(self, inputs: Arrays, name: str = "d_y") -> Tensor:
        return torch.from_numpy(inputs[name]).to(self.where)


def _answers(name: str, function: Callable[..., Tensor], given: dict[str, Tensor], d_out: Tensor) -> Arrays:
    """Output and gradients of one op; the output comes under ``name``."""
    out, pull_back = torch.func.vjp(lambda tree: function(**tree), given)
    (grads,) = pull_back(d_out.to(out.dtype))
    return _arrays({f"d_{each}": grad for each, grad in grads.items()} | {name: out})


def _arrays(tensors: dict[str, Tensor]) -> Arrays:
    return {name: value.detach().float().cpu().numpy() for name, value in tensors.items()}
