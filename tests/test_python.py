"""The page about Python does what it says, in each backend: its examples are run as they stand."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "shared/site/python.md").read_text(), re.DOTALL)
RUN = [
    *("--preset", "cpu-demo", "--tokenizer", "bytes", "--device", "cpu", "--plain", "--steps", "2"),
    *("--n-layer", "2", "--d-model", "48", "--n-head", "3", "--context", "64", "--micro-batch", "4"),
    *("--tokens-per-step", "256", "--warmup", "1", "--eval-rows", "4", "--out", "runs/cpu-demo-1"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("python")
    (folder / "text.txt").write_text("".join(f"{n} squared is {n * n}.\n" for n in range(4000)))
    command = [str(Path(sys.executable).with_name("gpt-torchfunc-train")), *RUN, "--data", "text:text.txt"]
    subprocess.run([*command, "--data-cache", "cache"], cwd=folder, check=True, capture_output=True)
    return folder


COMMON, OWN = EXAMPLES[:-3], dict(zip(("gpt_jax", "gpt_torchfunc", "gpt_triton"), EXAMPLES[-3:], strict=True))


@pytest.mark.parametrize("backend", OWN)
def test_the_examples_run_in_each_backend(folder: Path, backend: str) -> None:
    """Those for all of them, and its own."""
    assert f"from {backend}." in OWN[backend]
    text = "".join([*COMMON, OWN[backend]]).replace("from gpt_jax", f"from {backend}")
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    continuation, *steps = re.split(r"(?m)^(?=loss )", done.stdout)
    assert continuation.startswith("The ")
    losses = [float(step.split()[1].rstrip(",")) for step in steps]
    assert len(losses) == 3
    assert losses[2] < losses[0]
    assert "(48, 144)" in done.stdout
    untrained = float(re.search(r"untrained: ([\d.]+)", done.stdout)[1])  # type: ignore[index]
    assert untrained == pytest.approx(math.log(257), abs=0.2)
    first, second = re.search(r"([\d.]+) -> ([\d.]+)", done.stdout).groups()  # type: ignore[union-attr]
    # the weights are those behind the three steps
    assert float(first) < losses[2]
    assert float(second) < float(first)
