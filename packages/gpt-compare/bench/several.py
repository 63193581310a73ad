"""Steps of the backends, and of PyTorch's DDP around ``plain``, on several GPUs of a host.

    torchrun --nproc-per-node 2 bench/several.py OUT.jsonl SHARDS gpt-triton:alone gpt-triton:none plain:ddp
    python bench/several.py OUT.jsonl SHARDS gpt-jax:all --devices 2

A run is a backend and its ``--shard``, or ``alone``: each GPU trains for itself, all at once. Steps go as in
the training loop: batches are read ahead, processes meet, a step is launched, the numbers of the one before
are read. Every run adds a line to OUT.jsonl when it is over. *Unhidden* are the milliseconds of a profiled
step in which a GPU runs NCCL's kernels alone, its waiting for a slower GPU included.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from gpt_data.batch import Batch
from gpt_data.dataset import Dataset
from gpt_data.loader import BatchLoader
from gpt_trainer.backend import OptimizerConfig, Runtime, Shard
from gpt_trainer.model_config import MODEL_PRESETS, ModelConfig
from gpt_trainer.parameters import Parameters, init_parameters, parameter_count, parameter_shapes
from gpt_trainer.ranks.peers import Alone, Peers
from gpt_trainer.ranks.place import ALONE, Place
from gpt_trainer.registry import BackendSpec
from traces import kernels, unhidden

LR = 1e-4
PROFILED, REPEATED = 3, 20
"""Steps that are looked into; steps that are taken twice."""
MANY = 500_000_000
"""Parameters that take too long to draw one by one."""


def quick_parameters(config: ModelConfig) -> Parameters:
    """Weights of GPT-2's spread, the same million draws again and again."""
    drawn = np.random.default_rng(0).standard_normal(1 << 20, np.float32) * np.float32(0.02)
    gains = {name for name in parameter_shapes(config) if ".ln_" in name and name.endswith("weight")}
    return {
        name: np.ones(shape, np.float32) if name in gains else np.resize(drawn, shape)
        for name, shape in parameter_shapes(config).items()
    }


def create(name: str, shard: str, config: ModelConfig, given: argparse.Namespace, place: Place) -> Any:
    """A backend, or the plain model in DDP, without weights."""
    whole = shard in ("alone", "ddp")
    kept: Shard = "none" if whole else shard  # type: ignore[assignment]
    runtime, optimizer = Runtime(given.precision, given.device, shard=kept), OptimizerConfig()
    if name == "plain":
        from gpt_compare.baseline import Baseline
        from gpt_compare.plain import Plain
        from torch.nn.parallel import DistributedDataParallel

        more = {} if shard == "alone" else {"wrap": DistributedDataParallel}
        return Baseline(name, Plain(config), config, optimizer, runtime, "auto", {}, **more)
    spec: BackendSpec = import_module(f"{name.replace('-', '_')}.options").SPEC
    words = [flag.split("=") for flag in given.options]
    options = spec.options(**{key: value for key, value in words if hasattr(spec.options, key)})
    return spec.create(config, optimizer, runtime, options, *([place] if place.shares > 1 else []))


class Bench:
    """The runs of one process.

    Args:
        given: The command line.
        peers: The processes of the bench.
    """

    def __init__(self, given: argparse.Namespace, peers: Peers) -> None:
        self.given, self.peers = given, peers
        self.dataset = Dataset.open(given.shards)
        size = MODEL_PRESETS[given.preset]
        layers, heads, width = given.sizes or (size.n_layer, size.n_head, size.d_model)
        self.config = ModelConfig(layers, heads, width, given.context, self.dataset.vocabulary.size)
        draw = quick_parameters if parameter_count(self.config) > MANY else drawn_parameters
        self.parameters = draw(self.config)

    def run(self, name: str, shard: str) -> dict[str, Any]:
        """One run, from the weights on: what was seen of it."""
        given, alone, begun = self.given, shard == "alone", time.perf_counter()
        self.place = ALONE if alone else self.peers.place
        backend = create(name, shard, self.config, given, self.place)
        backend.load(self.parameters)
        self._steps(backend, 0, steps=1)
        first = time.perf_counter() - begun
        seen = self._steps(backend, 1)
        mine = {
            "ms": 1e3 * statistics.median(seen),
            "memory": backend.peak_memory_bytes(),
            "unhidden": None if alone or not given.profile else self._profile(backend),
            "same": None if alone or not given.repeat else self._repeats(backend),
        }
        every = self.peers.gather(mine, "what was seen")
        told = {"device": backend.device_name(), "choices": dict(backend.choices())}
        del backend
        _forget()
        return told | self._line(name, shard, every) | {"steps": len(seen), "first_step_s": first}

    def _line(self, name: str, shard: str, every: list[dict[str, Any]]) -> dict[str, Any]:
        given, alone = self.given, shard == "alone"
        column = {key: [one[key] for one in every if one[key] is not None] for key in every[0]}
        tokens = given.rows * given.context
        # those alone do not wait for each other
        times = column["ms"] if alone else [max(column["ms"])] * self.place.shares
        return {
            "backend": name,
            "shard": shard,
            **{key: getattr(given, key) for key in ("preset", "rows", "context", "precision", "note")},
            "gpus": len(times),
            "tokens_per_second": sum(1e3 * tokens / ms for ms in times),
            "ms": column["ms"],
            "peak_memory_bytes": max(column["memory"]),
            "unhidden_ms": column["unhidden"],
            "repeats": all(column["same"]) if column["same"] else None,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _steps(self, backend: Any, first: int, steps: int | None = None) -> list[float]:
        """Seconds of each step behind the warm-up: so many steps, or as long as is asked for."""
        given, place, times, pending = self.given, self.place, list[float](), None
        loader = BatchLoader(
            self.dataset.train,
            rows=given.rows * place.shares,
            context=given.context,
            rank=place.rank,
            world=place.world,
        )
        begun = last = time.perf_counter()
        with loader.prefetch(first) as batches:
            for taken in count():
                batch = next(batches)
                mine = [last - begun, batch.target_count]
                told = self.peers.gather(mine, f"step {first + taken}")
                if taken >= (steps or 3) and (steps or told[0][0] > given.warm + given.seconds):
                    break
                targets = mine[1] if place is ALONE else sum(one[1] for one in told)
                launched = self._launch(backend, batch, first + taken, targets)
                if pending is not None:
                    self.loss = pending.fetch().loss
                    now = time.perf_counter()
                    times += [now - last] if last - begun > given.warm else []
                    last = now
                pending = launched
        backend.synchronize()
        return times

    def _launch(self, backend: Any, batch: Batch, step: int, targets: int) -> Any:
        rows = len(batch.tokens)
        size = self.given.micro * self.place.devices or rows
        parts = [batch.rows(at, at + size) for at in range(0, rows, size)]
        return backend.train_step(parts, LR, step, first_row=self.place.rank * rows, targets=targets)

    def _repeats(self, backend: Any) -> bool:
        """Whether the same steps from the same weights end in the same bits, twice and on all processes."""
        ends = []
        for _ in range(2):
            backend.load(self.parameters)
            self._steps(backend, 0, REPEATED)
            whole = hashlib.sha256()
            for value in backend.export().values():
                whole.update(value.tobytes())
            ends.append(whole.hexdigest())
        return len({*ends, *self.peers.gather(ends[0], "the weights")}) == 1

    def _profile(self, backend: Any) -> float:
        with tempfile.TemporaryDirectory() as folder:
            with backend.profile(Path(folder)):
                self._steps(backend, 10_000, PROFILED)
            return unhidden(kernels(Path(folder))) / (1e3 * PROFILED)


def drawn_parameters(config: ModelConfig) -> Parameters:
    """As a run draws them."""
    return init_parameters(config, 0)


def _forget() -> None:
    """Give back what a backend had on a GPU, so that the next one's peak is its own; JAX's stays."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("runs", nargs="+", help="BACKEND:SHARD, BACKEND:alone or plain:ddp")
    parser.add_argument("--preset", choices=MODEL_PRESETS, default="gpt2-124m")
    parser.add_argument("--sizes", type=int, nargs=3, help="layers, heads and width instead of the preset's")
    for name, default, what in (
        ("rows", 64, "of a step on a GPU"),
        ("micro", 0, "of these in a micro-batch; all if 0"),
        ("context", 1024, "tokens of a row"),
        ("devices", 1, "of each process: gpt-jax takes all in one"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--device", default="gpu")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--warm", type=float, default=1.5)
    parser.add_argument("--profile", action="store_true", help="look into some steps")
    parser.add_argument("--repeat", action="store_true", help="see whether steps repeat themselves")
    parser.add_argument("--options", nargs="*", default=[], help="NAME=VALUE of a backend's own")
    parser.add_argument("--note", default="")
    return parser.parse_args()


def main() -> None:
    """Run what is asked for, one after another."""
    given = read_arguments()
    peers: Peers = Alone(given.devices)
    if "RANK" in os.environ:
        from gpt_trainer.ranks.torchrun import join

        peers = join(1)
    with peers:
        bench = Bench(given, peers)
        for run in given.runs:
            line = bench.run(*run.split(":"))
            if peers.place.rank:
                continue
            with given.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            ms, waits = ([round(value, 2) for value in line[key]] for key in ("ms", "unhidden_ms"))
            print(
                f"{run:24} {line['tokens_per_second']:11,.0f} tokens/s  ms {ms}  unhidden {waits}  "
                f"{line['peak_memory_bytes'] / 1e9:5.1f} GB  repeats {line['repeats']}  "
                f"first {line['first_step_s']:.1f} s  loss {bench.loss:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
