"""The plain model is GPT-2 as gpt-triton's reference has it, and as much of a backend as it says."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from gpt_compare import huggingface
from gpt_compare.baseline import SPEC, Baseline, Options
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.backend import OptimizerConfig, Runtime
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters, init_parameters
from gpt_trainer.registry import find_backend

# odd sizes; 61 ids do not fill the padded vocabulary
CONFIG = ModelConfig(n_layer=2, n_head=3, d_model=24, context=13, vocab_size=61)
# the clip is well below the norm, so that it counts
OPTIMIZER = OptimizerConfig(weight_decay=0.5, clip_norm=0.1)
CPU = Runtime(device="cpu")


def plain(config: ModelConfig = CONFIG) -> Baseline:
    return SPEC.create(config, OPTIMIZER, CPU, Options())  # type: ignore[return-value]


def transformers() -> Baseline:
    pytest.importorskip("transformers")
    return huggingface.create(CONFIG, OPTIMIZER, CPU, huggingface.Options())


def make_batch(rows: int, seed: int = 0, ignored: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    tokens, targets = (rng.integers(0, 61, (rows, 13)).astype(np.int32) for _ in range(2))
    targets[:, :ignored] = IGNORE
    return Batch(tokens, targets, None)


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    got, want = got.astype(np.float64), want.astype(np.float64)
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


def assert_close(got: Parameters, want: Parameters, rel: float) -> None:
    assert got.keys() == want.keys()
    for name in want:
        assert relative_error(got[name], want[name]) <= rel, name


def without_key_bias(values: Parameters) -> Parameters:
    """All but what has no gradient in exact arithmetic: AdamW makes whole steps of its roundings."""
    cut = slice(CONFIG.d_model, 2 * CONFIG.d_model)
    return {name: np.delete(v, cut) if name.endswith("c_attn.bias") else v for name, v in values.items()}


def test_what_is_loaded_is_exported_bit_for_bit() -> None:
    backend, weights = plain(), init_parameters(CONFIG, 3)
    backend.load(weights)
    for name, value in backend.export().items():
        assert value.tobytes() == weights[name].tobytes(), name
        assert value.flags.c_contiguous
    for moments in backend.export_optimizer_state().values():
        assert moments.keys() == weights.keys()
        assert not any(value.any() for value in moments.values())


def test_without_biases_it_is_the_same_model_with_biases_of_zero() -> None:
    """Fresh biases are zero: the first loss is the same, and only the gradient's norm lacks theirs."""
    bare = SPEC.create(CONFIG, OPTIMIZER, CPU, Options(bias="off"))
    weights = init_parameters(CONFIG, 3)
    for backend in (bare, full := plain()):
        backend.load(weights)
    got, want = (backend.train_step([make_batch(3)], 1e-2, 0).fetch() for backend in (bare, full))
    assert got.loss == pytest.approx(want.loss, rel=1e-6)
    assert got.grad_norm < want.grad_norm
    after = bare.export()
    assert after.keys() == weights.keys()
    for name, value in after.items():
        assert value.shape == weights[name].shape
        assert value.any() == (not name.endswith("bias")), name
    assert bare.choices()["bias"] == "off"


def test_padding_has_no_probability() -> None:
    """All logits equal: the loss is log V, not that of the padded vocabulary."""
    backend = plain()
    backend.load({name: np.zeros_like(value) for name, value in init_parameters(CONFIG, 0).items()})
    loss, targets = backend.evaluate(make_batch(3, ignored=2))
    assert targets == 33
    assert loss / targets == pytest.approx(math.log(61), rel=1e-6)


@pytest.mark.parametrize("make", [plain, transformers])
def test_three_steps_move_weights_and_moments_as_the_reference_does(make: Callable[[], Baseline]) -> None:
    """Micro-batches with different numbers of targets, a clip that bites, decay, and a rising rate."""
    spec = find_backend("gpt-triton")
    ours, theirs = make(), spec.create(CONFIG, OPTIMIZER, CPU, spec.options())
    # ten times as large as fresh ones, so that GELU and softmax are far from linear
    weights = {name: 10.0 * v if v.ndim == 2 else v for name, v in init_parameters(CONFIG, 1).items()}
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    for backend in (ours, theirs):
        backend.load(weights)
    for step in range(3):
        batches = [make_batch(2, seed=step), make_batch(2, seed=10 + step, ignored=5)]
        got, want = (b.train_step(batches, 1e-2 * (step + 1), step).fetch() for b in (ours, theirs))
        assert got.loss == pytest.approx(want.loss, rel=1e-5)
        assert got.grad_norm == pytest.approx(want.grad_norm, rel=1e-4)
        assert got.updated
    assert relative_error(ours.export()["transformer.wte.weight"], weights["transformer.wte.weight"]) > 0.01
    got_trees, want_trees = (
        {"weights": each.export(), **each.export_optimizer_state()} for each in (ours, theirs)
    )
    assert got_trees.keys() == want_trees.keys()
    for name, want_values in want_trees.items():
        assert_close(without_key_bias(got_trees[name]), without_key_bias(want_values), 1e-4)
    batch = make_batch(40, seed=5, ignored=7)
    assert relative_error(ours.log_probs(batch), theirs.log_probs(batch)) <= 1e-5
    assert ours.evaluate(batch)[0] == pytest.approx(theirs.evaluate(batch)[0], rel=1e-5)


def test_evaluation_in_slices_is_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, batch = plain(), make_batch(7, ignored=1)
    backend.load(init_parameters(CONFIG, 1))
    whole = backend.evaluate(batch)
    monkeypatch.setattr("gpt_compare.baseline.EVALUATED_TOKENS", 26)
    assert backend.evaluate(batch) == (pytest.approx(whole[0], rel=1e-6), whole[1])


def test_bfloat16_is_autocast() -> None:
    exact, rounded = plain(), SPEC.create(CONFIG, OPTIMIZER, Runtime("bfloat16", "cpu"), Options())
    for backend in (exact, rounded):
        backend.load(init_parameters(CONFIG, 1))
    (want, _), (got, _) = (backend.evaluate(make_batch(4)) for backend in (exact, rounded))
    assert 0.0 < abs(got / want - 1.0) < 1e-3


def test_what_it_does_not_make_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dropout=0.1: plain makes none"):
        plain(ModelConfig(2, 3, 24, 13, 61, dropout=0.1))
    with pytest.raises(ValueError, match="plain has AdamW alone"):
        SPEC.create(CONFIG, OptimizerConfig(optimizer="muon"), CPU, Options())
    backend, weights = plain(), init_parameters(CONFIG, 0)
    with pytest.raises(ValueError, match="plain does not resume"):
        backend.load(weights, {"first": weights, "second": weights})
    with pytest.raises(ValueError, match="do not fit the model"):
        backend.load({})
    with pytest.raises(ValueError, match="keeps no documents apart"):
        backend.evaluate(make_batch(1)._replace(segment_starts=np.zeros((1, 13), np.int32)))
    with pytest.raises(ValueError, match="leaves no step out"):
        backend.train_step([make_batch(1)], 0.1, 0, skip_above=1.0)


@pytest.mark.parametrize("make", [plain, transformers])
def test_what_it_says_next_is_what_the_reference_says(make: Callable[[], Baseline]) -> None:
    """Fed at once or in pieces."""
    spec, batch = find_backend("gpt-triton"), make_batch(3)
    ours, theirs = make(), spec.create(CONFIG, OPTIMIZER, CPU, spec.options())
    for backend in (ours, theirs):
        backend.load(init_parameters(CONFIG, 1))
    want = theirs.logits(batch)[:, -1]
    whole, pieces = ours.decoder(3), ours.decoder(3)
    assert relative_error(whole.feed(batch.tokens), want) <= 1e-5
    for part in (batch.tokens[:, :6], batch.tokens[:, 6:7], batch.tokens[:, 7:]):
        got = pieces.feed(part)
    assert relative_error(got, want) <= 1e-5


def test_its_choices_are_told() -> None:
    choices = plain().choices()
    assert (choices["attention"], choices["compile"], choices["deterministic"]) == ("sdpa", "off", "off")
