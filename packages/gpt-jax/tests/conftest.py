"""The suite runs on the CPU, with JAX's silent conversions turned into errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from gpt_jax.backend import JaxBackend

# the helpers beside the tests carry the package's name, so that no other member's can be meant
sys.path.insert(0, str(Path(__file__).parent))

# most of the time goes into compiling what runs for milliseconds: LLVM need not polish it
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def _programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What XLA compiles is kept for the session, also for the processes that tests start.

    JAX takes the folder once in a process, so there is one for all tests.
    """
    wanted = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in wanted.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        yield


@pytest.fixture(scope="session")
def backend() -> JaxBackend:
    """One that no test trains, so that its compilations are shared."""
    from gpt_jax_toy import build

    return build()
