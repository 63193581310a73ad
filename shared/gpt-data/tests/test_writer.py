from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gpt_data.errors import InputError
from gpt_data.shards import Shard, read_documents
from gpt_data.writer import SplitState, SplitWriter
from hypothesis import given, settings
from hypothesis import strategies as st

DOCUMENTS = [np.array([256, *range(n)]) for n in (3, 0, 12, 1, 7, 0, 0, 25, 4)]


def open_writer(folder: Path, state: SplitState | None = None, **options: int) -> SplitWriter:
    folder.mkdir(exist_ok=True)
    settings = {"vocab_size": 257, "shard_tokens": 10} | options
    return SplitWriter(folder, "train", state=state or SplitState(), **settings)


def append(writer: SplitWriter, documents: list[np.ndarray]) -> None:
    sizes = np.array([document.size for document in documents], np.int64)
    writer.append(np.concatenate(documents), np.cumsum(sizes) - sizes)


def test_shards_are_cut_where_they_are_full(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    append(writer, DOCUMENTS[:3])
    append(writer, DOCUMENTS[3:])
    state = writer.finish()
    whole = np.concatenate(DOCUMENTS)
    assert [shard.tokens for shard in state.shards] == [10] * 6 + [1]
    assert sum(shard.documents for shard in state.shards) == len(DOCUMENTS)
    assert not list(tmp_path.glob("*.partial"))
    base = 0
    for record in state.shards:
        shard = Shard(tmp_path / record.data.name)
        tokens = shard.read(0, shard.tokens)
        assert tokens.tolist() == whole[base : base + shard.tokens].tolist()
        starts = read_documents(tmp_path / record.offsets.name, shard.tokens)
        assert starts.tolist() == np.flatnonzero(tokens == 256).tolist()
        base += shard.tokens
    assert base == whole.size


@pytest.mark.parametrize("bad", [257, 50257, 65535, 65536, -1, 70000])
def test_an_id_outside_the_vocabulary_is_refused_before_the_cast(tmp_path: Path, bad: int) -> None:
    writer = open_writer(tmp_path)
    with pytest.raises(InputError, match=rf"split train: token id {bad} is outside the vocabulary of 257"):
        append(writer, [np.array([256, 1]), np.array([256, bad])])
    assert writer.state == SplitState()
    assert list(tmp_path.iterdir()) == []


def test_a_wide_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    writer = open_writer(tmp_path, vocab_size=70001)
    append(writer, [np.array([70000, 65536, 5])])
    (record,) = writer.finish().shards
    assert Shard(tmp_path / record.data.name).read(0, 3).tolist() == [70000, 65536, 5]
    assert record.data.bytes == 1024 + 3 * 4


@settings(max_examples=25)
@given(
    committed=st.integers(0, len(DOCUMENTS)),
    lost=st.integers(0, len(DOCUMENTS)),
    shard_tokens=st.sampled_from([1, 4, 10, 53, 60, 1000]),
)
def test_what_was_not_committed_is_written_again(
    tmp_path_factory: pytest.TempPathFactory,
    content_of: Callable[[Path], dict[str, bytes]],
    committed: int,
    lost: int,
    shard_tokens: int,
) -> None:
    clean, broken = tmp_path_factory.mktemp("clean"), tmp_path_factory.mktemp("broken")
    writer = open_writer(clean, shard_tokens=shard_tokens)
    append(writer, DOCUMENTS)
    final = writer.finish()

    writer = open_writer(broken, shard_tokens=shard_tokens)
    for document in DOCUMENTS[:committed]:
        append(writer, [document])
    state = writer.commit()
    for document in DOCUMENTS[committed : committed + lost]:
        append(writer, [document])
    if lost % 2:
        writer.finish()
    writer.close()

    writer = open_writer(broken, state, shard_tokens=shard_tokens)
    for document in DOCUMENTS[committed:]:
        append(writer, [document])
    assert writer.finish() == final
    assert content_of(broken) == content_of(clean)


def test_a_lost_partial_file_is_named(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    append(writer, DOCUMENTS[:1])
    state = writer.commit()
    writer.close()
    (tmp_path / "train-00000.bin.partial").unlink()
    with pytest.raises(InputError, match=r"train-00000\.bin\.partial has 0 bytes; the journal says 1032"):
        open_writer(tmp_path, state)
