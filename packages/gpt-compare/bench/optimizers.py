"""How many steps Muon takes to the validation loss that AdamW reaches in N: tuned alike, over several seeds.

    python packages/gpt-compare/bench/optimizers.py run OUT --ids train.bin --val val.bin --preset gpt2-124m \
        --backend gpt-triton --rows 32 --steps 300 --adamw 1e-3 2e-3 4e-3 --muon 5 10 20
    python packages/gpt-compare/bench/optimizers.py plot OUT.csv OUT.png

AdamW tries each learning rate once; Muon, whose AdamW part keeps the best of these, as many factors of it.
With the best of each, every seed is run (first weights, order of the text), and the validation loss is taken
twenty times along the way. Steps between two of them are told from the straight line. Files of ids are
llm.c's shards.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
from gpt_data.batch import Batch
from gpt_trainer.backend import OptimizerConfig, Runtime, find_backend
from gpt_trainer.gpt2.presets import PRESETS
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import init_parameters
from gpt_trainer.schedules import learning_rate

HEADER_BYTES, LOOKS = 1024, 20
FIELDS = ("preset", "optimizer", "lr", "muon_lr_factor", "seed", "step", "val_loss", "seconds")


def read_ids(path: Path) -> np.ndarray:
    """Token ids of a shard of 16-bit words."""
    return np.fromfile(path, "<u2", offset=HEADER_BYTES)


def cut(ids: np.ndarray, rows: int, context: int, stream: np.random.Generator) -> Batch:
    """Rows from random places."""
    at = stream.integers(0, len(ids) - context - 1, rows)[:, None] + np.arange(context + 1)
    picked = ids[at].astype(np.int32)
    return Batch(picked[:, :-1].copy(), picked[:, 1:].copy(), None)


class Runs:
    """One backend at one size, and the lines that its runs have written."""

    def __init__(self, given: argparse.Namespace) -> None:
        preset = PRESETS[given.preset]
        self.given, self.lr_floor = given, preset.schedule.lr_floor
        self.ids, val = read_ids(given.ids), read_ids(given.val)
        sizes = preset.model
        vocab = int(max(self.ids.max(), val.max())) + 1
        self.model = ModelConfig(sizes.n_layer, sizes.n_head, sizes.d_model, sizes.context, vocab)
        stream = np.random.default_rng(0)
        self.held = [cut(val, given.rows, sizes.context, stream) for _ in range(given.val_batches)]
        given.out.parent.mkdir(parents=True, exist_ok=True)
        self.file = given.out.with_suffix(".csv").open("w", newline="")
        self.lines = csv.writer(self.file)
        self.lines.writerow(FIELDS)

    def run(self, optimizer: OptimizerConfig, lr: float, seed: int) -> float:
        """Train from ``seed``; the last validation loss."""
        given, spec = self.given, find_backend(self.given.backend)
        runtime = Runtime(precision=given.precision, device=given.device, seed=seed)
        backend = spec.create(self.model, optimizer, runtime, spec.options())
        backend.load(init_parameters(self.model, seed))
        stream, began, loss = np.random.default_rng(seed), time.perf_counter(), float("nan")
        for step in range(given.steps + 1):
            if step % max(1, given.steps // LOOKS) == 0 or step == given.steps:
                sums = [backend.evaluate(batch) for batch in self.held]
                loss = sum(each for each, _ in sums) / sum(count for _, count in sums)
                factor = optimizer.muon_lr_factor if optimizer.optimizer == "muon" else 1.0
                seconds = round(time.perf_counter() - began, 2)
                self.lines.writerow(
                    (given.preset, optimizer.optimizer, lr, factor, seed, step, round(loss, 5), seconds)
                )
            if step < given.steps:
                batch = cut(self.ids, given.rows, self.model.context, stream)
                backend.train_step([batch], self.rate(lr, step), step)
        self.file.flush()
        print(
            f"{optimizer.optimizer} lr {lr:g} factor {factor:g} seed {seed}: {loss:.4f}, {seconds} s",
            flush=True,
        )
        return loss

    def rate(self, peak: float, step: int) -> float:
        """Linear warm-up over a fifteenth of the steps, then a cosine."""
        steps = self.given.steps
        return learning_rate(
            "cosine", step, peak=peak, warmup=steps // 15, total=steps, floor=self.lr_floor, decay=0.0
        )

    def tune_and_repeat(self) -> None:
        """As many tries for either, then the best of each with the other seeds."""
        given = self.given
        assert len(given.adamw) == len(given.muon), "tuned alike: as many tries"
        adamw = {lr: self.run(OptimizerConfig(), lr, 0) for lr in given.adamw}
        lr = min(adamw, key=adamw.__getitem__)
        configs = {factor: OptimizerConfig(optimizer="muon", muon_lr_factor=factor) for factor in given.muon}
        muon = {factor: self.run(config, lr, 0) for factor, config in configs.items()}
        best = configs[min(muon, key=muon.__getitem__)]
        for seed in range(1, given.seeds):
            self.run(OptimizerConfig(), lr, seed)
            self.run(best, lr, seed)


Curve = list[tuple[int, float]]


def read_curves(path: Path) -> dict[tuple[str, str, str], dict[str, Curve]]:
    """By optimizer, rate and factor, the curve of each seed; without one that was cut off."""
    curves: dict[tuple[str, str, str], dict[str, Curve]] = defaultdict(lambda: defaultdict(list))
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            key = line["optimizer"], line["lr"], line["muon_lr_factor"]
            curves[key][line["seed"]].append((int(line["step"]), float(line["val_loss"])))
    last = max(curve[-1][0] for seeds in curves.values() for curve in seeds.values())
    whole = {
        key: {seed: curve for seed, curve in seeds.items() if curve[-1][0] == last}
        for key, seeds in curves.items()
    }
    return {key: seeds for key, seeds in whole.items() if seeds}


def best_of(curves: dict[tuple[str, str, str], dict[str, Curve]], optimizer: str) -> dict[str, Curve]:
    """The seeds of the settings that reach the lowest loss with the first."""
    tried = {key: seeds for key, seeds in curves.items() if key[0] == optimizer}
    return tried[min(tried, key=lambda key: tried[key]["0"][-1][1])]


def steps_to(curve: Curve, loss: float) -> float:
    """The first step at which a curve is as low, between two looks by the straight line; NaN if never."""
    for (before, high), (after, low) in pairwise(curve):
        if low <= loss:
            return before + (after - before) * (high - loss) / (high - low)
    return float("nan")


def plot(path: Path, picture: Path) -> None:
    """Draw every seed of the best settings, and say what share of the steps Muon took with each."""
    import matplotlib.pyplot as plt

    curves = read_curves(path)
    adamw, muon = best_of(curves, "adamw"), best_of(curves, "muon")
    steps = adamw["0"][-1][0]
    shares = [steps_to(muon[seed], curve[-1][1]) / steps for seed, curve in adamw.items() if seed in muon]
    each = ", ".join("more" if np.isnan(share) else f"{share:.0%}" for share in shares)
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, seeds, colour in (("AdamW", adamw, "tab:gray"), ("Muon", muon, "tab:blue")):
        for number, curve in enumerate(seeds.values()):
            axes.plot(*zip(*curve[1:], strict=True), color=colour, label=name if not number else None, lw=1.2)
    axes.axhline(np.mean([curve[-1][1] for curve in adamw.values()]), color="tab:gray", ls=":", lw=1)
    axes.set(xlabel="step", ylabel="validation loss, nats per token", yscale="log")
    said = f"Muon takes {each} of {steps} steps to AdamW's last loss"
    axes.set_title(said, fontsize=10)
    axes.legend()
    figure.savefig(picture, dpi=110)
    for key, seeds in curves.items():
        print(*key, {seed: curve[-1][1] for seed, curve in seeds.items()})
    print(said)


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
    for name, default in (("rows", 16), ("steps", 150), ("seeds", 3), ("val-batches", 4)):
        runs.add_argument(f"--{name}", type=int, default=default)
    for name in ("adamw", "muon"):
        runs.add_argument(f"--{name}", type=float, nargs="+", required=True)
    drawn = commands.add_parser("plot")
    drawn.add_argument("table", type=Path)
    drawn.add_argument("picture", type=Path)
    given = parser.parse_args()
    if given.command == "plot":
        plot(given.table, given.picture)
    else:
        Runs(given).tune_and_repeat()


if __name__ == "__main__":
    main()
