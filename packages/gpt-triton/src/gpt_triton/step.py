"""The state of a training run on one device, and the optimizer step over it.

A step is a fixed sequence of launches on fixed addresses: on a GPU it is recorded as CUDA graphs, one
for a micro-batch of each shape and one for the optimizer. Shapes: B rows, T positions, P elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import torch
from gpt_data.batch import Batch
from gpt_data.checks import check_batch
from gpt_trainer.backend import Moments, OptimizerConfig, StepMetrics
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters
from gpt_trainer.philox import dropout_keys
from jaxtyping import Float
from torch import Tensor

from gpt_triton.buffers import layout_of, read_arrays, tree_of, write_arrays
from gpt_triton.graphs import Recorder
from gpt_triton.inputs import MicroBatch, upload
from gpt_triton.keeping import Keep
from gpt_triton.loss import loss_and_gradients
from gpt_triton.optimizer import adamw_hyper, adamw_init, adamw_step

Shape = tuple[int, int, bool]
"""Rows, positions, and whether there are document boundaries."""


class PendingMetrics:
    """Loss and norm of one step on their way to the host."""

    def __init__(self, values: Float[Tensor, " 2"], skip_above: float) -> None:
        self._skip_above = np.float32(skip_above)
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            self._host = torch.empty(2, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._host = values.clone()

    def fetch(self) -> StepMetrics:
        """Wait for the step, not for those after it, and return its metrics."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, norm = self._host.tolist()
        return StepMetrics(loss, norm, bool(np.isfinite(norm) and norm <= self._skip_above))


class TrainingState:
    """Master weights, gradients and moments in flat buffers, and the launches that work on them.

    Attributes:
        config: The model's sizes.
        ops: Either set of ops.
        device: Where the buffers lie.
        dtype: Dtype of activations and of matrices in products.
        params: Compute copies of the parameters: matrices in ``dtype``, vectors in float32.
        metrics: Loss and norm of the running step.
    """

    def __init__(
        self,
        config: ModelConfig,
        optimizer: OptimizerConfig,
        ops: ModuleType,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
        keep: Keep,
        *,
        cuda_graph: bool,
    ) -> None:
        self._keep = keep
        self.config, self.ops, self.device, self.dtype = config, ops, device, dtype
        self._optimizer, self._seed = optimizer, seed
        self._layout = layout_of(config)
        self._parameters = torch.zeros(self._layout.size, device=device)
        self._gradients = torch.zeros_like(self._parameters)
        self._moments = adamw_init(self._parameters)
        self._shadow = None if dtype == torch.float32 else self._parameters.to(dtype)
        matrices = self._parameters if self._shadow is None else self._shadow
        self.params = tree_of(matrices, self._layout, self._parameters)
        self._d_params = tree_of(self._gradients, self._layout)
        self.metrics = torch.zeros(2, device=device)
        self._hyper = torch.ones(4, device=device)
        self._slots: dict[Shape, MicroBatch] = {}
        self._accumulate: dict[Shape, Callable[[], None]] = {}
        self._update: Callable[[], None] | None = None
        self._recorder = Recorder() if cuda_graph and device.type == "cuda" else None

    def load(self, parameters: Parameters, moments: Moments | None) -> None:
        """Take over checked arrays; moments are zero if not given."""
        write_arrays(self._parameters, self._layout, parameters)
        if self._shadow is not None:
            self._shadow.copy_(self._parameters)
        for flat, values in zip(self._moments, moments or (None, None), strict=True):
            if values is None:
                flat.zero_()
            else:
                write_arrays(flat, self._layout, values)

    def export(self) -> Parameters:
        """The master weights by canonical name."""
        return read_arrays(self._parameters, self._layout)

    def export_moments(self) -> Moments:
        """AdamW's moments by canonical name."""
        return Moments(*(read_arrays(flat, self._layout) for flat in self._moments))

    def train_step(
        self, micro_batches: Sequence[Batch], lr: float, step: int, skip_above: float
    ) -> PendingMetrics:
        """One optimizer step; nothing is read back."""
        self._accumulate_all(micro_batches, step)
        if self._update is None:
            self._update = self._recorded(self._launch_update, skip=True)
        upload(self._hyper, adamw_hyper(self._optimizer, lr, step, skip_above))
        self._update()
        return PendingMetrics(self.metrics, skip_above)

    def gradients(self, micro_batches: Sequence[Batch], step: int) -> tuple[float, Parameters]:
        """Mean loss and its gradient, without an update."""
        self._accumulate_all(micro_batches, step)
        return float(self.metrics[0]), read_arrays(self._gradients, self._layout)

    def _accumulate_all(self, micro_batches: Sequence[Batch], step: int) -> None:
        """Sum the micro-batches' shares of loss and gradients into zeroed buffers."""
        if not micro_batches:
            raise ValueError("micro_batches is empty; a step needs at least one")
        for batch in micro_batches:
            check_batch(batch, context=self.config.context, vocab_size=self.config.vocab_size, training=True)
            self._prepare(_shape(batch))
        scale = 1.0 / max(sum(batch.target_count for batch in micro_batches), 1)
        self._gradients.zero_()
        self.metrics.zero_()
        for index, batch in enumerate(micro_batches):
            keys = None
            if self.config.dropout > 0.0:
                keys = dropout_keys(self._seed, step, index, self.config.n_layer)
            self._slots[_shape(batch)].fill(batch, keys, scale)
            self._accumulate[_shape(batch)]()

    def _prepare(self, shape: Shape) -> None:
        """Make the tensors and the launches of a micro-batch shape, if it is new."""
        if shape in self._slots:
            return
        rows, context, has_segments = shape
        slot = MicroBatch((rows, context), has_segments, self.config.n_layer, self.device)
        self._slots[shape] = slot
        self._accumulate[shape] = self._recorded(lambda: self._launch_micro_batch(slot))

    def _recorded(self, launch: Callable[[], None], *, skip: bool = False) -> Callable[[], None]:
        """A graph of ``launch``, or ``launch`` itself where nothing is recorded.

        Recording runs it once: ``skip`` sets a limit that no norm meets, so that no weight changes.
        """
        if self._recorder is None:
            return launch
        if skip:
            upload(self._hyper, np.array([0.0, 1.0, 1.0, -1.0], np.float32))
        return self._recorder.record(launch)

    def _launch_micro_batch(self, slot: MicroBatch) -> None:
        share = loss_and_gradients(
            self.ops,
            self.params,
            self._d_params,
            slot.inputs,
            slot.targets,
            slot.scale,
            n_head=self.config.n_head,
            vocab_size=self.config.vocab_size,
            rate=self.config.dropout,
            keep=self._keep,
        )
        self.metrics[0].add_(share)

    def _launch_update(self) -> None:
        norm = adamw_step(
            self.ops,
            self._parameters,
            self._gradients,
            self._moments,
            self._shadow,
            self._hyper,
            self._optimizer,
            self._layout.decay_count,
        )
        self.metrics[1:].copy_(norm)


def _shape(batch: Batch) -> Shape:
    rows, context = batch.tokens.shape
    return rows, context, batch.segment_starts is not None
