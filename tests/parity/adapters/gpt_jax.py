"""gpt-jax's ops under the referee's names, differentiated as the package does: by ``jax.vjp``."""

from __future__ import annotations

from collections.abc import Callable

import gpt_jax.attention as attention_module
import jax
import jax.numpy as jnp
import numpy as np
from gpt_data.batch import IGNORE
from gpt_jax import loss, model
from gpt_jax.dropout import dropout, dropout_mask
from gpt_jax.model import Block, Inputs, Parameters, Plan
from jax import Array

Arrays = dict[str, np.ndarray]
Op = Callable[[Arrays], Arrays]


def plant(error: str) -> None:
    """Break the model in one place: the matrix must see it."""
    layer_norm, linear, visible = model.layer_norm, model.linear, attention_module.visible
    if error == "epsilon":
        model.EPSILON = 1e-3
    elif error == "gain":
        model.layer_norm = lambda x, gain, bias: layer_norm(x, 1.01 * gain, bias)
    elif error == "bias":
        model.linear = lambda x, weight, bias: linear(x, weight, 0.0 * bias)
    elif error == "mask":
        attention_module.visible = lambda index, *rest: jnp.roll(visible(index, *rest), 1, 1)
    else:
        raise ValueError(f"unknown error {error!r}")


def ops(precision: str, device: str, options: list[str]) -> dict[str, Op]:
    """Every op of the package as a function of the case's arrays."""
    dtype = jnp.dtype(precision)
    jax.config.update("jax_default_device", jax.devices(device)[0])
    attention_kind = dict(option.split("=") for option in options).get("attention", "written")

    def floats(inputs: Arrays, *names: str, kind: jnp.dtype = dtype) -> dict[str, Array]:
        return {name: jnp.asarray(inputs[name]).astype(kind) for name in names}

    def answers(
        name: str, function: Callable[..., Array], given: dict[str, Array], d_out: np.ndarray
    ) -> Arrays:
        out, pull_back = jax.vjp(lambda tree: function(**tree), given)
        (grads,) = pull_back(jnp.asarray(d_out).astype(out.dtype))
        found = {f"d_{each}": grad for each, grad in grads.items()} | {name: out}
        return {each: np.asarray(value.astype(jnp.float32)) for each, value in found.items()}

    def one_row(function: Callable[..., Array]) -> Callable[..., Array]:
        """The model's functions take [B, T, D]; the cases' tokens are one long row."""
        return lambda x, *rest: function(x[None], *rest)[0]

    def layer_norm(inputs: Arrays) -> Arrays:
        given = floats(inputs, "x") | floats(inputs, "gain", "bias", kind=jnp.float32)
        function = one_row(lambda x, gain, bias: model.layer_norm(x, gain, bias))
        return answers("y", lambda x, gain, bias: function(x, gain, bias), given, inputs["d_y"])

    def gelu(inputs: Arrays) -> Arrays:
        return answers("y", model.gelu, floats(inputs, "x"), inputs["d_y"])

    def linear(inputs: Arrays) -> Arrays:
        given = floats(inputs, "x") | floats(inputs, "weight", "bias", kind=jnp.float32)
        function = one_row(lambda x, weight, bias: model.linear(x, weight, bias))
        return answers("y", lambda x, weight, bias: function(x, weight, bias), given, inputs["d_y"])

    def attention(inputs: Arrays) -> Arrays:
        rows, time, triple = inputs["qkv"].shape
        rate, n_head = float(inputs["rate"][0]), int(inputs["n_head"][0])
        starts = jnp.asarray(inputs["segment_starts"]) if inputs["segment_starts"].any() else None
        key = jnp.asarray(inputs["key"]) if rate else None
        # as the model does: cuDNN's kernel has no derivative for rows of odd length
        fused = attention_kind == "cudnn" and key is None and starts is None and time % 2 == 0

        def function(qkv: Array) -> Array:
            q, k, v = model.split_heads(qkv, n_head)
            if fused:
                out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
            else:
                out = attention_module.attend(q, k, v, starts, key, rate)
            return out.reshape(rows, time, triple // 3)

        return answers("out", function, floats(inputs, "qkv"), inputs["d_out"])

    def cross_entropy(inputs: Arrays) -> Arrays:
        targets = jnp.asarray(inputs["targets"])
        vocab = len(inputs["wte"])
        plan = Plan(1, vocab, precision, chunk=16 * vocab)  # chunks of 16 tokens: several, the last one short
        weight = jnp.float32(1.0 / np.count_nonzero(inputs["targets"] != IGNORE))
        given = floats(inputs, "x") | floats(inputs, "wte", kind=jnp.float32)

        def function(x: Array, wte: Array) -> Array:
            return loss.head_loss(x, wte, targets, weight, plan)

        found = answers("mean", function, given, np.ones((), np.float32))
        nll = loss.token_nll(given["x"], given["wte"], targets, plan)
        return {"nll": np.asarray(nll), "d_x": found["d_x"], "d_wte": found["d_wte"]}

    def embedding(inputs: Arrays) -> Arrays:
        tokens = jnp.asarray(inputs["tokens"])
        starts = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] - inputs["positions"]
        given = floats(inputs, "wte", "wpe", kind=jnp.float32)
        plan = Plan(1, len(inputs["wte"]), precision)

        def function(wte: Array, wpe: Array) -> Array:
            none = Block(*[wte[:1]] * len(Block.__dataclass_fields__))
            return model.embed(
                Parameters(wte, wpe, none, wte[0], wte[0]), Inputs(tokens, tokens, starts), plan
            )

        return answers("x", function, given, inputs["d_x"])

    def drop(inputs: Arrays) -> Arrays:
        key, rate = jnp.asarray(inputs["key"]), float(inputs["rate"][0])
        found = answers("y", lambda x: dropout(x, key, rate), floats(inputs, "x"), inputs["d_y"])
        return found | {"mask": np.asarray(dropout_mask(inputs["x"].shape, key, rate), np.float32)}

    return {
        "layer_norm": layer_norm,
        "gelu": gelu,
        "linear": linear,
        "attention": attention,
        "cross_entropy": cross_entropy,
        "embedding": embedding,
        "dropout": drop,
    }
