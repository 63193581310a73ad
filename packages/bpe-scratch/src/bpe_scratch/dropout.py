"""BPE-dropout: the same text cut differently each time, for training on many segmentations.

References:
    Provilkov, Emelianenko, Voita 2020, "BPE-Dropout": at every step each possible merge is left out with a
    probability, and the strongest of the rest is applied, until none is possible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from bpe_scratch.vocabulary import Pair


def encode_piece(
    piece: bytes,
    byte_ids: Sequence[int],
    pairs: Mapping[Pair, tuple[int, int]],
    rate: float,
    random: np.random.Generator,
) -> list[int]:
    """The ids of one piece with some merges left out.

    Args:
        piece: Bytes of one piece.
        byte_ids: Id of each byte.
        pairs: ``(rank, merged id)`` of each pair that merges.
        rate: Probability of leaving a merge out at a step, from 0 (never) to 1 (bytes).
        random: Source of chance.
    """
    ids = [byte_ids[byte] for byte in piece]
    while True:
        found = [(pairs[pair][0], i) for i, pair in enumerate(pairwise(ids)) if pair in pairs]
        kept = [
            entry for entry, chance in zip(found, random.random(len(found)), strict=True) if chance >= rate
        ]
        if not kept:
            return ids
        _, i = min(kept)
        ids[i : i + 2] = [pairs[ids[i], ids[i + 1]][1]]
