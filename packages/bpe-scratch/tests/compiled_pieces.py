"""The pieces that the compiled layer cuts, to be looked at."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from bpe_scratch.compiled.cuts import cut_pieces
from bpe_scratch.compiled.encoder import encoding_state
from bpe_scratch.compiled.kernel import kernel
from bpe_scratch.compiled.memory import address, load_int
from bpe_scratch.compiled.state import lay_out


@kernel
def cut_all(states: Any, text: Any, bounds: Any, ends: Any) -> Any:
    """Write the end of every piece of one document; returns their number."""
    s = states[0]
    s.text, number = address(text), 0
    i, begin, end = bounds[0], bounds[0], bounds[1]
    while i < end:
        m = cut_pieces(s, i, begin, end)
        for q in range(1, m + 1):
            i = load_int(s.cuts, q)
            ends[number] = i - begin
            number += 1
    return number


def cut(pattern: str, text: str) -> list[str]:
    raw = text.encode()
    state, ends = encoding_state(pattern), np.empty(len(raw), dtype=np.int64)
    number = cut_all(state.record, *lay_out([raw]), ends)
    return [raw[a:b].decode() for a, b in pairwise([0, *ends[:number].tolist()])]
