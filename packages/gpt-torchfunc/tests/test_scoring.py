"""Scoring by nodes: which nodes there are, that none is computed twice, and that they score as rows do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gpt_data.batch import IGNORE, Batch
from gpt_torchfunc import scoring
from gpt_torchfunc.model import Plan
from gpt_torchfunc.options import Options
from gpt_torchfunc.plan import scores_trees


def row(tokens: list[int], targets: list[int], starts: list[int] | None = None, prefix: int = 0) -> Batch:
    """One row; ``starts`` by position."""
    ids = (np.array([each], np.int32) for each in (tokens, targets))
    if starts is None:
        return Batch(*ids)
    return Batch(*ids, np.array([starts], np.int32), np.array([prefix], np.int32))


def ancestors(tree: scoring.Tree) -> list[list[int]]:
    """The nodes that each node sees."""
    assert set(np.unique(tree.mask)) <= {0.0, -np.inf}
    return [np.flatnonzero(line == 0.0).tolist() for line in tree.mask]


def test_continuations_hang_from_their_prefix_and_share_what_they_begin_with():
    # prefix 5 6; three continuations: 7 8 9, 7 8 4, 7; then filling
    tokens, starts = [5, 6, 7, 8, 9, 7, 8, 4, 7, 0, 0], [0, 0, 2, 2, 2, 5, 5, 5, 8, 9, 10]
    tree = scoring.row_tree(row(tokens, [-1, -1, 1, 2, 3, 1, 2, 3, 9, -1, -1], starts, 2))
    assert tree.tokens.tolist() == [5, 6, 7, 8, 9, 4]
    assert tree.depths.tolist() == [0, 1, 2, 3, 4, 4]
    assert ancestors(tree) == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 5]]
    assert tree.origins.tolist() == [2, 3, 4, 2, 3, 5, 2]


def test_what_no_target_is_predicted_from_is_dropped():
    # the second document has no target, the first none behind its second token, the prefix none at all
    tokens, targets, starts = [3, 4, 5, 6, 7, 8], [-1, 9, -1, -1, -1, 1], [0, 0, 0, 3, 3, 5]
    tree = scoring.row_tree(row(tokens, targets, starts))
    assert tree.tokens.tolist() == [3, 4, 8]
    assert tree.depths.tolist() == [0, 1, 0]
    assert ancestors(tree) == [[0], [0, 1], [2]]
    assert tree.origins.tolist() == [1, 2]
    assert scoring.row_tree(row(tokens, [-1] * 6, starts)).tokens.tolist() == []


def test_a_whole_row_is_a_chain():
    tree = scoring.row_tree(row([3, 3, 3], [1, 2, 3]))
    assert (tree.depths.tolist(), ancestors(tree)) == ([0, 1, 2], [[0], [0, 1], [0, 1, 2]])


# a GPU scores rows unless it is told what it cannot do
@pytest.mark.parametrize(("choice", "cpu", "gpu"), [("auto", True, False), ("rows", False, False)])
def test_trees_are_for_a_cpu(choice, cpu, gpu):
    options = Options(scoring=choice)
    assert scores_trees(options, torch.device("cpu")) is cpu
    assert scores_trees(options, torch.device("cuda")) is gpu
    assert scores_trees(Options(scoring="trees"), torch.device("cpu"))
    with pytest.raises(ValueError, match="scoring='trees' needs device='cpu'"):
        scores_trees(Options(scoring="trees"), torch.device("cuda"))


@pytest.mark.parametrize("positions", [1, 40, 10**6])
def test_nodes_score_as_rows_do(positions, build, batch, packed, share, assert_close, monkeypatch):
    monkeypatch.setattr(scoring, "POSITIONS_AT_A_TIME", positions)
    backend, by_rows = build(), build(options=Options(scoring="rows"))
    stream = np.random.default_rng(2)
    shared = share([(5, [3, 4]), (0, [13, 1]), (8, [5, 1, 3]), (12, [1, 1])])
    # two ids only, so that continuations begin alike; and rows without a target
    alike = shared._replace(tokens=stream.integers(3, 5, shared.tokens.shape, dtype=np.int32))
    few = alike._replace(targets=np.where(stream.random(alike.targets.shape) < 0.2, alike.targets, IGNORE))
    few.targets[1] = IGNORE
    for each in (batch, packed, shared, alike, few, few._replace(targets=np.full_like(few.targets, IGNORE))):
        got = backend.log_probs(each)
        assert_close("log-probabilities", got, by_rows.log_probs(each), rel=1e-6)
        assert not got[each.targets == IGNORE].any()


def test_no_node_is_computed_twice_and_the_head_only_where_it_is_asked(build, share):
    backend = build()
    batch = share([(4, [6, 6, 6])])
    batch.tokens[0, 10:], batch.targets[0, :4] = np.tile(batch.tokens[0, 4:10], 2), IGNORE
    width, vocab, products = backend.config.d_model, backend.config.vocab_size, []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mm.default:
                products.append(tuple(out.shape))
            return out

    with Watch():
        backend.log_probs(batch)
    # three equal continuations of a prefix: 10 nodes, 6 of them scored
    block = [(10, 3 * width), (10, width), (10, 4 * width), (10, width)]
    last = [(10, 3 * width), (6, width), (6, 4 * width), (6, width)]
    assert products == [*block, *last, (6, vocab)]


# one block, one and a bit, many; logits that float32's exp cannot hold
@pytest.mark.parametrize("scale", [1.0, 1e3], ids=["small", "large"])
@pytest.mark.parametrize("vocab", [1, 64, 65, 1000])
def test_the_normaliser_of_blocks_is_that_of_the_whole(vocab, scale, assert_close, monkeypatch):
    monkeypatch.setattr(scoring, "VOCABULARY_BLOCK", 64)
    stream = np.random.default_rng(4)
    h, head = scale * stream.standard_normal((7, 5)), stream.standard_normal((vocab, 5))
    got = scoring.log_normaliser(
        torch.tensor(h, dtype=torch.float32), torch.tensor(head, dtype=torch.float32)
    )
    want = np.logaddexp.reduce(np.float32(h).astype(np.float64) @ np.float32(head).T, -1)
    assert_close("log of the sum", got, want, rel=1e-6)


def test_equal_logits_normalise_by_the_log_of_the_vocabulary(assert_close):
    got = scoring.log_normaliser(torch.ones(3, 4), torch.zeros(5000, 4))
    assert_close("log V", got, np.full(3, math.log(5000)), rel=1e-7)


@pytest.mark.parametrize("rows", [1, 64, 65])
def test_gelu_in_place(rows, assert_close):
    x = torch.linspace(-30.0, 30.0, rows * 7).view(rows, 7)
    wide = x.double().numpy()
    want = wide / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    got = scoring.gelu_(x)
    assert got.data_ptr() == x.data_ptr()
    assert_close("gelu", got, want, rel=1e-6)


def test_bfloat16_is_as_near_as_by_rows(build, share):
    """Against float32; the order of the roundings differs, their number does not grow."""
    batch = share([(5, [3, 4]), (8, [5, 1, 3])])
    want, errors = build().log_probs(batch), []
    for scoring_by in ("trees", "rows"):
        half = build(precision="bfloat16", options=Options(scoring=scoring_by))
        assert half._plan == Plan(3, 151, torch.bfloat16)
        errors.append(np.linalg.norm(half.log_probs(batch) - want) / np.linalg.norm(want))
    assert 0.0 < errors[0] <= 1.5 * errors[1]
