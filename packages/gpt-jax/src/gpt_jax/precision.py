"""Matrix products, and which of them are kept in float32."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def product(formula: str, a: Array, b: Array, *, wide: bool = False) -> Array:
    """A matrix product as an einsum.

    Args:
        wide: Keep the sums in float32 instead of rounding them to the operands' type.
    """
    # HIGHEST keeps float32 products float32 (no TF32); bfloat16 products know no difference
    kind = statistics_dtype(a.dtype) if wide else a.dtype
    return jnp.einsum(formula, a, b, precision=lax.Precision.HIGHEST, preferred_element_type=kind)


def statistics_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Type of softmax, LayerNorm and loss statistics: float32, or float64 when a check runs in it."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
