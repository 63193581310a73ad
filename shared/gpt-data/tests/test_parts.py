from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpt_data.cache import cached_dataset
from gpt_data.dataset import Dataset
from gpt_data.errors import InputError
from gpt_data.loader import BatchLoader
from gpt_data.parts import Part, parse_part
from gpt_data.prepare import prepare
from gpt_data.prepare_command import prepare_command
from gpt_data.sources.hub import HubDataset, HubName
from gpt_data.sources.standard_library import StandardLibrary
from gpt_data.sources.text_files import TextFiles
from gpt_data.stream import TokenStream


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven files, three of them held out by name."""
    folder = tmp_path / "texts"
    for name in [f"{i}.txt" for i in range(8)] + [f"val/{i}.txt" for i in range(3)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"file {name} of all the files\n" * 5)
    return folder


@pytest.fixture
def parts(folder: Path, tmp_path: Path) -> Path:
    for i in (1, 2, 3):
        prepare(f"text:{folder}", "bytes", tmp_path / "tokens" / f"p{4 - i}", part=f"{i}/3", shard_tokens=300)
    return tmp_path / "tokens"


def all_tokens(dataset: Dataset, split: str) -> list[bytes]:
    stream = getattr(dataset, split)
    assert isinstance(stream, TokenStream)
    ids = stream.read(0, stream.tokens)
    starts = stream.document_starts(0, stream.tokens)
    assert np.array_equal(starts, np.flatnonzero(ids == 256))
    return sorted(part.tobytes() for part in np.split(ids, starts[1:]))


def test_parts_together_are_the_whole(folder: Path, parts: Path, tmp_path: Path) -> None:
    whole = prepare(f"text:{folder}", "bytes", tmp_path / "whole")
    together = cached_dataset(f"shards:{parts}", None)
    for split in ("train", "val"):
        assert all_tokens(together, split) == all_tokens(whole, split)
    # in the order of the parts, wherever they lie
    assert together.train.tokens == sum(Dataset.open(parts / f"p{i}").train.tokens for i in (1, 2, 3))
    first = Dataset.open(parts / "p3").train
    assert isinstance(first, TokenStream)
    assert isinstance(together.train, TokenStream)
    assert np.array_equal(together.train.read(0, first.tokens), first.read(0, first.tokens))
    assert BatchLoader(together.train, rows=2, context=16).batch(7).tokens.shape == (2, 16)
    moved = shutil.move(parts / "p2", parts / "a")
    assert Dataset.open(parts).fingerprint == together.fingerprint
    shutil.move(moved, parts / "p2")


def test_what_does_not_hold_together_is_refused_by_name(folder: Path, parts: Path, tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message):
            Dataset.open(parts)

    away = shutil.move(parts / "p2", tmp_path / "away")
    refused("tokens holds parts 1/3, 3/3; parts 2/3 are missing")
    shutil.copytree(parts / "p1", parts / "twice")
    refused("p1 and .*twice are both part 3/3")
    shutil.rmtree(parts / "twice")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"part": "2/4"}, "p2 has another part than .*p1: 'of 4', there 'of 3'"),
        ({"part": "2/3", "max_tokens": 10}, "another max_tokens than .*p1: 10, there None"),
        ({}, "p2 is a whole, and no part"),
    ]
    for options, message in cases:
        prepare(f"text:{folder}", "bytes", parts / "p2", shard_tokens=300, **options)
        refused(message)
        shutil.rmtree(parts / "p2")
    (folder / "9.txt").write_text("one more")
    prepare(f"text:{folder}", "bytes", parts / "p2", part="2/3", shard_tokens=300)
    refused("another files than")
    shutil.rmtree(parts / "p2")
    shutil.move(away, parts / "p2")
    path = parts / "p2" / "manifest.json"
    path.rename(path.with_name("progress.json"))
    with pytest.raises(InputError, match="manifest"):
        Dataset.open(parts)


def test_a_parts_tokenizer_is_the_others(folder: Path, parts: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="--part needs a tokenizer that all parts share, and bpe-scratch:300"
    ):
        prepare(f"text:{folder}", "bpe-scratch:300", tmp_path / "x", part="1/3")
    shutil.rmtree(parts / "p2")
    tokenizer = json.loads((parts / "p1" / "tokenizer.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps(tokenizer))
    prepare(f"text:{folder}", str(tmp_path / "t.json"), parts / "p2", part="2/3", shard_tokens=300)
    with pytest.raises(InputError, match=r"p2 has another (sha256|tokenizer) than"):
        Dataset.open(parts)


def test_a_part_is_no_whole_and_no_other_part(folder: Path, parts: Path) -> None:
    for part, now in ((None, "None"), ("1/3", "1/3")):
        with pytest.raises(InputError, match=f"was begun with another part: 2/3, now {now}"):
            prepare(f"text:{folder}", "bytes", parts / "p2", part=part, shard_tokens=300)


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "1/0", "-1/3", "a/b", "1/3/5", "1.0/3"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is none of 1/N to N/N"):
        parse_part(text)


def test_more_parts_than_files_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="has 8 files to train on, too few for part 2/9"):
        TextFiles(folder, 2**20, part=Part(2, 9))


def test_the_standard_library_in_parts_is_all_of_it() -> None:
    whole = StandardLibrary(2**20)
    parts = [StandardLibrary(2**20, part=Part(i, 5)) for i in range(1, 6)]
    assert sorted(name for part in parts for name in part.names) == whole.names
    assert all(part.identity() == whole.identity() for part in parts)


# as many files as the parts divide, and as they do not: the library parts the records then
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("count", [2, 4, 3])
def test_the_hubs_records_are_shared_out_and_begun_anywhere(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    texts = [f"document {i}" for i in range(40)]
    for file in range(4):
        rows = [json.dumps({"text": text}) + "\n" for text in texts[10 * file : 10 * file + 10]]
        (tmp_path / "hub" / f"train-{file:05d}.jsonl").write_text("".join(rows))
    found: list[str] = []
    for i in range(1, count + 1):
        source = HubDataset(HubName(str(tmp_path / "hub")), 2**20, part=Part(i, count), pin={})
        mine = [str(record["text"]) for record in source.records()]
        for start in (1, 9, 11):
            assert [record["text"] for record in source.records(start)] == mine[start:]
        found += mine
    assert sorted(found) == sorted(texts)


def test_the_command_says_what_to_do_with_a_part(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [f"--data=text:{folder}", "--tokenizer=bytes", "--plain"]
    assert prepare_command([*common, "--part=1/2", f"--out={tmp_path}/t/one"]) == 0
    assert f"train with --data shards:{tmp_path}/t, once all 2 parts lie there" in capsys.readouterr().out
    with pytest.raises(InputError, match="part '3/2' is none of"):
        prepare_command([*common, "--part=3/2", f"--out={tmp_path}/t/two"])
