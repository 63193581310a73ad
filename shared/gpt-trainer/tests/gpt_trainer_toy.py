"""A whole backend in NumPy, small enough for every test: it proves that the trainer owns no framework.

The model uses the token and position tables, the first block's MLP with tanh, and the tied head; the
other parameters of a GPT-2 stay as they are. Gradients are exact. Shapes: B rows, T positions, D width.

TOY_FAULT plants faults: ``sigterm:5`` in step 5, ``kill:5``, ``stop:5``, ``nan:5``, ``spike:5``,
``memory:5``, and ``sigterm-eval:1`` in the evaluation of that number, counted from 0.
With TOY_RANK they are that rank's.
Processes of a run are told by torchrun's variables; their table is a folder, TOY_STORE.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.backend import OptimizerConfig, Runtime, StepMetrics
from gpt_trainer.commands import sample_main, train_main
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import (
    OptimizerState,
    Parameters,
    check_optimizer_state,
    check_parameters,
    parameter_shapes,
)
from gpt_trainer.ranks.peers import Alone, Peers
from gpt_trainer.ranks.place import ALONE, Place, find_meeting
from gpt_trainer.registry import BackendSpec

WTE, WPE = "transformer.wte.weight", "transformer.wpe.weight"
FC, FC_BIAS = "transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_fc.bias"
PROJ, PROJ_BIAS = "transformer.h.0.mlp.c_proj.weight", "transformer.h.0.mlp.c_proj.bias"


class OutOfMemoryError(Exception):
    """Named as torch names its own."""


@dataclass(frozen=True)
class ToyOptions:
    """Flags that only this backend has.

    Attributes:
        flavour: Changes nothing.
    """

    flavour: Literal["plain", "sweet"] = "plain"


def fault(kind: str, number: int) -> bool:
    mine = os.environ.get("TOY_RANK", "0") == os.environ.get("RANK", "0")
    return mine and os.environ.get("TOY_FAULT") == f"{kind}:{number}"


class FolderStore:
    """A table in a folder, for processes without a framework."""

    def __init__(self) -> None:
        self.folder = Path(os.environ["TOY_STORE"])

    def path(self, key: str) -> Path:
        return self.folder / key.replace("/", "-")

    def set(self, key: str, value: bytes) -> None:
        draft = self.path(f".{key}.{os.getpid()}.{threading.get_ident()}")
        draft.write_bytes(value)
        draft.replace(self.path(key))

    def get(self, key: str, seconds: float) -> bytes | None:
        until = time.monotonic() + seconds
        while True:
            with suppress(FileNotFoundError):
                return self.path(key).read_bytes()
            if time.monotonic() >= until:
                return None
            time.sleep(0.002)

    def delete(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)


def join(devices: int) -> Peers:
    meeting = find_meeting(os.environ)
    return Alone(devices) if meeting is None else Peers(meeting.place, FolderStore)


def summed(values: Sequence[np.ndarray], name: str, place: Place) -> list[np.ndarray]:
    """Sums over all processes, in the order of ranks."""
    store, rows = FolderStore(), []
    draft = store.path(f"{name}/{place.rank}.npz.draft")
    with draft.open("wb") as file:
        np.savez(file, *values)
    draft.replace(store.path(f"{name}/{place.rank}.npz"))
    for rank in range(place.world):
        path = store.path(f"{name}/{rank}.npz")
        while not path.exists():
            time.sleep(0.002)
        with np.load(path) as found:
            rows.append([found[key] for key in found.files])
    return [np.sum(column, axis=0) for column in zip(*rows, strict=True)]


@dataclass
class Fetched:
    metrics: StepMetrics

    def fetch(self) -> StepMetrics:
        return self.metrics


class ToyDecoder:
    def __init__(self, backend: ToyBackend, rows: int) -> None:
        self.backend, self.rows, self.length = backend, rows, 0

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        stop = self.length + tokens.shape[1]
        if stop > self.backend.config.context:
            raise ValueError(f"{stop} tokens exceed the context of {self.backend.config.context}")
        positions = np.full(self.rows, stop - 1)
        self.length = stop
        hidden = self.backend.forward(tokens[:, -1], positions)[-1]
        return (hidden @ self.backend.params[WTE].T).astype(np.float32)


def copied(tree: Parameters) -> Parameters:
    return {name: value.copy() for name, value in tree.items()}


class ToyBackend:
    def __init__(
        self,
        config: ModelConfig,
        optimizer: OptimizerConfig,
        runtime: Runtime,
        options: ToyOptions,
        place: Place = ALONE,
    ) -> None:
        self.place = place
        if runtime.device == "gpu":
            raise ValueError("device='gpu': this backend has none; choose 'cpu'")
        if optimizer.optimizer != "adamw":
            raise ValueError("this backend has AdamW alone")
        self.config, self.optimizer, self.evaluations = config, optimizer, 0
        zeros = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(config).items()}
        self.params = zeros
        self.first, self.second = (copied(zeros) for _ in range(2))

    def load(self, parameters: Parameters, optimizer_state: OptimizerState | None = None) -> None:
        check_parameters(parameters, self.config)
        zeros = {name: np.zeros_like(value) for name, value in parameters.items()}
        state = {"first": zeros, "second": zeros} if optimizer_state is None else optimizer_state
        check_optimizer_state(state, self.config, {"first": zeros, "second": zeros})
        self.params = copied(parameters)
        self.first, self.second = copied(state["first"]), copied(state["second"])

    def export(self) -> Parameters:
        return copied(self.params)

    def export_optimizer_state(self) -> OptimizerState:
        return {"first": copied(self.first), "second": copied(self.second)}

    def forward(self, tokens: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        p = self.params
        h = p[WTE][tokens] + p[WPE][positions]
        a = np.tanh(h @ p[FC] + p[FC_BIAS])
        return h, a, h + a @ p[PROJ] + p[PROJ_BIAS]

    def log_probs(self, batch: Batch) -> np.ndarray:
        logits = self.logits(batch).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        picked = np.take_along_axis(logp, np.maximum(batch.targets, 0)[..., None], -1)[..., 0]
        return np.where(batch.targets == IGNORE, 0.0, picked).astype(np.float32)

    def logits(self, batch: Batch) -> np.ndarray:
        return self.forward(batch.tokens, batch.positions)[2] @ self.params[WTE].T

    def evaluate(self, batch: Batch) -> tuple[float, int]:
        if fault("sigterm-eval", self.evaluations):
            os.kill(os.getpid(), signal.SIGTERM)
        self.evaluations += 1
        return -float(self.log_probs(batch).astype(np.float64).sum()), batch.target_count

    def gradients(self, micro_batches: Sequence[Batch], step: int) -> tuple[float, Parameters]:
        return self.sums(micro_batches, None)

    def sums(self, micro_batches: Sequence[Batch], targets: int | None) -> tuple[float, Parameters]:
        count = sum(batch.target_count for batch in micro_batches) if targets is None else targets
        grads = {name: np.zeros_like(value) for name, value in self.params.items()}
        loss = sum(self._accumulate(batch, count, grads) for batch in micro_batches)
        return float(loss), grads

    def _accumulate(self, batch: Batch, count: int, grads: Parameters) -> float:
        p = self.params
        keep = batch.targets != IGNORE
        tokens, targets, positions = batch.tokens[keep], batch.targets[keep], batch.positions[keep]
        h, a, out = self.forward(tokens, positions)
        logits = out @ p[WTE].T
        logits -= logits.max(-1, keepdims=True)
        probs = np.exp(logits)
        total = probs.sum(-1, keepdims=True)
        rows = np.arange(len(targets))
        loss = float((np.log(total[:, 0]) - logits[rows, targets]).sum(dtype=np.float64)) / count
        d_logits = probs / total
        d_logits[rows, targets] -= 1.0
        d_logits /= count
        d_out = d_logits @ p[WTE]
        d_z = (d_out @ p[PROJ].T) * (1.0 - a * a)
        d_h = d_out + d_z @ p[FC].T
        grads[WTE] += d_logits.T @ out
        np.add.at(grads[WTE], tokens, d_h)
        np.add.at(grads[WPE], positions, d_h)
        grads[FC] += h.T @ d_z
        grads[FC_BIAS] += d_z.sum(0)
        grads[PROJ] += a.T @ d_out
        grads[PROJ_BIAS] += d_out.sum(0)
        return loss

    def train_step(
        self,
        micro_batches: Sequence[Batch],
        lr: float,
        step: int,
        *,
        first_row: int = 0,
        targets: int | None = None,
        skip_above: float = float("inf"),
    ) -> Fetched:
        if fault("sigterm", step):
            os.kill(os.getpid(), signal.SIGTERM)
        if fault("kill", step):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault("memory", step):
            raise OutOfMemoryError("tried to allocate 20 GiB")
        if fault("stop", step):
            os.kill(os.getpid(), signal.SIGSTOP)
        loss, grads = self.sums(micro_batches, targets)
        if fault("nan", step):
            grads[FC][0, 0] = np.nan
        if fault("spike", step):
            grads[FC][0, 0] = 1e3
        if self.place.world > 1:
            loss, *values = summed([np.array(loss), *grads.values()], f"step{step}", self.place)
            loss, grads = float(loss), dict(zip(grads, values, strict=True))
        norm = float(np.sqrt(sum(np.square(g, dtype=np.float64).sum() for g in grads.values())))
        updated = bool(norm <= skip_above)
        if updated:
            self._update(grads, norm, lr, step)
        return Fetched(StepMetrics(loss, norm, updated))

    def _update(self, grads: Parameters, norm: float, lr: float, step: int) -> None:
        o = self.optimizer
        scale = np.float32(min(1.0, o.clip_norm / max(norm, 1e-30)) if o.clip_norm else 1.0)
        for name, grad in grads.items():
            first, second = self.first[name], self.second[name]
            first += np.float32(1 - o.beta1) * (grad * scale - first)
            second += np.float32(1 - o.beta2) * (np.square(grad * scale) - second)
            m = first / np.float32(1 - o.beta1 ** (step + 1))
            v = second / np.float32(1 - o.beta2 ** (step + 1))
            decay = o.weight_decay if grad.ndim == 2 else 0.0
            self.params[name] -= np.float32(lr) * (
                m / (np.sqrt(v) + np.float32(o.epsilon)) + np.float32(decay) * self.params[name]
            )

    def decoder(self, rows: int) -> ToyDecoder:
        return ToyDecoder(self, rows)

    @contextmanager
    def profile(self, folder: Path) -> Iterator[ToyBackend]:
        folder.mkdir(parents=True, exist_ok=True)
        yield self
        (folder / "trace.json").write_text("{}")

    def table(self) -> str:
        return "matmul 99 %"

    def synchronize(self) -> None:
        pass

    def peak_memory_bytes(self) -> int:
        return 1_000_000

    def device_name(self) -> str:
        return "toy"

    def choices(self) -> Mapping[str, str]:
        return {"numpy": np.__version__}


SPEC = BackendSpec("gpt-toy", ToyOptions, ToyBackend, lambda: False, join)

if __name__ == "__main__":
    # optional packages that take longer to import than a tiny run takes
    sys.modules.update(dict.fromkeys(os.environ.get("TOY_LACKS", "matplotlib numba").split()))  # type: ignore[arg-type]
    command = {"train": train_main, "sample": sample_main}[sys.argv[1]]
    sys.exit(command(SPEC, sys.argv[2:]))
