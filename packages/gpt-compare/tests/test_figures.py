"""The numbers of a row, from metrics made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gpt_compare.figures import Row, largest_gap, measure, of_turns, smoothed, with_gaps
from gpt_compare_toy import TOKENS, finished, metrics


def test_speed_is_that_of_the_second_half_and_time_that_of_all() -> None:
    # the first step compiles, the second and third settle: none of them says how fast it is
    lines = metrics([6, 5, 4, 3, 2, 1], [90.0, 7.0, 7.0, 2.0, 4.0, 1.0], mfu=0.5)
    # a slow step moves no median, and the most memory may have been needed by the first
    lines[6]["mfu"], lines[1]["peak_memory_bytes"] = 0.1, 16
    lines[6]["peak_memory_bytes"] = 12
    figures = measure(lines)
    assert figures.step_seconds == pytest.approx((1.4, 2.0, 3.2))
    assert figures.tokens_per_second == TOKENS / 2.0
    assert figures.mfu == 0.5
    assert (figures.first_step_seconds, figures.training_seconds) == (90.0, 111.0)
    assert (figures.steps, figures.peak_memory_bytes) == (6, 16)
    assert (figures.losses, figures.seconds) == ((6, 5, 4, 3, 2, 1), (90.0, 7.0, 7.0, 2.0, 4.0, 1.0))


def test_the_middle_step_of_an_odd_number_counts_as_late() -> None:
    assert measure(metrics([3, 2, 1], [50.0, 2.0, 4.0])).step_seconds[1] == 3.0
    assert measure(metrics([3], [50.0])).step_seconds == (50.0, 50.0, 50.0)


def test_of_turns_the_middle_one_counts_of_two_the_faster_and_any_may_be_throttled() -> None:
    slow, fast, mid = (finished("x", [1.0], [seconds]) for seconds in (3.0, 1.0, 2.0))
    three = of_turns([slow, fast, mid])
    assert three.figures == mid.figures
    assert (three.turns, three.spread, three.throttled) == ((3.0, 1.0, 2.0), 3.0, False)
    two = of_turns([slow, replace(fast, throttled=True)])
    assert (two.figures, two.throttled) == (fast.figures, True)


def test_losses_at_the_end() -> None:
    losses = [9.0, *np.linspace(4.0, 3.1, 10)]
    figures = measure(metrics(losses, [1.0] * 11))
    assert figures.loss == pytest.approx(3.55)
    assert figures.val_loss == 3.25
    assert measure(metrics(losses, [1.0] * 11)[:-1]).val_loss is None, "only that before the first step"
    assert measure(metrics([4.0, 2.0], [1.0, 1.0])).loss == 3.0, "fewer steps than a window"


def test_of_other_evaluations_the_last_steps_count() -> None:
    lines = [*metrics([7.0, 6.0], [1.0, 1.0]), {"step": 1, "share": 0.2}]
    assert measure(lines).besides == {}
    assert measure([*lines, {"step": 2, "share": 0.3}, {"step": 2, "other": 5}]).besides == {
        "share": 0.3,
        "other": 5,
    }


def test_what_a_device_does_not_tell_is_none() -> None:
    assert measure(metrics([1.0], [1.0])).mfu is None


def test_a_run_without_steps_has_no_figures() -> None:
    with pytest.raises(ValueError, match="no step"):
        measure([{"step": 0, "val_loss": 1.0}])


def test_smoothing_is_a_mean_over_ten() -> None:
    assert smoothed(np.arange(12.0)).tolist() == pytest.approx([4.5, 5.5, 6.5])


def test_the_gap_is_the_largest_anywhere_over_the_steps_that_both_have() -> None:
    first = [2.0] * 30
    other = [2.0] * 10 + [1.8] * 10 + [2.0] * 10
    assert largest_gap(other, first) == pytest.approx(0.1)
    assert largest_gap(other[:12], first) == pytest.approx(0.02)
    # one step in ten that is a tenth off is a hundredth off in the mean
    assert largest_gap([2.0] * 15 + [2.2] + [2.0] * 14, first) == pytest.approx(0.01)


def test_gaps_are_from_the_first_that_finished() -> None:
    rows = [Row("broken", "no"), finished("a", [2.0] * 3, [1.0] * 3), finished("b", [2.1] * 3, [1.0] * 3)]
    broken, first, second = with_gaps([*rows])
    assert (broken, first) == (rows[0], rows[1])
    assert second.gap == pytest.approx(0.05)


def test_a_failure_has_no_figures() -> None:
    row = Row("gpt-x --flag", "exit status 1: why")
    assert (row.label, row.error, row.figures) == ("gpt-x --flag", "exit status 1: why", None)
