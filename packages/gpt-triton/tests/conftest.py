"""One comparison with one table of tolerances, one small model, and torch made strict."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters, init_parameters

# without a GPU the kernels run in Triton's interpreter, which is chosen before Triton is first imported
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# cuBLAS reads this when it starts, and refuses to be deterministic without it
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# the helpers beside this file carry the package's name, so that no other member's can be meant
sys.path.insert(0, str(Path(__file__).parent))

if os.environ.get("TRITON_INTERPRET") == "1":
    import_module("gpt_triton_interpreting").replace_language_once()

# relative Frobenius error, per tensor
TOLERANCES = {
    # two orders of the same float64 sums: some 1e-16 times the length of a sum
    "float64": 1e-13,
    # central differences at h = 1e-5: their error is h^2 times a third derivative, plus 1e-16 / h
    "finite difference": 1e-6,
    # the project's rule for float32 against the float64 referee
    "float32": 1e-5,
    # the project's rule for another cut into micro-batches, or rows apart instead of together
    "split": 1e-6,
    # one AdamW step in float32 against float64: rounding of a few operations
    "optimizer": 1e-6,
}


@pytest.fixture(autouse=True)
def strict_torch() -> Iterator[None]:
    """Fresh tensors are NaN, so that reading one shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """Relative Frobenius error in float64, at most what the rule allows."""

    def check(name: str, got: object, want: object, rule: str) -> None:
        a, b = (np.asarray(x.double() if isinstance(x, torch.Tensor) else x, np.float64) for x in (got, want))
        assert a.shape == b.shape, f"{name}: {a.shape} != {b.shape}"
        assert np.isfinite(a).all(), f"{name}: not finite"
        error = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)
        assert error <= TOLERANCES[rule], f"{name}: relative error {error:.1e} > {TOLERANCES[rule]:.0e}"

    return check


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    """Nothing is a power of two, and the vocabulary needs padding."""
    return ModelConfig(n_layer=2, n_head=3, d_model=21, context=13, vocab_size=151)


@pytest.fixture(scope="session")
def weights(config: ModelConfig) -> Parameters:
    """Large enough for uneven attention; gains and biases away from one and zero."""
    stream = np.random.default_rng(7)
    return {
        name: (3.0 * value + 0.1 * stream.standard_normal(value.shape)).astype(np.float32)
        for name, value in init_parameters(config, 5).items()
    }


@pytest.fixture(scope="session")
def batch(config: ModelConfig) -> Batch:
    """Four rows, each with its share of ignored targets."""
    return _draw(config, rows=4, segments=False)


@pytest.fixture(scope="session")
def packed(config: ModelConfig) -> Batch:
    """Four rows of several documents, of lengths from 1 up."""
    return _draw(config, rows=4, segments=True)


def _draw(config: ModelConfig, rows: int, *, segments: bool) -> Batch:
    stream = np.random.default_rng(11)
    shape = (rows, config.context)
    tokens = stream.integers(0, config.vocab_size, shape, dtype=np.int32)
    targets = stream.integers(0, config.vocab_size, shape, dtype=np.int32)
    targets[stream.random(shape) < 0.2] = IGNORE
    starts = None
    if segments:
        opens = stream.random(shape) < 0.3
        opens[:, 0] = True
        index = np.arange(config.context, dtype=np.int32)
        starts = np.maximum.accumulate(np.where(opens, index, 0), axis=1).astype(np.int32)
    return Batch(tokens, targets, starts)
