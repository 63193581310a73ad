"""Train several configurations on Multi30k, English to German, and compare their BLEU on test_2016_flickr.

    python multi30k.py DATA_FOLDER OUT_FOLDER [--runs tiny,small] [--jobs 4] [--device gpu]

Every configuration trains in a process of its own, several at a time on one GPU. OUT_FOLDER gets one
JSON file for each: its settings, device and versions, the learning curve, the score with sacreBLEU's
signature, and the seconds that training took, translations and checkpoints in between included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiayn_jax.commands import train_main
from aiayn_jax.finish import SCORE_NAME
from gpt_data.stopping import STARTER
from gpt_trainer.report.metrics import METRICS_NAME, read_metrics
from gpt_trainer.run.folder import stored_record

RUNS: dict[str, list[str]] = {
    "small": ["--steps=6000"],
    "small-6k": ["--vocab=6000", "--steps=6000"],
    "tiny": ["--n-layer=4", "--d-model=128", "--d-ff=256", "--steps=8000"],
    "deep": ["--n-layer=4", "--d-ff=512", "--steps=6000"],
}
"""Each configuration by what it changes in the preset ``small``."""


def run_one(name: str, arguments: argparse.Namespace) -> int:
    """Train one configuration in this process, and write its JSON file.

    Args:
        name: A key of ``RUNS``.
        arguments: The command's arguments.
    """
    run = arguments.out / "runs" / name
    flags = [f"--data=multi30k:{arguments.data}", f"--device={arguments.device}", f"--out={run}"]
    flags += ["--preset=small", "--plain", "--log-every=500"]
    if arguments.steps is None:
        flags += RUNS[name]
    else:
        flags += [flag for flag in RUNS[name] if "steps" not in flag] + [f"--steps={arguments.steps}"]
    began = time.perf_counter()
    status = train_main(flags)
    if status == 0:
        values = describe(name, run, time.perf_counter() - began)
        (arguments.out / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n")
    return status


def describe(name: str, run: Path, seconds: float) -> dict[str, Any]:
    """Everything about a finished run that a table or a plot needs.

    Args:
        name: The configuration.
        run: The run's folder.
        seconds: Wall time of the whole, data, compilation and the final translation included.
    """
    lines = read_metrics(run / METRICS_NAME)
    steps = [line for line in lines if "loss" in line]
    curve = [
        {key: line[key] for key in ("step", "val_loss", "val_bleu") if key in line}
        for line in lines
        if "val_loss" in line
    ]
    return {
        "name": name,
        "record": stored_record(run),
        "score": json.loads((run / SCORE_NAME).read_text()),
        "seconds": seconds,
        "step_seconds": sum(line["seconds"] for line in steps),
        "peak_memory_bytes": steps[-1]["peak_memory_bytes"],
        "training": [[line["step"], round(line["loss"], 4)] for line in steps],
        "curve": curve,
    }


def run_all(arguments: argparse.Namespace) -> int:
    """Start every configuration, ``jobs`` at a time, and print the table.

    Args:
        arguments: The command's arguments.
    """
    arguments.out.mkdir(parents=True, exist_ok=True)
    waiting, failed = list(arguments.runs), False
    running: dict[str, subprocess.Popen[bytes]] = {}
    own = os.environ | {STARTER: str(os.getpid())}
    while waiting or running:
        while waiting and len(running) < arguments.jobs:
            name = waiting.pop(0)
            command = [sys.executable, *sys.argv, f"--one={name}"]
            with (arguments.out / f"{name}.log").open("w") as log:
                running[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=own)
        time.sleep(0.5)
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                failed |= process.returncode != 0
                print(f"{name}: exit status {process.returncode}", flush=True)
                if process.returncode:
                    print((arguments.out / f"{name}.log").read_text()[-3000:], flush=True)
    print_table(
        [name for name in arguments.runs if (arguments.out / f"{name}.json").is_file()], arguments.out
    )
    return int(failed)


def print_table(names: list[str], out: Path) -> None:
    """One line for each configuration that has finished.

    Args:
        names: Keys of ``RUNS``.
        out: The folder of JSON files.
    """
    for name in names:
        print_row(name, json.loads((out / f"{name}.json").read_text()))


def print_row(name: str, values: Mapping[str, Any]) -> None:
    """A configuration's score, best validation figures, and what it took.

    Args:
        name: The configuration.
        values: Its JSON values.
    """
    curve, score = values["curve"], values["score"]
    figures = [
        f"BLEU {score['value']:.2f}",
        f"val BLEU (greedy) {max(line.get('val_bleu', 0.0) for line in curve):.2f}",
        f"val loss {min(line['val_loss'] for line in curve):.3f}",
        f"{values['training'][-1][0]} steps",
        f"{values['seconds']:.0f} s in all",
        f"{values['step_seconds']:.0f} s in steps",
        f"{values['peak_memory_bytes'] / 1e9:.2f} GB",
    ]
    print(f"{name:10} {'  '.join(figures)}")
    print(f"{'':10} {score['signature']}  {values['record']['made_by']['device']}")


def parse(argv: list[str]) -> argparse.Namespace:
    """The command's arguments.

    Args:
        argv: As they were typed.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=lambda text: text.split(","), default=list(RUNS))
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "gpu"])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    unknown = set(arguments.runs) - set(RUNS)
    if unknown:
        parser.error(f"unknown runs {', '.join(sorted(unknown))}; choose from {', '.join(RUNS)}")
    return arguments


if __name__ == "__main__":
    options = parse(sys.argv[1:])
    sys.exit(run_one(options.one, options) if options.one else run_all(options))
