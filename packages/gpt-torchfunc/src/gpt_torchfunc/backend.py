"""The model, its loss and its optimizer as a backend of ``gpt_trainer``.

Shapes: B rows, T positions, V vocabulary, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from gpt_data.batch import Batch
from gpt_data.checks import check_batch
from gpt_data.targets import spread, target_index
from gpt_trainer import torch_device as devices
from gpt_trainer.backend import OptimizerConfig, Profile, Runtime
from gpt_trainer.micro_batches import target_weight
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import OptimizerState, check_optimizer_state, check_parameters
from gpt_trainer.parameters import Parameters as Canonical
from gpt_trainer.ranks.collectives import shares_optimizer, sum_over_processes
from gpt_trainer.ranks.place import ALONE, Place
from gpt_trainer.report.torch_profile import record
from gpt_trainer.sequences import Sequences
from gpt_trainer.torch_device import PendingMetrics
from gpt_trainer.torch_replay import Replay
from jaxtyping import Float32, Int
from torch import Tensor

from gpt_torchfunc.decoding import Decoder
from gpt_torchfunc.device import compiler_options, set_numerics
from gpt_torchfunc.documents import boundaries
from gpt_torchfunc.dropout import dropout_keys
from gpt_torchfunc.gradients import PLAIN, Functions
from gpt_torchfunc.loss import target_log_probs
from gpt_torchfunc.model import Inputs, logits
from gpt_torchfunc.optimizer import BLOCK_MATRICES, StepScalars, optimizer_init, step_scalars
from gpt_torchfunc.options import Options
from gpt_torchfunc.plan import make_plan, tells_documents, wants_compile
from gpt_torchfunc.sharing import Shared
from gpt_torchfunc.step import Sums, TrainingState, accumulate, finish
from gpt_torchfunc.tree import (
    Leaves,
    canonical_names,
    from_canonical,
    leaves_from_canonical,
    named_leaves,
    to_canonical,
    zeros,
)

F = TypeVar("F", bound=Callable[..., Any])


class TorchFuncBackend:
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
        self._device = devices.choose_device(runtime.device)
        set_numerics(runtime)
        self._optimizer, self._runtime, self._place = optimizer, runtime, place
        self._plan = make_plan(config, runtime, options, self._device)
        self._compiled = wants_compile(options, self._device)
        self._tells = tells_documents(self._plan, self._device)
        params = zeros(config, self._device)
        self._uncut = BLOCK_MATRICES if optimizer.optimizer == "muon" else frozenset()
        shares = shares_optimizer(runtime.shard, place)
        self._shared = Shared(params, place, self._uncut) if shares else None
        params, own = (params, params) if self._shared is None else (self._shared.tree, self._shared.part)
        self._state = TrainingState(params, optimizer_init(own, optimizer))
        self._sums: Shared | None = None
        self._evaluated: tuple[tuple[int, ...], bool] | None = None
        self._run = Functions(*map(self._compile, PLAIN)) if self._compiled else None
        records = self._compiled and self._device.type == "cuda"
        self._add_share = Replay(self._share, records=records)
        self._finish = self._compile(finish)
        self._log_probs = self._compile(target_log_probs) if self._device.type == "cuda" else target_log_probs

    def load(self, parameters: Canonical, optimizer_state: OptimizerState | None = None) -> None:
        """Take over parameters, and the optimizer's state (zeros if not given).

        Raises:
            ValueError: If names, shapes or dtypes do not fit the model, or the state is another optimizer's;
                nothing is changed then.
        """
        config, device, state = self.config, self._device, self._state
        check_parameters(parameters, config)
        if optimizer_state is not None:
            names = {tree: canonical_names(buffers, config) for tree, buffers in state.optimizer.items()}
            check_optimizer_state(optimizer_state, config, names)
        _fill(named_leaves(state.params), named_leaves(from_canonical(parameters, config, device)))
        for tree, buffers in state.optimizer.items():
            kept = None
            if optimizer_state is not None:
                kept = leaves_from_canonical(buffers, optimizer_state[tree], config, device)
            if self._shared is not None and kept is not None:
                kept = self._shared.parts_of(kept)
            _fill(buffers, kept)

    def export(self) -> Canonical:
        """The float32 master parameters, as copies."""
        return to_canonical(named_leaves(self._state.params), self.config)

    def export_optimizer_state(self) -> OptimizerState:
        """The optimizer's state, as copies; where processes hold shares, all call this together."""
        trees = self._state.optimizer
        if self._shared is not None:
            trees = {tree: self._shared.gathered(parts) for tree, parts in trees.items()}
        return {tree: to_canonical(buffers, self.config) for tree, buffers in trees.items()}

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
        weight = self._weight(micro_batches, targets)
        scalars = StepScalars(*self._send(step_scalars(self._optimizer, lr, step, skip_above)).unbind())
        sums, dtype = self._sum(micro_batches, weight, step, first_row), self._plan.dtype
        if self._shared is None:
            sum_over_processes(sums.flat, self._place)
            values = self._finish(self._state, Sums(sums.last, sums.tree), scalars, self._optimizer, dtype)
        else:
            norm = sums.sum()
            own = TrainingState(self._shared.part, self._state.optimizer)
            values = self._finish(own, Sums(sums.last, sums.part), scalars, self._optimizer, dtype, norm)
            self._shared.gather()
        return PendingMetrics(values)

    def gradients(self, micro_batches: Sequence[Batch], step: int) -> tuple[float, Canonical]:
        """Mean loss and its gradient by canonical name, unclipped, dropout as in ``train_step``."""
        sums = self._sum(micro_batches, self._weight(micro_batches), step)
        return float(sums.last), to_canonical(named_leaves(sums.tree), self.config)

    def evaluate(self, batch: Batch) -> tuple[float, int]:
        """Sum of negative log-likelihoods in nats, and the number of targets; no dropout."""
        return -float(self.log_probs(batch).sum(dtype=np.float64)), batch.target_count

    def log_probs(self, batch: Batch) -> Float32[np.ndarray, "B T"]:
        """Log-probability of each target given what its position may see; 0 where ignored; no dropout."""
        self._check(batch)
        inputs, index = self._inputs(batch), target_index(batch.targets)
        if index is None:
            values = self._scorer(batch)(self._state.params, inputs, self._plan)
        else:
            picked = self._send(torch.from_numpy(index))
            values = target_log_probs(self._state.params, inputs, self._plan, picked)
        return spread(values.cpu().numpy(), batch.targets)

    def logits(self, batch: Batch) -> Float32[np.ndarray, "B T V"]:
        """All logits, without dropout."""
        self._check(batch)
        values = logits(self._state.params, self._inputs(batch), self._plan)
        return values[..., : self.config.vocab_size].float().cpu().numpy()

    def decoder(
        self, rows: int, *, room: int | None = None, filling: Int[np.ndarray, " B"] | None = None
    ) -> Decoder:
        """A fresh decoder for ``rows`` sequences; see ``gpt_trainer.backend.Backend.decoder``."""
        return Decoder(self._state.params, self._plan, Sequences.begin(self.config, rows, room, filling))

    def profile(self, folder: Path) -> AbstractContextManager[Profile]:
        """Record with torch's profiler; its trace is written into ``folder`` on exit."""
        return record(folder, self._device)

    def synchronize(self) -> None:
        """Wait until all launched work is done."""
        devices.synchronize(self._device)

    def peak_memory_bytes(self) -> int:
        """Highest device memory in use since the start; the process's peak on a CPU."""
        return devices.peak_memory_bytes(self._device)

    def device_name(self) -> str:
        """The device as its vendor names it."""
        return devices.device_name(self._device)

    def choices(self) -> Mapping[str, str]:
        """Attention, compilation and versions."""
        attention: str = self._plan.attention
        if self.config.dropout and attention == "sdpa":
            attention = "written in training (dropout), sdpa in evaluation"
        return {
            "attention": attention,
            "compile": "on" if self._compiled else "off",
            "deterministic": "on" if self._runtime.deterministic else "off",
            "torch": torch.__version__,
            "cuda": torch.version.cuda or "none",
        }

    def _compile(self, function: F) -> F:
        """``function`` compiled for one shape at a time, if that is wanted."""
        if not self._compiled:
            return function
        options = compiler_options(self._runtime.deterministic)
        torch._dynamo.config.recompile_limit = 64  # shapes of a function: each tile of masks has its own
        return torch.compile(function, fullgraph=True, dynamic=False, options=options)  # type: ignore[return-value]

    def _sum(self, micro_batches: Sequence[Batch], weight: Tensor, step: int, first_row: int = 0) -> Shared:
        """Loss and gradient over all micro-batches, in a buffer that is allocated once."""
        if self._sums is None:
            self._sums = Shared(self._state.params, self._place, self._uncut)
        self._sums.flat.zero_()
        for batch in micro_batches:
            self._add_share(*self._inputs(batch), weight, self._keys(step, first_row))
            first_row += len(batch.tokens)
        return self._sums

    def _share(self, *tensors: Tensor | None) -> None:
        """``accumulate``, by nothing but tensors: the fields of the inputs, the weight, the keys."""
        *fields, weight, keys = tensors
        assert self._sums is not None
        sums = Sums(self._sums.last, self._sums.tree)
        accumulate(self._state.params, sums, Inputs(*fields), weight, keys, self._plan, self._run)  # type: ignore[arg-type]

    def _scorer(self, batch: Batch) -> Callable[..., Tensor]:
        """``target_log_probs``, compiled for validation's one shape: a benchmark's many are not worth it."""
        shape = (batch.tokens.shape, batch.segment_starts is None)
        if self._evaluated is None and batch.tokens.shape[1] == self.config.context:
            self._evaluated = shape
        return self._log_probs if shape == self._evaluated else target_log_probs

    def _weight(self, micro_batches: Sequence[Batch], targets: int | None = None) -> Float32[Tensor, ""]:
        return self._send(torch.tensor(target_weight(micro_batches, self.config, targets)))

    def _keys(self, step: int, first_row: int) -> Tensor | None:
        if not self.config.dropout:
            return None
        return self._send(dropout_keys(self._runtime.seed, step, first_row, self.config.n_layer))

    def _inputs(self, batch: Batch) -> Inputs:
        """The checked batch on the device."""
        ends = None
        if batch.segment_starts is not None and self._tells:
            ends = boundaries(batch.segment_starts)
        arrays = (*batch, ends)
        sent = [None if a is None else self._send(torch.from_numpy(np.ascontiguousarray(a))) for a in arrays]
        return Inputs(*sent)  # type: ignore[arg-type]

    def _check(self, batch: Batch) -> None:
        check_batch(batch, context=self.config.context, vocab_size=self.config.vocab_size)

    def _send(self, tensor: Tensor) -> Tensor:
        return devices.to_device(tensor, self._device)


def _fill(buffers: Leaves, values: Leaves | None) -> None:
    """Write into the buffers that a compiled step knows, or zero them."""
    for name, buffer in buffers.items():
        buffer.zero_() if values is None else buffer.copy_(values[name])
