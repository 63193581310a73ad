from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from gpt_trainer.sample.drawing import Sampler, SamplingConfig, candidates
from hypothesis import example, given
from hypothesis import strategies as st

LOGITS = np.log(np.array([[0.1, 0.4, 0.2, 0.3]], np.float32))


def probabilities(logits: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """Of every token, in one row."""
    ((tokens,), (values,)) = candidates(logits, config)
    whole = np.zeros(logits.shape[1])
    whole[tokens] = values
    return whole


def support(config: SamplingConfig, logits: np.ndarray = LOGITS) -> list[int]:
    return np.flatnonzero(probabilities(logits, config)).tolist()


@pytest.mark.parametrize(
    ("k", "want"), [(1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])]
)
def test_top_k_keeps_exactly_the_k_most_likely(k: int, want: list[int]) -> None:
    assert support(SamplingConfig(top_k=k)) == want


# 0.4 + 0.3 = 0.7: at 0.69 two tokens reach it, at 0.71 a third is needed
@pytest.mark.parametrize(
    ("p", "want"), [(0.01, [1]), (0.39, [1]), (0.69, [1, 3]), (0.71, [1, 2, 3]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_fewest_that_reach_it(p: float, want: list[int]) -> None:
    assert support(SamplingConfig(top_p=p)) == want


def test_top_p_works_on_what_top_k_left() -> None:
    # of {0.4, 0.3} renormalized to {0.571, 0.429} the first alone reaches 0.5
    assert support(SamplingConfig(top_k=2, top_p=0.5)) == [1]


# all equal; equals on the border, on both sides of what is above it; one that is no number, which is last
@pytest.mark.parametrize(
    ("logits", "want"),
    [([0] * 5, [0, 1]), ([1, 0, 2, 1], [0, 2]), ([0, np.nan, 0, 0], [0, 2]), ([-np.inf, 3, -np.inf], [1])],
    ids=str,
)
def test_of_equal_logits_the_lower_ids_stay(logits: list[float], want: list[int]) -> None:
    assert support(SamplingConfig(top_k=2), np.array([logits], np.float32)) == want


# of 47 blocks of 64, the last not whole: fewer tokens than blocks, as many, more, all; values that repeat
@pytest.mark.parametrize("count", [1, 2, 20, 47, 50, 3001])
def test_the_likeliest_of_many_are_those_of_a_whole_sort(count: int) -> None:
    logits = np.random.default_rng(6).integers(-2000, 2000, (3, 3001)).astype(np.float32)
    want = np.sort(np.argsort(-logits, axis=1, kind="stable")[:, :count], axis=1)
    assert candidates(logits, SamplingConfig(top_k=count))[0].tolist() == want.tolist()


def test_temperature_zero_is_greedy() -> None:
    assert probabilities(LOGITS, SamplingConfig(temperature=0.0)).tolist() == [0.0, 1.0, 0.0, 0.0]


def test_temperature_takes_the_root_of_the_probabilities() -> None:
    got = probabilities(LOGITS, SamplingConfig(temperature=2.0))
    want = np.sqrt([0.1, 0.4, 0.2, 0.3])
    assert got == pytest.approx(want / want.sum(), rel=1e-6)


def test_extreme_logits_stay_finite() -> None:
    logits = np.array([[1e4, -1e4, -np.inf, 1e4]], np.float32)
    assert probabilities(logits, SamplingConfig(temperature=0.1)).tolist() == [0.5, 0.0, 0.0, 0.5]


def test_drawn_frequencies_follow_the_distribution() -> None:
    rows, config = 4000, SamplingConfig(top_k=3, seed=5)
    drawn = Sampler(config, rows).draw(np.repeat(LOGITS, rows, axis=0))
    counts = np.bincount(drawn, minlength=4)
    want = probabilities(LOGITS, config)
    assert counts[0] == 0
    # six standard deviations
    assert np.abs(counts / rows - want).max() < 6 * np.sqrt(0.25 / rows)


def test_a_number_next_to_one_draws_the_last_token() -> None:
    """Ten tenths add up to less than one: there must be no gap behind the last."""
    sampler = Sampler(SamplingConfig(), 1)
    heights = np.cumsum(candidates(np.zeros((1, 10), np.float32), SamplingConfig())[1])
    highest = np.nextafter(1.0, 0.0)
    assert heights[-1] <= highest
    sampler._streams = [SimpleNamespace(random=lambda: highest)]  # type: ignore[list-item]
    assert sampler.draw(np.zeros((1, 10), np.float32)).tolist() == [9]


def test_a_row_draws_the_same_beside_any_number_of_others() -> None:
    config = SamplingConfig(seed=3)
    alone, many = Sampler(config, 1), Sampler(config, 5)
    for _ in range(20):
        assert alone.draw(LOGITS)[0] == many.draw(np.repeat(LOGITS, 5, axis=0))[0]


def test_seeds_differ() -> None:
    draws = [
        [int(sampler.draw(np.zeros((1, 1000), np.float32))[0]) for _ in range(3)]
        for sampler in (Sampler(SamplingConfig(seed=seed), 1) for seed in (0, 1, 2**64 - 1))
    ]
    assert len({tuple(draw) for draw in draws}) == 3


@given(
    logits=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30),
    k=st.none() | st.integers(1, 40),
    p=st.floats(0.01, 1.0),
    temperature=st.floats(0.0, 5.0),
)
@example(logits=[0.0, 4.0], k=None, p=1.0, temperature=sys.float_info.min)
def test_always_a_distribution_over_the_most_likely(
    logits: list[float], k: int | None, p: float, temperature: float
) -> None:
    values = np.array([logits], np.float32)
    got = probabilities(values, SamplingConfig(temperature, k, p))
    assert got.sum() == pytest.approx(1.0)
    kept = values[0][got > 0]
    assert 1 <= len(kept) <= (k or len(logits))
    assert kept.min() >= np.sort(values[0])[::-1][len(kept) - 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_values_out_of_range_are_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**given)  # type: ignore[arg-type]
