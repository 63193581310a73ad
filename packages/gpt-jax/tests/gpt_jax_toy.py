"""A small model, batches for it, and one comparison."""

from __future__ import annotations

import numpy as np
from gpt_data.batch import IGNORE, Batch
from gpt_jax.backend import JaxBackend
from gpt_jax.options import Options
from gpt_trainer.backend import OptimizerConfig, Runtime, Shard
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import init_parameters
from gpt_trainer.ranks.place import Place

# odd sizes: 61 ids do not fill the padded vocabulary, 19 positions no power of two
SMALL = ModelConfig(n_layer=2, n_head=2, d_model=12, context=19, vocab_size=61)


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    got, want = (np.asarray(a, np.float64) for a in (got, want))
    assert got.shape == want.shape, f"{got.shape} != {want.shape}"
    assert np.isfinite(got).all()
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


def assert_close(name: str, got: np.ndarray, want: np.ndarray, *, rel: float) -> None:
    error = relative_error(got, want)
    assert error <= rel, f"{name}: relative error {error:.1e} > {rel:.0e}"


def build(
    config: ModelConfig = SMALL,
    layers: str = "scan",
    precision: str = "float32",
    devices: int = 1,
    shard: Shard = "none",
    optimizer: OptimizerConfig | None = None,
) -> JaxBackend:
    runtime = Runtime(precision=precision, device="cpu", seed=3, shard=shard)
    given = optimizer or OptimizerConfig()
    backend = JaxBackend(config, given, runtime, Options(layers=layers), Place(devices=devices))
    backend.load(noisy_parameters(config))
    return backend


def noisy_parameters(config: ModelConfig) -> dict[str, np.ndarray]:
    """Gains and biases away from one and zero, so that none of them can be left out unseen."""
    rng = np.random.default_rng(1)
    values = init_parameters(config, 0)
    return {n: v * 4 + rng.normal(0, 0.1, v.shape).astype(np.float32) for n, v in values.items()}


def make_batch(rows: int, context: int, *, packed: bool = False, seed: int = 0) -> Batch:
    """Random tokens, some targets ignored; with ``packed``, documents of seven tokens."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, SMALL.vocab_size, (rows, context)).astype(np.int32)
    targets = rng.integers(0, SMALL.vocab_size, (rows, context)).astype(np.int32)
    targets[:, ::5] = IGNORE
    starts = np.arange(context, dtype=np.int32) // 7 * 7
    return Batch(tokens, targets, np.tile(starts, (rows, 1)) if packed else None)
