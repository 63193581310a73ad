"""gpt-jax's ops under the referee's names, differentiated as the package does: by ``jax.vjp``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gpt_jax.attention as attention_module
import jax
import jax.numpy as jnp
import numpy as np
from gpt_data.batch import IGNORE
from gpt_jax import loss, model, optimizer
from gpt_jax.dropout import dropout
from gpt_jax.model import Block, Inputs, Parameters, Plan
from jax import Array

Arrays = dict[str, np.ndarray]


def plant(error: str) -> None:
    """Break the model in one place: the matrix must see it."""
    layer_norm, linear, visible = model.layer_norm, model.linear, attention_module.visible
    if error == "newton-schulz":
        optimizer.NEWTON_SCHULZ = (3.4445, -4.7750, 2.0325)
    elif error == "momentum":
        optimizer.MUON_MOMENTUM = 0.9
    elif error == "epsilon":
        model.EPSILON = 1e-3
    elif error == "gain":
        model.layer_norm = lambda x, gain, bias: layer_norm(x, 1.01 * gain, bias)
    elif error == "bias":
        model.linear = lambda x, weight, bias: linear(x, weight, 0.0 * bias)
    elif error == "mask":
        attention_module.visible = lambda index, *rest: jnp.roll(visible(index, *rest), 1, 1)
    else:
        raise ValueError(f"unknown error {error!r}")


@dataclass(frozen=True)
class Ops:
    """Every op of the package as a method of the case's arrays.

    Attributes:
        dtype: Of the activations.
        fused: Whether attention is cuDNN's where it can be.
    """

    dtype: jnp.dtype
    fused: bool

    @classmethod
    def of_run(cls, precision: str, device: str, options: list[str]) -> Ops:
        """The ops as one variant runs them."""
        jax.config.update("jax_default_device", jax.devices(device)[0])
        return cls(jnp.dtype(precision), "attention=cudnn" in options)

    def layer_norm(self, inputs: Arrays) -> Arrays:
        """The model's functions take [B, T, D]; the cases' tokens are one long row."""
        given = self._floats(inputs, "x") | _masters(inputs, "gain", "bias")
        return _answers(
            "y", lambda x, gain, bias: model.layer_norm(x[None], gain, bias)[0], given, inputs["d_y"]
        )

    def gelu(self, inputs: Arrays) -> Arrays:
        """Element by element."""
        return _answers("y", model.gelu, self._floats(inputs, "x"), inputs["d_y"])

    def linear(self, inputs: Arrays) -> Arrays:
        """One long row, as for ``layer_norm``."""
        given = self._floats(inputs, "x") | _masters(inputs, "weight", "bias")
        return _answers(
            "y", lambda x, weight, bias: model.linear(x[None], weight, bias)[0], given, inputs["d_y"]
        )

    def attention(self, inputs: Arrays) -> Arrays:
        """Of every head, with dropout and documents where the case has them."""
        rate, n_head = float(inputs["rate"][0]), int(inputs["n_head"][0])
        starts = jnp.asarray(inputs["segment_starts"]) if inputs["segment_starts"].any() else None
        key = jnp.asarray(inputs["key"]) if rate else None
        # as the model does: cuDNN's kernel has no derivative for rows of odd length
        fused = self.fused and key is None and starts is None and inputs["qkv"].shape[1] % 2 == 0

        def function(qkv: Array) -> Array:
            q, k, v = attention_module.split_heads(qkv, n_head)
            if fused:
                out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
            else:
                out = attention_module.attend(q, k, v, starts, key, rate)
            return out.reshape(*qkv.shape[:2], qkv.shape[2] // 3)

        return _answers("out", function, self._floats(inputs, "qkv"), inputs["d_out"])

    def cross_entropy(self, inputs: Arrays) -> Arrays:
        """Losses token by token, and the gradients of their mean."""
        targets, vocab = jnp.asarray(inputs["targets"]), len(inputs["wte"])
        # chunks of 16 tokens: several, the last one short
        plan = Plan(1, vocab, self.dtype.name, chunk=16 * vocab)
        weight = jnp.float32(1.0 / np.count_nonzero(inputs["targets"] != IGNORE))
        given = self._floats(inputs, "x") | _masters(inputs, "wte")

        def function(x: Array, wte: Array) -> Array:
            return loss.head_loss(x, wte, targets, weight, plan)

        found = _answers("mean", function, given, np.ones((), np.float32))
        nll = loss.token_nll(given["x"], given["wte"], targets, plan)
        return {"nll": np.asarray(nll), "d_x": found["d_x"], "d_wte": found["d_wte"]}

    def embedding(self, inputs: Arrays) -> Arrays:
        """Rows of both tables, added."""
        tokens = jnp.asarray(inputs["tokens"])
        starts = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] - inputs["positions"]
        packed, plan = Inputs(tokens, tokens, starts), Plan(1, len(inputs["wte"]), self.dtype.name)

        def function(wte: Array, wpe: Array) -> Array:
            none = Block(*[wte[:1]] * len(Block.__dataclass_fields__))
            x = model.embed(Parameters(wte, wpe, none, wte[0], wte[0]), packed, plan)
            return x.reshape(inputs["d_x"].shape)

        return _answers("x", function, _masters(inputs, "wte", "wpe"), inputs["d_x"])

    def dropout(self, inputs: Arrays) -> Arrays:
        """The branch, and its mask."""
        key, rate, rows = jnp.asarray(inputs["key"]), float(inputs["rate"][0]), int(inputs["rows"][0])

        def function(x: Array) -> Array:
            return dropout(x, key, rate, rows)

        found = _answers("y", function, self._floats(inputs, "x"), inputs["d_y"])
        return found | {"mask": np.asarray(function(jnp.ones(inputs["x"].shape)) != 0, np.float32)}

    def orthogonalize(self, inputs: Arrays) -> Arrays:
        """Of every matrix."""
        return {"y": np.asarray(optimizer.orthogonalize(jnp.asarray(inputs["x"]), self.dtype.name))}

    def _floats(self, inputs: Arrays, name: str) -> dict[str, Array]:
        """One of the activations, by its name."""
        return {name: jnp.asarray(inputs[name]).astype(self.dtype)}


def _masters(inputs: Arrays, *names: str) -> dict[str, Array]:
    """Parameters, which are float32 in every precision, by their names."""
    return {name: jnp.asarray(inputs[name]).astype(jnp.float32) for name in names}


def _answers(name: str, function: Callable[..., Array], given: dict[str, Array], d_out: np.ndarray) -> Arrays:
    """Output and gradients of one op; the output comes under ``name``."""
    out, pull_back = jax.vjp(lambda tree: function(**tree), given)
    (grads,) = pull_back(jnp.asarray(d_out).astype(out.dtype))
    found = {f"d_{each}": grad for each, grad in grads.items()} | {name: out}
    return {each: np.asarray(value.astype(jnp.float32)) for each, value in found.items()}
