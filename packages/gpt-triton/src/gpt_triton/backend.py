"""The model, its loss and its optimizer as a backend of ``gpt_trainer``.

On a GPU a step is recorded as CUDA graphs: one for a micro-batch of each shape and one for the optimizer.
Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from gpt_data.batch import Batch
from gpt_data.targets import spread, target_index
from gpt_trainer.backend import OptimizerConfig, Profile, Runtime, StepMetrics
from gpt_trainer.micro_batches import target_weight
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import OptimizerState, check_optimizer_state, check_parameters
from gpt_trainer.parameters import Parameters as Canonical
from gpt_trainer.ranks.collectives import (
    gather_parts,
    send_from_owners,
    shares_optimizer,
    sum_over_processes,
    sum_parts,
)
from gpt_trainer.ranks.place import ALONE, Place
from gpt_trainer.report.torch_profile import record
from gpt_trainer.sequences import Sequences
from jaxtyping import Float32, Int
from torch import Tensor

from gpt_triton import device as devices
from gpt_triton.compiling import hash_compiler
from gpt_triton.decoding import Decoder
from gpt_triton.dropout import dropout_keys
from gpt_triton.graphs import Recorder
from gpt_triton.inputs import MicroBatch, Shape, load_batch, send, shape_of, upload
from gpt_triton.loss import target_log_probs
from gpt_triton.model import Stretch, logits
from gpt_triton.optimizer import optimizer_init, step_scalars
from gpt_triton.options import Options
from gpt_triton.plan import choose_kernels, make_plan
from gpt_triton.sharing import Region, init_shares, regions, share_of_step
from gpt_triton.step import Sums, TrainingState, accumulate, finish
from gpt_triton.tree import canonical_names, fill, shadow_of, to_canonical, zeros

CPU = torch.device("cpu")


class PendingMetrics:
    """Loss, norm and whether the weights moved, on their way to the host."""

    def __init__(self, values: Float32[Tensor, " 3"]) -> None:
        # a copy into pinned memory does not hold the host up
        self._values = torch.empty(3, pin_memory=values.is_cuda).copy_(values, non_blocking=True)
        self._arrived = None
        if values.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def fetch(self) -> StepMetrics:
        """Wait for the step, not for those after it, and return its metrics."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, grad_norm, updated = self._values.tolist()
        return StepMetrics(loss, grad_norm, bool(updated))


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
        shared = shares_optimizer(runtime.shard, place)
        self._regions = regions(params, place.world, uncut=uncut) if shared else []
        kept = init_shares(params, self._regions, place.rank) if shared else optimizer_init(params, optimizer)
        self._state = TrainingState(params, kept, shadow)
        self._sums = Sums(torch.zeros((), device=self._device), gradients)
        self._norm = torch.zeros(1, device=self._device)
        self._scalars = torch.ones(4, device=self._device)
        self._metrics = torch.zeros(3, device=self._device)
        self._held: dict[Shape, tuple[MicroBatch, Callable[[], None]]] = {}
        self._update: Callable[[], None] | None = None
        self._recorder = Recorder() if options.cuda_graph and self._device.type == "cuda" else None
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
            if self._regions:
                stretch.values.copy_(self._parts(tree, whole)[self._place.rank])
        if self._state.shadow is not self._state.params:
            self._state.shadow.flat.copy_(self._state.params.flat)

    def export(self) -> Canonical:
        """The float32 master parameters, as copies; where processes hold shares, all call this together."""
        flat = self._state.params.flat
        # in float32 they are what the passes read, gathered after each step
        if self._state.shadow is not self._state.params:
            for region in self._regions:
                gather_parts(region.parts(flat), self._place)
        return to_canonical(Stretch(flat), self.config)

    def export_optimizer_state(self) -> OptimizerState:
        """The optimizer's state, as copies; where processes hold shares, all call this together."""
        state = {}
        for tree, stretch in self._state.optimizer.items():
            whole = self._whole(tree)
            if self._regions:
                parts = self._parts(tree, whole)
                parts[self._place.rank].copy_(stretch.values)
                gather_parts(parts, self._place)
            state[tree] = to_canonical(whole, self.config)
        return state

    def _whole(self, tree: str) -> Stretch:
        """A buffer of the optimizer; a new one for all processes' shares if this one holds but its own."""
        if not self._regions:
            return self._state.optimizer[tree]
        region = self._region(tree)
        return Stretch(torch.zeros_like(region.of(self._state.params.flat)), region.start)

    def _parts(self, tree: str, whole: Stretch) -> tuple[Tensor, ...]:
        """Every process's share of a whole buffer of the optimizer."""
        return whole.values.split(self._region(tree).sizes)

    def _region(self, tree: str) -> Region:
        return next(region for region in self._regions if tree in region.kept)

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
        self._sum_over_processes()
        if self._update is None:
            # recording runs it once: no norm is below -1, so that no weight changes
            upload(self._scalars, torch.tensor([0.0, 1.0, 1.0, -1.0]))
            self._update = self._recorded(self._finish)
        upload(self._scalars, torch.from_numpy(step_scalars(self._optimizer, lr, step, skip_above)))
        self._update()
        if self._regions:
            self._gather()
        return PendingMetrics(self._metrics)

    def gradients(self, micro_batches: Sequence[Batch], step: int) -> tuple[float, Canonical]:
        """Mean loss and its gradient by canonical name, unclipped, dropout as in ``train_step``."""
        self._sum(micro_batches, step)
        return float(self._sums.loss), to_canonical(Stretch(self._sums.gradients.flat), self.config)

    def evaluate(self, batch: Batch) -> tuple[float, int]:
        """Sum of negative log-likelihoods in nats, and the number of targets; no dropout."""
        return -float(self.log_probs(batch).sum(dtype=np.float64)), batch.target_count

    def log_probs(self, batch: Batch) -> Float32[np.ndarray, "B T"]:
        """Log-probability of each target given what its position may see; 0 where ignored; no dropout."""
        inputs, index = load_batch(batch, self.config, self._device), target_index(batch.targets)
        picked = None if index is None else send(torch.from_numpy(index), self._device)
        values = target_log_probs(self._state.shadow, inputs, self._plan, picked)
        return spread(values.cpu().numpy(), batch.targets)

    def logits(self, batch: Batch) -> Float32[np.ndarray, "B T V"]:
        """All logits, without dropout."""
        inputs = load_batch(batch, self.config, self._device)
        return logits(self._state.shadow, inputs, self._plan).cpu().numpy()

    def decoder(
        self, rows: int, *, room: int | None = None, filling: Int[np.ndarray, " B"] | None = None
    ) -> Decoder:
        """A fresh decoder for ``rows`` sequences; see ``gpt_trainer.backend.Backend.decoder``."""
        sequences = Sequences.begin(self.config, rows, room, filling)
        return Decoder(self._state.shadow, self._plan, sequences, records=self._recorder is not None)

    def profile(self, folder: Path) -> AbstractContextManager[Profile]:
        """Record with torch's profiler; its trace is written into ``folder`` on exit."""
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
        return {
            "kernels": choose_kernels(self._options.kernels, self._device),
            "keep": self._options.keep,
            "cuda_graph": str(self._recorder is not None).lower(),
        } | devices.library_versions()

    def _sum(
        self, micro_batches: Sequence[Batch], step: int, targets: int | None = None, first_row: int = 0
    ) -> None:
        """Sum the micro-batches' shares of loss and gradients into zeroed buffers."""
        config, weight = self.config, target_weight(micro_batches, self.config, targets)
        held = [self._hold(shape_of(batch)) for batch in micro_batches]
        self._sums.gradients.flat.zero_()
        self._sums.loss.zero_()
        for batch, (slot, launch) in zip(micro_batches, held, strict=True):
            keys = None
            if config.dropout:
                keys = dropout_keys(self._runtime.seed, step, first_row, config.n_layer)
            slot.fill(batch, weight, keys)
            launch()
            first_row += len(batch.tokens)

    def _hold(self, shape: Shape) -> tuple[MicroBatch, Callable[[], None]]:
        """The tensors and the launches of a micro-batch shape, made if it is new."""
        if shape not in self._held:
            slot = MicroBatch(shape, self.config, self._device)
            self._held[shape] = slot, self._recorded(lambda: self._accumulate(slot))
        return self._held[shape]

    def _accumulate(self, slot: MicroBatch) -> None:
        accumulate(self._state.shadow, self._sums, slot.inputs, slot.weight, slot.keys, self._plan)

    def _gather(self) -> None:
        """Make whole what the passes read; of another's share of the float32 matrices nothing is known."""
        params, shadow = self._state.params, self._state.shadow
        for region in self._regions:
            gather_parts(region.parts(shadow.flat), self._place)
        if shadow is not params:
            # gains and biases are read in float32
            last = self._regions[-1]
            send_from_owners(last.parts(params.flat), params.decay_count - last.start)

    def _finish(self) -> None:
        work, norm = [(self._state, self._sums)], None
        if self._regions:
            norm, rank = self._norm, self._place.rank
            work = [share_of_step(self._state, self._sums, region, rank) for region in self._regions]
        for state, sums in work:
            metrics = finish(state, sums, self._scalars, self._optimizer, self._plan, norm)
            self._metrics.copy_(metrics)

    def _sum_over_processes(self) -> None:
        """Sum loss and gradient over all; of the gradient this process's share alone, if it has one."""
        gradients = self._sums.gradients
        sum_over_processes(self._sums.loss, self._place)
        if not self._regions:
            sum_over_processes(gradients.flat, self._place)
            return
        self._norm.zero_()
        for parts in (region.parts(gradients.flat) for region in self._regions):
            sum_parts(parts, self._place)
            own = parts[self._place.rank]
            if len(own):
                self._norm.add_(self._plan.ops.global_norm(own).square_())
        sum_over_processes(self._norm, self._place)
        self._norm.sqrt_()

    def _recorded(self, launch: Callable[[], None]) -> Callable[[], None]:
        """A graph of ``launch``, which is run once for it; or ``launch`` itself where nothing is recorded."""
        return launch if self._recorder is None else self._recorder.record(launch)
