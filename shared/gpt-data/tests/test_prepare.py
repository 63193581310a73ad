"""What preparation makes of a source, whatever the chunks, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import bpe_scratch
import pytest
from gpt_data import encoding
from gpt_data.dataset import Dataset
from gpt_data.errors import InputError, StoppedError
from gpt_data.prepare import prepare
from gpt_data.sources import Document
from hypothesis import given, settings
from hypothesis import strategies as st

ContentOf = Callable[[Path], dict[str, bytes]]
Run = Callable[..., Dataset]
pytestmark = pytest.mark.usefixtures("small_chunks")


def test_a_chunk_ends_with_the_document_that_fills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "CHUNK_CHARACTERS", 10)
    documents = [Document("train", "x" * length) for length in (4, 0, 6, 30, 1, 1)]
    found = [(chunk.characters, chunk.next_document) for chunk in encoding.chunks(documents, 7)]
    assert found == [(10, 10), (30, 11), (2, 13)]


def documents_of(dataset: Dataset, split: str) -> list[str]:
    stream = getattr(dataset, split)
    tokens = stream.read(0, stream.tokens)
    starts = [*stream.document_starts(0, stream.tokens).tolist(), stream.tokens]
    assert dataset.vocabulary.tokenizer_json is not None
    tokenizer = bpe_scratch.Tokenizer.load(dataset.folder / "tokenizer.json")
    assert all(tokens[start] == dataset.vocabulary.end_of_text for start in starts[:-1])
    return [tokenizer.decode(tokens[a + 1 : b].tolist()) for a, b in pairwise(starts)]


def test_every_document_comes_back_once_and_in_order(run: Run, corpus: Path, tmp_path: Path) -> None:
    dataset = run(corpus, tmp_path / "out")
    texts = [path.read_text() for path in sorted(corpus.iterdir())]
    held = [texts[1], texts[51]]
    assert documents_of(dataset, "val") == held
    assert documents_of(dataset, "train") == [text for text in texts if text and text not in held]
    assert dataset.manifest is not None
    assert dataset.manifest.tokens("train") == dataset.train.tokens
    assert dataset.manifest.documents("train") == 58
    assert len(dataset.manifest.splits["train"]) > 2


@pytest.mark.parametrize("documents", [1, 2, 3, 1000])
def test_chunks_do_not_change_the_bytes(
    run: Run,
    corpus: Path,
    tmp_path: Path,
    content_of: ContentOf,
    monkeypatch: pytest.MonkeyPatch,
    documents: int,
) -> None:
    run(corpus, tmp_path / "one")
    monkeypatch.setattr(encoding, "CHUNK_DOCUMENTS", documents)
    run(corpus, tmp_path / "many")
    assert content_of(tmp_path / "many") == content_of(tmp_path / "one")


@settings(max_examples=15)
@given(limit=st.integers(1, 1500))
def test_max_tokens_ends_after_a_whole_document(tmp_path_factory: pytest.TempPathFactory, limit: int) -> None:
    folder = tmp_path_factory.mktemp("max")
    (folder / "a.jsonl").write_text("".join(f'{{"text": "{"x" * (i % 40 + 1)}"}}\n' for i in range(60)))
    sizes = [i % 40 + 2 for i in range(60) if i % 50 != 1]
    dataset = prepare(f"text:{folder / 'a.jsonl'}", "bytes", folder / "out", max_tokens=limit)
    count = next((n for n in range(1, len(sizes)) if sum(sizes[:n]) >= limit), len(sizes))
    assert dataset.train.tokens == sum(sizes[:count])


def test_other_settings_are_refused_in_a_begun_and_in_a_finished_folder(
    run: Run, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        run(corpus, out, should_stop=lambda: True)
    for _ in range(2):
        with pytest.raises(InputError, match="begun with another shard_tokens: 700, now 800"):
            run(corpus, out, shard_tokens=800)
        with pytest.raises(InputError, match="another tokenizer: bytes, now bpe-scratch:300"):
            prepare(f"text:{corpus}", "bpe-scratch:300", out, shard_tokens=700)
        run(corpus, out)
    (corpus / "new.txt").write_text("another document")
    with pytest.raises(InputError, match="another files"):
        run(corpus, out)


# a manifest beside a run's checkpoints made --resume take the run for a step of another
@pytest.mark.parametrize("name", ["train-00000.bin", "run.json"])
def test_a_folder_of_something_else_is_not_touched(name: str, run: Run, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"precious")
    with pytest.raises(InputError, match=f"holds {name}, which no journal knows"):
        run(corpus, out)
    assert (out / name).read_bytes() == b"precious"
    assert {path.name for path in out.iterdir()} <= {name, ".lock"}


@pytest.mark.parametrize("text", [None, ""], ids=["no document", "an empty document"])
def test_an_empty_corpus_is_an_error(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "a.jsonl").write_text("" if text is None else '{"text": ""}\n' * 3)
    with pytest.raises(InputError, match=f"source text:{tmp_path / 'a.jsonl'} holds no training text"):
        prepare(f"text:{tmp_path / 'a.jsonl'}", "bytes", tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"shard_tokens": 0}, "shard_tokens=0"),
        ({"shard_tokens": 2**31}, "shard_tokens=2147483648"),
        ({"max_document_bytes": 0}, "max_document_bytes=0"),
    ],
)
def test_bad_settings_are_named(
    run: Run, corpus: Path, tmp_path: Path, options: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(corpus, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_the_same_however_it_is_typed_and_a_file_that_changed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in "ab":
        (texts / f"{name}.txt").write_text("some text\n" * 20)
    monkeypatch.chdir(tmp_path)
    assert (
        prepare("text:texts", "bytes", "out").train.tokens
        == prepare(f"text:{texts}", "bytes", "out").train.tokens
    )
    (texts / "b.txt").write_text("other text")
    with pytest.raises(
        InputError, match=r"begun with another files: \['b.txt', 200, \d+\], now \['b.txt', 10, "
    ):
        prepare("text:texts", "bytes", "out")
    (texts / "b.txt").unlink()
    with pytest.raises(InputError, match=r"begun with another files: \['b.txt', 200, \d+\], now without it;"):
        prepare("text:texts", "bytes", "out")


def test_special_text_in_a_document_stays_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a<|endoftext|>b"}\n{"text": "c"}\n')
    dataset = prepare(f"text:{tmp_path / 'a.jsonl'}", "bytes", tmp_path / "out")
    assert documents_of(dataset, "train") == ["a<|endoftext|>b"]
