"""One stream of standard normal numbers, drawn by several threads: the bits are those of one.

NumPy makes each number of 32-bit words, which Philox gives from any place on: of one word mostly, of more now
and then (1 in 90, where the first is refused). So it is not known which number a place among the words
belongs to. But whoever begins to draw at any place soon takes the words as everybody does, once a number of
his has ended where one of theirs has. So a piece goes from where its own drawer has taken ``CALM`` numbers to
where the next one's has, and the pieces behind each other are the stream.

Shapes: n numbers.

References:
    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    Marsaglia and Tsang 2000, "The ziggurat method for generating random variables".
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from jaxtyping import Float32

PIECE = 2**20
"""Words from the start of one piece to that of the next: a hundredth of a second."""
COUNT_WORDS = 8
"""Words of one count of Philox-4x64."""
CALM = 64
"""Numbers after which all take the same words: two are enough but for one case in thousands."""


def standard_normals(key: int, shapes: Sequence[tuple[int, ...]]) -> list[Float32[np.ndarray, "..."]]:
    """What ``standard_normal(shape, float32)`` of one ``Generator(Philox(key=key))`` gives for each shape.

    Args:
        key: Key of the stream, from 0.
        shapes: In the order in which they are drawn; the arrays are views into one.
    """
    sizes = [math.prod(shape) for shape in shapes]
    parts = np.split(_draw(key, sum(sizes)), np.cumsum(sizes[:-1], dtype=int))
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=False)]


def _draw(key: int, count: int) -> Float32[np.ndarray, " n"]:
    values, done, piece = np.empty(count, np.float32), 0, 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # a number takes a word at least: so many pieces are not too many
        while more := (count - done) // PIECE:
            for part in pool.map(partial(_draw_piece, key), range(piece, piece + more)):
                values[done : done + len(part)] = part
                done += len(part)
            piece += more
    values[done:] = _stream(key, piece).standard_normal(count - done, np.float32)
    return values


def _stream(key: int, piece: int) -> np.random.Generator:
    """The stream from the start of a piece on."""
    stream = np.random.Generator(np.random.Philox(key=key, counter=piece * (PIECE // COUNT_WORDS)))
    if piece:
        for _ in range(CALM):
            stream.standard_normal(dtype=np.float32)
    return stream


def _words_taken(stream: np.random.Generator) -> int:
    state = stream.bit_generator.state
    # words come in pairs; of the last, one may be left
    taken: int = 2 * (4 * int(state["state"]["counter"][0]) + state["buffer_pos"] - 4) - state["has_uint32"]
    return taken


def _draw_piece(key: int, piece: int) -> Float32[np.ndarray, " _"]:
    stream, stop, parts = _stream(key, piece), _words_taken(_stream(key, piece + 1)), []
    while (left := stop - _words_taken(stream)) > 0:
        # NumPy lets other threads run meanwhile; the last numbers one by one, not to draw past the end
        parts.append(stream.standard_normal(left // 2 if left > CALM else 1, np.float32))
    assert left == 0
    return np.concatenate(parts)
