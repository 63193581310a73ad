"""tiktoken's rank files: on each line a token in base 64 and its rank, which is its id.

tiktoken has no list of merges: two neighbours may merge if their bytes together are a token, and the token's
rank decides. So every split of a token into two tokens is a merge of that token's rank, the leftmost going
first, and a piece that is a token as it stands is taken whole.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from bpe_scratch.errors import TokenizerError
from bpe_scratch.files import by_id, check_ids, naming, read_text
from bpe_scratch.vocabulary import Vocabulary


def read_tiktoken(path: Path) -> Vocabulary:
    """The vocabulary of a rank file.

    Raises:
        FileFormatError: Naming the line that is not a token and a rank, or the rank that is impossible.
    """
    ranks: dict[bytes, int] = {}
    with naming(path):
        for number, line in enumerate(read_text(path).split("\n"), start=1):
            if line.removesuffix("\r"):
                token, rank = _parse_line(line.removesuffix("\r"), f"line {number}")
                if token in ranks:
                    raise TokenizerError(f"line {number}: token {token!r:.60} is given twice")
                ranks[token] = rank
        check_ids(ranks)
        merges = []
        for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
            halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
            merges += [(ranks[a], ranks[b], rank) for a, b in halves if a in ranks and b in ranks]
        return Vocabulary(by_id(ranks), merges, ranks=[rank for _, _, rank in merges], whole_pieces=True)


def _parse_line(line: str, place: str) -> tuple[bytes, int]:
    encoded, space, rank = line.partition(" ")
    try:
        token = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise TokenizerError(f"{place}: {encoded[:60]!r} is not base 64") from None
    if not (token and space and rank.isascii() and rank.isdigit() and len(rank) <= 9):
        raise TokenizerError(f"{place}: expected a token and a rank, found {line[:60]!r}")
    return token, int(rank)
