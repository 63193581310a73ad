"""The kernels of attention with dropout, run by JAX itself, against the written form."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from gpt_jax.attention import attend, kernels_take
from gpt_jax.dropped_attention import attend_dropped
from gpt_jax_toy import assert_close
from jaxtyping import Array


def test_values_and_gradients_equal_the_written_form() -> None:
    # two heads, and two tiles of queries to a bit
    shape, key, rate = (1, 1024, 2, 16), jnp.array((5, 7, 3), jnp.uint32), 0.1
    q, k, v, d_out = (jax.random.normal(part, shape) for part in jax.random.split(jax.random.key(0), 4))
    forms = {
        "written": lambda q, k, v: attend(q, k, v, None, key, rate),
        "kernels": lambda q, k, v: attend_dropped(q, k, v, key, rate, True),
    }

    @partial(jax.jit, static_argnums=0)
    def both(form: str) -> tuple[Array, ...]:
        out, pull = jax.vjp(forms[form], q, k, v)
        return (out, *pull(d_out))

    for name, got, want in zip(("out", "d_q", "d_k", "d_v"), both("kernels"), both("written"), strict=True):
        assert_close(name, np.asarray(got), np.asarray(want), rel=2e-6)


def test_shapes_that_they_take() -> None:
    assert kernels_take(1024, 64)
    assert not kernels_take(768, 64)
    assert not kernels_take(1024, 48)
