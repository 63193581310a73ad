"""The package's own losses and gradients of the small model on the one batch, compiled once for all tests."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from aiayn_jax.loss import weighted_losses
from aiayn_jax.parameters import Parameters
from aiayn_jax.plan import make_plan
from aiayn_jax.step import send
from aiayn_oracle import SMALL, make_batch
from gpt_data.batch import IGNORE

PLAN = make_plan(SMALL, device="cpu")
COMPILED: Callable = jax.jit(jax.value_and_grad(weighted_losses, has_aux=True), static_argnames="plan")


def differentiate(params: Parameters) -> tuple[float, float, Parameters]:
    """Smoothed loss, plain loss, and the gradient of the smoothed one."""
    batch = make_batch()
    weight = jnp.float32(1 / np.count_nonzero(batch.target_out != IGNORE))
    (smoothed, nll), gradients = COMPILED(params, send(batch, PLAN), PLAN, weight)
    return float(smoothed), float(nll), gradients
