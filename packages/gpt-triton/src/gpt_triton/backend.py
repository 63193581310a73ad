"""The model, its loss and its optimizer as a backend of ``gpt_trainer``.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from gpt_data.batch import Batch
from gpt_data.targets import spread, target_index
from gpt_trainer.backend import Moments, OptimizerConfig, Profile, Runtime
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters, check_parameters
from jaxtyping import Float32

from gpt_triton import device as devices
from gpt_triton.decoding import CachedDecoder, head_logits
from gpt_triton.inputs import load_batch, send
from gpt_triton.keeping import PLANS
from gpt_triton.loss import token_losses
from gpt_triton.model import forward
from gpt_triton.options import SPEC as SPEC
from gpt_triton.options import TritonOptions
from gpt_triton.profiling import record
from gpt_triton.step import PendingMetrics, TrainingState


class TritonBackend:
    """Implements ``gpt_trainer.backend.Backend``; see there for what each method promises.

    Attributes:
        config: The model's sizes.
    """

    def __init__(
        self,
        config: ModelConfig,
        optimizer: OptimizerConfig,
        runtime: Runtime,
        options: TritonOptions,
    ) -> None:
        self.config = config
        self._device = devices.choose_device(runtime)
        self._kernels, ops = devices.choose_ops(options.kernels, self._device)
        self._state = TrainingState(
            config,
            optimizer,
            ops,
            self._device,
            devices.compute_dtype(runtime),
            runtime.seed,
            PLANS[options.keep],
            cuda_graph=options.cuda_graph,
        )
        self._keep = options.keep
        self._cuda_graph = options.cuda_graph and self._device.type == "cuda"

    def load(self, parameters: Parameters, moments: Moments | None = None) -> None:
        """Take over parameters and moments; all are checked before anything is changed."""
        for values in (parameters, *(moments or ())):
            check_parameters(values, self.config)
        self._state.load(parameters, moments)

    def export(self) -> Parameters:
        """The float32 master parameters."""
        return self._state.export()

    def export_moments(self) -> Moments:
        """AdamW's moments."""
        return self._state.export_moments()

    def train_step(
        self, micro_batches: Sequence[Batch], lr: float, step: int, *, skip_above: float = float("inf")
    ) -> PendingMetrics:
        """One optimizer step, launched and not waited for.

        Args:
            step: Optimizer steps already taken, from 0.

        Raises:
            ValueError: If there is no micro-batch, or a token id is out of range.
        """
        return self._state.train_step(micro_batches, lr, step, skip_above)

    def gradients(self, micro_batches: Sequence[Batch], step: int) -> tuple[float, Parameters]:
        """Mean loss and its unclipped gradient by canonical name."""
        return self._state.gradients(micro_batches, step)

    def evaluate(self, batch: Batch) -> tuple[float, int]:
        """Sum of negative log-likelihoods in nats, and the number of targets."""
        return -float(self.log_probs(batch).sum(dtype=np.float64)), batch.target_count

    def log_probs(self, batch: Batch) -> Float32[np.ndarray, "B T"]:
        """Log-probability of each target; 0 where ignored."""
        state, index = self._state, target_index(batch.targets)
        loaded = load_batch(batch, self.config, self._device)
        nll = token_losses(
            state.ops,
            state.params,
            loaded.inputs,
            loaded.targets,
            n_head=self.config.n_head,
            vocab_size=self.config.vocab_size,
            index=None if index is None else send(index, self._device),
        )
        return spread(-nll.cpu().numpy(), batch.targets)

    def logits(self, batch: Batch) -> Float32[np.ndarray, "B T V"]:
        """All logits, for checks at small sizes."""
        state = self._state
        loaded = load_batch(batch, self.config, self._device)
        hidden, _ = forward(state.ops, state.params, loaded.inputs, self.config.n_head)
        flat = head_logits(hidden, state.params.wte, self.config.vocab_size)
        return flat.view(*batch.tokens.shape, -1).cpu().numpy()

    def decoder(self, rows: int) -> CachedDecoder:
        """A fresh decoder for ``rows`` sequences."""
        return CachedDecoder(self._state.ops, self._state.params, self.config, rows)

    def profile(self, folder: Path) -> AbstractContextManager[Profile]:
        """Record with torch's profiler; ``trace.json`` is written into ``folder`` on exit."""
        return record(folder, self._device)

    def synchronize(self) -> None:
        """Wait until all launched work is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def peak_memory_bytes(self) -> int:
        """Highest device memory in use since the start; the process's peak on a CPU."""
        return devices.peak_memory_bytes(self._device)

    def device_name(self) -> str:
        """The device as its vendor names it."""
        return devices.device_name(self._device)

    def choices(self) -> Mapping[str, str]:
        """The kernels in use, what is kept, whether steps are recorded as CUDA graphs, and versions."""
        choices = {"kernels": self._kernels, "keep": self._keep, "cuda_graph": str(self._cuda_graph).lower()}
        return choices | devices.library_versions()
