"""Attention's kernels compile for a Hopper GPU on a machine without one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

COMPILE = Path(__file__).parents[1] / "bench" / "compile_kernels.py"


@pytest.mark.slow
def test_attention_compiles_for_hopper(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, COMPILE, "--rows", "2", "--only", "attention", "--dtype", "bfloat16"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    # 1 if a kernel spills or needs more shared memory than there is
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("attention_fwd_hopper_kernel", "attention_bwd_hopper_kernel", "_mask_kernel"):
        assert name in done.stdout
    assert "Warning" not in done.stderr
    compiled = [path.read_text() for path in tmp_path.rglob("attention_*_hopper_kernel.ptx")]
    assert len(compiled) == 4  # forward and backward, with dropout and without
    for text in compiled:
        assert _arrivals(text) > 20


def _arrivals(ptx: str) -> int:
    """How many arrivals there are, each by one thread, which lets another partition write.

    Before it all threads have met behind what they read, or wrote, in shared memory: that barrier is the
    compiler's, no word of the kernel's.
    """
    count, met = 0, True
    for line in ptx.splitlines():
        if re.search(r"\b(ld|st)\.shared", line):
            met = False
        if re.search(r"\b(bar|bar\.warp|barrier)\.sync", line):
            met = True
        if "mbarrier.arrive" in line:
            assert met, line
            count += 1
    return count
