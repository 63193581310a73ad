"""How many steps Muon takes to the validation loss that AdamW reaches in N: tuned alike, over several seeds.

    python packages/gpt-compare/bench/optimizers.py run OUT --ids train.bin --val val.bin --preset gpt2-124m \
        --backend gpt-triton --precision bfloat16 --rows 32 --tries 150 --steps 600 --gpus 0 1 \
        --adamw 7e-4 1.4e-3 2.8e-3 5.6e-3 --muon 5 10 20 40
    python packages/gpt-compare/bench/optimizers.py plot OUT.csv OUT.png

AdamW tries each learning rate once; Muon, whose AdamW part keeps the best of these, as many factors of it.
With the best of each, every seed is run (first weights, order of the text), and the validation loss is taken
twenty times along the way. Steps between two of them are told from the straight line. Files of ids are
llm.c's shards. With several GPUs each has a process of its own, and takes the next run when it is free.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from itertools import pairwise
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gpt_data.batch import Batch
from gpt_data.stopping import STARTER, end_with_starter
from gpt_trainer.backend import OptimizerConfig, Runtime
from gpt_trainer.gpt2.presets import PRESETS
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import init_parameters
from gpt_trainer.registry import find_backend
from gpt_trainer.schedules import learning_rate

HEADER_BYTES, LOOKS = 1024, 20
ADAMW, MUON = "adamw", "muon"
FIELDS = ("preset", "optimizer", "lr", "muon_lr_factor", "seed", "steps", "step", "val_loss", "seconds")


class Run(NamedTuple):
    """One training: what it is made with, and its length."""

    optimizer: str
    lr: float
    factor: float
    seed: int
    steps: int


def read_ids(path: Path) -> np.ndarray:
    """Token ids of a shard of 16-bit words."""
    return np.fromfile(path, "<u2", offset=HEADER_BYTES)


def cut(ids: np.ndarray, rows: int, context: int, stream: np.random.Generator) -> Batch:
    """Rows from random places."""
    at = stream.integers(0, len(ids) - context - 1, rows)[:, None] + np.arange(context + 1)
    picked = ids[at].astype(np.int32)
    return Batch(picked[:, :-1].copy(), picked[:, 1:].copy(), None)


class Trainer:
    """One backend at one size, and the text."""

    def __init__(self, given: argparse.Namespace) -> None:
        preset = PRESETS[given.preset]
        self.given, self.lr_floor = given, preset.schedule.lr_floor
        self.ids, val = read_ids(given.ids), read_ids(given.val)
        sizes = preset.model
        vocab = int(max(self.ids.max(), val.max())) + 1
        self.model = ModelConfig(sizes.n_layer, sizes.n_head, sizes.d_model, sizes.context, vocab)
        stream = np.random.default_rng(0)
        self.held = [cut(val, given.rows, sizes.context, stream) for _ in range(given.val_batches)]

    def train(self, run: Run) -> list[tuple[int, float, float]]:
        """Step, validation loss and seconds of each look, compilation included."""
        given, spec = self.given, find_backend(self.given.backend)
        runtime = Runtime(precision=given.precision, device=given.device, seed=run.seed)
        optimizer = OptimizerConfig(optimizer=run.optimizer, muon_lr_factor=run.factor)
        backend = spec.create(self.model, optimizer, runtime, spec.options())
        backend.load(init_parameters(self.model, run.seed))
        stream, looks, began = np.random.default_rng(run.seed), [], time.perf_counter()
        for step in range(run.steps + 1):
            if step % max(1, run.steps // LOOKS) == 0 or step == run.steps:
                sums = [backend.evaluate(batch) for batch in self.held]
                loss = sum(each for each, _ in sums) / sum(count for _, count in sums)
                looks.append((step, round(loss, 5), round(time.perf_counter() - began, 2)))
            if step < run.steps:
                batch = cut(self.ids, given.rows, self.model.context, stream)
                backend.train_step([batch], self.rate(run, step), step)
        return looks

    def rate(self, run: Run, step: int) -> float:
        """Linear warm-up over a fifteenth of the steps, then a cosine."""
        return learning_rate(
            "cosine",
            step,
            peak=run.lr,
            warmup=run.steps // 15,
            total=run.steps,
            floor=self.lr_floor,
            decay=0.0,
        )


_TRAINER: list[Trainer] = []
"""Of a worker's process: its one trainer."""


def _begin(given: argparse.Namespace, gpus: SimpleQueue[str]) -> None:
    """In a new process, before any framework: the GPU that is its own."""
    end_with_starter()
    if given.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus.get()
    _TRAINER.append(Trainer(given))


def _train(run: Run) -> list[tuple[int, float, float]]:
    return _TRAINER[0].train(run)


class Table:
    """The file of all looks, written as runs end, and the processes that make them."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.losses = given, dict[Run, float]()
        given.out.parent.mkdir(parents=True, exist_ok=True)
        self.file = given.out.with_suffix(".csv").open("w", newline="")
        self.lines = csv.writer(self.file)
        self.lines.writerow(FIELDS)
        os.environ[STARTER] = str(os.getpid())
        fresh = multiprocessing.get_context("spawn")
        gpus = fresh.SimpleQueue()
        for gpu in given.gpus:
            gpus.put(gpu)
        self.pool = ProcessPoolExecutor(
            max(1, len(given.gpus)), mp_context=fresh, initializer=_begin, initargs=(given, gpus)
        )

    def train(self, runs: Iterable[Run]) -> None:
        """Train all that have not been, and keep the last validation loss of each."""
        begun: dict[Future[list[tuple[int, float, float]]], Run] = {
            self.pool.submit(_train, run): run for run in runs if run not in self.losses
        }
        for done in as_completed(begun):
            run, looks = begun[done], done.result()
            self.lines.writerows((self.given.preset, *run, *look) for look in looks)
            self.file.flush()
            self.losses[run] = looks[-1][1]
            print(*run, *looks[-1], flush=True)

    def best(self, tries: Sequence[Run]) -> Run:
        """The one with the lowest loss at its end."""
        self.train(tries)
        return min(tries, key=self.losses.__getitem__)

    def tune_and_repeat(self) -> None:
        """As many tries for either, then the best of each with every seed."""
        given = self.given
        assert len(given.adamw) == len(given.muon), "tuned alike: as many tries"
        adamw = self.best([Run(ADAMW, lr, 1.0, 0, given.tries) for lr in given.adamw])
        muon = self.best([Run(MUON, adamw.lr, factor, 0, given.tries) for factor in given.muon])
        self.train(
            run._replace(seed=seed, steps=given.steps) for seed in range(given.seeds) for run in (adamw, muon)
        )


Curve = list[tuple[int, float]]


def read_curves(path: Path) -> dict[Run, Curve]:
    """The curve of each run; without one that was cut off."""
    curves: dict[Run, Curve] = defaultdict(list)
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            numbers = float(line["lr"]), float(line["muon_lr_factor"]), int(line["seed"]), int(line["steps"])
            curves[Run(line["optimizer"], *numbers)].append((int(line["step"]), float(line["val_loss"])))
    return {run: curve for run, curve in curves.items() if curve[-1][0] == run.steps}


def seeds_of(curves: dict[Run, Curve], optimizer: str) -> dict[int, Curve]:
    """By seed, the longest runs of an optimizer: those of its best settings."""
    found = {run: curve for run, curve in curves.items() if run.optimizer == optimizer}
    steps = max(run.steps for run in curves)
    several = [run for run in found if run.steps == steps]
    best = min((run for run in several if run.seed == 0), key=lambda run: found[run][-1][1])
    return {run.seed: found[run] for run in several if run._replace(seed=0) == best}


def steps_to(curve: Curve, loss: float) -> float:
    """The first step at which a curve is as low, between two looks by the straight line; NaN if never."""
    for (before, high), (after, low) in pairwise(curve):
        if low <= loss:
            return before + (after - before) * (high - loss) / (high - low)
    return float("nan")


def plot(path: Path, picture: Path) -> None:
    """Draw every seed of the best settings, and the tries; say what share of the steps Muon took."""
    import matplotlib.pyplot as plt

    curves = read_curves(path)
    adamw, muon = seeds_of(curves, ADAMW), seeds_of(curves, MUON)
    steps = adamw[0][-1][0]
    shares = [steps_to(muon[seed], curve[-1][1]) / steps for seed, curve in adamw.items() if seed in muon]
    each = ", ".join("more" if np.isnan(share) else f"{share:.0%}" for share in shares)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.5), layout="constrained", width_ratios=(2, 1))
    rates: list[float] = []
    for name, optimizer, seeds, colour in (
        ("AdamW", ADAMW, adamw, "tab:gray"),
        ("Muon", MUON, muon, "tab:blue"),
    ):
        for number, curve in enumerate(seeds.values()):
            left.plot(*zip(*curve[1:], strict=True), color=colour, label=name if not number else None, lw=1.2)
        tries = tried(curves, optimizer)
        rates += [rate for rate, _ in tries]
        right.plot(*zip(*tries, strict=True), color=colour, marker="o", markersize=4, lw=1.2)
    left.axhline(np.mean([curve[-1][1] for curve in adamw.values()]), color="tab:gray", ls=":", lw=1)
    left.set(xlabel="step", ylabel="validation loss, nats per token")
    said = f"Muon takes {each} of {steps} steps to AdamW's last loss"
    left.set_title(said, fontsize=10, loc="left")
    length = min(run.steps for run in curves)
    right.set(xlabel="learning rate of the blocks' matrices", xscale="log")
    right.minorticks_off()
    # a label needs as much room as lies between two that differ by a third
    apart = [rate for rate in rates if not any(0.75 * rate < less < rate for less in rates)]
    right.set_xticks(apart, [f"{rate:.2g}" for rate in apart], rotation=60)
    right.set_title(f"tries: loss after {length} steps", fontsize=10, loc="left")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110)
    for run, curve in sorted(curves.items()):
        print(*run, curve[-1][1])
    print(said)


def tried(curves: dict[Run, Curve], optimizer: str) -> list[tuple[float, float]]:
    """Learning rate and last loss of an optimizer's shortest runs with the first seed, ascending."""
    least = min(run.steps for run in curves)
    return sorted(
        (run.lr * run.factor, curve[-1][1])
        for run, curve in curves.items()
        if (run.optimizer, run.seed, run.steps) == (optimizer, 0, least)
    )


def main() -> None:
    """Run or plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    runs = commands.add_parser("run")
    runs.add_argument("out", type=Path)
    for name in ("ids", "val"):
        runs.add_argument(f"--{name}", type=Path, required=True)
    runs.add_argument("--preset", choices=PRESETS, default="cpu-demo")
    runs.add_argument("--backend", default="gpt-torchfunc")
    runs.add_argument("--device", default="auto")
    runs.add_argument("--precision", default="float32")
    for name, default in (("rows", 16), ("tries", 150), ("steps", 150), ("seeds", 3), ("val-batches", 4)):
        runs.add_argument(f"--{name}", type=int, default=default)
    runs.add_argument("--gpus", nargs="*", default=[])
    for name in (ADAMW, MUON):
        runs.add_argument(f"--{name}", type=float, nargs="+", required=True)
    drawn = commands.add_parser("plot")
    drawn.add_argument("table", type=Path)
    drawn.add_argument("picture", type=Path)
    given = parser.parse_args()
    if given.command == "plot":
        plot(given.table, given.picture)
    else:
        Table(given).tune_and_repeat()


if __name__ == "__main__":
    main()
