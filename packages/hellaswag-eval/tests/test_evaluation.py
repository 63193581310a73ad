"""Scores of models that are known: hand-made answers, both layouts, cut contexts, and the figures' errors."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpt_trainer.errors import InputError, NonFiniteError, WriteError
from hellaswag_eval import EvaluationStoppedError, Example, Plan, evaluate, evaluate_backend
from hellaswag_eval.results import Evaluation, describe, write_answers
from hellaswag_eval.shapes import group_rows
from hellaswag_toy import ToyDecoder, ToyModel


def example(context: list[int], *endings: list[int], label: int = 0, row: int = 0) -> Example:
    """An example whose endings' texts are as long as their ids."""
    ids = tuple(np.array(ending, np.int32) for ending in endings)
    lengths = tuple(len(ending) for ending in endings)
    return Example(np.array(context, np.int32), ids, label, lengths, lengths, row)


def constant(values: dict[int, float]) -> Any:
    """A model that gives each token a log-probability of its own, whatever stands before it."""

    def log_prob_fn(tokens: np.ndarray) -> np.ndarray:
        table = np.vectorize(lambda token: values.get(int(token), -50.0))
        return np.where(np.arange(tokens.shape[1]) == 0, np.nan, table(tokens))

    return log_prob_fn


def drawn(count: int, *, longest: int = 40, vocab: int = 257) -> list[Example]:
    stream = np.random.default_rng(5)

    def ids(most: int) -> list[int]:
        return stream.integers(1, vocab, stream.integers(1, most + 1)).tolist()

    return [
        example(ids(longest), *(ids(12) for _ in range(4)), label=int(stream.integers(4)), row=row)
        for row in range(count)
    ]


def test_known_answers() -> None:
    # by sum: -3, -4, -5, -4.5; per token: -3, -2, -5/3, -4.5
    values = {1: -3.0, 2: -2.0, 3: -5.0 / 3.0, 4: -4.5}
    item = example([9, 9], [1], [2, 2], [3, 3, 3], [4], label=2)
    found = evaluate(constant(values), [item])
    answer = found.answers[0]
    assert answer.log_probs == pytest.approx((-3.0, -4.0, -5.0, -4.5), abs=1e-12)
    assert answer.tokens == (1, 2, 3, 1)
    assert answer.predictions == {"acc": 0, "acc_norm": 2, "acc_bytes": 2}
    assert [found.figures[name].value for name in ("acc", "acc_norm", "acc_bytes")] == [0.0, 1.0, 1.0]


def test_each_protocol_has_a_unit_of_its_own() -> None:
    # the last ending is one token of ten characters and thirty bytes; each unit chooses another ending
    item = example([9], [1], [2, 2], [3])._replace(characters=(2, 2, 10), utf8_bytes=(1, 25, 30))
    fn = constant({1: -1.0, 2: -1.0, 3: -4.0})
    completion, harness = (evaluate(fn, [item], protocol=name) for name in ("completion", "harness"))
    # per token -1, -1, -4; per character -0.5, -1, -0.4; per byte -1, -0.08, -0.13
    assert completion.answers[0].predictions == {"acc": 0, "acc_norm": 0, "acc_bytes": 1}
    assert harness.answers[0].predictions == {"acc": 0, "acc_norm": 2, "acc_bytes": 1}
    assert (completion.protocol, harness.protocol) == ("completion", "harness")


@pytest.mark.parametrize("label", [0, 1, 2])
def test_of_equal_endings_the_first_counts(label: int) -> None:
    item = example([9], [1, 2], [3], [2, 1], label=label)
    found = evaluate(constant({1: -1.0, 2: -1.0, 3: -2.0}), [item])
    assert found.answers[0].predictions["acc"] == 0
    # per token -1, -2, -1: two are equal again
    assert found.answers[0].predictions["acc_norm"] == 0
    assert found.figures["acc"].value == (1.0 if label == 0 else 0.0)


def test_an_ending_of_one_token_behind_a_context_of_one() -> None:
    toy = ToyModel()
    item = example([5], [7], [8])
    for found in (evaluate(toy.log_prob_fn, [item], context=64), evaluate_backend(toy, [item])):
        got = found.answers[0].log_probs
        logits = toy.tokens @ (toy.tokens[5] + toy.places[0])
        want = logits[[7, 8]] - math.log(np.exp(logits).sum())
        assert np.abs(np.array(got) - want).max() <= 1e-5


def test_both_layouts_ask_the_same_of_the_model() -> None:
    toy, items = ToyModel(), drawn(60)
    shared = evaluate_backend(toy, items)
    separate = evaluate_backend(toy, items, plan=Plan(share=False))
    function = evaluate(toy.log_prob_fn, items, context=64)
    for one, two, three in zip(shared.answers, separate.answers, function.answers, strict=True):
        assert one.predictions == two.predictions == three.predictions
        assert np.abs(np.array(one.log_probs) - two.log_probs).max() <= 1e-4
        assert np.abs(np.array(three.log_probs) - two.log_probs).max() <= 1e-4


def test_a_context_is_read_once() -> None:
    items, before = drawn(60), ToyDecoder.fed
    evaluate_backend(ToyModel(), items, plan=Plan(tokens_per_batch=600))
    # the context but for its last token, which goes with each ending; and a little filling
    needed = sum(len(item.context) - 1 + sum(map(len, item.endings)) for item in items)
    assert needed <= ToyDecoder.fed - before <= 1.25 * needed
    assert sum(4 * len(item.context) for item in items) > 1.25 * needed


def test_an_ending_alone_reads_its_context_with_it() -> None:
    toy, before = ToyModel(), ToyDecoder.fed
    found = evaluate_backend(toy, [example([5, 6], [7])])
    assert (toy.shapes, ToyDecoder.fed) == ({(1, 32)}, before)
    assert (
        found.answers[0].log_probs == evaluate(toy.log_prob_fn, [example([5, 6], [7])]).answers[0].log_probs
    )


# the longest that fits to the token, one more, and far more; the toy refuses positions beyond 64
@pytest.mark.parametrize(("length", "cut"), [(61, False), (62, True), (200, True)])
def test_of_a_long_context_the_end_is_kept_and_counted(length: int, cut: bool) -> None:
    toy = ToyModel(context=64)
    context = (np.arange(length) % 200 + 1).tolist()
    items = [example([3], [4], [5]), example(context, [7, 8, 9, 10], [7], row=1)]
    found = evaluate_backend(toy, items)
    kept = evaluate(toy.log_prob_fn, [example(context[-61:], [7, 8, 9, 10], [7])], context=64)
    assert found.truncated == int(cut)
    assert [answer.truncated for answer in found.answers] == [False, cut]
    assert f"{found.truncated} contexts cut" in describe(found) or not cut
    assert found.as_json()["truncated"] == int(cut)
    assert abs(found.answers[1].log_probs[0] - kept.answers[0].log_probs[0]) <= 1e-4
    # the shorter ending leaves room for three more tokens, and sees them
    whole = evaluate(toy.log_prob_fn, [example(context[-64:], [7, 8], [7])], context=64)
    assert abs(found.answers[1].log_probs[1] - whole.answers[0].log_probs[1]) <= 1e-4


def test_an_ending_longer_than_the_context_is_named() -> None:
    toy = ToyModel(context=16)
    fits, too_long = example([1], [2] * 16, [3]), example([1], [2], [3] * 17, row=4)
    assert evaluate_backend(toy, [fits]).truncated == 0
    assert evaluate(toy.log_prob_fn, [fits], context=16).truncated == 0
    with pytest.raises(InputError, match="item 4: ending 1 has 17 tokens, the model's context is 16"):
        evaluate_backend(toy, [too_long])


def test_results_do_not_depend_on_the_batches() -> None:
    items, runs = drawn(50), []
    for tokens, shapes, step in [(1, 1, 1), (333, 3, 8), (10**6, 50, 32)]:
        toy = ToyModel()
        plan = Plan(tokens_per_batch=tokens, most_shapes=shapes, width_step=step)
        shared = evaluate_backend(toy, items, plan=plan)
        assert not toy.shapes
        assert len(shared.shapes) <= shapes
        runs.append(np.array([answer.log_probs for answer in shared.answers]))
        found = evaluate_backend(toy, items, plan=replace(plan, share=False))
        assert set(found.shapes) == toy.shapes
        assert len(toy.shapes) <= shapes
        assert all(rows * width <= tokens or rows == 1 for rows, width in toy.shapes)
        runs.append(np.array([answer.log_probs for answer in found.answers]))
    assert max(np.abs(runs[0] - run).max() for run in runs[1:]) <= 1e-4


def test_groups_hold_every_row_once_in_even_batches() -> None:
    lengths = np.random.default_rng(3).integers(1, 100, 77).tolist()
    groups = group_rows(lengths, tokens=1000, at_most=4, step=16, widest=97)
    assert sorted(member for group in groups for member in group.members) == list(range(77))
    assert all(before.width > after.width for before, after in pairwise(groups))
    for group in groups:
        assert group.width <= 97
        assert all(lengths[member] <= group.width for member in group.members)
        filling = sum(group.height - len(batch) for batch in group.batches())
        assert filling < len(group.batches()), "batches of a group differ by a row at most"
    assert group_rows([], tokens=1, at_most=1, step=1) == []


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 9), (3, 9), (9, 9)])
def test_standard_errors_are_the_samples(right: int, n: int) -> None:
    items = [example([9], [1], [2], label=0 if row < right else 1, row=row) for row in range(n)]
    figure = evaluate(constant({1: -1.0, 2: -2.0}), items).figures["acc"]
    outcomes = np.array([1.0] * right + [0.0] * (n - right))
    assert (figure.value, figure.n) == (right / n, n)
    if n == 1:
        assert figure.stderr is None
    else:
        assert figure.stderr == pytest.approx(outcomes.std(ddof=1) / math.sqrt(n), abs=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_model_is_an_error_and_no_score(bad: float) -> None:
    with pytest.raises(NonFiniteError, match="item 3") as caught:
        evaluate(constant({1: bad}), [example([9], [2], [1], row=3)])
    assert caught.value.exit_status == 70


def test_it_can_be_watched_and_stopped() -> None:
    toy, seen = ToyModel(), []
    plan = Plan(tokens_per_batch=500, on_progress=lambda done, total: seen.append((done, total)))
    evaluate_backend(toy, drawn(30), plan=plan)
    assert [total for _, total in seen] == [120] * len(seen)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (120, 120)
    with pytest.raises(EvaluationStoppedError, match="stopped after 0 of 120 endings") as caught:
        evaluate_backend(toy, drawn(30), plan=Plan(should_stop=lambda: True))
    # what is asked for behind the last ending comes too late
    told: list[tuple[int, int]] = []
    late = Plan(should_stop=lambda: told[-1:] == [(120, 120)], on_progress=lambda *done: told.append(done))
    assert len(evaluate_backend(toy, drawn(30), plan=late).answers) == 30
    assert caught.value.exit_status == 130


@pytest.mark.parametrize("name", ["tokens_per_batch", "most_shapes", "width_step"])
def test_plans_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 is not positive"):
        Plan(**{name: 0})


@pytest.mark.parametrize(
    "items",
    [[], [example([], [1], [2])], [example([1], [2], [])], [example([1], [2])._replace(characters=())]],
    ids=["none", "no context", "an empty ending", "no lengths"],
)
def test_what_cannot_be_scored_is_refused(items: list[Example]) -> None:
    with pytest.raises(ValueError, match=r"examples? "):
        evaluate(constant({}), items)


def test_a_function_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gave shape \(2, 31\) for tokens of shape \(2, 33\)"):
        evaluate(lambda tokens: np.zeros((2, 31)), [example([1], [2], [3])])


def test_answers_as_lines(tmp_path: Path) -> None:
    found = evaluate(constant({1: -1.0, 2: -2.0}), [example([9], [1], [2, 2], row=6)])
    write_answers(tmp_path / "out.jsonl", [found, found._replace(protocol="harness")])
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert first == {
        "protocol": "completion",
        "row": 6,
        "label": 0,
        "log_probs": [-1.0, -4.0],
        "tokens": [1, 2],
        "predictions": {"acc": 0, "acc_norm": 0, "acc_bytes": 0},
        "truncated": False,
    }
    assert second == {**first, "protocol": "harness"}
    with pytest.raises(WriteError, match="--out: cannot write"):
        write_answers(tmp_path / "none" / "out.jsonl", [found])


def test_the_line_names_protocol_errors_and_number() -> None:
    items = [example([9], [1], [2], label=int(row == 0), row=row) for row in range(5)]
    found: Evaluation = evaluate(constant({1: -1.0, 2: -2.0}), items)
    assert describe(found) == (
        "completion: acc 80.00 ± 20.00 %, acc_norm 80.00 ± 20.00 %, acc_bytes 80.00 ± 20.00 % (5 items)"
    )
