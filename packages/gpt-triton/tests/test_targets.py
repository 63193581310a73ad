"""Every kernel compiles, within registers and shared memory, for each generation of GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "bench" / "compile_kernels.py"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton's compiler runs on Linux")
# Ampere, Ada, Hopper, Blackwell
@pytest.mark.parametrize("capability", [80, 89, 90, 100])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_kernel_compiles(capability: int, dtype: str) -> None:
    # the other tests choose the interpreter, which has nothing to compile
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(PROGRAM), "--capability", str(capability), "--dtype", dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "0 over a limit" in done.stdout
