"""tiktoken's rank files: on each line a token in base 64 and its rank, which is its id.

tiktoken has no list of merges: two neighbours may merge if their bytes together are a token, and the token's
rank decides. So every split of a token into two tokens is a merge of that token's rank, the leftmost going
first, and a piece that is a token as it stands is taken whole.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from bpe_scratch.errors import FileFormatError, TokenizerError
from bpe_scratch.files import read_text
from bpe_scratch.vocabulary import Vocabulary


def read_tiktoken(path: Path) -> Vocabulary:
    """The vocabulary of a rank file.

    Raises:
        FileFormatError: Naming the line that is not a token and a rank, or that repeats one.
    """
    ranks: dict[bytes, int] = {}
    owner: dict[int, int] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line:
            continue
        token, rank = _parse_line(line, f"{path}: line {number}")
        if token in ranks or rank in owner:
            raise FileFormatError(f"{path}: line {number}: token or rank {rank} is given twice")
        ranks[token], owner[rank] = rank, number
    if ranks and max(owner) >= 4 * len(owner) + 1024:
        raise FileFormatError(
            f"{path}: line {owner[max(owner)]}: rank {max(owner)} is far beyond {len(owner)} tokens"
        )
    tokens: list[bytes | None] = [None] * (max(owner) + 1 if owner else 0)
    for token, rank in ranks.items():
        tokens[rank] = token
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        halves = ((ranks.get(token[:cut]), ranks.get(token[cut:])) for cut in range(1, len(token)))
        merges += [(left, right, rank) for left, right in halves if left is not None and right is not None]
    try:
        return Vocabulary(tokens, merges, ranks=[merged for _, _, merged in merges], whole_pieces=True)
    except TokenizerError as error:
        raise FileFormatError(f"{path}: {error}") from None


def _parse_line(line: str, place: str) -> tuple[bytes, int]:
    encoded, space, rank = line.partition(" ")
    try:
        token = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise FileFormatError(f"{place}: {encoded[:60]!r} is not base 64") from None
    if not (token and space and rank.isascii() and rank.isdigit() and len(rank) <= 9):
        raise FileFormatError(f"{place}: expected a token and a rank, found {line[:60]!r}")
    return token, int(rank)
