"""One piece as long as a whole text: exact ids in O(n log n), and Ctrl-C works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from bpe_oracles import as_tiktoken
from bpe_scratch import Tokenizer

SHAPES = {
    "letter": lambda n: "a" * n,
    "caret": lambda n: "^" * n,
    "spaces": lambda n: " " * n,
    "newlines": lambda n: "\n" * n,
    "spaces and a letter": lambda n: " " * (n - 1) + "a",
    "digits": lambda n: "1234567890" * (n // 10),
    "random letters": lambda n: (
        np.random.default_rng(0).integers(97, 123, n, dtype=np.uint8).tobytes().decode()
    ),
    "emoji": lambda n: "😀" * (n // 4),
    "NUL": lambda n: "\0" * n,
    "contractions": lambda n: "'s" * (n // 2),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_megabyte_is_exact(gpt2: Tokenizer, shape: str) -> None:
    text = SHAPES[shape](1_000_000)
    ids = gpt2.encode(text)
    assert gpt2.decode(ids) == text
    if shape == "spaces and a letter":
        # tiktoken's regular expression overflows its stack here; the pieces are known
        assert ids == gpt2.encode(" " * 999_998) + gpt2.encode(" a")
    else:
        assert ids == as_tiktoken(gpt2).encode_ordinary(text)


@pytest.mark.parametrize("size", [25, 300, 5000])
def test_without_numba_long_pieces_are_exact_too(gpt2: Tokenizer, size: int) -> None:
    plain = Tokenizer(gpt2.vocabulary, layer="reference")
    for shape, make in SHAPES.items():
        assert plain.encode(make(size)) == gpt2.encode(make(size)), shape


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_64_megabytes_within_a_minute(gpt2: Tokenizer, shape: str) -> None:
    pytest.importorskip("numba")
    text = SHAPES[shape](64 << 20)
    start = time.process_time()
    ids, _ = gpt2.encode_to_numpy([text])
    assert time.process_time() - start < 60
    assert gpt2.decode(ids) == text


@pytest.mark.slow
def test_ctrl_c_stops_a_long_piece(gpt2_files: tuple[str, str]) -> None:
    code = (
        "import sys; from bpe_scratch import Tokenizer; t = Tokenizer.from_gpt2(*sys.argv[1:]);"
        "t.encode('warm ' + 'a' * 999);"
        "print('ready', flush=True); t.encode('ab' * (16 << 20)); print('done', flush=True)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, gpt2_files)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    time.sleep(1)
    os.kill(child.pid, signal.SIGINT)
    start = time.monotonic()
    out, err = child.communicate(timeout=30)
    assert b"KeyboardInterrupt" in err
    assert b"done" not in out
    assert time.monotonic() - start < 10
