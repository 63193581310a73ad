"""One comparison, one small model, one batch; deterministic algorithms throughout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from gpt_data.batch import IGNORE, Batch
from gpt_torchfunc import step
from gpt_torchfunc.backend import TorchFuncBackend
from gpt_torchfunc.model import Inputs, Parameters
from gpt_torchfunc.options import Options
from gpt_torchfunc.tree import from_canonical, map_leaves
from gpt_trainer.backend import OptimizerConfig, Runtime
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters as Canonical
from gpt_trainer.parameters import init_parameters


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """Forget what a backend set, and let fresh tensors be NaN, so that reading one shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def unchecked() -> None:
    """Skip where every function is wrapped in shape and type checks."""
    if hasattr(step.accumulate, "__wrapped__"):
        pytest.skip("shape checks are on")


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """Relative Frobenius error, in float64."""

    def check(name: str, got: object, want: object, *, rel: float) -> None:
        a, b = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, np.float64) for x in (got, want))
        assert a.shape == b.shape, f"{name}: {a.shape} != {b.shape}"
        assert np.isfinite(a).all(), f"{name}: not finite"
        error = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)
        assert error <= rel, f"{name}: relative error {error:.1e} > {rel:.0e}"

    return check


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    """Odd sizes on purpose: nothing is a power of two, and the vocabulary needs padding."""
    return ModelConfig(n_layer=2, n_head=3, d_model=21, context=13, vocab_size=151)


@pytest.fixture(scope="session")
def weights(config: ModelConfig) -> Canonical:
    """Weights large enough for attention to be uneven, gains and biases away from one and zero."""
    stream = np.random.default_rng(7)
    return {
        name: (3.0 * value + 0.1 * stream.standard_normal(value.shape)).astype(np.float32)
        for name, value in init_parameters(config, 5).items()
    }


@pytest.fixture(scope="session")
def batch(config: ModelConfig) -> Batch:
    """Four rows with a few positions that carry no loss."""
    stream = np.random.default_rng(11)
    ids = stream.integers(0, config.vocab_size, (4, config.context + 1)).astype(np.int32)
    targets = ids[:, 1:].copy()
    targets[0, 3], targets[2, -2:] = IGNORE, IGNORE
    return Batch(ids[:, :-1].copy(), targets)


@pytest.fixture(scope="session")
def packed(batch: Batch) -> Batch:
    """The same rows, cut into documents: of one token, at the edges, and a whole row."""
    starts = np.zeros(batch.tokens.shape, np.int32)
    starts[0, 1:6], starts[0, 6:] = 1, 6
    starts[1, 12:] = 12
    starts[3, 4:9], starts[3, 9:] = 4, 9
    return batch._replace(segment_starts=starts)


@pytest.fixture
def build(config: ModelConfig, weights: Canonical) -> Callable[..., TorchFuncBackend]:
    """A loaded backend on the CPU; keywords go to where they belong."""

    def make(
        *,
        dropout: float = 0.0,
        options: Options | None = None,
        optimizer: OptimizerConfig | None = None,
        **runtime: object,
    ) -> TorchFuncBackend:
        backend = TorchFuncBackend(
            replace(config, dropout=dropout),
            optimizer or OptimizerConfig(),
            Runtime(**({"device": "cpu"} | runtime)),  # type: ignore[arg-type]
            options or Options(),
        )
        torch.utils.deterministic.fill_uninitialized_memory = True
        backend.load(weights)
        return backend

    return make


@pytest.fixture
def params(config: ModelConfig, weights: Canonical) -> Parameters:
    """The tree in float32."""
    return from_canonical(weights, config, torch.device("cpu"))


@pytest.fixture
def wide(params: Parameters) -> Parameters:
    """The tree in float64."""
    return map_leaves(lambda leaf: leaf.double(), params)


@pytest.fixture
def to_inputs() -> Callable[[Batch], Inputs]:
    """A batch as tensors."""
    return lambda batch: Inputs(*(None if a is None else torch.from_numpy(np.array(a)) for a in batch))
