"""Results are filled in place: no further than their ends, and given back when they are not wanted."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest
from bpe_scratch import Tokenizer
from byte_tokenizers import byte_ids, byte_tokenizer


def test_nothing_is_written_beyond_the_end_of_bytes() -> None:
    pytest.importorskip("numba")
    from bpe_scratch.compiled.decoder import CompiledDecoder

    tokens = [b"a", b"bc", b"d" * 15, b"e" * 16, b"f" * 40]
    decoder = CompiledDecoder(tokens)
    for last in range(5):
        for number in (1, 2, 9):
            ids = np.array([last] * number, dtype=np.uint16)
            raw = tokens[last] * number
            room = np.full(len(raw) + 128, 0xEE, dtype=np.uint8)
            place, given = room.ctypes.data + 64, (ids.view(np.uint8), True, number)
            decoder._kernels.copy_tokens(*given, *decoder._tables, place, len(raw))
            assert room.tobytes() == b"\xee" * 64 + raw + b"\xee" * 64


def test_nothing_is_written_beyond_the_end_of_a_string() -> None:
    pytest.importorskip("numba")
    work = """
from bpe_scratch import Tokenizer
tokenizer = Tokenizer(Tokenizer.from_bytes().vocabulary, special_tokens={"-" * 15: 256}, layer="compiled")
for size in range(70, 140):
    for wide in ("", "é", "Ā", "😀"):
        for text in (wide + "a" * size, "a" * size + wide):
            ids = tokenizer.encode(text)
            for form in (ids, [256] * 6 + ids, ids + [256] * 6):
                tokenizer.decode(form)
"""
    # Python then guards each string, and ends the process when it frees one that was overrun
    guarded = os.environ | {"PYTHONMALLOC": "debug"}
    subprocess.run([sys.executable, "-c", work], env=guarded, check=True, timeout=100)


def test_unfinished_strings_are_given_back(layer: Any) -> None:
    tokenizer = byte_tokenizer(layer)
    good, bad = (np.array(byte_ids(b"a" * 200_000 + end), np.uint16) for end in (b"", b"\xff"))
    # compiling is slow while memory is traced
    assert tokenizer.decode(good) + "\ufffd" == tokenizer.decode(bad)
    tracemalloc.start()
    for ids in (good, bad):
        tokenizer.decode(ids)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(20):
            tokenizer.decode(ids)
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    tracemalloc.stop()


def test_threads_decode_the_same(gpt2: Tokenizer, layer: Any) -> None:
    tokenizer = Tokenizer(gpt2.vocabulary, layer=layer)
    texts = [f"the {'né' * i} 中 {'😀' * (i % 3)} " * 300 for i in range(8)]
    ids, offsets = tokenizer.encode_to_numpy(texts)
    batch = [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    found: list[list[str]] = []
    runners = [threading.Thread(target=lambda: found.append(tokenizer.decode_batch(batch))) for _ in range(6)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    assert found == [texts] * 6
