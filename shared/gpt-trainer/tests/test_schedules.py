from __future__ import annotations

import math

import pytest
from gpt_trainer.schedules import learning_rate, noam

ALL = ("cosine", "linear", "constant", "wsd", "noam")


def at(schedule: str, step: int, *, warmup: int = 10, total: int = 110) -> float:
    return learning_rate(schedule, step, peak=2.0, warmup=warmup, total=total)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_warm_up_is_a_line_that_reaches_the_peak_at_its_end(schedule: str) -> None:
    assert [at(schedule, step) for step in (0, 4, 9, 10)] == pytest.approx([2 / 11, 10 / 11, 20 / 11, 2.0])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_no_warm_up_starts_at_the_peak(schedule: str) -> None:
    assert at(schedule, 0, warmup=0) == 2.0


# quarter, half and end of the way from warm-up to the last step, and a step beyond
@pytest.mark.parametrize(
    ("step", "want"),
    [(35, 0.1 + 0.45 * (1 + math.sqrt(0.5))), (60, 0.55), (110, 0.1), (500, 0.1)],
)
def test_cosine_at_closed_form_points(step: int, want: float) -> None:
    assert at("cosine", step) == pytest.approx(2.0 * want)


@pytest.mark.parametrize(("step", "want"), [(35, 0.775), (60, 0.55), (110, 0.1), (500, 0.1)])
def test_linear_at_closed_form_points(step: int, want: float) -> None:
    assert at("linear", step) == pytest.approx(2.0 * want)


@pytest.mark.parametrize(("step", "want"), [(11, 1.0), (88, 1.0), (99, 0.55), (110, 0.1), (500, 0.1)])
def test_wsd_is_flat_until_the_last_fifth(step: int, want: float) -> None:
    assert at("wsd", step) == pytest.approx(2.0 * want)


def test_wsd_decay_begins_after_a_long_warm_up() -> None:
    assert learning_rate("wsd", 90, peak=1.0, warmup=90, total=100, decay=0.5) == 1.0
    assert learning_rate("wsd", 95, peak=1.0, warmup=90, total=100, decay=0.5) == pytest.approx(0.55)


def test_wsd_decays_in_the_nearest_whole_number_of_steps() -> None:
    # 0.3 of 9 steps are 2.7: three, of which the first is still at the peak
    rates = [learning_rate("wsd", step, peak=1.0, warmup=0, total=9, decay=0.3) for step in (6, 7, 8)]
    assert rates == pytest.approx([1.0, 0.7, 0.4])
    assert learning_rate("wsd", 8, peak=1.0, warmup=0, total=9, decay=0.0) == 1.0


def test_constant_never_falls() -> None:
    assert at("constant", 10**9) == 2.0
    # nor has it an end that its warm-up could pass
    assert at("constant", 4, total=3) == pytest.approx(10 / 11)


# the paper's formula with d_model 512: its peak is (512 * 4000)^-0.5
@pytest.mark.parametrize("step", [0, 1, 3998, 3999, 4000, 15999, 99999])
def test_noam_is_the_papers_formula_scaled_to_its_peak(step: int) -> None:
    s = step + 1
    paper = 512**-0.5 * min(s**-0.5, s * 4000**-1.5)
    assert noam(step, peak=(512 * 4000) ** -0.5, warmup=4000) == pytest.approx(paper, rel=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_warm_up_longer_than_the_run_is_refused(schedule: str) -> None:
    with pytest.raises(ValueError, match="warmup=11 exceeds total=10"):
        at(schedule, 0, warmup=11, total=10)


def test_unknown_schedule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'exponential' is not one of cosine, .*noam"):
        at("exponential", 0)


@pytest.mark.parametrize("schedule", ALL)
def test_rates_are_positive_and_at_most_the_peak(schedule: str) -> None:
    assert all(0.0 < at(schedule, step) <= 2.0 for step in range(120))
