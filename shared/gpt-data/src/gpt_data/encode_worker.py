"""A process that turns documents into token ids: ``python -m gpt_data.encode_worker TOKENIZER``.

It reads frames from its standard input (8 bytes of length, then a JSON list of documents) and answers
each with a status byte and a frame: framed ids and document starts, or an error message. It ends when
its input does, so that it does not outlive the process that started it.

Shapes: n tokens, d documents.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from pathlib import Path
from typing import IO, NamedTuple

import bpe_scratch
import numpy as np
from jaxtyping import Int64, UInt32

LENGTH = struct.Struct("<Q")
GOOD, BAD = b"+", b"-"


class Encoded(NamedTuple):
    """Documents as tokens, each opened by the end-of-text token.

    Attributes:
        ids: The tokens of all documents, end to end.
        starts: Where each document begins, and the end of the last.
    """

    ids: UInt32[np.ndarray, " n"]
    starts: Int64[np.ndarray, " d+1"]


def encode(tokenizer: bpe_scratch.Tokenizer, texts: list[str]) -> Encoded:
    """Encode documents, opening each by the end-of-text token; special text in them stays text.

    Args:
        tokenizer: One that has an end-of-text token.
        texts: The documents.

    Raises:
        ValueError: If a document is no valid Unicode.
    """
    if not texts:
        return Encoded(np.empty(0, np.uint32), np.zeros(1, np.int64))
    ids, offsets = tokenizer.encode_to_numpy(texts)
    assert tokenizer.end_of_text is not None, "build_tokenizer refuses these"
    framed = np.insert(ids.astype(np.uint32), offsets[:-1], tokenizer.end_of_text)
    return Encoded(framed, offsets.astype(np.int64) + np.arange(len(offsets)))


def read_frame(file: IO[bytes]) -> bytes | None:
    """The next frame, or None at the end of the file, even in the middle of a frame."""
    head = file.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(head)
    body = file.read(size)
    return body if len(body) == size else None


def write_frame(file: IO[bytes], body: bytes) -> None:
    """Write one frame and flush."""
    file.write(LENGTH.pack(len(body)))
    file.write(body)
    file.flush()


def pack(encoded: Encoded) -> bytes:
    """An answer's body."""
    return LENGTH.pack(encoded.starts.size) + encoded.starts.tobytes() + encoded.ids.tobytes()


def unpack(body: bytes) -> Encoded:
    """The inverse of ``pack``."""
    (count,) = LENGTH.unpack_from(body)
    starts = np.frombuffer(body, np.int64, count, LENGTH.size)
    return Encoded(np.frombuffer(body, np.uint32, -1, LENGTH.size + starts.nbytes), starts)


def main() -> None:
    """Serve until the input ends."""
    # Ctrl-C goes to every process of the terminal; the parent decides when its workers end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # a parent that was killed reads no answers: that ends its workers without a word
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    # a library that prints must not garble the frames
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    tokenizer = bpe_scratch.Tokenizer.load(Path(sys.argv[1]))
    while (frame := read_frame(sys.stdin.buffer)) is not None:
        try:
            status, body = GOOD, pack(encode(tokenizer, json.loads(frame)))
        except ValueError as error:
            status, body = BAD, str(error).encode(errors="replace")
        answers.write(status)
        write_frame(answers, body)


if __name__ == "__main__":
    main()
