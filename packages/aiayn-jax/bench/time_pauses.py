"""What the log says a training step took, next to a pause and between pauses, with and without overlap.

    python time_pauses.py OUT_FOLDER [--device gpu] [--preset base] [--steps 120]

With overlap the metrics of a step are read when the next one is launched. A step of a run that repeats
itself waits for the device inside its launch; its logged seconds must be the same beside a pause and away
from one, and with overlap no step may take longer than without. OUT_FOLDER gets ``pauses.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from aiayn_jax.runs import training
from aiayn_jax.settings import RUN_PRESETS, RunConfig
from gpt_trainer.report.metrics import METRICS_NAME, read_metrics

EVERY = 10
"""Steps between two evaluations, which are the pauses."""
WARMUP = 2 * EVERY + 1
"""Steps left out: each shape of a batch is compiled, and the device's clock comes up to speed."""


def configure(arguments: argparse.Namespace, *, deterministic: bool) -> RunConfig:
    """A preset on numbers and their words, evaluated often, saved at the end alone.

    Args:
        arguments: The command's arguments.
        deterministic: Whether the run repeats itself.
    """
    base = RUN_PRESETS[arguments.preset]
    return replace(
        base,
        data=replace(base.data, data="numbers", vocab=400),
        batch=replace(base.batch, buckets=1),
        schedule=replace(base.schedule, steps=arguments.steps),
        runtime=replace(
            base.runtime, device=arguments.device, precision="bfloat16", deterministic=deterministic
        ),
        reports=replace(base.reports, eval_every=EVERY, score_pairs=0, save_every=0, plain=True),
    )


def measure(arguments: argparse.Namespace, *, deterministic: bool, overlap: bool) -> dict[str, Any]:
    """Train so, and gather the seconds of the steps by their place.

    Args:
        arguments: The command's arguments.
        deterministic: Whether the run repeats itself.
        overlap: Whether a step's metrics are read when the next one is launched.
    """
    run = arguments.out / f"run-{deterministic:d}{overlap:d}"
    config = configure(arguments, deterministic=deterministic)
    began = time.perf_counter()
    with (
        mock.patch.object(training, "on_gpu", return_value=overlap),
        # the translation at the end is no step
        mock.patch.object(training, "score_test", return_value=None),
    ):
        training.train(config, arguments.preset, out=run)
    steps = [line for line in read_metrics(run / METRICS_NAME) if "loss" in line and line["step"] > WARMUP]
    places: dict[str, list[float]] = {"before": [], "after": [], "between": []}
    for line in steps:
        place = {0: "before", 1: "after"}.get(line["step"] % EVERY, "between")
        places[place].append(1e3 * line["seconds"])
    return {
        "deterministic": deterministic,
        "overlap": overlap,
        "milliseconds": {place: statistics.median(values) for place, values in places.items()},
        "sum_of_steps_s": sum(line["seconds"] for line in steps),
        "whole_s": time.perf_counter() - began,
    }


def main(argv: list[str]) -> int:
    """Measure the four ways, write them, and print a table.

    Args:
        argv: The command's arguments.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="gpu", choices=["gpu", "cpu"])
    parser.add_argument("--preset", default="base", choices=list(RUN_PRESETS))
    parser.add_argument("--steps", type=int, default=120)
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = [
        measure(arguments, deterministic=deterministic, overlap=overlap)
        for deterministic in (True, False)
        for overlap in (False, True)
    ]
    (arguments.out / "pauses.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"{'':28}{'before a pause':>16}{'after one':>12}{'between':>12}   ms, medians")
    for row in found:
        name = f"{'deterministic' if row['deterministic'] else 'free'}{', overlap' * row['overlap']}"
        times = row["milliseconds"]
        print(f"{name:28}{times['before']:16.2f}{times['after']:12.2f}{times['between']:12.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
