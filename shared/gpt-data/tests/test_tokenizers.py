from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gpt_data.dataset import Dataset
from gpt_data.encoding import encode
from gpt_data.errors import InputError
from gpt_data.prepare import prepare
from gpt_data.tokenizers import build_tokenizer, take_bytes, tokenizer_identity
from hypothesis import given
from hypothesis import strategies as st

DATA = Path(__file__).parents[4] / "shared" / "data"
needs_gpt2 = pytest.mark.skipif(
    not (DATA / "gpt2-tokenizer").is_dir(), reason="GPT-2's tokenizer files are not here"
)


@given(st.lists(st.text(max_size=20)), st.integers(0, 100))
def test_the_sample_is_the_first_bytes(documents: list[str], limit: int) -> None:
    taken = "".join(take_bytes(documents, limit)).encode()
    whole = "".join(documents).encode()
    assert whole.startswith(taken)
    # a character is never cut in two, which costs up to three bytes
    assert min(limit, len(whole)) - 3 <= len(taken) <= limit


def test_no_more_of_the_source_is_read_than_the_sample_needs() -> None:
    def endless() -> Iterator[str]:
        while True:
            yield "x" * 10

    assert sum(map(len, take_bytes(endless(), 95))) == 95


@given(st.lists(st.text(max_size=9)))
def test_documents_are_framed_and_come_back(texts: list[str]) -> None:
    tokenizer = build_tokenizer("bytes", None, ())
    encoded = encode(tokenizer, texts)
    assert encoded.starts.size == len(texts) + 1
    assert encoded.starts[-1] == encoded.ids.size
    for text, a, b in zip(texts, encoded.starts[:-1], encoded.starts[1:], strict=True):
        assert encoded.ids[a] == tokenizer.end_of_text
        assert tokenizer.decode(encoded.ids[a + 1 : b].tolist()) == text
    for count in range(len(texts) + 1):
        assert encoded.first(count).starts.tolist() == encoded.starts[: count + 1].tolist()
        assert encoded.first(count).ids.size == encoded.starts[count]


def test_a_trained_tokenizer_is_kept_beside_the_shards(corpus: Path, tmp_path: Path) -> None:
    first = prepare(f"text:{corpus}", "bpe-scratch:270", tmp_path / "a")
    again = prepare(f"text:{corpus}", "bpe-scratch:270", tmp_path / "b")
    assert 257 < first.vocabulary.size <= 270
    assert first.vocabulary.end_of_text == first.vocabulary.size - 1
    assert first.vocabulary == again.vocabulary
    assert first.fingerprint == again.fingerprint
    # the file is a tokenizer specification of its own, and gives the same tokens
    third = prepare(f"text:{corpus}", str(tmp_path / "a" / "tokenizer.json"), tmp_path / "c")
    assert third.fingerprint == first.fingerprint


@needs_gpt2
def test_gpt2_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Hello world"}\n{"text": "' + "held out " * 9 + '"}\n')
    dataset = prepare(
        f"text:{tmp_path / 'a.jsonl'}",
        "gpt2",
        tmp_path / "out",
        tokenizer_files=DATA / "gpt2-tokenizer",
    )
    assert (dataset.vocabulary.size, dataset.vocabulary.end_of_text) == (50257, 50256)
    assert dataset.train.read(0, 3).tolist() == [50256, 15496, 995]
    assert Dataset.open(tmp_path / "out").train.document_starts(0, 9).tolist() == [0, 3]


@needs_gpt2
@pytest.mark.skipif(not (DATA / "text" / "enwiki2015").is_dir(), reason="the Wikipedia text is not here")
def test_a_document_of_the_wikipedia_text_comes_back(tmp_path: Path) -> None:
    source = DATA / "text" / "enwiki2015" / "val.jsonl.xz"
    dataset = prepare(
        f"text:{source}",
        "gpt2",
        tmp_path,
        tokenizer_files=DATA / "gpt2-tokenizer",
        max_tokens=5000,
    )
    tokenizer = build_tokenizer("gpt2", DATA / "gpt2-tokenizer", ())
    text = tokenizer.decode(dataset.train.read(1, 60).tolist())
    assert text
    assert np.array_equal(tokenizer.encode(text), dataset.train.read(1, 60))


def test_a_tokenizer_without_end_of_text_is_refused(tmp_path: Path) -> None:
    import bpe_scratch

    bpe_scratch.train(["some text"], 260, special_tokens=()).save(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match=r"has no token <\|endoftext\|>"):
        build_tokenizer(str(tmp_path / "tokenizer.json"), None, ())


@pytest.mark.parametrize(
    "spec",
    ["", "BYTES", "bpe-scratch", "bpe-scratch:", "bpe-scratch:\uff11\uff10\uff10\uff10", "bpe-scratch:1e4"],
)
def test_unknown_tokenizers_are_named(spec: str) -> None:
    with pytest.raises(InputError, match="tokenizer"):
        tokenizer_identity(spec)
