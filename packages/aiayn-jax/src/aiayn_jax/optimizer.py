"""Adam as the paper runs it, as pure functions of trees.

    m = b1 m + (1 - b1) g,     v = b2 v + (1 - b2) g^2
    p = p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

There is no weight decay, and no clipping. Whether a step counts is decided on the device: a gradient
that is not finite leaves everything as it was.

References:
    Kingma and Ba 2015, algorithm 1; Vaswani et al. 2017, section 5.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gpt_jax.optimizer import Outcome
from jaxtyping import Array, Float, Float32

from aiayn_jax.parameters import Parameters


@dataclass(frozen=True)
class AdamConfig:
    """The paper's settings.

    Attributes:
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        epsilon: Added to the root of the second moment.

    Raises:
        ValueError: If a value is out of range.
    """

    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-9

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)} is not in [0, 1)")
        if not 0.0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon={self.epsilon} is not in (0, infinity)")


@struct.dataclass
class AdamState:
    """Running means of the gradient and of its square, float32."""

    first: Parameters
    second: Parameters


@struct.dataclass
class AdamScalars:
    """What changes from step to step, as arrays, so that no step is compiled again.

    Attributes:
        lr: Learning rate.
        correction1: ``1 - beta1^t``, formed in float64.
        correction2: ``1 - beta2^t``, the same.
    """

    lr: Float[Array, ""]
    correction1: Float[Array, ""]
    correction2: Float[Array, ""]


def adam_init(params: Parameters) -> AdamState:
    """Both moments at zero."""
    return AdamState(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))


def adam_scalars(config: AdamConfig, lr: float, step: int) -> Float32[np.ndarray, " 3"]:
    """The fields of ``AdamScalars`` in one host array: one copy to the device.

    Args:
        step: Steps already taken, from 0.
    """
    return np.array([lr, *(1.0 - beta ** (step + 1) for beta in (config.beta1, config.beta2))], np.float32)


def adam_update(
    params: Parameters, gradients: Parameters, state: AdamState, config: AdamConfig, scalars: AdamScalars
) -> tuple[Parameters, AdamState, Outcome]:
    """One step; everything stays as it was if the gradient is not finite.

    Args:
        params: Float32 parameters.
    """
    norm = _global_norm(gradients)
    updated = jnp.isfinite(norm)

    def of_leaf(p: Array, g: Array, m: Array, v: Array) -> tuple[Array, Array, Array]:
        new_m = config.beta1 * m + (1.0 - config.beta1) * g
        new_v = config.beta2 * v + (1.0 - config.beta2) * jnp.square(g)
        root = jnp.sqrt(new_v / scalars.correction2) + config.epsilon
        new_p = p - scalars.lr * (new_m / scalars.correction1) / root
        return jnp.where(updated, new_p, p), jnp.where(updated, new_m, m), jnp.where(updated, new_v, v)

    columns = (jax.tree.leaves(tree) for tree in (params, gradients, state.first, state.second))
    leaves = [of_leaf(*one) for one in zip(*columns, strict=True)]
    shape = jax.tree.structure(params)
    new, first, second = (jax.tree.unflatten(shape, column) for column in zip(*leaves, strict=True))
    return new, AdamState(first, second), Outcome(norm, updated)


def _global_norm(gradients: Parameters) -> Float[Array, ""]:
    return jnp.sqrt(jnp.stack([jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradients)]).sum())
