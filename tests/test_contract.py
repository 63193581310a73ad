"""What every backend answers alike to the trainer, whatever its framework."""

from __future__ import annotations

import importlib
import platform
import sys
from dataclasses import replace

import numpy as np
import pytest
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.backend import Backend, OptimizerConfig, Runtime
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import init_parameters

CONFIG = ModelConfig(n_layer=1, n_head=2, d_model=16, context=8, vocab_size=97)
DRAWN = np.random.default_rng(0).integers(0, 97, (2, 4, 8), dtype=np.int32)
WHOLE = Batch(*DRAWN)


BACKENDS = ["gpt_jax", "gpt_torchfunc", "gpt_triton"]


def make(name: str, config: ModelConfig = CONFIG) -> Backend:
    spec = importlib.import_module(f"{name}.options").SPEC
    made: Backend = spec.create(config, OptimizerConfig(), Runtime(device="cpu"), spec.options())
    made.load(init_parameters(config, 0))
    return made


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return make(request.param)


def changed(name: str, value: int) -> Batch:
    values = getattr(WHOLE, name).copy()
    values[2, 3] = value
    return WHOLE._replace(**{name: values})


REFUSED = {
    "nothing": ([], "micro_batches is empty, expected at least one"),
    "no target": (
        [WHOLE._replace(targets=np.full_like(WHOLE.targets, IGNORE))] * 2,
        "no position of the step has a target",
    ),
    "unequal rows": (
        [WHOLE, WHOLE.rows(0, 2)],
        r"micro-batches differ in shape: \[\(4, 8\), \(2, 8\)\]",
    ),
    "unequal length": (
        [WHOLE, Batch(WHOLE.tokens[:, :5], WHOLE.targets[:, :5])],
        r"micro-batches differ in shape: \[\(4, 8\), \(4, 5\)\]",
    ),
    "a foreign token": ([WHOLE, changed("tokens", 97)], "tokens span .*97, outside the vocabulary of 97"),
    "a foreign target": ([WHOLE, changed("targets", -2)], "targets span -2.*, outside the vocabulary of 97"),
}


@pytest.mark.parametrize(("micro_batches", "words"), REFUSED.values(), ids=REFUSED)
def test_a_step_that_cannot_be_taken_is_refused_alike(
    backend: Backend, micro_batches: list[Batch], words: str
) -> None:
    before = backend.export()
    with pytest.raises(ValueError, match=f"^{words}$"):
        backend.train_step(micro_batches, 1e-3, 0)
    with pytest.raises(ValueError, match=f"^{words}$"):
        backend.gradients(micro_batches, 0)
    for name, value in backend.export().items():
        assert value.tobytes() == before[name].tobytes(), name


def test_a_micro_batch_without_targets_beside_others_adds_nothing(backend: Backend) -> None:
    empty = WHOLE._replace(targets=np.full_like(WHOLE.targets, IGNORE))
    alone, _ = backend.gradients([WHOLE], 0)
    both, gradients = backend.gradients([WHOLE, empty], 0)
    assert both == pytest.approx(alone, rel=1e-6)
    assert all(np.isfinite(value).all() for value in gradients.values())


# gpt-jax has this in its tests of several devices, too, and compiles each shape for seconds
@pytest.mark.parametrize("name", [pytest.param("gpt_jax", marks=pytest.mark.slow), *BACKENDS[1:]])
def test_dropout_masks_belong_to_rows_of_the_whole_step(name: str) -> None:
    """One micro-batch, four, or two of each of two processes, whose shares of the loss add up."""
    dropping, rows = make(name, replace(CONFIG, dropout=0.1)), [WHOLE.rows(n, n + 1) for n in range(4)]

    def losses(parts: list[Batch]) -> list[float]:
        dropping.load(init_parameters(CONFIG, 0))
        return [dropping.train_step(parts, 1e-2, step).fetch().loss for step in range(4)]

    whole = losses([WHOLE])
    assert losses(rows) == pytest.approx(whole, rel=1e-6)
    dropping.load(init_parameters(CONFIG, 0))
    shares = [
        dropping.train_step(rows[n : n + 2], 0.0, 0, first_row=n, targets=WHOLE.target_count).fetch().loss
        for n in (0, 2)
    ]
    assert sum(shares) == pytest.approx(whole[0], rel=1e-6)


def test_a_fork_of_all_rows_goes_on_by_itself(backend: Backend) -> None:
    decoder = backend.decoder(4)
    decoder.feed(WHOLE.tokens[:, :5])
    fork, alone = decoder.fork(np.arange(4)), backend.decoder(4)
    alone.feed(WHOLE.tokens[:, :5])
    # the fork writes where its origin has written before
    for each, tokens in ((decoder, WHOLE.tokens), (alone, WHOLE.tokens), (fork, WHOLE.targets)):
        each.feed(tokens[:, 5:6])
    assert np.array_equal(decoder.feed(WHOLE.tokens[:, 6:7]), alone.feed(WHOLE.tokens[:, 6:7]))


def test_a_cpu_is_named_and_its_memory_told(backend: Backend) -> None:
    assert backend.device_name() not in ("", "cpu")
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert backend.device_name() != platform.machine()
    assert 50e6 < backend.peak_memory_bytes() < 50e9
