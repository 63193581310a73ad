"""The model, its loss and its optimizer as a backend of ``gpt_trainer``.

On a GPU a step is recorded as CUDA graphs: one for a micro-batch of each shape and one for the optimizer.
Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
from jaxtyping import Float32, Int, Int32
from torch import Tensor

from gpt_triton.compiling import hash_compiler, launch_compiled
from gpt_triton.decoding import Decoder
from gpt_triton.dropout import dropout_keys
from gpt_triton.loss import target_log_probs
from gpt_triton.model import Inputs, Stretch, logits
from gpt_triton.optimizer import optimizer_init, step_scalars
from gpt_triton.options import Options
from gpt_triton.plan import choose_kernels, make_plan
from gpt_triton.sharing import Shared
from gpt_triton.step import Sums, TrainingState, accumulate, finish
from gpt_triton.tree import canonical_names, fill, shadow_of, to_canonical, zeros


class TritonBackend:
    """Implements ``gpt_trainer.backend.Backend``; see there for what each method promises."""

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
        self._optimizer, self._runtime, self._options, self._place = optimizer, runtime, options, place
        self._plan = make_plan(config, runtime, options, self._device)
        uncut = optimizer.optimizer == "muon"
        params, gradients = (zeros(config, self._device, place.world, uncut=uncut) for _ in range(2))
        shadow = shadow_of(params, config, self._plan.dtype)
        shares = shares_optimizer(runtime.shard, place)
        self._shared = Shared(params, place, uncut=uncut) if shares else None
        kept = optimizer_init(params, optimizer) if self._shared is None else self._shared.optimizer_init()
        self._state = TrainingState(params, kept, shadow)
        self._sums = Sums(torch.zeros((), device=self._device), gradients)
        self._records = options.cuda_graph and self._device.type == "cuda"
        self._add_share = Replay(self._share, records=self._records, first=launch_compiled)
        self._prepared: set[tuple[tuple[int, ...], bool]] = set()
        self._update: Replay[Float32[Tensor, " 3"]] | None = None
        if self._device.type == "cuda":
            hash_compiler()

    def load(self, parameters: Canonical, optimizer_state: OptimizerState | None = None) -> None:
        """Take over parameters, and the optimizer's state (zeros if not given).

        Raises:
            ValueError: If names, shapes or dtypes do not fit the model, or the state is another optimizer's;
                nothing is changed then.
        """
        params, buffers, _ = self._state
        check_parameters(parameters, self.config)
        if optimizer_state is not None:
            names = {tree: canonical_names(self._whole(tree), self.config) for tree in buffers}
            check_optimizer_state(optimizer_state, self.config, names)
        fill(Stretch(params.flat), parameters, self.config)
        for tree, stretch in buffers.items():
            whole = self._whole(tree)
            whole.values.zero_()
            if optimizer_state is not None:
                fill(whole, optimizer_state[tree], self.config)
            if self._shared is not None:
                stretch.values.copy_(self._shared.own(tree, whole))
        if self._state.shadow is not self._state.params:
            self._state.shadow.flat.copy_(self._state.params.flat)

    def export(self) -> Canonical:
        """The float32 master parameters, as copies; where processes hold shares, all call this together."""
        flat = self._state.params.flat
        # in float32 they are what the passes read, gathered after each step
        if self._shared is not None and self._state.shadow is not self._state.params:
            self._shared.gather_flat(flat)
        return to_canonical(Stretch(flat), self.config)

    def export_optimizer_state(self) -> OptimizerState:
        """The optimizer's state, as copies; where processes hold shares, all call this together."""
        trees = self._state.optimizer
        if self._shared is not None:
            trees = {tree: self._shared.gathered(tree, own) for tree, own in trees.items()}
        return {tree: to_canonical(stretch, self.config) for tree, stretch in trees.items()}

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
        self._sum(micro_batches, step, targets, first_row)
        # between the recorded graphs, not inside one
        if self._shared is None:
            sum_over_processes(self._sums.loss, self._place)
            sum_over_processes(self._sums.gradients.flat, self._place)
        else:
            self._shared.sum(self._sums, self._plan.ops)
        if self._update is None:
            self._update = Replay(
                self._finish, records=self._records, first=launch_compiled, beside=self._add_share
            )
            # no norm is at most NaN, so that no weight changes
            self._update.prepare(self._send(torch.tensor([0.0, 1.0, 1.0, math.nan])))
        scalars = step_scalars(self._optimizer, lr, step, skip_above)
        values = self._update(self._send(torch.from_numpy(scalars)))
        if self._shared is not None:
            self._shared.gather(self._state)
        return PendingMetrics(values)

    def gradients(self, micro_batches: Sequence[Batch], step: int) -> tuple[float, Canonical]:
        """Mean loss and its gradient by canonical name, unclipped, dropout as in ``train_step``."""
        self._sum(micro_batches, step)
        return float(self._sums.loss), to_canonical(Stretch(self._sums.gradients.flat), self.config)

    def evaluate(self, batch: Batch) -> tuple[float, int]:
        """Sum of negative log-likelihoods in nats, and the number of targets; no dropout."""
        return -float(self.log_probs(batch).sum(dtype=np.float64)), batch.target_count

    def log_probs(self, batch: Batch) -> Float32[np.ndarray, "B T"]:
        """Log-probability of each target given what its position may see; 0 where ignored; no dropout."""
        inputs, index = self._inputs(batch), target_index(batch.targets)
        picked = None if index is None else self._send(torch.from_numpy(index))
        values = target_log_probs(self._state.shadow, inputs, self._plan, picked)
        return spread(values.cpu().numpy(), batch.targets)

    def logits(self, batch: Batch) -> Float32[np.ndarray, "B T V"]:
        """All logits, without dropout."""
        return logits(self._state.shadow, self._inputs(batch), self._plan).cpu().numpy()

    def decoder(
        self, rows: int, *, room: int | None = None, filling: Int[np.ndarray, " B"] | None = None
    ) -> Decoder:
        """A fresh decoder for ``rows`` sequences; see ``gpt_trainer.backend.Backend.decoder``."""
        sequences = Sequences.begin(self.config, rows, room, filling)
        return Decoder(self._state.shadow, self._plan, sequences, records=self._records)

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
        """The kernels in use, what is kept, whether steps are recorded as CUDA graphs, and versions."""
        return {
            "kernels": choose_kernels(self._options.kernels, self._device),
            "keep": self._options.keep,
            "cuda_graph": "on" if self._records else "off",
            "torch": torch.__version__,
            "triton": _version_of("triton"),
        }

    def _sum(
        self, micro_batches: Sequence[Batch], step: int, targets: int | None = None, first_row: int = 0
    ) -> None:
        """Sum the micro-batches' shares of loss and gradients into zeroed buffers."""
        weight = self._send(torch.tensor(target_weight(micro_batches, self.config, targets)))
        for batch in micro_batches:
            kind = batch.tokens.shape, batch.segment_starts is None
            if kind not in self._prepared:
                # kernels may be missing in it: before the sums are zeroed
                self._add_share.prepare(self._integers(batch), weight, self._keys(step, first_row))
                self._prepared.add(kind)
        self._sums.gradients.flat.zero_()
        self._sums.loss.zero_()
        for batch in micro_batches:
            self._add_share(self._integers(batch), weight, self._keys(step, first_row))
            first_row += len(batch.tokens)

    def _share(self, integers: Int32[Tensor, "_ B T"], weight: Tensor, keys: Tensor | None) -> None:
        """``accumulate``, by nothing but tensors."""
        accumulate(self._state.shadow, self._sums, Inputs(*integers), weight, keys, self._plan)

    def _keys(self, step: int, first_row: int) -> Tensor | None:
        if not self.config.dropout:
            return None
        return self._send(dropout_keys(self._runtime.seed, step, first_row, self.config.n_layer))

    def _inputs(self, batch: Batch) -> Inputs:
        """The checked batch on the device."""
        check_batch(batch, context=self.config.context, vocab_size=self.config.vocab_size)
        return Inputs(*self._integers(batch))

    def _integers(self, batch: Batch) -> Int32[Tensor, "_ B T"]:
        """The fields of ``Inputs``, in one transfer."""
        arrays = (batch.tokens, batch.targets, batch.positions, batch.segment_starts)
        return self._send(torch.from_numpy(np.stack([array for array in arrays if array is not None])))

    def _send(self, tensor: Tensor) -> Tensor:
        return devices.to_device(tensor, self._device)

    def _whole(self, tree: str) -> Stretch:
        """A buffer of the optimizer; a new one for all processes' shares if this one holds but its own."""
        return self._state.optimizer[tree] if self._shared is None else self._shared.whole(tree)

    def _finish(self, scalars: Float32[Tensor, " 4"]) -> Float32[Tensor, " 3"]:
        """``finish``, of whole trees or of this process's shares."""
        apply = finish if self._shared is None else self._shared.finish
        return apply(self._state, self._sums, scalars, self._optimizer, self._plan)


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
