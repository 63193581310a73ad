"""Products and attention compile for a Hopper GPU on a machine without one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

COMPILE = Path(__file__).parents[1] / "bench" / "compile_kernels.py"


BARRIER = re.compile(r"\b(bar|bar\.warp|barrier)\.sync")


@pytest.mark.slow
def test_what_is_asynchronous_compiles_for_hopper(tmp_path: Path) -> None:
    said = _compile("attention", tmp_path) + _compile("linear", tmp_path)
    for name in (
        "attention_fwd_hopper_kernel",
        "attention_bwd_hopper_kernel",
        "hopper_kernel",
        "_mask_kernel",
    ):
        assert name in said
    # attention's forward reads shared memory by products alone, which are waited for
    compiled = [*tmp_path.rglob("attention_bwd_hopper_kernel.ptx"), *tmp_path.rglob("hopper_kernel.ptx")]
    assert len(compiled) >= 4
    for path in compiled:
        text = path.read_text()
        assert _unmet(text.splitlines()) == []
        assert _unmet([line for line in text.splitlines() if not BARRIER.search(line)])


def _compile(ops: str, cache: Path) -> str:
    """What is told of each kernel of some ops; fails if one spills or needs more shared memory than is."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, COMPILE, "--rows", "64", "--only", ops, "--dtype", "bfloat16"],
        env=env | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def _unmet(ptx: list[str]) -> list[str]:
    """Arrivals, each by one thread, which let another partition write, though not all threads have met.

    Before it they meet behind what they read, or wrote, in shared memory: that barrier is the compiler's, no
    word of the kernel's.
    """
    found, met = [], True
    for line in ptx:
        if re.search(r"\b(ld|st)(matrix|\.shared)", line):
            met = False
        if BARRIER.search(line):
            met = True
        if "mbarrier.arrive" in line and not met:
            found.append(line)
    return found
