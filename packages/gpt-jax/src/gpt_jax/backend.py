"""The model, its loss and its optimizer as a backend of ``gpt_trainer``.

Shapes: B rows, T positions, N micro-batches, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import jax
import jaxlib
import numpy as np
from gpt_data.batch import IGNORE, Batch
from gpt_data.checks import check_batch
from gpt_data.targets import spread, target_index
from gpt_trainer.backend import OptimizerConfig, Profile, Runtime, StepMetrics
from gpt_trainer.micro_batches import target_weight
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import OptimizerState, check_optimizer_state, check_parameters
from gpt_trainer.parameters import Parameters as Canonical
from gpt_trainer.ranks.place import ALONE, Place
from gpt_trainer.sequences import Sequences
from jaxtyping import Array, Float32, Int, Int32

from gpt_jax.attention import kernels_take
from gpt_jax.decoding import Decoder
from gpt_jax.device import choose_devices, compiler_options, device_name, peak_memory_bytes
from gpt_jax.documents import first_positions
from gpt_jax.loss import target_log_probs
from gpt_jax.mesh import Layout
from gpt_jax.model import Inputs, Parameters, logits
from gpt_jax.optimizer import optimizer_init, step_scalars
from gpt_jax.options import Options
from gpt_jax.plan import make_plan, stacks_layers
from gpt_jax.profiling import record
from gpt_jax.step import TrainingState, step_gradients, train_step
from gpt_jax.tree import canonical_names, from_canonical, leaves_from_canonical, named_leaves, to_canonical

EVALUATION_MULTIPLE = 64
"""Short rows are filled up to a multiple of this, as every other length would be a compilation."""


class PendingMetrics:
    """Loss, norm and whether the weights moved, on their way to the host."""

    def __init__(self, values: Float32[Array, " 3"]) -> None:
        values.copy_to_host_async()
        self._values = values

    def fetch(self) -> StepMetrics:
        """Wait for the step, not for those after it, and return its metrics."""
        loss, grad_norm, updated = np.asarray(self._values).tolist()
        return StepMetrics(loss, grad_norm, bool(updated))


class JaxBackend:
    """Implements ``gpt_trainer.backend.Backend``."""

    def __init__(
        self,
        config: ModelConfig,
        optimizer: OptimizerConfig,
        runtime: Runtime,
        options: Options,
        place: Place = ALONE,
    ) -> None:
        self.config = config
        self._optimizer, self._runtime = optimizer, runtime
        chosen = choose_devices(runtime.device, place.devices, preallocate=options.preallocate == "on")
        self._layout = Layout(tuple(chosen), runtime.shard)
        self._device = self._layout.here
        self._plan = make_plan(config, runtime, options, self._device)
        self._stacked = stacks_layers(options, self._device)
        alone = compiler_options(self._device, deterministic=runtime.deterministic)
        together = compiler_options(
            self._device, deterministic=runtime.deterministic, several=self._layout.count > 1
        )
        self._train_step = jax.jit(
            train_step,
            static_argnames=("plan", "config", "layout"),
            donate_argnames="state",
            compiler_options=together,
        )
        self._step_gradients = jax.jit(
            step_gradients, static_argnames=("plan", "layout"), compiler_options=together
        )
        self._log_probs = jax.jit(target_log_probs, static_argnames="plan", compiler_options=alone)
        self._logits = jax.jit(logits, static_argnames="plan", compiler_options=alone)
        self._state: TrainingState  # from ``load`` on
        self._whole: Parameters | None = None

    def load(self, parameters: Canonical, optimizer_state: OptimizerState | None = None) -> None:
        """Take over parameters, and the optimizer's state (zeros if not given).

        Raises:
            ValueError: If names, shapes or dtypes do not fit the model, or the state is another optimizer's;
                nothing is changed then.
        """
        config, put = self.config, self._layout.put
        check_parameters(parameters, config)
        params = from_canonical(parameters, config, put, stacked=self._stacked)
        state = optimizer_init(params, self._optimizer)
        if optimizer_state is not None:
            names = {tree: canonical_names(leaves, config) for tree, leaves in state.items()}
            check_optimizer_state(optimizer_state, config, names)
            state = {
                tree: leaves_from_canonical(leaves, optimizer_state[tree], config, put)
                for tree, leaves in state.items()
            }
        self._whole = None
        self._state = TrainingState(params, state)

    def export(self) -> Canonical:
        """The float32 master parameters, as copies."""
        return self._canonical(self._state.params)

    def export_optimizer_state(self) -> OptimizerState:
        """The optimizer's state, as copies."""
        trees = self._state.optimizer.items()
        return {tree: to_canonical(leaves, self.config, self._layout.fetch) for tree, leaves in trees}

    def train_step(
        self,
        micro_batches: Sequence[Batch],
        lr: float,
        step: int,
        *,
        first_row: int = 0,
        targets: int | None = None,
        skip_above: float = float("inf"),
    ) -> PendingMetrics:
        """One optimizer step; see ``gpt_trainer.backend.Backend.train_step``.

        Args:
            step: Optimizer steps already taken, from 0.
            first_row: Row of the whole step that the first of these is.
            targets: Targets of the whole step; those of ``micro_batches`` if ``None``.
        """
        weight = np.float32(target_weight(micro_batches, self.config, targets))
        inputs, counter = self._inputs(micro_batches, first_row), self._counter(step)
        scalars = step_scalars(self._optimizer, lr, step, skip_above)
        self._whole = None
        self._state, values = self._train_step(
            self._state,
            inputs,
            weight,
            counter,
            scalars,
            plan=self._plan,
            config=self._optimizer,
            layout=self._layout,
        )
        return PendingMetrics(values)

    def gradients(self, micro_batches: Sequence[Batch], step: int) -> tuple[float, Canonical]:
        """Mean loss and its gradient by canonical name, unclipped, dropout as in ``train_step``."""
        weight = np.float32(target_weight(micro_batches, self.config))
        inputs, counter = self._inputs(micro_batches), self._counter(step)
        sums = self._step_gradients(
            self._state.params, inputs, weight, counter, plan=self._plan, layout=self._layout
        )
        return float(sums.loss), self._canonical(sums.gradients)

    def evaluate(self, batch: Batch) -> tuple[float, int]:
        """Sum of negative log-likelihoods in nats, and the number of targets; no dropout."""
        return -float(self.log_probs(batch).sum(dtype=np.float64)), batch.target_count

    def log_probs(self, batch: Batch) -> Float32[np.ndarray, "B T"]:
        """Log-probability of each target given what its position may see; 0 where ignored; no dropout."""
        self._check(batch)
        filled = _fill_up(batch, self.config.context)
        index = target_index(filled.targets)
        picked = None if index is None else self._send(index)
        values = self._log_probs(self._params, self._scored(filled), self._plan, picked)
        return spread(np.asarray(values), filled.targets)[:, : batch.tokens.shape[1]]

    def logits(self, batch: Batch) -> Float32[np.ndarray, "B T V"]:
        """All logits, without dropout."""
        self._check(batch)
        values = self._logits(self._params, self._scored(batch), plan=self._plan)
        return np.array(values)[..., : self.config.vocab_size]

    def decoder(
        self, rows: int, *, room: int | None = None, filling: Int[np.ndarray, " B"] | None = None
    ) -> Decoder:
        """A fresh decoder for ``rows`` sequences; see ``gpt_trainer.backend.Backend.decoder``."""
        return Decoder(self._params, self._plan, Sequences.begin(self.config, rows, room, filling))

    def profile(self, folder: Path) -> AbstractContextManager[Profile]:
        """Record with JAX's profiler; its trace is written into ``folder`` on exit."""
        return record(folder)

    def synchronize(self) -> None:
        """Wait until all launched work is done."""
        jax.block_until_ready(self._state)

    def peak_memory_bytes(self) -> int:
        """Highest device memory in use since the start; the process's peak on a CPU."""
        return peak_memory_bytes(self._device)

    def device_name(self) -> str:
        """The device as its vendor names it."""
        return device_name(self._device)

    def choices(self) -> Mapping[str, str]:
        """Attention, layers and versions."""
        attention: str = self._plan.attention
        if attention == "cudnn" and self.config.dropout:
            taken = kernels_take(self.config.context, self.config.head_width)
            attention += f", {'pallas' if taken else 'written'} in training (dropout)"
        return {
            "attention": attention,
            "layers": "scan" if self._stacked else "unroll",
            "deterministic": "on" if self._runtime.deterministic else "off",
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
        }

    @property
    def _params(self) -> Parameters:
        """The parameters on one device of this process, until the next step."""
        if self._whole is None:
            self._whole = self._layout.at_hand(self._state.params)
        return self._whole

    def _canonical(self, tree: Parameters) -> Canonical:
        return to_canonical(named_leaves(tree), self.config, self._layout.fetch)

    def _counter(self, step: int) -> np.ndarray:
        """Seed and step as words, for the dropout masks."""
        seed = self._runtime.seed
        return np.array([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, step], np.uint32)

    def _inputs(self, batches: Sequence[Batch], first_row: int = 0) -> Inputs:
        """The checked batches of a step on the devices, stacked; each device has its rows of every one."""
        rows, own = len(batches[0].tokens), self._layout.own
        if rows % own:
            raise ValueError(f"micro-batches have {rows} rows, which {own} devices do not divide")
        starts, documents = None, None
        if any(batch.segment_starts is not None for batch in batches):
            host = np.stack([_starts(batch) for batch in batches])
            starts, documents = self._layout.spread(host), self._documents(host)
        # np.stack copies, so the caller may use its arrays again at once
        tokens, targets = (
            self._layout.spread(np.stack(arrays))
            for arrays in ([batch.tokens for batch in batches], [batch.targets for batch in batches])
        )
        first_rows = None
        if self._plan.dropout:
            firsts = first_row + np.arange(0, len(batches) * rows, rows // own, dtype=np.uint32)
            first_rows = self._layout.spread(firsts.reshape(-1, own))
        return Inputs(tokens, targets, starts, documents, first_rows)

    def _documents(self, starts: Int32[np.ndarray, "N B T"]) -> Array | None:
        """Documents in cuDNN's words, if it is to see them."""
        if self._plan.attention == "written" or self._plan.dropout:
            return None
        if jax.process_count() > 1:
            # the fullest row of all processes decides the shape, and none of them knows it
            raise ValueError("attention='cudnn' takes no documents in several processes: use 'written'")
        firsts = first_positions(starts.reshape(-1, starts.shape[-1]))
        return self._layout.spread(firsts.reshape(*starts.shape[:2], -1))

    def _scored(self, batch: Batch) -> Inputs:
        """A checked batch on the device; the caller waits for what comes of it, so nothing is copied."""
        return Inputs(*(None if field is None else self._send(field) for field in batch))  # type: ignore[arg-type]

    def _send(self, array: np.ndarray) -> Array:
        return jax.device_put(array, self._device)

    def _check(self, batch: Batch) -> None:
        check_batch(batch, context=self.config.context, vocab_size=self.config.vocab_size)


def _starts(batch: Batch) -> np.ndarray:
    return np.zeros_like(batch.tokens) if batch.segment_starts is None else batch.segment_starts


def _fill_up(batch: Batch, context: int) -> Batch:
    """Columns without targets on the right, which no earlier position sees."""
    length = batch.tokens.shape[1]
    wanted = -(-length // EVALUATION_MULTIPLE) * EVALUATION_MULTIPLE
    missing = min(context, wanted) - length
    if not missing:
        return batch
    pad = ((0, 0), (0, missing))
    targets = np.pad(batch.targets, pad, constant_values=IGNORE)
    starts = None if batch.segment_starts is None else np.pad(batch.segment_starts, pad)
    return Batch(np.pad(batch.tokens, pad), targets, starts)
