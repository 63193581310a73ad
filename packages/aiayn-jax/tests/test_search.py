"""Greedy and beam search against plainer ways to the same answer."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from aiayn_jax import search
from aiayn_jax.config import TransformerConfig
from aiayn_jax.decoding import advance, empty_cache, narrow, read_source
from aiayn_jax.model import logits
from aiayn_jax.parameters import PairBatch
from aiayn_jax.plan import make_plan
from aiayn_jax.search import beam_search, greedy
from aiayn_jax.step import send
from aiayn_jax.tree import from_named
from aiayn_oracle import SMALL, assert_close, make_batch, noisy_values

END = 2
# five ids, of which one ends: all 341 sequences of at most five tokens can be scored
TINY = TransformerConfig(vocab_size=5, n_layer=1, n_head=2, d_model=8, d_ff=12, dropout=0.0, longest=8)
ROOM = 5
SEEDS = (1, 5, 9)
"""Of models whose translations differ from source to source, in tokens and length."""


def tiny(seed: int) -> tuple:
    """A model whose next token depends on all before it, and six sources."""
    rng = np.random.default_rng(seed)
    values = {n: v + rng.normal(0, 1.0, v.shape).astype(np.float32) for n, v in noisy_values(TINY).items()}
    # without these the same token would be the likeliest everywhere, and no search could go wrong
    values["decoder.0.network.norm_bias"] *= 0.0
    values["decoder.0.network.norm_gain"] = np.full(8, 0.6, np.float32)
    values["decoder.0.cross.norm_gain"] = np.full(8, 2.0, np.float32)
    plan = make_plan(TINY, device="cpu")
    source = rng.integers(0, 5, (6, 4)).astype(np.int32)
    return from_named(values, TINY, plan.device), plan, source, np.array([4, 3, 4, 1, 2, 0], np.int32)


LOGITS = jax.jit(logits, static_argnames="plan")


def teacher_forced(params, plan, source: np.ndarray, lengths: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Log-probabilities [B, T, V] of each next token, by the full pass."""
    target_in = np.roll(targets, 1, axis=1)
    target_in[:, 0] = END
    z = LOGITS(params, send(PairBatch(source, lengths, target_in, targets), plan), plan)
    return np.asarray(jax.nn.log_softmax(z[..., : plan.vocab_size], axis=-1), np.float64)


def test_cached_steps_equal_the_full_pass() -> None:
    plan, batch = make_plan(SMALL, device="cpu"), make_batch()
    params = from_named(noisy_values(), SMALL, plan.device)
    targets = np.stack([batch.target_in, 60 - batch.target_in], axis=1)  # two hypotheses of each sentence
    source = read_source(params, jnp.asarray(batch.source), jnp.asarray(batch.source_lengths), plan)
    cache, step = empty_cache(params, 10, 9, plan), jax.jit(advance, static_argnames="plan")
    got = []
    for position in range(9):
        tokens = jnp.asarray(targets[:, :, position])
        cache, log_probs = step(narrow(params, plan), cache, source, tokens, jnp.int32(position), plan=plan)
        got.append(log_probs)
    for hypothesis in range(2):
        inputs = send(batch._replace(target_in=targets[:, hypothesis]), plan)
        want = jax.nn.log_softmax(LOGITS(params, inputs, plan)[..., :61], axis=-1)
        assert_close(f"hypothesis {hypothesis}", np.stack(got, axis=2)[:, hypothesis], want, rel=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_greedy_takes_the_likeliest_token_each_time(seed: int) -> None:
    params, plan, source, lengths = tiny(seed)
    got = greedy(params, TINY, plan, source, lengths, end_of_text=END, longest=ROOM)
    best = teacher_forced(params, plan, source, lengths, got).argmax(-1)
    for row, ids in enumerate(got[:-1]):
        free = min(int(np.argmax(ids == END)) + 1, ROOM - 1)  # at the limit a row must end
        assert np.array_equal(ids[:free], best[row, :free])
        assert (ids[free:] == END).all()
    assert (got[-1] == END).all(), "a row without a source is no sentence"
    assert len({ids.tobytes() for ids in got}) > 2, "the sources make no difference"


Conditionals = dict[tuple[int, ...], np.ndarray]


def conditionals(params, plan, source: np.ndarray, lengths: np.ndarray) -> list[Conditionals]:
    """Of each row, the log-probabilities of what follows every beginning that fits the room."""
    words = [token for token in range(5) if token != END]
    bodies = list(itertools.product(words, repeat=ROOM - 1))
    targets = np.array([(*body, END) for body in bodies], np.int32)
    tables = []
    for row in range(len(source) - 1):
        many = (np.repeat(array[row : row + 1], len(bodies), axis=0) for array in (source, lengths))
        log_probs = teacher_forced(params, plan, *many, targets)
        tables.append({body[:t]: log_probs[i, t] for i, body in enumerate(bodies) for t in range(ROOM)})
    return tables


def penalty(length: int, alpha: float) -> float:
    return ((5 + length) / 6) ** alpha


def best_of_all(table: Conditionals, alpha: float) -> tuple[tuple[int, ...], float]:
    """The best of all 341 sequences that end within the room."""
    scores = {}
    for body, last in table.items():
        steps = [table[body[:t]][token] for t, token in enumerate(body)]
        scores[(*body, END)] = (sum(steps) + last[END]) / penalty(len(body) + 1, alpha)
    best = max(scores, key=scores.__getitem__)
    return best, scores[best]


def search_by_lists(table: Conditionals, beam: int, alpha: float) -> tuple[tuple[int, ...], float]:
    """The rule of ``aiayn_jax.search``, a hypothesis at a time; it stops at J complete ones only."""
    hypotheses, complete = [((), 0.0)], []
    for position in range(ROOM):
        tokens = [END] if position == ROOM - 1 else range(5)
        found = [((*ids, token), p + table[ids][token]) for ids, p in hypotheses for token in tokens]
        found.sort(key=lambda one: -one[1])
        complete += [(ids, p / penalty(len(ids), alpha)) for ids, p in found[:beam] if ids[-1] == END]
        hypotheses = [one for one in found[: 2 * beam] if one[0][-1] != END][:beam]
        if len(complete) >= beam:
            break
    return max(complete, key=lambda one: one[1])


@pytest.fixture(scope="module")
def cases() -> list[tuple]:
    return [(tiny(seed), conditionals(*tiny(seed))) for seed in SEEDS]


def check(where: tuple, beam: int, alpha: float, want: list[tuple[tuple[int, ...], float]]) -> np.ndarray:
    params, plan, source, lengths = where
    given = {"end_of_text": END, "longest": ROOM, "beam": beam, "length_penalty": alpha}
    ids, scores = beam_search(params, TINY, plan, source, lengths, **given)
    for row, (best, score) in enumerate(want):
        assert tuple(ids[row].tolist()) == best + (END,) * (ROOM - len(best)), row
        # in float32 the cached step and the full pass differ by 2e-5 on weights as wild as these
        assert scores[row] == pytest.approx(score, rel=1e-4)
    assert (ids[-1] == END).all(), "a row without a source is no sentence"
    assert scores[-1] == 0.0
    return ids


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_beam_that_holds_everything_finds_the_best_of_all(cases: list[tuple], alpha: float) -> None:
    found = set()
    for where, tables in cases:
        want = [best_of_all(table, alpha) for table in tables]
        check(where, 320, alpha, want)
        found |= {len(best) for best, _ in want}
    assert len(found) > 1, "all of one length: the penalty decides nothing"


@pytest.mark.parametrize("beam", [1, 2, 4])
def test_beam_search_equals_the_rule_written_out(cases: list[tuple], beam: int) -> None:
    for where, tables in cases:
        got = check(where, beam, 0.6, [search_by_lists(table, beam, 0.6) for table in tables])
        if beam == 1:
            params, plan, source, lengths = where
            want = greedy(params, TINY, plan, source, lengths, end_of_text=END, longest=ROOM)
            assert np.array_equal(got, want)


def test_rows_do_not_depend_on_their_neighbours(cases: list[tuple]) -> None:
    (params, plan, source, lengths), _ = cases[0]
    given = {"end_of_text": END, "longest": ROOM}
    ids, scores = beam_search(params, TINY, plan, source, lengths, **given)
    order = np.array([3, 5, 0, 4, 2, 1])
    again, scores_again = beam_search(params, TINY, plan, source[order], lengths[order], **given)
    assert np.array_equal(again, ids[order])
    assert np.array_equal(scores_again, scores[order])


@pytest.mark.parametrize(("log_prob", "ends"), [(-1.2, False), (-2.5, True)])
def test_a_search_goes_on_while_a_longer_one_could_still_win(log_prob: float, ends: bool) -> None:
    """One of score -1 is complete; one that is open may come to ``log_prob / 1.93``, with 13 tokens."""
    open_ones = jnp.array([[log_prob, -9.0]])
    found = search.Candidates(
        jnp.tile(open_ones, 2), jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), jnp.int32)
    )
    ids, one = jnp.full((1, 2, 13), END, jnp.int32), jnp.ones(1, jnp.int32)
    state = search.Beam(jnp.int32(0), ids, open_ones, {}, ids[:, 0], jnp.array([-1.0]), one, one > 1)
    assert bool(search._continue(state, found, 13 * one, END, jnp.float32(0.6)).done[0]) == ends
    # nor does it once as many are complete as the beam is wide
    state = state._replace(complete=2 * one)
    assert search._continue(state, found, 13 * one, END, jnp.float32(0.6)).done[0]


@pytest.mark.parametrize("done", [False, True])
def test_what_is_done_or_impossible_completes_nothing(done: bool) -> None:
    """Of two candidates that end one has no probability, and a sentence that is done keeps its best."""
    ids, one = jnp.full((1, 2, 13), END, jnp.int32), jnp.ones(1, jnp.int32)
    found = search.Candidates(
        jnp.array([[-0.5, -jnp.inf, -jnp.inf, -jnp.inf]]),
        jnp.zeros((1, 4), jnp.int32),
        jnp.array([[END, END, END + 1, END + 1]], jnp.int32),
    )
    start = search.Beam(
        jnp.int32(0), ids, jnp.zeros((1, 2)), {}, ids[:, 0], jnp.array([-1.0]), 0 * one, (one > 0) & done
    )
    after = search._complete(start, found, END, jnp.float32(0.6))
    assert (int(after.complete[0]), float(after.best_score[0])) == ((0, -1.0) if done else (1, -0.5))


def test_limit_is_fifty_tokens_more_than_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here three more, on a model whose end-of-text never is the likeliest."""
    monkeypatch.setattr(search, "EXTRA", 3)
    config = TransformerConfig(vocab_size=6, n_layer=1, n_head=2, d_model=8, d_ff=12, dropout=0.0, longest=8)
    values = noisy_values(config)
    values["decoder.0.network.norm_bias"] = 20.0 * values["embedding"][0] - 20.0 * values["embedding"][END]
    plan = make_plan(config, device="cpu")
    source, lengths = np.ones((3, 4), np.int32), np.array([4, 2, 1], np.int32)
    where = (from_named(values, config, plan.device), config, plan, source, lengths)
    for ids in (
        greedy(*where, end_of_text=END, longest=8),
        beam_search(*where, end_of_text=END, longest=8, beam=2)[0],
    ):
        assert [(row != END).sum() for row in ids] == [6, 4, 3]  # 7, 5 and 4 with the end-of-text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end_of_text": 5}, "end_of_text=5 is outside the vocabulary of 5"),
        ({"longest": 9}, "longest=9 is not within 1..8"),
        ({"beam": 0}, "beam=0 is not positive"),
        ({"length_penalty": -0.1}, "length_penalty=-0.1 is negative"),
    ],
    ids=["end", "longest", "beam", "penalty"],
)
def test_bad_settings_are_refused(cases: list[tuple], changes: dict[str, float], message: str) -> None:
    params, plan, source, lengths = cases[0][0]
    given = {"end_of_text": END, "longest": ROOM} | changes
    with pytest.raises(ValueError, match=message):
        beam_search(params, TINY, plan, source, lengths, **given)
