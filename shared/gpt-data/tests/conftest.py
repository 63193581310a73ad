from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from gpt_data import encoding, pipeline
from gpt_data.dataset import Dataset
from gpt_data.prepare import prepare
from gpt_data.shards import Shard, encode_header, token_dtype
from gpt_data.stream import TokenStream

END = 256
# a shell's background job is deaf to Ctrl-C, and so would be every process that these tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
# a shared machine is no place for deadlines; the fixtures used with hypothesis hold no state
hypothesis.settings.register_profile(
    "gpt-data", deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
hypothesis.settings.load_profile("gpt-data")


@pytest.fixture
def write_shard(tmp_path: Path) -> Callable[..., Path]:
    """Write a shard by hand, without the writer under test."""

    def write(name: str, tokens: Sequence[int], vocab_size: int = 257) -> Path:
        dtype = token_dtype(vocab_size)
        path = tmp_path / name
        path.write_bytes(encode_header(dtype, len(tokens)) + np.array(tokens, dtype).tobytes())
        return path

    return write


@pytest.fixture
def make_stream(write_shard: Callable[..., Path]) -> Callable[..., TokenStream]:
    """A stream over shards of the given tokens; documents are found at END."""

    def make(*shards: Sequence[int], vocab_size: int = 257, end_of_text: int = END) -> TokenStream:
        paths = [write_shard(f"train-{i}.bin", tokens, vocab_size) for i, tokens in enumerate(shards)]
        return TokenStream("train", [Shard(p) for p in paths], vocab_size=vocab_size, end_of_text=end_of_text)

    return make


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Sixty-one small files with an empty one among them; by number, 1 and 51 are held out."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(61):
        (folder / f"{i:03d}.txt").write_text("" if i == 7 else f"file {i}\n" + "déjà vu " * (i % 9))
    return folder


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few documents at a time, each chunk committed, so that a preparation has many moments to end at."""
    monkeypatch.setattr(encoding, "CHUNK_DOCUMENTS", 5)
    monkeypatch.setattr(pipeline, "COMMIT_SECONDS", 0.0)


@pytest.fixture
def run() -> Callable[..., Dataset]:
    """Prepare a folder of texts in small shards."""

    def prepare_small(corpus: Path, out: Path, **options: Any) -> Dataset:
        return prepare(f"text:{corpus}", "bytes", out, **({"shard_tokens": 700} | options))

    return prepare_small


@pytest.fixture
def small_corpus(corpus: Path) -> Path:
    """The first nine files of ``corpus``."""
    for path in sorted(corpus.iterdir())[9:]:
        path.unlink()
    return corpus


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file that belongs to the dataset, with its bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture(name="content_of")
def content_of_fixture() -> Callable[[Path], dict[str, bytes]]:
    return content_of
