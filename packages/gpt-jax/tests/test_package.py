"""What the package promises beside its numbers: independence, quiet start, options, profile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gpt_jax.backend import JaxBackend
from gpt_jax.options import Options
from gpt_jax_toy import SMALL, build, make_batch
from gpt_trainer.registry import find_backend


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_no_foreign_framework_is_imported_and_nothing_is_said() -> None:
    code = (
        "import sys, gpt_jax.backend as b\n"
        "assert 'XLA_PYTHON_CLIENT_PREALLOCATE' not in __import__('os').environ\n"
        "from gpt_trainer.backend import *; from gpt_trainer.model_config import ModelConfig\n"
        "b.JaxBackend(ModelConfig(1, 1, 8, 8, 10), OptimizerConfig(), Runtime(device='cpu'), b.Options())\n"
        "assert not {'torch', 'triton', 'gpt_triton', 'gpt_torchfunc'} & set(sys.modules)\n"
    )
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_registered_under_its_name() -> None:
    assert find_backend("gpt-jax").name == "gpt-jax"


@pytest.mark.parametrize("flag", [{"attention": "flash"}, {"layers": "loop"}, {"preallocate": "yes"}])
def test_unknown_choices_are_refused(flag: dict[str, str]) -> None:
    # the shape checks, where they are on, refuse it first: by a TypeError
    with pytest.raises((ValueError, TypeError), match=next(iter(flag.values()))):
        Options(**flag)


def test_profile_names_operations(tmp_path: Path, backend: JaxBackend) -> None:
    trained = build(SMALL)
    trained.train_step([make_batch(2, 19)], 1e-3, 0).fetch()
    with trained.profile(tmp_path) as profile:
        trained.train_step([make_batch(2, 19)], 1e-3, 1).fetch()
        trained.synchronize()
    lines = profile.table().splitlines()
    assert len(lines) > 5
    assert any("dot" in line or "fusion" in line for line in lines)
