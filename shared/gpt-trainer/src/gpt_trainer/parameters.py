"""GPT-2's parameters by their canonical names: shapes, initial values, and what backends call them.

Names and layouts are those of Hugging Face's GPT-2 safetensors file; weights are ``(in, out)``.
Shapes: V vocabulary, T context, D model width.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import numpy as np
from jaxtyping import Float32

from gpt_trainer.errors import one_line
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.normals import standard_normals

Parameters = dict[str, Float32[np.ndarray, "..."]]
"""Canonical name -> float32 array, in the order of ``parameter_shapes``."""

OptimizerState = Mapping[str, Parameters]
"""Trees by names that only the optimizer knows, each over the parameters that it keeps something of."""

INIT_STD = 0.02
TREE_NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)

END_NAMES = {
    "wte": "transformer.wte.weight",
    "wpe": "transformer.wpe.weight",
    "ln_f_gain": "transformer.ln_f.weight",
    "ln_f_bias": "transformer.ln_f.bias",
}
BLOCK = {
    "ln1_gain": ("ln_1.weight", (1,)),
    "ln1_bias": ("ln_1.bias", (1,)),
    "qkv_weight": ("attn.c_attn.weight", (1, 3)),
    "qkv_bias": ("attn.c_attn.bias", (3,)),
    "out_weight": ("attn.c_proj.weight", (1, 1)),
    "out_bias": ("attn.c_proj.bias", (1,)),
    "ln2_gain": ("ln_2.weight", (1,)),
    "ln2_bias": ("ln_2.bias", (1,)),
    "up_weight": ("mlp.c_fc.weight", (1, 4)),
    "up_bias": ("mlp.c_fc.bias", (4,)),
    "down_weight": ("mlp.c_proj.weight", (4, 1)),
    "down_bias": ("mlp.c_proj.bias", (1,)),
}
"""By the fields of a backend's ``Block``: names, and shapes in widths of the model."""
BLOCK_NAMES = {field: name for field, (name, _) in BLOCK.items()}
"""By the fields of a backend's ``Parameters`` and ``Block``; those of block N behind ``transformer.h.N.``."""

VOCABULARY_MULTIPLE = 128
"""The head's product is several times slower at an odd width (50257) than at the next multiple."""


def padded_vocabulary(vocab_size: int) -> int:
    """``vocab_size``, rounded up to a multiple of 128: rows of ``wte`` in a backend, the last ones zero."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape, in canonical order; the head is ``wte`` transposed."""
    d = config.d_model
    shapes: dict[str, tuple[int, ...]] = {END_NAMES["wte"]: (config.vocab_size, d)}
    shapes[END_NAMES["wpe"]] = (config.context, d)
    for layer in range(config.n_layer):
        for name, widths in BLOCK.values():
            shapes[f"transformer.h.{layer}.{name}"] = tuple(width * d for width in widths)
    return shapes | {END_NAMES["ln_f_gain"]: (d,), END_NAMES["ln_f_bias"]: (d,)}


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters, the tied head counted once."""
    return sum(int(np.prod(shape)) for shape in parameter_shapes(config).values())


def init_parameters(config: ModelConfig, seed: int) -> Parameters:
    """GPT-2's initial weights, the same for every backend.

    Matrices and embeddings are normal with deviation 0.02; the two projections that write to the
    residual stream are scaled by ``1 / sqrt(2 L)``; gains are one and biases zero. All draws come
    from one Philox stream in canonical order.

    Args:
        seed: Key of the stream, from 0.

    References:
        Radford et al. 2019, section 2.3.
    """
    shapes = parameter_shapes(config)
    drawn = iter(standard_normals(seed, [shape for shape in shapes.values() if len(shape) > 1]))
    residual_std = INIT_STD / np.sqrt(2 * config.n_layer)
    values: Parameters = {}
    for name, shape in shapes.items():
        if name.endswith(".bias"):
            values[name] = np.zeros(shape, np.float32)
        elif len(shape) == 1:
            values[name] = np.ones(shape, np.float32)
        else:
            std = residual_std if name.endswith("c_proj.weight") else INIT_STD
            values[name] = next(drawn)
            values[name] *= np.float32(std)
    return values


def check_parameters(values: Mapping[str, np.ndarray], config: ModelConfig) -> None:
    """Check names, shapes, dtype and finiteness against ``config``.

    Raises:
        ValueError: Naming the first ten missing, extra, misshapen, mistyped or non-finite tensors.
    """
    check_arrays(values, parameter_shapes(config))


def check_optimizer_state(
    state: OptimizerState, config: ModelConfig, want: Mapping[str, Collection[str]] | None = None
) -> None:
    """Check the trees' names, and the names, shapes, dtype and finiteness of what they hold.

    Args:
        want: Names of the trees that must be there, and no other, and of the parameters in each; those of
            ``state`` if not given.

    Raises:
        ValueError: Naming what differs.
    """
    want = state if want is None else want
    if state.keys() != want.keys():
        found, wanted = (", ".join(sorted(names)) or "nothing" for names in (state, want))
        raise ValueError(f"the optimizer's state has {found}, expected {wanted}")
    shapes = parameter_shapes(config)
    for tree, names in want.items():
        if not TREE_NAME.fullmatch(tree):
            raise ValueError(f"the optimizer's state has a tree {tree!r}, which is no name")
        try:
            check_arrays(state[tree], {name: shapes[name] for name in names if name in shapes})
        except ValueError as error:
            raise ValueError(f"{tree} of the optimizer: {error}") from None


def check_arrays(values: Mapping[str, np.ndarray], want: Mapping[str, tuple[int, ...]]) -> None:
    """Check names, shapes, dtype and finiteness of a model's arrays.

    Args:
        want: Shape of each array that must be there, and no other.

    Raises:
        ValueError: Naming the first ten missing, extra, misshapen, mistyped or non-finite arrays.
    """
    wrong = [f"missing {name} {want[name]}" for name in want if name not in values]
    wrong += [f"unexpected {name} {values[name].shape}" for name in values if name not in want]
    for name in want.keys() & values.keys():
        value = values[name]
        if tuple(value.shape) != want[name]:
            wrong.append(f"{name} has shape {tuple(value.shape)}, expected {want[name]}")
        elif value.dtype != np.float32:
            wrong.append(f"{name} has dtype {value.dtype}, expected float32")
        elif not np.isfinite(value).all():
            wrong.append(f"{name} holds NaN or infinity")
    if wrong:
        raise ValueError("parameters do not fit the model: " + one_line(sorted(wrong)))
