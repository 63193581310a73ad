"""Run the parity matrix: write the cases, let every backend answer in its own environment, compare.

    python run.py WORK --python gpt-jax=PYTHON --python gpt-triton=PYTHON ... [--device gpu]

Each backend is a process of its own, under the interpreter given for its package; they meet in WORK.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Variant:
    """One way of running one backend, and where it can run."""

    label: str
    package: str
    options: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "gpu")
    precisions: tuple[str, ...] = PRECISIONS
    interpreted: bool = False
    exchanges: bool = False
    flags: tuple[str, ...] = field(default=())

    @property
    def backend(self) -> str:
        """The name that ``emit.py`` knows it by."""
        return "yardstick" if self.label == "yardstick" else self.package


VARIANTS = (
    Variant("yardstick", "gpt-torchfunc"),
    Variant("gpt-jax-written", "gpt-jax", ("attention=written",), exchanges=True),
    # cuDNN's attention has no float32 form
    Variant("gpt-jax-cudnn", "gpt-jax", ("attention=cudnn",), ("gpu",), ("bfloat16",)),
    # one form as it stands and one as torch.compile makes it, which is the default on a GPU
    Variant("gpt-torchfunc-written", "gpt-torchfunc", ("attention=written", "compile=off"), exchanges=True),
    Variant("gpt-torchfunc-sdpa", "gpt-torchfunc", ("attention=sdpa",)),
    Variant("gpt-torchfunc-cudnn", "gpt-torchfunc", ("attention=cudnn",), ("gpu",), ("bfloat16",)),
    Variant("gpt-triton-reference", "gpt-triton", ("kernels=reference",), exchanges=True),
    Variant("gpt-triton-kernels", "gpt-triton", ("kernels=triton",), ("gpu",), exchanges=True),
    # two steps are enough to see the optimizer's state at work, and all that the interpreter has time for
    Variant(
        "gpt-triton-interpreted",
        "gpt-triton",
        ("kernels=triton",),
        ("cpu",),
        interpreted=True,
        flags=("--steps", "2"),
    ),
)


class Matrix:
    """The environments, and the folder where they meet."""

    def __init__(self, work: Path, device: str, pythons: dict[str, str], jobs: int) -> None:
        self.work, self.device, self.pythons, self.jobs = work, device, pythons, jobs
        self.cases, self.answers = work / "cases", work / "answers"
        self.variants = [
            variant for variant in VARIANTS if device in variant.devices and variant.package in pythons
        ]

    def python(self, package: str, *arguments: str, interpreted: bool = False) -> None:
        """Run one of the scripts beside this file in a package's environment; its output only if it fails."""
        environment = os.environ | {"PYTHONPATH": str(HERE) + os.pathsep + os.environ.get("PYTHONPATH", "")}
        if interpreted:
            environment["TRITON_INTERPRET"] = "1"
        if self.jobs > 1:
            environment["OMP_NUM_THREADS"] = "1"
        done = subprocess.run(
            [self.pythons[package], *arguments], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)}\n{done.stdout}{done.stderr}")

    def emit(self, variant: Variant, precision: str, *more: str) -> None:
        """One process of ``emit.py``."""
        began = time.monotonic()
        given = [word for option in variant.options for word in ("--option", option)]
        self.python(
            variant.package,
            *(str(each) for each in (HERE / "emit.py", self.cases, self.answers)),
            *("--backend", variant.backend, "--label", variant.label, "--precision", precision),
            *("--device", self.device, *given, *more),
            interpreted=variant.interpreted,
        )
        seconds = time.monotonic() - began
        print(f"{variant.label} {precision} {' '.join(more)}: {seconds:.0f} s", flush=True)

    def write_cases(self) -> None:
        """The referee's part; any of the environments has NumPy."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        self.python(next(iter(self.pythons)), str(HERE / "cases.py"), str(self.cases))

    def answer(self) -> None:
        """Every variant in every precision, then the exchange of checkpoints, ``jobs`` at a time."""
        savers = [variant for variant in self.variants if variant.exchanges]
        resumes = [word for saver in savers for word in ("--resume", saver.label)]
        with ThreadPoolExecutor(self.jobs) as pool:
            asked = [
                pool.submit(self.emit, variant, precision, *variant.flags)
                for variant in sorted(self.variants, key=lambda each: not each.interpreted)
                for precision in variant.precisions
            ]
            asked += [pool.submit(self.emit, saver, "float32", "--save") for saver in savers]
            for each in asked:
                each.result()
            for each in [pool.submit(self.emit, saver, "float32", *resumes) for saver in savers]:
                each.result()

    def compare(self, report: Path) -> int:
        """Print the table; 1 if anything fails."""
        compare = [str(each) for each in (HERE / "compare.py", self.cases, self.answers, report)]
        return subprocess.run([sys.executable, *compare], check=False).returncode


def main() -> int:
    """The whole matrix."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder to write into; emptied first")
    parser.add_argument("--python", action="append", required=True, metavar="PACKAGE=PYTHON")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--jobs", type=int, default=2, help="backends that answer at the same time")
    parser.add_argument("--report", type=Path, help="where parity.json and parity.md go; WORK if not given")
    given = parser.parse_args()
    pythons = dict(pair.split("=", 1) for pair in given.python)
    matrix = Matrix(given.work, given.device, pythons, given.jobs)
    matrix.write_cases()
    matrix.answer()
    return matrix.compare(given.report or given.work)


if __name__ == "__main__":
    sys.exit(main())
