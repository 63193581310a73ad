"""A model of modules under the same training loop as the backends: as much of a backend as a run needs.

Data, weights, learning rates, clock and metrics are the trainer's; the model, autocast, clipping and AdamW
are torch's own, and ``torch.compile`` on a GPU. Shapes: B rows, n new tokens, T positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from gpt_data.batch import Batch
from gpt_torchfunc.options import Options as TorchOptions
from gpt_torchfunc.plan import wants_compile
from gpt_trainer import torch_device as devices
from gpt_trainer.backend import OptimizerConfig, Profile, Runtime
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import OptimizerState, Parameters, check_parameters, parameter_shapes
from gpt_trainer.registry import BackendSpec
from gpt_trainer.report.torch_profile import record
from gpt_trainer.torch_device import PendingMetrics
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor, nn

from gpt_compare.plain import Plain

NAME = "plain"
Compile = Literal["auto", "on", "off"]
EVALUATED_TOKENS = 4096
"""Tokens of an evaluation at a time: its logits exist as a whole, and are not to be the peak of memory."""


@dataclass(frozen=True)
class Options:
    """Flags that only the baseline has.

    Attributes:
        compile: Compile the model with ``torch.compile``; ``"auto"``: on a GPU.
        bias: Whether linear maps and norms have biases, as GPT-2's do; nanoGPT trains without.
    """

    compile: Compile = "auto"
    bias: Literal["on", "off"] = "on"


@runtime_checkable
class Network(Protocol):
    """What a baseline trains: a ``torch.nn.Module`` with these."""

    def __call__(
        self, tokens: Int64[Tensor, "B T"], targets: Int64[Tensor, "B T"], reduction: str = "sum"
    ) -> Float[Tensor, "..."]:
        """Negative log-likelihoods of the targets in nats: their sum, or with ``"none"`` each, [B*T]."""
        ...

    def take_over(self, parameters: Parameters) -> None:
        """Copy canonical parameters."""
        ...

    def named(self) -> Mapping[str, Tensor]:
        """Its parameters by canonical name."""
        ...

    def canonical(self, name: str, value: Float[Tensor, "..."]) -> Float[np.ndarray, "..."]:
        """A parameter, or what has its shape, in canonical layout."""
        ...

    def feeder(self) -> Callable[[Int64[Tensor, "B n"]], Float[Tensor, "B V"]]:
        """A function that takes the next tokens of B texts to the logits that follow the last."""
        ...


class Decoder:
    """Implements ``gpt_trainer.backend.Decoder``."""

    def __init__(self, backend: Baseline) -> None:
        self._backend, self._feed = backend, backend.network.feeder()

    @torch.no_grad()
    def feed(self, tokens: Int[np.ndarray, "B n"]) -> Float32[np.ndarray, "B V"]:
        """Append tokens to every sequence; the logits that follow the last."""
        device, vocab = self._backend.device, self._backend.config.vocab_size
        ids = devices.to_device(torch.from_numpy(tokens.astype(np.int64)), device)
        with self._backend.autocast():
            logits = self._feed(ids)
        found: Float32[np.ndarray, "B V"] = logits[:, :vocab].float().cpu().numpy()
        return found


class Baseline:
    """What the training loop asks of ``gpt_trainer.backend.Backend``; it does not resume.

    Args:
        compiled: ``"auto"`` compiles on a GPU.
        wrap: Goes around the network, below the compiler, as ``DistributedDataParallel`` does.

    Raises:
        ValueError: For dropout or Muon, which it does not make, or a device or compiler that is not there.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        config: ModelConfig,
        optimizer: OptimizerConfig,
        runtime: Runtime,
        compiled: Compile,
        more: Mapping[str, str],
        wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    ) -> None:
        if config.dropout:
            raise ValueError(f"dropout={config.dropout}: {name} makes none; use --dropout 0")
        if optimizer.optimizer != "adamw":
            raise ValueError(f"optimizer={optimizer.optimizer!r}: {name} has AdamW alone")
        self.config, self._name, self._more = config, name, more
        self._clip = optimizer.clip_norm or math.inf
        self.device = devices.choose_device(runtime.device)
        self._bfloat16 = runtime.precision == "bfloat16"
        torch.set_float32_matmul_precision("highest")
        assert isinstance(network, nn.Module), "a network is a module"
        self.network = network.to(self.device)
        self._compiled = wants_compile(TorchOptions(compile=compiled), self.device)
        whole = wrap(self.network)
        self._forward = torch.compile(whole, dynamic=False) if self._compiled else whole
        self._optimizer = optimizer_of(self.network, optimizer)

    def autocast(self) -> AbstractContextManager[None]:
        """Products in bfloat16 where that is asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16)

    def load(self, parameters: Parameters, optimizer_state: OptimizerState | None = None) -> None:
        """Take over parameters.

        Raises:
            ValueError: If they do not fit the model, or a state is given.
        """
        if optimizer_state is not None:
            raise ValueError(f"{self._name} does not resume: start a new run")
        check_parameters(parameters, self.config)
        self.network.take_over(parameters)

    def export(self) -> Parameters:
        """The float32 parameters; biases that it does not have are zeros."""
        return self._named(lambda parameter: parameter)

    def export_optimizer_state(self) -> OptimizerState:
        """AdamW's moments, named as the other backends do; zeros before the first step."""
        return {"first": self._moment("exp_avg"), "second": self._moment("exp_avg_sq")}

    def _moment(self, key: str) -> Parameters:
        state = self._optimizer.state
        return self._named(lambda p: state[p].get(key, torch.zeros_like(p)))

    def _named(self, value: Callable[[Tensor], Tensor]) -> Parameters:
        """A value of each parameter by canonical name."""
        own = self.network.named()
        return {
            name: self.network.canonical(name, value(own[name]))
            if name in own
            else np.zeros(shape, np.float32)
            for name, shape in parameter_shapes(self.config).items()
        }

    def train_step(
        self,
        micro_batches: Sequence[Batch],
        lr: float,
        step: int,
        *,
        first_row: int = 0,
        targets: int | None = None,
        skip_above: float = math.inf,
    ) -> PendingMetrics:
        """One optimizer step; see ``gpt_trainer.backend.Backend.train_step``.

        Args:
            micro_batches: At least one, all rows of the step; the loss is weighted by targets.

        Raises:
            ValueError: For documents that are kept apart, or a bound.
        """
        del step, first_row, targets
        if skip_above != math.inf:
            raise ValueError(f"skip_spikes: {self._name} leaves no step out")
        self._optimizer.zero_grad(set_to_none=True)
        weight = 1.0 / sum(batch.target_count for batch in micro_batches)
        total = torch.zeros((), device=self.device)
        for batch in micro_batches:
            with self.autocast():
                loss = self._forward(*self._tensors(batch)) * weight
            loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self._clip)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        return PendingMetrics(torch.stack([total, norm, torch.ones_like(norm)]))

    def evaluate(self, batch: Batch) -> tuple[float, int]:
        """Sum of negative log-likelihoods in nats, and the number of targets."""
        return -float(self.log_probs(batch).sum(dtype=np.float64)), batch.target_count

    @torch.no_grad()
    def log_probs(self, batch: Batch) -> Float32[np.ndarray, "B T"]:
        """Log-probability of each target; 0 where ignored."""
        rows = max(1, EVALUATED_TOKENS // batch.tokens.shape[1])
        tokens, targets = (tensor.split(rows) for tensor in self._tensors(batch))
        with self.autocast():
            parts = [self.network(*part, "none") for part in zip(tokens, targets, strict=True)]
        found: Float32[np.ndarray, "B T"] = -torch.cat(parts).cpu().numpy().reshape(batch.tokens.shape)
        return found

    def decoder(self, rows: int) -> Decoder:
        """A fresh decoder, for any number of rows."""
        del rows
        return Decoder(self)

    def profile(self, folder: Path) -> AbstractContextManager[Profile]:
        """Record with torch's profiler; its trace is written into ``folder`` on exit."""
        return record(folder, self.device)

    def synchronize(self) -> None:
        """Wait until all launched work is done."""
        devices.synchronize(self.device)

    def peak_memory_bytes(self) -> int:
        """Highest memory allocated on a GPU since the start; the process's peak on a CPU."""
        return devices.peak_memory_bytes(self.device)

    def device_name(self) -> str:
        """The device as its vendor names it."""
        return devices.device_name(self.device)

    def choices(self) -> Mapping[str, str]:
        """Attention, compilation and versions; torch's own routines, of which some vary from run to run."""
        return {
            "attention": "sdpa",
            **self._more,
            "compile": "on" if self._compiled else "off",
            "deterministic": "off",
            "torch": torch.__version__,
            "cuda": torch.version.cuda or "none",
        }

    def _tensors(self, batch: Batch) -> tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]:
        if batch.segment_starts is not None:
            raise ValueError(f"{self._name} keeps no documents apart; use --packing stream")
        tokens, targets = (torch.from_numpy(a.astype(np.int64)) for a in (batch.tokens, batch.targets))
        return devices.to_device(tokens, self.device), devices.to_device(targets, self.device)


def create(config: ModelConfig, optimizer: OptimizerConfig, runtime: Runtime, options: Options) -> Baseline:
    """The plain model.

    Raises:
        ValueError: As ``Baseline``.
    """
    network = Plain(config, options.bias == "on")
    more = {"bias": options.bias}
    return Baseline(NAME, network, config, optimizer, runtime, options.compile, more)


def optimizer_of(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW; matrices and embeddings decay.

    Args:
        config: Its settings; the learning rate comes with each step.
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim == 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=config.epsilon, fused=True)


SPEC = BackendSpec(name=NAME, options=Options, create=create, has_gpu=devices.has_gpu)  # type: ignore[arg-type]
