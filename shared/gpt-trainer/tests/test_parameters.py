"""Names, shapes and initial values of the weights, which every backend takes from here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from gpt_trainer import normals
from gpt_trainer.model_config import MODEL_PRESETS, ModelConfig
from gpt_trainer.parameters import (
    INIT_STD,
    Parameters,
    check_parameters,
    init_parameters,
    parameter_count,
    parameter_shapes,
)

SMALL = ModelConfig(n_layer=3, n_head=2, d_model=64, context=32, vocab_size=500)


# OpenAI's four sizes; the counts are those of the published files, the tied head counted once
@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("gpt2-124m", 124_439_808),
        ("gpt2-350m", 354_823_168),
        ("gpt2-774m", 774_030_080),
        ("gpt2-1.5b", 1_557_611_200),
    ],
)
def test_presets_have_the_published_number_of_parameters(preset: str, count: int) -> None:
    assert parameter_count(MODEL_PRESETS[preset]) == count


def test_names_and_order_are_the_published_ones() -> None:
    names = list(parameter_shapes(SMALL))
    assert len(names) == 2 + 12 * 3 + 2
    assert names[:2] == ["transformer.wte.weight", "transformer.wpe.weight"]
    assert names[2 + 12 : 2 + 14] == ["transformer.h.1.ln_1.weight", "transformer.h.1.ln_1.bias"]
    assert names[-2:] == ["transformer.ln_f.weight", "transformer.ln_f.bias"]
    assert parameter_shapes(SMALL)["transformer.h.2.attn.c_attn.weight"] == (64, 192)
    assert parameter_shapes(SMALL)["transformer.h.2.mlp.c_proj.weight"] == (256, 64)


def test_initial_values_follow_gpt2() -> None:
    for name, value in init_parameters(SMALL, 0).items():
        assert value.dtype == np.float32
        assert value.flags.c_contiguous
        if name.endswith("bias"):
            assert not value.any()
        elif value.ndim == 1:
            assert (value == 1).all()
        else:
            std = INIT_STD / np.sqrt(2 * 3) if name.endswith("c_proj.weight") else INIT_STD
            # five standard errors of a normal sample's deviation, mean, and excess of the tails
            assert abs(value.std() / std - 1) < 5 / np.sqrt(2 * value.size), name
            assert abs(value.mean()) < 5 * std / np.sqrt(value.size), name
            share = (np.abs(value) > 2 * std).mean()
            assert abs(share - 0.0455) < 5 * np.sqrt(0.0455 / value.size), name


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first, again, other = (init_parameters(SMALL, seed) for seed in (3, 3, 4))
    matrices = [name for name in first if first[name].ndim == 2]
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    assert all((first[name] != other[name]).mean() > 0.99 for name in matrices)


def test_no_two_tensors_share_their_draws() -> None:
    matrices = [value.reshape(-1)[:2048] for value in init_parameters(SMALL, 0).values() if value.ndim == 2]
    correlation = np.corrcoef(matrices) - np.eye(len(matrices))
    assert np.abs(correlation).max() < 5.5 / np.sqrt(2048)


# 63, 64: one that draws alone; 4096 and 4097: on both sides of a piece; 400,000: a hundred seams
@pytest.mark.parametrize("count", [0, 63, 4096, 4097, 400_000])
@pytest.mark.parametrize("key", [0, 2**64 - 1])
def test_what_threads_draw_is_one_stream(key: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normals, "PIECE", 4096)
    stream, shapes = np.random.Generator(np.random.Philox(key=key)), [(7, 9), (count,), (3, 1, 5)]
    for got, shape in zip(normals.standard_normals(key, shapes), shapes, strict=True):
        assert got.shape == shape
        assert got.tobytes() == stream.standard_normal(shape, np.float32).tobytes()


def test_initial_values_are_pinned() -> None:
    # every figure in the documents starts from these: a new NumPy that draws others must be noticed
    values = init_parameters(ModelConfig(n_layer=1, n_head=1, d_model=4, context=2, vocab_size=3), seed=1234)
    assert values["transformer.wte.weight"].reshape(-1)[:3].tolist() == PINNED


PINNED = [0.012261157855391502, -0.010278306901454926, 0.0042355963960289955]


def good() -> Parameters:
    return init_parameters(SMALL, 0)


def drop(values: Parameters, name: str) -> Parameters:
    return {key: value for key, value in values.items() if key != name}


FINAL = "transformer.ln_f.bias"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda v: drop(v, FINAL), r"missing transformer\.ln_f\.bias \(64,\)"),
        (lambda v: v | {"x": np.zeros((2, 3), np.float32)}, r"unexpected x \(2, 3\)"),
        (lambda v: v | {FINAL: np.zeros(65, np.float32)}, r"has shape \(65,\), expected \(64,\)"),
        (lambda v: v | {FINAL: np.zeros((64, 1), np.float32)}, r"has shape \(64, 1\)"),
        (lambda v: v | {FINAL: np.zeros(64)}, "has dtype float64, expected float32"),
        (lambda v: v | {FINAL: np.zeros(64, np.float16)}, "has dtype float16"),
        (lambda v: v | {FINAL: np.full(64, np.nan, np.float32)}, "holds NaN or infinity"),
        (lambda v: v | {FINAL: np.full(64, -np.inf, np.float32)}, "holds NaN or infinity"),
        (lambda v: drop(v, FINAL) | {"x": np.zeros(1, np.float32)}, "missing .*; unexpected x"),
    ],
    ids=["missing", "extra", "size", "rank", "float64", "float16", "nan", "infinity", "two"],
)
def test_each_difference_is_reported(damage: Callable[[Parameters], Parameters], message: str) -> None:
    check_parameters(good(), SMALL)
    with pytest.raises(ValueError, match=message):
        check_parameters(damage(good()), SMALL)


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_layer": 0},
        {"n_head": -1},
        {"context": 0},
        {"vocab_size": 0},
        {"d_model": 63, "n_head": 2},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"dropout": float("nan")},
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(sizes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(sizes))):
        ModelConfig(**sizes)
