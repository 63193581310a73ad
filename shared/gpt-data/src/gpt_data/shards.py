"""One token shard: llm.c's ``.bin`` file, and beside it a ``.docs`` file with document offsets.

    .bin    256 little-endian int32 (magic, version, number of tokens, zeros), then the tokens
    .docs   little-endian int64: for each document that begins in the shard, the index of its first token

Shapes: n tokens, d documents.

nanoGPT's ``train.bin`` is the tokens alone, as uint16: a bare shard, which nothing tells from any other file.

References:
    llm.c, ``dev/data/data_common.py`` (magic numbers, versions and header length).
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from gpt_data.errors import InputError
from gpt_data.store.reading import open_regular

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
MAX_SHARD_TOKENS = 2**31 - 1
"""The header counts tokens in an int32."""
UINT16, UINT32 = np.dtype("<u2"), np.dtype("<u4")
INT64 = np.dtype("<i8")
# magic and version: llm.c writes GPT-2 tokens in two bytes and Llama 3 tokens in four
KINDS: dict[np.dtype, tuple[int, int]] = {UINT16: (20240520, 1), UINT32: (20240801, 7)}


def token_dtype(vocab_size: int) -> np.dtype:
    """The narrowest stored dtype that holds every id of a vocabulary."""
    return UINT16 if vocab_size <= 2**16 else UINT32


def encode_header(dtype: np.dtype, tokens: int) -> bytes:
    """The 1024 header bytes of a shard of ``tokens`` tokens.

    Args:
        dtype: ``UINT16`` or ``UINT32``.
        tokens: Number of tokens, at most ``MAX_SHARD_TOKENS``.
    """
    header = np.zeros(HEADER_INTS, "<i4")
    header[:3] = (*KINDS[dtype], tokens)
    return header.tobytes()


class ShardInfo(NamedTuple):
    """What a shard's header says."""

    dtype: np.dtype
    tokens: int


def parse_header(path: Path, content: bytes, size: int) -> ShardInfo:
    """Check a header against the size of its file.

    Args:
        content: The file's first 1024 bytes, or fewer if it is shorter.

    Raises:
        InputError: If magic, version, token count or file size are wrong.
    """
    if len(content) < HEADER_BYTES:
        raise InputError(f"{path} has {size} bytes, fewer than a shard's header ({HEADER_BYTES})")
    magic, version, tokens = (int(word) for word in np.frombuffer(content, "<i4", 3))
    known = {kind[0]: (dtype, kind[1]) for dtype, kind in KINDS.items()}
    if magic not in known:
        raise InputError(
            f"{path} has magic {magic}; a token shard has one of {sorted(known)} "
            f"(a file of nanoGPT's, which has none, is read by --data {shlex.quote(f'nanogpt:{path}')})"
        )
    dtype, want = known[magic]
    if version != want:
        raise InputError(f"{path} has version {version}; magic {magic} goes with version {want}")
    expected = HEADER_BYTES + tokens * dtype.itemsize
    if size != expected:
        raise InputError(
            f"{path} has {size} bytes; its header says {tokens} tokens, which is {expected} bytes"
        )
    return ShardInfo(dtype, tokens)


def parse_bare(path: Path, content: bytes, size: int) -> ShardInfo:
    """What nanoGPT's shard holds, by its size alone.

    Raises:
        InputError: If it begins as a shard with a header, or is no whole number of tokens.
    """
    if any(content.startswith(np.int32(magic).tobytes()) for magic, _ in KINDS.values()):
        raise InputError(
            f"{path} begins with a shard's header: give --data {shlex.quote(f'shards:{path.parent}')}"
        )
    if size % UINT16.itemsize:
        raise InputError(f"{path} has {size} bytes, which is no multiple of {UINT16.itemsize}")
    return ShardInfo(UINT16, size // UINT16.itemsize)


class Shard:
    """A shard that is open for reading.

    It is read by position and never mapped: a file that another process cuts short gives a
    ``InputError``, where a mapping would end the process by a signal.

    Raises:
        InputError: If the file is not a whole shard.
    """

    handle = -1

    def __init__(self, path: Path, *, bare: bool = False) -> None:
        self.path = path
        self.handle = open_regular(path, follow_link=True)
        try:
            size = os.fstat(self.handle).st_size
            parse = parse_bare if bare else parse_header
            info = parse(path, os.pread(self.handle, HEADER_BYTES, 0), size)
        except BaseException:
            self.close()
            raise
        self.dtype, self.tokens = info
        self._start = 0 if bare else HEADER_BYTES

    def read(self, start: int, stop: int) -> Int32[np.ndarray, " n"]:
        """Tokens ``start`` to ``stop`` of the shard.

        Raises:
            InputError: If the file has become shorter than it was when it was opened, or an id is not
                below 2^31.
        """
        width = self.dtype.itemsize
        wanted, at = (stop - start) * width, self._start + start * width
        content = os.pread(self.handle, wanted, at)
        while len(content) < wanted:
            more = os.pread(self.handle, wanted - len(content), at + len(content))
            if not more:
                size = os.fstat(self.handle).st_size
                raise InputError(
                    f"{self.path} was cut to {size} bytes while in use; it had {self.tokens} tokens"
                )
            content += more
        ids = np.frombuffer(content, self.dtype)
        if self.dtype == UINT32 and ids.size and int(ids.max()) >= 2**31:
            raise InputError(f"{self.path} holds token id {int(ids.max())}, which no vocabulary has")
        return ids.astype(np.int32)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1

    def __del__(self) -> None:
        self.close()


def read_documents(path: Path, tokens: int) -> Int64[np.ndarray, " d"]:
    """The document offsets beside a shard of ``tokens`` tokens.

    Raises:
        InputError: If the offsets are not strictly ascending within the shard.
    """
    with os.fdopen(open_regular(path, follow_link=True), "rb") as file:
        content = file.read()
    if len(content) % INT64.itemsize:
        raise InputError(f"{path} has {len(content)} bytes, which is no multiple of {INT64.itemsize}")
    starts = np.frombuffer(content, INT64).astype(np.int64)
    if starts.size and (starts[0] < 0 or starts[-1] >= tokens or np.any(np.diff(starts) <= 0)):
        raise InputError(f"{path} does not hold ascending offsets below the shard's {tokens} tokens")
    return starts
