"""Several devices in one process compute what one does."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from gpt_data.batch import IGNORE, Batch
from gpt_jax.backend import JaxBackend
from gpt_jax.mesh import AXIS, whole
from gpt_jax_toy import SMALL, build
from gpt_trainer.backend import Shard
from gpt_trainer.parameters import init_parameters
from jax.sharding import PartitionSpec as P

STEPS, ROWS = 50, 4
CONFIG = replace(SMALL, dropout=0.1)


def progressions(step: int) -> Batch:
    """Rows that count up by one, two or three, in documents of seven tokens; some targets are left out."""
    stream = np.random.default_rng(step)
    first, stride = stream.integers(0, SMALL.vocab_size, (ROWS, 1)), stream.integers(1, 4, (ROWS, 1))
    ids = ((first + stride * np.arange(SMALL.context + 1)) % SMALL.vocab_size).astype(np.int32)
    targets = ids[:, 1:].copy()
    targets[step % ROWS, ::3] = IGNORE
    starts = np.tile(np.arange(SMALL.context, dtype=np.int32) // 7 * 7, (ROWS, 1))
    return Batch(ids[:, :-1], targets, starts)


def losses(trained: JaxBackend, rows: int, steps: int = STEPS) -> np.ndarray:
    """Losses and norms of steps with so many rows in a micro-batch, from GPT-2's initial weights."""
    trained.load(init_parameters(CONFIG, 0))
    found = []
    for step in range(steps):
        batch = progressions(step)
        parts = [batch.rows(first, first + rows) for first in range(0, ROWS, rows)]
        found.append(trained.train_step(parts, 3e-3, step).fetch()[:2])
    return np.array(found)


@pytest.fixture(scope="module")
def alone() -> tuple[np.ndarray, JaxBackend]:
    trained = build(CONFIG)
    return losses(trained, ROWS), trained


# 12 rows of a block's matrices and 128 of wte are divided by 2, the 19 of wpe are not
@pytest.mark.parametrize("shard", ["none", pytest.param("optimizer", marks=pytest.mark.slow), "all"])
def test_two_devices_train_as_one(shard: Shard, alone: tuple[np.ndarray, JaxBackend]) -> None:
    want, one = alone
    two = build(CONFIG, devices=2, shard=shard)
    got = losses(two, 2)
    assert got[-1, 0] < got[0, 0] - 0.3, "nothing is learnt"
    assert np.abs(got / want - 1.0).max() <= 1e-6
    one.load(two.export())
    assert two.evaluate(progressions(99)) == one.evaluate(progressions(99))
    assert np.array_equal(losses(two, 2, 10), got[:10]), "a run does not repeat itself"
    scored = two.evaluate(progressions(99))
    two.train_step([progressions(10).rows(first, first + 2) for first in (0, 2)], 3e-3, 10)
    assert two.evaluate(progressions(99)) != scored, "by the weights of the step before"
    state = jax.tree.leaves(two._state)
    parts = sum(leaf.addressable_shards[0].data.size for leaf in state) / sum(leaf.size for leaf in state)
    assert (parts == 1.0) if shard == "none" else (0.5 < parts < 0.6)


def test_sums_stay_in_the_round_of_a_loop_that_makes_them() -> None:
    # on a GPU a round that XLA has copied holds a call of cuDNN's that it does not find
    layout = build(CONFIG, devices=2, shard="all")._layout

    def derivative(part: jax.Array, d_whole: jax.Array) -> jax.Array:
        return jax.vjp(lambda own: whole(own, 4, "float32"), part)[1](d_whole)[0]

    specs = {"in_specs": (P(AXIS), P()), "out_specs": P(AXIS), "check_vma": False}
    divided = jax.shard_map(derivative, mesh=layout.mesh, **specs)
    (program,) = jax.make_jaxpr(divided)(np.ones((4, 3)), np.ones((4, 3))).eqns
    *_, sums, barrier = program.params["jaxpr"].eqns
    assert (sums.primitive.name, barrier.primitive.name) == ("reduce_scatter", "optimization_barrier")
    assert sums.outvars == barrier.invars


def test_more_devices_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match="devices=3: JAX has 2"):
        build(devices=3)
