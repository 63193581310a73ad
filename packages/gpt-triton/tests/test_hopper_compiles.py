"""Attention's kernels compile for a Hopper GPU on a machine without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPILE = Path(__file__).parents[1] / "bench" / "compile_kernels.py"


@pytest.mark.slow
def test_attention_compiles_for_hopper() -> None:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
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
