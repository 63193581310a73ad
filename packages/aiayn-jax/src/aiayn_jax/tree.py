"""Named NumPy arrays to the tree of JAX arrays, and back.

The vocabulary is padded inside to a multiple of 128; each stack's layers are stacked.
Shapes: L layers, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TypeVar

import jax
import numpy as np
from gpt_trainer.parameters import check_arrays, padded_vocabulary

from aiayn_jax.config import TransformerConfig, parameter_shapes
from aiayn_jax.parameters import Attention, DecoderLayer, EncoderLayer, Network, Parameters

Part = TypeVar("Part", Attention, Network)


def from_named(
    arrays: Mapping[str, np.ndarray], config: TransformerConfig, device: jax.Device | None = None
) -> Parameters:
    """The tree, as a copy; rows of the embedding past the vocabulary are zero.

    Args:
        arrays: Float32 arrays by the names of ``parameter_shapes``.
        device: Where the arrays are to live, and stay: ``None`` means JAX's first device.

    Raises:
        ValueError: Naming each missing, extra, misshapen, mistyped or non-finite array.
    """
    check_arrays(arrays, parameter_shapes(config))
    # without a device the arrays would be free to move, and a step be compiled again once they are not
    device = device or jax.devices()[0]

    def send(value: np.ndarray) -> jax.Array:
        # JAX may use a host array's memory as it is, so it gets one that nobody else writes to
        return jax.device_put(np.array(value, np.float32, order="C", copy=True), device)

    def part(kind: type[Part], stack: str, name: str) -> Part:
        def layers(field: str) -> np.ndarray:
            return np.stack([arrays[f"{stack}.{layer}.{name}.{field}"] for layer in range(config.n_layer)])

        return kind(**{field.name: send(layers(field.name)) for field in fields(kind)})

    embedding = np.zeros((padded_vocabulary(config.vocab_size), config.d_model), np.float32)
    embedding[: config.vocab_size] = arrays["embedding"]
    encoder = EncoderLayer(part(Attention, "encoder", "attention"), part(Network, "encoder", "network"))
    decoder = DecoderLayer(
        part(Attention, "decoder", "attention"),
        part(Attention, "decoder", "cross"),
        part(Network, "decoder", "network"),
    )
    return Parameters(send(embedding), encoder, decoder)


def to_named(params: Parameters, config: TransformerConfig) -> dict[str, np.ndarray]:
    """Arrays by name in the order of ``parameter_shapes``, as copies, without the padding."""
    named = {"embedding": np.array(params.embedding)[: config.vocab_size]}
    for stack in ("encoder", "decoder"):
        layers = getattr(params, stack)
        for part in fields(layers):
            arrays = getattr(layers, part.name)
            for field in fields(arrays):
                stacked = np.asarray(getattr(arrays, field.name))
                named |= {f"{stack}.{i}.{part.name}.{field.name}": value for i, value in enumerate(stacked)}
    return {name: np.array(named[name], order="C", copy=True) for name in parameter_shapes(config)}
