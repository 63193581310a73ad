"""The contract between a trainer that owns no framework and a backend that owns nothing else.

The trainer, the sampler and the evaluations find a backend through ``gpt_trainer.registry``, and speak to it
in NumPy arrays.
Shapes: B rows, T positions, V vocabulary, n new tokens of a sequence, R sequences of a fork.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from gpt_data.batch import Batch
from jaxtyping import Float32, Int

from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import OptimizerState, Parameters

Precision = Literal["float32", "bfloat16"]
Shard = Literal["none", "optimizer", "all"]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with decoupled decay, or Muon for the blocks' matrices, after clipping by global norm.

    Attributes:
        optimizer: What updates the blocks' matrices; embeddings, gains and biases are AdamW's.
        muon_lr_factor: Muon's learning rate as a multiple of AdamW's, all along the schedule.
        beta1: Decay of AdamW's first moment.
        beta2: Decay of AdamW's second moment.
        epsilon: Added to the root of the second moment.
        weight_decay: Decay per step and unit of learning rate, on 2-D parameters only.
        clip_norm: Largest global gradient norm; 0 means no clipping.

    Raises:
        ValueError: If a value is out of range.

    References:
        Loshchilov and Hutter 2019, algorithm 2; Jordan et al. 2024.
    """

    optimizer: Literal["adamw", "muon"] = "adamw"
    muon_lr_factor: float = 20.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer={self.optimizer!r} is not one of adamw, muon")
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)} is not in [0, 1)")
        for name in ("epsilon", "muon_lr_factor"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} is not in (0, infinity)")
        for name in ("weight_decay", "clip_norm"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} is not in [0, infinity)")


class StepMetrics(NamedTuple):
    """What one optimizer step reports once its numbers have reached the host.

    Attributes:
        loss: Mean negative log-likelihood over the step's targets, in nats.
        grad_norm: Global norm of the mean gradient, before clipping.
        updated: False if the weights were left alone because the norm was not finite or too large.
    """

    loss: float
    grad_norm: float
    updated: bool


@runtime_checkable
class Pending(Protocol):
    """Metrics still on the device: reading them is what waits."""

    def fetch(self) -> StepMetrics:
        """Wait for the step and return its metrics."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """A batch of sequences that grow together, their keys and values cached."""

    def feed(self, tokens: Int[np.ndarray, "B n"]) -> Float32[np.ndarray, "B V"]:
        """Append ``n`` tokens to every sequence; return the logits that follow the last.

        Raises:
            ValueError: If the sequences would outgrow the model's context.
        """
        ...

    def log_probs(
        self, tokens: Int[np.ndarray, "B n"], targets: Int[np.ndarray, "B n"]
    ) -> Float32[np.ndarray, "B n"]:
        """Append ``n`` tokens to every sequence; return the log-probability of each target, 0 where ignored.

        The head is computed for targets only. What stands behind a row's last target is not held to the
        model's context: it may be filling, so that continuations of unequal lengths go in one call, but
        with which a sequence must not go on.

        Raises:
            ValueError: If a token that a target depends on would outgrow the model's context.
        """
        ...

    def fork(self, rows: Int[np.ndarray, " R"]) -> Decoder:
        """A decoder of R sequences: number r goes on from where sequence ``rows[r]`` of this one is now.

        The two share nothing that either would change; a sequence may be taken any number of times.
        """
        ...


@runtime_checkable
class Profile(Protocol):
    """A recorded stretch of training."""

    def table(self) -> str:
        """The most expensive kernels, one per line, most expensive first."""
        ...


@runtime_checkable
class Backend(Protocol):
    """One model on one device, with its optimizer state.

    Every array that crosses this line is NumPy; parameters and the optimizer's trees go by canonical name.
    """

    config: ModelConfig

    def load(self, parameters: Parameters, optimizer_state: OptimizerState | None = None) -> None:
        """Take over parameters, and the optimizer's state (as before a first step if not given).

        Raises:
            ValueError: If names, shapes or dtypes do not fit the model, or the state is another optimizer's;
                nothing is changed then.
        """
        ...

    def export(self) -> Parameters:
        """The float32 master parameters; bit-equal to what was loaded if no step was taken.

        Of several processes that hold shares, all call it together, as all other exports.
        """
        ...

    def export_optimizer_state(self) -> OptimizerState:
        """The optimizer's state, by names that only it knows."""
        ...

    def train_step(
        self,
        micro_batches: Sequence[Batch],
        lr: float,
        step: int,
        *,
        first_row: int = 0,
        targets: int | None = None,
        skip_above: float = float("inf"),
    ) -> Pending:
        """One optimizer step: gradients of the mean loss over all targets, clip, update.

        Nothing is read back to the host. The update is left out, on the device, if the global norm is
        not finite or exceeds ``skip_above``. Where several processes train one model, all take the step
        together, each on its rows; loss, norm and new weights are those of all rows, the same bits
        everywhere.

        Args:
            micro_batches: At least one, all of the same shape; the loss is weighted by targets, so that
                the split changes a gradient by rounding only.
            lr: Learning rate of this step.
            step: Optimizer steps already taken, from 0: AdamW's bias correction uses ``step + 1`` and
                the dropout masks use ``step``.
            first_row: Row of the whole step that the first of these is, as they follow each other in
                order: dropout masks belong to rows of the whole step, whoever has them.
            targets: Number of targets in the whole step; those of ``micro_batches`` if ``None``.
            skip_above: Largest global norm that still updates the weights.

        Raises:
            ValueError: If a batch does not fit the model; nothing is changed then.
        """
        ...

    def evaluate(self, batch: Batch) -> tuple[float, int]:
        """Sum of negative log-likelihoods in nats, and the number of targets; no dropout.

        Raises:
            ValueError: If the batch does not fit the model (``gpt_data.checks.check_batch``).
        """
        ...

    def log_probs(self, batch: Batch) -> Float32[np.ndarray, "B T"]:
        """Log-probability of each target given what its position may see; 0 where ignored; no dropout.

        The head is computed for positions with a target only, where these are few.

        Raises:
            ValueError: If the batch does not fit the model (``gpt_data.checks.check_batch``).
        """
        ...

    def logits(self, batch: Batch) -> Float32[np.ndarray, "B T V"]:
        """All logits, without dropout, batches as in ``log_probs``: for small checks, as V is large."""
        ...

    def gradients(self, micro_batches: Sequence[Batch], step: int) -> tuple[float, Parameters]:
        """Mean loss and its unclipped gradient, dropout and batches as in ``train_step``: for checks.

        Of these rows alone, whatever other processes there are.
        """
        ...

    def decoder(
        self, rows: int, *, room: int | None = None, filling: Int[np.ndarray, " B"] | None = None
    ) -> Decoder:
        """A fresh decoder for ``rows`` sequences of at most ``config.context`` tokens.

        Args:
            rows: How many.
            room: Tokens to hold for each sequence, filling included; the model's context if ``None``.
            filling: How many of each sequence's first tokens are filling, which nothing sees and which have
                no position: prompts of unequal lengths then end together. ``None`` means none.
        """
        ...

    def profile(self, folder: Path) -> AbstractContextManager[Profile]:
        """Record with the framework's own profiler; its trace is written into ``folder`` on exit."""
        ...

    def synchronize(self) -> None:
        """Wait until all launched work is done."""
        ...

    def peak_memory_bytes(self) -> int:
        """Highest device memory in use since the start; the process's peak on a CPU."""
        ...

    def device_name(self) -> str:
        """The device as its vendor names it."""
        ...

    def choices(self) -> Mapping[str, str]:
        """What was chosen where the caller left a choice open (kernels, attention), and versions."""
        ...


@dataclass(frozen=True)
class Runtime:
    """How a backend is to run.

    Attributes:
        precision: Precision of activations and products; parameters and the optimizer's state stay float32.
        device: cpu, gpu, or auto: a GPU if the backend can use one.
        seed: Key of the dropout masks.
        deterministic: Forbid library routines whose results differ from run to run.
        shard: What the processes, or devices, of a run hold only a share of: none: each holds all and sums
            gradients; optimizer: a share of the moments; all: of the weights too.
    """

    precision: Precision = "float32"
    device: Literal["auto", "cpu", "gpu"] = "auto"
    seed: int = 0
    deterministic: bool = True
    shard: Shard = "none"
