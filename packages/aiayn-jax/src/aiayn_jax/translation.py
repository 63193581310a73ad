"""Text to text: encode, search, decode, in batches of a few shapes.

Shapes: B rows, S source positions, T target positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import bpe_scratch
import numpy as np
from gpt_data.terminal import warn
from jaxtyping import Int32, Int64

from aiayn_jax.config import TransformerConfig
from aiayn_jax.data.batches import fill_side
from aiayn_jax.data.pairs import shown_numbers
from aiayn_jax.data.sentences import Side, encode_side, end_of_text
from aiayn_jax.parameters import Parameters
from aiayn_jax.plan import Plan
from aiayn_jax.search import EXTRA, beam_search, greedy

SHORTEST_WIDTH = 16
LINE_BREAKS = str.maketrans("\r\n", "  ")


class Decoding(NamedTuple):
    """How to search.

    Attributes:
        beam: Translations kept at each position; 1 is greedy.
        length_penalty: Exponent of the length by which beam search divides.
        rows: Sentences translated together.
    """

    beam: int = 4
    length_penalty: float = 0.6
    rows: int = 64


class Translator:
    """Translates with any weights of one shape.

    Sentences are sorted by length, and their positions filled up to a power of two: each width is
    compiled once. A sentence that is too long for the model is cut, and said so; an empty one stays
    empty.
    """

    def __init__(self, config: TransformerConfig, plan: Plan, tokenizer: bpe_scratch.Tokenizer) -> None:
        self.config, self.plan, self.tokenizer = config, plan, tokenizer
        self._end = end_of_text(tokenizer)

    def translate(
        self, params: Parameters, sentences: Sequence[str], decoding: Decoding, first_line: int = 1
    ) -> list[str]:
        """One translation for each sentence."""
        found = self.translate_until(params, sentences, decoding, lambda: False, first_line)
        assert found is not None, "nobody asked to stop"
        return found

    def translate_until(
        self,
        params: Parameters,
        sentences: Sequence[str],
        decoding: Decoding,
        stop: Callable[[], bool],
        first_line: int = 1,
    ) -> list[str] | None:
        """As ``translate``; None if asked to stop."""
        side = self._cut(encode_side(self.tokenizer, sentences), first_line)
        found = [""] * len(sentences)
        full = np.flatnonzero([bool(text.strip()) for text in sentences])
        # longest first: what does not fit into memory fails at once
        order = full[np.argsort(-side.lengths[full], kind="stable")]
        for at in range(0, len(order), decoding.rows):
            if stop():
                return None
            rows = order[at : at + decoding.rows]
            for row, ids in zip(rows.tolist(), self._search(params, side, rows, decoding), strict=False):
                found[row] = self._text(ids)
        return found

    def _cut(self, side: Side, first_line: int) -> Side:
        """Shorten what the model has no positions for, and say so."""
        long = np.flatnonzero(side.lengths > self.config.longest)
        if not long.size:
            return side
        numbers = shown_numbers((long + first_line).tolist())
        warn(
            f"{len(long):,} of {len(side.lengths):,} sentences cut, longer than {self.config.longest} tokens "
            f"({numbers})"
        )
        lengths = np.minimum(side.lengths, self.config.longest)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        places = np.arange(starts[-1]) + np.repeat(side.starts[:-1] - starts[:-1], lengths)
        ids = side.ids[places]
        ids[starts[1:] - 1] = self._end
        return Side(ids, starts)

    def _search(
        self, params: Parameters, side: Side, rows: Int64[np.ndarray, " rows"], decoding: Decoding
    ) -> Int32[np.ndarray, "B T"]:
        """Ids of the translations of some sentences, row by row."""
        width = SHORTEST_WIDTH
        while width < int(side.lengths[rows].max()):
            width *= 2
        width = min(width, self.config.longest)
        source, used = fill_side(side, rows, decoding.rows, width)
        lengths = used.sum(axis=1, dtype=np.int32)
        where = (params, self.config, self.plan, source, lengths)
        room = min(width + EXTRA, self.config.longest)
        if decoding.beam == 1:
            return greedy(*where, end_of_text=self._end, longest=room)
        penalty = decoding.length_penalty
        return beam_search(
            *where, end_of_text=self._end, longest=room, beam=decoding.beam, length_penalty=penalty
        )[0]

    def _text(self, ids: Int32[np.ndarray, " T"]) -> str:
        """The text up to the end of text, on one line whatever the model wrote."""
        ends = np.flatnonzero(ids == self._end)
        kept = ids[: ends[0]] if ends.size else ids
        return self.tokenizer.decode(kept.tolist()).translate(LINE_BREAKS)
