r"""GPT-2's pattern over whole arrays: where pieces start, without a loop over characters.

Shapes: N bytes, D documents.  Every byte gets the class of its character, so a run of letters is a run of
equal values.  The starts of pieces are then
    the first character of each stretch of white space;
    its last character too, if something follows it (a blank there belongs to what follows);
    the first character of each run of letters, numbers or others, unless a blank stands before it;
    and after a contraction that begins a run, the character behind it instead of the letter inside it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from bpe_scratch.unicode_classes import LETTER, MARK, NUMBER, OTHER, SPACE, UPPER, class_of_code_point

_LETTERS, _NUMBERS, _OTHERS, _SPACES = 0, 1, 2, 3
_GROUPS = np.full(SPACE + 1, _OTHERS, dtype=np.uint8)
_GROUPS[UPPER : LETTER + 1] = _LETTERS
_GROUPS[NUMBER], _GROUPS[SPACE], _GROUPS[OTHER], _GROUPS[MARK] = _NUMBERS, _SPACES, _OTHERS, _OTHERS
_BLANK, _APOSTROPHE = 32, 39


@cache
def _group_of_code_point() -> npt.NDArray[np.uint8]:
    return _GROUPS[class_of_code_point()]


@cache
def _group_of_byte() -> bytes:
    return np.resize(_group_of_code_point()[:128], 256).tobytes()


def byte_groups(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The group of each byte's character, ``[N]``.

    Args:
        raw: UTF-8.
    """
    # Python's own translation of bytes is four times as fast as an index of bytes
    groups = np.frombuffer(bytearray(raw).translate(_group_of_byte()), dtype=np.uint8)
    # characters beyond ASCII, which are few in most texts: all of their bytes get the group again
    leads = np.flatnonzero(raw >= 0xC0)
    first = raw[leads].astype(np.int64)
    widths = 2 + (first >= 0xE0) + (first >= 0xF0)
    codes = first & (0xFF >> (widths + 1))
    for k in range(1, 4):
        longer = widths > k
        codes[longer] = codes[longer] << 6 | raw[leads[longer] + k] & 0x3F
    found = _group_of_code_point()[codes]
    groups[leads] = found
    for k in range(1, 4):
        longer = widths > k
        groups[leads[longer] + k] = found[longer]
    return groups


def piece_starts(raw: npt.NDArray[np.uint8], begins: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """First byte of every piece, ascending.

    Args:
        raw: UTF-8 of documents one after another, not empty.
        begins: First byte of each document, ``[D]``, none of them empty.
    """
    groups = byte_groups(raw)
    first = np.empty(raw.size, dtype=bool)
    first[0] = True
    np.not_equal(groups[1:], groups[:-1], out=first[1:])
    first[begins] = True
    document = np.zeros(raw.size + 1, dtype=bool)
    document[begins] = document[raw.size] = True
    space = groups == _SPACES
    after_blank = np.zeros(raw.size, dtype=bool)
    after_blank[1:] = raw[:-1] == _BLANK
    after_blank &= ~document[:-1]
    starts = first & (space | ~after_blank)
    _mark_last_spaces(starts, space, raw, document)
    _move_contractions(starts, first & ~after_blank, raw, groups, document)
    return np.flatnonzero(starts)


def _mark_last_spaces(
    starts: npt.NDArray[np.bool_],
    space: npt.NDArray[np.bool_],
    raw: npt.NDArray[np.uint8],
    document: npt.NDArray[np.bool_],
) -> None:
    """The last character of white space begins a piece, if the document goes on behind it."""
    last = space[:-1] & ~space[1:] & ~document[1:-1]
    starts[:-1] |= last
    # white space of several bytes, which is rare: step back to its first; 0x80 to 0xBF are the least as int8
    inside = np.flatnonzero(last & (raw[:-1].view(np.int8) < -64))
    starts[inside] = False
    while inside.size:
        inside -= 1
        going = (raw[inside] & 0xC0) == 0x80
        starts[inside[~going]] = True
        inside = inside[going]


def _move_contractions(
    starts: npt.NDArray[np.bool_],
    first: npt.NDArray[np.bool_],
    raw: npt.NDArray[np.uint8],
    groups: npt.NDArray[np.uint8],
    document: npt.NDArray[np.bool_],
) -> None:
    """``'s`` at the start of a run: the piece takes the letters in, and the next starts behind them."""
    at = np.flatnonzero((raw == _APOSTROPHE) & first)
    padded = np.concatenate([raw[: raw.size], np.zeros(3, dtype=np.uint8)])
    ends = np.concatenate([document, np.ones(3, dtype=bool)])
    a, b = padded[at + 1], padded[at + 2]
    whole_one, whole_two = ~ends[at + 1], ~ends[at + 1] & ~ends[at + 2]
    one = whole_one & np.isin(a, np.frombuffer(b"sdmt", dtype=np.uint8))
    two = whole_two & (((a == 108) & (b == 108)) | ((b == 101) & ((a == 118) | (a == 114))))
    width = np.where(one, 2, np.where(two, 3, 0))
    at, width = at[width > 0], width[width > 0]
    starts[at + 1] = False
    behind = at + width
    behind = behind[behind < raw.size]
    # only inside the run of letters: elsewhere a start is there already, or belongs to a blank
    behind = behind[groups[behind] == _LETTERS]
    starts[behind] = True
