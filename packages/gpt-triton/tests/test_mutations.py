"""The checks can fail: each term of each backward, off by one part in a hundred, is noticed.

A mutant is the set of reference ops with one of them wrapped: an argument or a result is changed on its way,
never the source.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpt_triton import reference
from gpt_triton_cases import CASES, Case, jacobians
from torch import Tensor

Check = Callable[..., None]
Op = Callable[..., Any]
OFF = 1.01


def result(place: int | None = None) -> Callable[[Op], Op]:
    """The op with its result, or one of its results, a hundredth larger."""

    def wrap(op: Op) -> Op:
        def wrapped(*given: Any, **named: Any) -> Any:
            found = op(*given, **named)
            if place is None:
                return found * OFF
            return tuple(value * OFF if i == place else value for i, value in enumerate(found))

        return wrapped

    return wrap


def argument(place: int) -> Callable[[Op], Op]:
    """The op given one argument a hundredth larger."""

    def wrap(op: Op) -> Op:
        return lambda *given: op(*(v * OFF if i == place else v for i, v in enumerate(given)))

    return wrap


def added(place: int) -> Callable[[Op], Op]:
    """The op that adds a hundredth more to one of the gradients that it is given."""

    def wrap(op: Op) -> Op:
        def wrapped(*given: Any, **named: Any) -> Any:
            before = given[place].clone()
            found = op(*given, **named)
            given[place].add_(given[place] - before, alpha=OFF - 1.0)
            return found

        return wrapped

    return wrap


def residual(name: str) -> Callable[[Op], Op]:
    """The op given residuals of which one is a hundredth larger."""

    def wrap(op: Op) -> Op:
        return lambda res, *rest: op(res._replace(**{name: getattr(res, name) * OFF}), *rest)

    return wrap


def without(place: int, value: Any = None) -> Callable[[Op], Op]:
    """The op with another value for one argument."""

    def wrap(op: Op) -> Op:
        return lambda *given: op(*(value if i == place else v for i, v in enumerate(given)))

    return wrap


def no_documents(op: Op) -> Op:
    """A backward that forgets where documents begin."""
    return lambda res, *rest: op(res._replace(segment_starts=None), *rest)


def other_key(op: Op) -> Op:
    """A backward that draws another mask than its forward."""
    return lambda *given: op(*given[:-1], given[-1]._replace(key=given[-1].key + 1))


def ignored_count(op: Op) -> Op:
    """A loss that counts a target that is to be ignored."""
    return lambda x, wte, targets, *rest, **named: op(x, wte, targets.clamp(min=0), *rest, **named)


def third(place: int) -> Callable[[Op], Op]:
    """Attention's backward with the gradient of queries, keys or values a hundredth larger."""

    def wrap(op: Op) -> Op:
        def wrapped(*given: Any) -> Tensor:
            found: Tensor = op(*given)
            found.chunk(3, -1)[place].mul_(OFF)
            return found

        return wrapped

    return wrap


# the op, what is wrong with it, the case that must notice
MUTATIONS: list[tuple[str, Callable[[Op], Op], str]] = [
    ("linear_gelu_fwd", result(0), "gelu"),
    ("linear_gelu_fwd", result(1), "gelu"),
    ("layer_norm_bwd", result(), "layer_norm"),
    ("layer_norm_bwd", argument(1), "layer_norm"),
    ("layer_norm_bwd", added(3), "layer_norm"),
    ("layer_norm_bwd", added(4), "layer_norm"),
    ("layer_norm_bwd", residual("mean"), "layer_norm"),
    ("layer_norm_bwd", residual("rstd"), "layer_norm"),
    ("layer_norm_bwd", argument(5), "norm_and_skip"),
    ("linear_bwd_dx", result(), "linear"),
    ("linear_bwd_dwdb", added(2), "linear"),
    ("linear_bwd_dwdb", added(3), "linear"),
    ("linear_gelu_fwd", result(0), "gelu_linear"),
    ("linear_gelu_fwd", result(1), "gelu_linear"),
    ("linear_gelu_bwd_dx", argument(2), "mlp"),
    ("linear_residual_fwd", argument(3), "linear_residual"),
    ("linear_residual_fwd", without(4), "linear_residual"),
    ("attention_bwd", third(0), "attention"),
    ("attention_bwd", third(1), "attention"),
    ("attention_bwd", third(2), "attention"),
    ("attention_bwd", residual("out"), "attention"),
    ("attention_bwd", no_documents, "attention_segments"),
    ("attention_bwd", other_key, "attention_dropout"),
    ("attention_bwd", without(3), "attention_dropout"),
    ("linear_cross_entropy", result(1), "cross_entropy"),
    ("linear_cross_entropy", added(5), "cross_entropy"),
    ("linear_cross_entropy", ignored_count, "cross_entropy"),
    ("embedding_bwd", added(3), "embedding"),
    ("embedding_bwd", added(4), "embedding"),
    ("embedding_bwd", other_key, "embedding"),
    ("dropout_bwd", result(), "dropout"),
    ("dropout_bwd", other_key, "dropout"),
]


@pytest.mark.parametrize(
    ("name", "wrong", "case"),
    [pytest.param(*m, id=f"{m[0]}-{number}") for number, m in enumerate(MUTATIONS)],
)
def test_a_wrong_term_is_noticed(
    name: str, wrong: Callable[[Op], Op], case: str, assert_close: Check
) -> None:
    sound = {each: getattr(reference, each) for each in reference.__all__}
    built = CASES[case](SimpleNamespace(**sound | {name: wrong(sound[name])}))
    with pytest.raises(AssertionError, match="relative error"):
        _check(built, assert_close)


def _check(case: Case, assert_close: Check) -> None:
    """What the tests of the ops hold a case to."""
    inputs = case.inputs
    assert_close("forward", case.forward(*inputs), case.plain(*inputs), "float64")
    want = torch.func.jacrev(case.plain, argnums=tuple(range(len(inputs))))(*inputs)
    for number, pair in enumerate(zip(jacobians(case), want, strict=True)):
        assert_close(f"input {number}", *pair, "float64")


def test_every_op_with_a_derivative_has_a_case() -> None:
    called = set()

    def noted(name: str) -> Op:
        op: Op = getattr(reference, name)
        return lambda *given, **named: (called.add(name), op(*given, **named))[1]

    ops = SimpleNamespace(**{name: noted(name) for name in reference.__all__})
    for make in CASES.values():
        case = make(ops)
        case.backward(*case.inputs, case.forward(*case.inputs))
    # tested by themselves: what has no derivative
    alone = {"adamw_update", "global_norm", "linear_nll", "muon_update", "orthogonalize"}
    assert called == set(reference.__all__) - alone


def test_every_case_sees_a_mutation() -> None:
    # at another size, the ops of another case
    assert {case for *_, case in MUTATIONS} == set(CASES) - {"attention_two_tiles"}
