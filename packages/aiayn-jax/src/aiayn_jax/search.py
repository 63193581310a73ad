"""From a source sentence to its translation: the likeliest token each time, or a beam of hypotheses.

    score(y) = log p(y | x) / ((5 + n) / 6)^alpha,     n tokens, the end-of-text counted

Both run whole inside one ``jax.jit``, and end as soon as no sentence can change any more. A sentence
must end within 50 tokens more than its source has.

A beam grows as follows. Of all continuations of its hypotheses the likeliest 2 J are looked at, in
order: one that ends, if it is among the first J, is complete; the first J that do not end are the next
beam. A sentence is done once J hypotheses are complete, or once even the likeliest open one, ended at
the limit without further loss, would score no better than the best complete one.

Shapes: B sentences, J hypotheses of each, S source positions, C room for target positions.

References:
    Wu et al. 2016, "Google's Neural Machine Translation System", equation 14 (length penalty);
    Vaswani et al. 2017, section 6.1 (beam 4, alpha 0.6, input length + 50).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from aiayn_jax.config import TransformerConfig
from aiayn_jax.decoding import Cache, advance, empty_cache, narrow, read_source
from aiayn_jax.parameters import Parameters
from aiayn_jax.plan import Plan
from aiayn_jax.step import check_source

EXTRA = 50
"""Tokens that a translation may have more than its source."""


def greedy(
    params: Parameters,
    config: TransformerConfig,
    plan: Plan,
    source: Int32[np.ndarray, "B S"],
    source_lengths: Int32[np.ndarray, " B"],
    *,
    end_of_text: int,
    longest: int,
) -> Int32[np.ndarray, "B C"]:
    """The likeliest token each time, filled up with end-of-text.

    Args:
        source_lengths: Ids that count in each row; a row with 0 gives end-of-text alone.
        longest: Columns of the result, C; at most ``config.longest``.

    Raises:
        ValueError: If an argument is out of range.
    """
    _check(config, source, source_lengths, end_of_text, longest)
    sent = (jax.device_put(array, plan.device) for array in (source, source_lengths))
    return np.array(_greedy(params, *sent, plan=plan, end_of_text=end_of_text, room=longest))


def beam_search(
    params: Parameters,
    config: TransformerConfig,
    plan: Plan,
    source: Int32[np.ndarray, "B S"],
    source_lengths: Int32[np.ndarray, " B"],
    *,
    end_of_text: int,
    longest: int,
    beam: int = 4,
    length_penalty: float = 0.6,
) -> tuple[Int32[np.ndarray, "B C"], Float32[np.ndarray, " B"]]:
    """The best complete hypothesis, filled up with end-of-text, and its score.

    Args:
        source_lengths: Ids that count in each row; a row with 0 gives end-of-text alone, and scores 0.
        longest: Columns of the result, C; at most ``config.longest``.
        length_penalty: The exponent alpha; 0 compares log-probabilities as they are.

    Raises:
        ValueError: If an argument is out of range.
    """
    _check(config, source, source_lengths, end_of_text, longest)
    if beam < 1:
        raise ValueError(f"beam={beam} is not positive")
    if not 0.0 <= length_penalty < np.inf:
        raise ValueError(f"length_penalty={length_penalty} is negative")
    sent = (jax.device_put(array, plan.device) for array in (source, source_lengths))
    settings = {"plan": plan, "end_of_text": end_of_text, "room": longest}
    ids, scores = _beam_search(params, *sent, np.float32(length_penalty), **settings, beam=beam)
    return np.array(ids), np.array(scores)


def _check(
    config: TransformerConfig, source: np.ndarray, lengths: np.ndarray, end_of_text: int, longest: int
) -> None:
    check_source(source, lengths, config)
    if not 0 <= end_of_text < config.vocab_size:
        raise ValueError(f"end_of_text={end_of_text} is outside the vocabulary of {config.vocab_size}")
    if not 1 <= longest <= config.longest:
        raise ValueError(f"longest={longest} is not within 1..{config.longest}")


class Path(NamedTuple):
    """Greedy decoding so far."""

    position: Int[Array, ""]
    ids: Int[Array, "B C"]
    done: Bool[Array, " B"]
    cache: Cache


@partial(jax.jit, static_argnames=("plan", "end_of_text", "room"))
def _greedy(
    params: Parameters,
    tokens: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    *,
    plan: Plan,
    end_of_text: int,
    room: int,
) -> Int[Array, "B C"]:
    params = narrow(params, plan)
    source = read_source(params, tokens, lengths, plan)
    limit = jnp.minimum(lengths + EXTRA, room)

    def step(path: Path) -> Path:
        latest = _latest(path.ids[:, None], path.position, end_of_text)
        cache, log_probs = advance(params, path.cache, source, latest, path.position, plan)
        choice = jnp.argmax(log_probs[:, 0], axis=-1).astype(jnp.int32)
        done = path.done | (choice == end_of_text) | (path.position + 1 >= limit)
        ids = path.ids.at[:, path.position].set(jnp.where(done, end_of_text, choice))
        return Path(path.position + 1, ids, done, cache)

    rows = len(tokens)
    start = jnp.full((rows, room), end_of_text, jnp.int32)
    first = Path(jnp.int32(0), start, lengths == 0, empty_cache(params, rows, room, plan))
    return lax.while_loop(lambda path: ~path.done.all(), step, first).ids


def _latest(ids: Int[Array, "B J C"], position: Int[Array, ""], end_of_text: int) -> Int[Array, "B J"]:
    """The token before ``position``; end-of-text at 0."""
    before = lax.dynamic_index_in_dim(ids, jnp.maximum(position - 1, 0), axis=2, keepdims=False)
    return jnp.where(position == 0, end_of_text, before)


class Beam(NamedTuple):
    """A search so far: the open hypotheses, and the best complete one of each sentence."""

    position: Int[Array, ""]
    ids: Int[Array, "B J C"]
    log_probs: Float[Array, "B J"]
    cache: Cache
    best_ids: Int[Array, "B C"]
    best_score: Float[Array, " B"]
    complete: Int[Array, " B"]
    done: Bool[Array, " B"]


class Candidates(NamedTuple):
    """The likeliest 2 J continuations of each sentence's hypotheses, likeliest first."""

    log_probs: Float[Array, "B 2*J"]
    parents: Int[Array, "B 2*J"]
    tokens: Int[Array, "B 2*J"]


@partial(jax.jit, static_argnames=("plan", "end_of_text", "room", "beam"))
def _beam_search(
    params: Parameters,
    tokens: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    alpha: Float[Array, ""],
    *,
    plan: Plan,
    end_of_text: int,
    room: int,
    beam: int,
) -> tuple[Int[Array, "B C"], Float[Array, " B"]]:
    params = narrow(params, plan)
    source = read_source(params, tokens, lengths, plan)
    limit = jnp.minimum(lengths + EXTRA, room)

    def step(state: Beam) -> Beam:
        latest = _latest(state.ids, state.position, end_of_text)
        cache, log_probs = advance(params, state.cache, source, latest, state.position, plan)
        log_probs = _end_at_limit(log_probs, state.position + 1 >= limit, end_of_text)
        found = _candidates(state.log_probs[:, :, None] + log_probs, beam)
        state = _complete(state._replace(cache=cache), found, end_of_text, alpha)
        return _continue(state, found, limit, end_of_text, alpha)

    first = _first_beam(params, lengths, plan, end_of_text, room, beam)
    last = lax.while_loop(lambda state: ~state.done.all(), step, first)
    return last.best_ids, last.best_score


def _first_beam(
    params: Parameters, lengths: Int[Array, " B"], plan: Plan, end_of_text: int, room: int, beam: int
) -> Beam:
    """One hypothesis without a token; the other places of the beam are open, but impossible."""
    rows = len(lengths)
    nothing, empty = jnp.full((rows, beam, room), end_of_text, jnp.int32), lengths == 0
    places = jnp.where(jnp.arange(beam) == 0, 0.0, -jnp.inf).astype(jnp.float32)
    return Beam(
        position=jnp.int32(0),
        ids=nothing,
        log_probs=jnp.broadcast_to(places[None], (rows, beam)),
        cache=empty_cache(params, rows * beam, room, plan),
        best_ids=nothing[:, 0],
        best_score=jnp.where(empty, 0.0, -jnp.inf).astype(jnp.float32),
        complete=jnp.zeros(rows, jnp.int32),
        done=empty,
    )


def _end_at_limit(
    log_probs: Float[Array, "B J V"], last: Bool[Array, " B"], end_of_text: int
) -> Float[Array, "B J V"]:
    """Where the limit is reached nothing but the end is possible."""
    other = jnp.arange(log_probs.shape[2], dtype=jnp.int32) != end_of_text
    return jnp.where(last[:, None, None] & other[None, None], -jnp.inf, log_probs)


def _candidates(log_probs: Float[Array, "B J V"], beam: int) -> Candidates:
    """The best of each hypothesis first, then of all: one search through J V columns would have to sort."""
    rows, _, ids = log_probs.shape
    width = min(2 * beam, ids)
    of_each, tokens = lax.top_k(log_probs, width)  # [B, J, width]
    best, index = lax.top_k(of_each.reshape(rows, -1), 2 * beam)
    return Candidates(best, index // width, jnp.take_along_axis(tokens.reshape(rows, -1), index, axis=1))


def _complete(state: Beam, found: Candidates, end_of_text: int, alpha: Float[Array, ""]) -> Beam:
    """Take note of hypotheses that end, among the first J candidates."""
    beam = state.log_probs.shape[1]
    first = jnp.arange(2 * beam, dtype=jnp.int32) < beam
    ends = (found.tokens == end_of_text) & first[None] & jnp.isfinite(found.log_probs) & ~state.done[:, None]
    scores = jnp.where(ends, found.log_probs / _penalty(state.position + 1, alpha), -jnp.inf)
    winner = jnp.argmax(scores, axis=1)[:, None]
    score = jnp.take_along_axis(scores, winner, axis=1)[:, 0]
    ids = _pick(state.ids, jnp.take_along_axis(found.parents, winner, axis=1))[:, 0]
    better = score > state.best_score
    return state._replace(
        best_ids=jnp.where(better[:, None], ids, state.best_ids),
        best_score=jnp.where(better, score, state.best_score),
        complete=state.complete + ends.sum(axis=1, dtype=jnp.int32),
    )


def _continue(
    state: Beam, found: Candidates, limit: Int[Array, " B"], end_of_text: int, alpha: Float[Array, ""]
) -> Beam:
    """The first J candidates that do not end are the next beam; then see which sentences are done."""
    beam = state.log_probs.shape[1]
    order = jnp.argsort(found.tokens == end_of_text, axis=1, stable=True)[:, :beam]
    log_probs, parents, tokens = (jnp.take_along_axis(column, order, axis=1) for column in found)
    cache = jax.tree.map(lambda leaf: _pick_rows(leaf, parents), state.cache)
    ids = _pick(state.ids, parents).at[:, :, state.position].set(tokens)
    hopeless = state.best_score >= log_probs[:, 0] / _penalty(limit, alpha)
    return state._replace(
        position=state.position + 1,
        ids=ids,
        log_probs=log_probs,
        cache=cache,
        done=state.done | hopeless | (state.complete >= beam),
    )


def _penalty(length: Int[Array, "*n"], alpha: Float[Array, ""]) -> Float[Array, "*n"]:
    return ((5.0 + length.astype(jnp.float32)) / 6.0) ** alpha


def _pick(values: Int[Array, "B J C"], parents: Int[Array, "B n"]) -> Int[Array, "B n C"]:
    """Of each sentence, the hypotheses ``parents``."""
    return jnp.take_along_axis(values, parents[:, :, None], axis=1)


def _pick_rows(leaf: Float[Array, "L R C H K"], parents: Int[Array, "B J"]) -> Float[Array, "L R C H K"]:
    """The same of a cache, where a sentence's hypotheses are rows one after another."""
    rows, beam = parents.shape
    first = jnp.arange(rows, dtype=jnp.int32)[:, None] * beam
    return jnp.take(leaf, (first + parents).reshape(-1), axis=1)
