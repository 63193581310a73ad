from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bpe_scratch
import numpy as np
import pytest
from gpt_data import verify
from gpt_data.cache import cached_dataset, default_cache
from gpt_data.dataset import Dataset
from gpt_data.errors import InputError
from gpt_data.loader import BatchLoader
from gpt_data.manifest import load_manifest
from gpt_data.prepare import prepare
from gpt_data.progress import Progress
from gpt_data.published import Vocabulary
from gpt_data.tokenizers import load_tokenizer


@pytest.fixture
def folder(small_corpus: Path, tmp_path: Path) -> Path:
    prepare(f"text:{small_corpus}", "bytes", tmp_path / "out", shard_tokens=100)
    return tmp_path / "out"


def data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def test_open_gives_both_splits(folder: Path) -> None:
    dataset = Dataset.open(folder)
    assert (dataset.vocabulary.size, dataset.vocabulary.end_of_text) == (257, 256)
    assert dataset.vocabulary.tokenizer_json == (folder / "tokenizer.json").read_bytes()
    tokenizer = bpe_scratch.Tokenizer.from_bytes()
    assert dataset.train.read(0, 7).tolist() == [256, *tokenizer.encode("file 0")]
    held = max(path.read_text() for path in folder.parent.glob("corpus/*"))[-10:]
    assert tokenizer.decode(dataset.val.read(1, dataset.val.tokens).tolist()).endswith(held)
    dataset.close()


def test_every_flipped_bit_is_found_and_named(folder: Path) -> None:
    draw = random.Random(0)
    for path in data_files(folder):
        whole = path.read_bytes()
        bits = range(8 * len(whole))
        for bit in draw.sample(bits, min(12, len(bits))):
            path.write_bytes(flipped(whole, bit))
            with pytest.raises(InputError, match=path.name):
                Dataset.open(folder)
        path.write_bytes(whole)
    Dataset.open(folder)


def flipped(whole: bytes, bit: int) -> bytes:
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_any_bit_of_the_manifest_counts(folder: Path) -> None:
    path, draw = folder / "manifest.json", random.Random(0)
    whole = path.read_bytes()
    for bit in draw.sample(range(8 * len(whole)), 400):
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(InputError, match="manifest"):
            load_manifest(folder)


def test_a_manifest_of_the_first_version_is_read_and_held_to_its_files(folder: Path) -> None:
    path, opened = folder / "manifest.json", Dataset.open(folder)
    assert opened.manifest is not None
    first = opened.manifest.to_json(version=1)
    assert first != opened.manifest.to_json()
    path.write_bytes(first)
    assert Dataset.open(folder).fingerprint == opened.fingerprint
    # without a hash of its own a changed value is found only where something else says the same
    for old, new in (
        (b'"end_of_text": 256', b'"end_of_text": 216'),
        (b'"vocab_size": 257', b'"vocab_size": 657'),
    ):
        assert old in first
        path.write_bytes(first.replace(old, new))
        with pytest.raises(InputError, match=r"the manifest says .*, tokenizer\.json has"):
            Dataset.open(folder)
    path.write_bytes(re.sub(rb'"tokens": (\d+)', rb'"tokens": 1\1', first, count=1))
    with pytest.raises(InputError, match="its values are not those that it was written with"):
        Dataset.open(folder)


@pytest.mark.parametrize("damage", ["cut", "cut to even bytes", "empty", "longer", "missing", "swapped"])
@pytest.mark.parametrize("name", ["train-00000.bin", "train-00001.docs", "val-00000.bin", "tokenizer.json"])
def test_a_damaged_file_is_named(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    changed = {
        "cut": whole[:-1],
        "cut to even bytes": whole[:-2],
        "empty": b"",
        "longer": whole + b"\0\0",
        "swapped": (folder / "train-00002.bin").read_bytes(),
    }
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(changed[damage])
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        Dataset.open(folder)


def test_a_verified_file_is_not_hashed_again_until_it_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Dataset.open(folder)
    hashed: list[str] = []
    real = verify._check_content
    monkeypatch.setattr(verify, "load_tokenizer", lambda path: pytest.fail("it was compared before"))
    monkeypatch.setattr(
        verify, "_check_content", lambda path, file: (hashed.append(path.name), real(path, file))[1]
    )
    Dataset.open(folder)
    assert hashed == []
    os.utime(folder / "val-00000.bin", ns=(1, 1))
    Dataset.open(folder)
    assert hashed == ["val-00000.bin"]
    # another file in its place, of its size and time, as one that was copied or restored
    status = (folder / "val-00000.bin").stat()
    shutil.copy2(folder / "val-00000.bin", folder / "other")
    (folder / "other").replace(folder / "val-00000.bin")
    assert (folder / "val-00000.bin").stat().st_mtime_ns == status.st_mtime_ns
    Dataset.open(folder)
    assert hashed == 2 * ["val-00000.bin"]
    monkeypatch.setattr(verify, "load_tokenizer", load_tokenizer)
    each = len(data_files(folder)) - 1
    for times, damage in enumerate((b"\xff[", b"[" * 100_000), start=1):
        (folder / ".verified.json").write_bytes(damage)
        Dataset.open(folder)
        assert len(hashed) == 2 + times * each


def edit(content: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split("/")
    for part in path:
        content = content[int(part) if part.isdecimal() else part]
    content[last] = value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "other"),
        ("version", 3),
        ("version", True),
        ("version", None),
        ("vocab_size", -1),
        ("vocab_size", "257"),
        ("vocab_size", 200),
        ("end_of_text", True),
        ("splits", []),
        ("splits/train/0/tokens", 99),
        ("splits/train/0/data", None),
        ("splits/train/0/data/name", "../train-00000.bin"),
        ("splits/train/0/data/name", "/etc/passwd"),
        ("splits/train/0/data/name", ".."),
        ("splits/train/0/data/sha256", 5),
        ("splits/train/0/offsets/bytes", 8.0),
        ("tokenizer/sha256", "0" * 64),
        ("plan", None),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder: Path, key: str, value: Any) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_bytes())
    edit(content, key, value)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=str(folder)):
        Dataset.open(folder)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b"[" * 100_000, b'{"format": NaN}'])
def test_a_manifest_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        Dataset.open(folder)


def test_the_fingerprint_follows_the_content_and_not_the_place(
    folder: Path, small_corpus: Path, tmp_path: Path
) -> None:
    first = Dataset.open(folder).fingerprint
    assert Dataset.open(shutil.copytree(folder, tmp_path / "copy")).fingerprint == first
    (small_corpus / "003.txt").write_text("something else")
    prepare(f"text:{small_corpus}", "bytes", tmp_path / "other", shard_tokens=100)
    assert Dataset.open(tmp_path / "other").fingerprint != first


def test_one_split_alone_is_prepared_where_nobody_needs_the_other(corpus: Path, tmp_path: Path) -> None:
    source, cache = f"text:{corpus}", tmp_path / "cache"
    told: list[Progress] = []
    held = cached_dataset(source, "bytes", cache_dir=cache, only="val", on_progress=told.append)
    assert told[-1].tokens == held.val.tokens
    assert held.train.tokens == 0
    whole = cached_dataset(source, "bytes", cache_dir=cache)
    assert held.val.read(0, held.val.tokens).tolist() == whole.val.read(0, whole.val.tokens).tolist()
    assert whole.train.tokens > whole.val.tokens > 0
    # both are there, or needed
    assert cached_dataset(source, "bytes", cache_dir=cache, only="val").folder == whole.folder
    assert cached_dataset(source, "bytes", cache_dir=cache, only="val", max_tokens=50).train.tokens > 0


def published(folder: Path, name: str, tokens: list[int]) -> None:
    header = struct.pack("<3i", 20240520, 1, len(tokens)) + bytes(1012)
    (folder / name).write_bytes(header + np.array(tokens, "<u2").tobytes())


def test_published_shards_are_read_as_they_are(tmp_path: Path) -> None:
    published(tmp_path, "edu_fineweb_train_000002.bin", [9, 50256, 4, 5])
    published(tmp_path, "edu_fineweb_train_000001.bin", [50256, 1, 2, 3, 50256, 8])
    published(tmp_path, "edu_fineweb_val_000000.bin", [50256, 7, 7])
    before = sorted(path.name for path in tmp_path.iterdir())
    dataset = cached_dataset(f"shards:{tmp_path}", "gpt2", cache_dir=tmp_path / "cache")
    assert (dataset.vocabulary.size, dataset.vocabulary.end_of_text, dataset.vocabulary.tokenizer_json) == (
        50257,
        50256,
        None,
    )
    assert dataset.train.read(0, 10).tolist() == [50256, 1, 2, 3, 50256, 8, 9, 50256, 4, 5]
    assert dataset.train.document_starts(1, 10).tolist() == [4, 7]
    assert dataset.val.tokens == 3
    batch = BatchLoader(dataset.train, rows=1, context=9, packing="documents").batch(0)
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1]]
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    first = dataset.fingerprint
    published(tmp_path, "edu_fineweb_val_000000.bin", [50256, 7, 8])
    assert Dataset.open(tmp_path).fingerprint != first


def test_both_ends_of_a_published_shard_tell_it_from_others(tmp_path: Path) -> None:
    # longer than what is read at either end
    found = set[str]()
    for first, last in ((1, 1), (2, 1), (1, 2)):
        published(tmp_path, "x_train_0.bin", [50256, first, *[0] * 1_100_000, last])
        found.add(Dataset.open(tmp_path).fingerprint)
    assert len(found) == 3


def test_published_shards_need_a_tokenizer_that_fits(tmp_path: Path) -> None:
    published(tmp_path, "x_train_0.bin", [50256, 1, 2, 3])
    with pytest.raises(InputError, match="--tokenizer must name it"):
        cached_dataset(f"shards:{tmp_path}", "bpe-scratch:300", cache_dir=tmp_path)
    dataset = cached_dataset(f"shards:{tmp_path}", "bytes", cache_dir=tmp_path)
    with pytest.raises(InputError, match="token id 50256"):
        dataset.train.read(0, 4)
    assert Dataset.open(tmp_path, Vocabulary(50304, 50256)).vocabulary.size == 50304
    assert cached_dataset(f"shards:{tmp_path}", None).vocabulary.size == 50257


@pytest.mark.parametrize("name", ["medieval", "constrained", "interval.train", "train_stained"])
def test_a_split_is_a_word_of_a_shards_name(tmp_path: Path, name: str) -> None:
    name = name.removesuffix(".train")
    published(tmp_path, "validation.bin", [50256, 9])
    published(tmp_path, "training.bin", [50256, 9])
    joined = "" if name == "train_stained" else "_train"
    published(tmp_path, f"{name}{joined}_000001.bin", [50256, *range(99)])
    published(tmp_path, f"{name.removeprefix('train_')}_val_000000.bin", [50256, *range(49)])
    dataset = Dataset.open(tmp_path)
    assert (dataset.train.tokens, dataset.val.tokens) == (100, 50)
    published(tmp_path, "a-val.train.bin", [50256])
    with pytest.raises(InputError, match=r"a-val\.train\.bin is named for both splits, train and val"):
        Dataset.open(tmp_path)


def test_nanogpts_files_are_read_by_name(tmp_path: Path) -> None:
    np.array([50256, 1, 2, 50256, 3, *range(600)], "<u2").tofile(tmp_path / "train.bin")
    with pytest.raises(InputError, match=f"--data nanogpt:{tmp_path / 'train.bin'}"):
        cached_dataset(f"shards:{tmp_path}", None)
    named = tmp_path / "my shards"
    named.mkdir()
    (named / "train.bin").write_bytes((tmp_path / "train.bin").read_bytes())
    with pytest.raises(InputError, match=f"--data 'nanogpt:{named / 'train.bin'}'"):
        cached_dataset(f"shards:{named}", None)
    assert cached_dataset(f"nanogpt:{tmp_path / 'train.bin'}", None).val.tokens == 0
    np.array([50256, 7], "<u2").tofile(tmp_path / "val.bin")
    dataset = cached_dataset(f"nanogpt:{tmp_path / 'train.bin'}", None)
    assert (dataset.vocabulary.size, dataset.vocabulary.end_of_text) == (50257, 50256)
    assert dataset.train.read(0, 5).tolist() == [50256, 1, 2, 50256, 3]
    assert dataset.train.document_starts(0, 605).tolist() == [0, 3]
    assert dataset.val.read(0, 2).tolist() == [50256, 7]
    assert cached_dataset(f"nanogpt:{tmp_path / 'val.bin'}", None).val.tokens == 0
    bytewise = cached_dataset(f"nanogpt:{tmp_path / 'train.bin'}", "bytes")
    assert bytewise.fingerprint != dataset.fingerprint
    with pytest.raises(InputError, match=r"train\.bin holds token id 50256 .* outside the vocabulary of 257"):
        bytewise.train.read(0, 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"abc", "has 3 bytes, which is no multiple of 2"), (b"", "holds no tokens"), (None, "is missing")],
)
def test_what_is_none_of_nanogpts_files_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "train.bin").write_bytes(content)
    with pytest.raises(InputError, match=message):
        cached_dataset(f"nanogpt:{tmp_path / 'train.bin'}", None)
    published(tmp_path, "train.bin", [50256, 1])
    with pytest.raises(InputError, match=f"begins with a shard's header: give --data shards:{tmp_path}"):
        cached_dataset(f"nanogpt:{tmp_path / 'train.bin'}", None)


def test_folders_without_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"shards:{tmp_path / 'none'}: there is no such folder"):
        Dataset.open(tmp_path / "none")
    with pytest.raises(InputError, match=f"{tmp_path} holds neither manifest.json nor"):
        Dataset.open(tmp_path)
    published(tmp_path, "train.bin", [])
    with pytest.raises(InputError, match=f"{tmp_path} holds neither manifest.json nor"):
        Dataset.open(tmp_path)


def test_own_shards_refuse_another_tokenizer(folder: Path, tmp_path: Path) -> None:
    assert cached_dataset(f"shards:{folder}", "bytes", cache_dir=tmp_path).fingerprint
    assert cached_dataset(f"shards:{folder}", str(folder / "tokenizer.json"), cache_dir=tmp_path).fingerprint
    assert cached_dataset(f"shards:{folder}", None).fingerprint
    own = str(folder / "tokenizer.json")
    with pytest.raises(
        InputError, match=f"another tokenizer than gpt2: leave --tokenizer out, or give {own}"
    ):
        cached_dataset(f"shards:{folder}", "gpt2", cache_dir=tmp_path)


def test_the_cache_prepares_once(small_corpus: Path, tmp_path: Path) -> None:
    seen: list[Any] = []

    def get(**options: Any) -> Dataset:
        return cached_dataset(
            f"text:{small_corpus}",
            "bytes",
            cache_dir=tmp_path / "cache",
            on_progress=seen.append,
            **options,
        )

    first = get()
    assert seen
    seen.clear()
    assert get().folder == first.folder
    assert not seen
    assert get(max_tokens=20).folder != first.folder
    (small_corpus / "000.txt").write_text("changed")
    assert get().folder != first.folder


TWO = """
import sys
from pathlib import Path
from gpt_data.cache import cached_dataset
dataset = cached_dataset(f"text:{sys.argv[1]}", "bytes", cache_dir=Path(sys.argv[2]))
print(dataset.fingerprint)
"""


def test_two_processes_share_a_cache(
    small_corpus: Path, tmp_path: Path, content_of: Callable[..., Any]
) -> None:
    command = [sys.executable, "-c", TWO, str(small_corpus), str(tmp_path / "cache")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    prints = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert prints[0] == prints[1]
    (folder,) = (tmp_path / "cache").iterdir()
    assert not list(folder.glob("*.partial"))


def test_without_a_home_the_cache_must_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(InputError, match=r"no home folder .* --data-cache") as caught:
        cached_dataset("stdlib", "bytes")
    assert caught.value.exit_status == 65
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "gpt-data"


def test_text_needs_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="source stdlib is text: give --tokenizer, one of bytes, "):
        cached_dataset("stdlib", None, cache_dir=tmp_path)
