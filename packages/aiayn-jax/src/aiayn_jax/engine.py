"""The model on its device: weights in and out, steps, losses."""

from __future__ import annotations

import jax
from gpt_jax import device as devices
from jaxtyping import Array, Float32

from aiayn_jax.checkpoints import Named
from aiayn_jax.config import TransformerConfig
from aiayn_jax.model import init_parameters
from aiayn_jax.optimizer import AdamState
from aiayn_jax.parameters import PairBatch, Parameters
from aiayn_jax.plan import make_plan
from aiayn_jax.settings import RuntimeSection
from aiayn_jax.step import init_state, make_evaluate, make_step
from aiayn_jax.tree import from_named, to_named


class Engine:
    """Holds the state of training, and runs the compiled functions on it.

    Args:
        devices: How many of them share a batch's rows.

    Raises:
        ValueError: If this machine lacks what was asked for.
    """

    def __init__(self, config: TransformerConfig, runtime: RuntimeSection, devices: int = 1) -> None:
        self.config, self.seed = config, runtime.seed
        self.plan = make_plan(
            config,
            precision=runtime.precision or "float32",
            device=runtime.device,
            attention=runtime.attention,
            unroll=runtime.unroll,
            wide_logits=runtime.wide_logits,
            deterministic=runtime.deterministic,
            devices=devices,
        )
        self._step = make_step(config, self.plan)
        self._evaluate = make_evaluate(config, self.plan)
        self._state = init_state(init_parameters(config, runtime.seed), self.plan)

    def _tree(self, arrays: Named) -> Parameters:
        return from_named(arrays, self.config, self.plan.device)

    @property
    def params(self) -> Parameters:
        """The weights on the first device; the next step uses their memory."""
        return self.plan.layout.at_hand(self._state.params)

    def load(self, parameters: Named, moments: tuple[Named, Named]) -> None:
        """Take over weights and Adam's two moments."""
        state = AdamState(*map(self._tree, moments))
        self._state = init_state(self._tree(parameters), self.plan, state)

    def export(self) -> tuple[Named, tuple[Named, Named]]:
        """Weights and both moments by name, as copies."""
        moments = self._state.moments
        parameters, first, second = (
            to_named(tree, self.config) for tree in (self._state.params, moments.first, moments.second)
        )
        return parameters, (first, second)

    def train_step(self, batch: PairBatch, lr: float, step: int) -> Float32[Array, " 4"]:
        """Take a step.

        Returns:
            Smoothed loss, negative log-likelihood per target, gradient norm, 1 if the weights moved; on
            the device, under way to the host.
        """
        self._state, metrics = self._step(self._state, batch, lr, self.seed, step)
        metrics.copy_to_host_async()
        return metrics

    def synchronize(self) -> None:
        """Wait until all launched work is done."""
        jax.block_until_ready(self._state)

    def evaluate(self, batch: PairBatch) -> tuple[float, int]:
        """Sum of negative log-likelihoods in nats, and the number of targets; no dropout."""
        return self._evaluate(self._state.params, batch)

    def send(self, arrays: Named) -> Parameters:
        """Other weights on the device, such as averaged ones."""
        return self._tree(arrays)

    def device_name(self) -> str:
        """The device as its vendor names it."""
        return devices.device_name(self.plan.device)

    def peak_memory_bytes(self) -> int:
        """Highest device memory in use since the start; the process's peak on a CPU."""
        return devices.peak_memory_bytes(self.plan.device)
