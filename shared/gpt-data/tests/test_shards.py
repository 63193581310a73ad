from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gpt_data.errors import InputError
from gpt_data.shards import UINT16, UINT32, Shard, encode_header, read_documents, token_dtype
from gpt_data.stream import TokenStream


def test_header_is_that_of_llm_c() -> None:
    # the layout by hand: 256 little-endian int32, of which three are used
    assert encode_header(UINT16, 7) == struct.pack("<3i", 20240520, 1, 7) + bytes(253 * 4)
    assert encode_header(UINT32, 9)[:12] == struct.pack("<3i", 20240801, 7, 9)


def test_a_shard_written_by_hand_is_read(tmp_path: Path) -> None:
    path = tmp_path / "edu_fineweb_train_000001.bin"
    path.write_bytes(
        struct.pack("<3i", 20240520, 1, 4) + bytes(1012) + struct.pack("<4H", 50256, 1, 40000, 65535)
    )
    shard = Shard(path)
    assert shard.read(0, 4).tolist() == [50256, 1, 40000, 65535]
    assert shard.read(2, 3).tolist() == [40000]
    assert shard.read(1, 1).tolist() == []


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        ((0, 1, 2), 4, "magic 0"),
        ((20240521, 1, 2), 4, "magic 20240521"),
        ((20240520, 2, 2), 4, "version 2"),
        ((20240801, 1, 2), 8, "version 1"),
        ((20240520, 1, 3), 4, "3 tokens"),
        ((20240520, 1, 1), 4, "1 tokens"),
        ((20240520, 1, -1), 0, "-1 tokens"),
        ((20240520, 1, 2**31 - 1), 4, "2147483647 tokens"),
    ],
)
def test_a_wrong_header_is_refused(
    tmp_path: Path, header: tuple[int, int, int], body: int, message: str
) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(struct.pack("<3i", *header) + bytes(1012 + body))
    with pytest.raises(InputError, match=f"{path}.*{message}"):
        Shard(path)


def test_every_truncation_is_refused(write_shard: Callable[..., Path]) -> None:
    path = write_shard("train.bin", [1, 2, 3])
    whole = path.read_bytes()
    # an even cut loses a whole token, so that only the header's count tells
    for size in [*range(0, 1024, 97), *range(1024, len(whole))]:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=str(path)):
            Shard(path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "train.bin"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, tmp_path / "missing.bin"):
        with pytest.raises(InputError, match=f"{path} is (missing|not a regular file)"):
            Shard(path)


def test_a_shard_cut_while_open_is_an_error_and_no_signal(write_shard: Callable[..., Path]) -> None:
    path = write_shard("train.bin", range(200))
    shard = Shard(path)
    os.truncate(path, 1024 + 100)
    assert shard.read(0, 50).tolist() == list(range(50))
    with pytest.raises(InputError, match=r"train\.bin was cut to 1124 bytes"):
        shard.read(40, 60)


@pytest.mark.parametrize(
    ("offsets", "size"),
    [([3, 2], 16), ([0, 0], 16), ([-1], 8), ([0, 10], 16), ([0], 7)],
    ids=["descending", "twice", "negative", "beyond", "odd length"],
)
def test_damaged_document_offsets_are_refused(tmp_path: Path, offsets: list[int], size: int) -> None:
    path = tmp_path / "train.docs"
    path.write_bytes(np.array(offsets, "<i8").tobytes()[:size])
    with pytest.raises(InputError, match=str(path)):
        read_documents(path, 10)


def test_a_stream_joins_its_shards(make_stream: Callable[..., TokenStream]) -> None:
    tokens = [256, *range(9), 256, *range(4), 256, 256, *range(7)]
    # an empty shard between two, and boundaries inside and at the start of a document
    stream = make_stream(tokens[:4], [], tokens[4:10], tokens[10:])
    assert stream.tokens == len(tokens)
    starts = [i for i, token in enumerate(tokens) if token == 256]
    for a in range(len(tokens) + 1):
        for b in range(a, len(tokens) + 1):
            assert stream.read(a, b).tolist() == tokens[a:b]
            assert stream.document_starts(a, b).tolist() == [i for i in starts if a <= i < b]
    with pytest.raises(ValueError, match="do not lie within"):
        stream.read(3, len(tokens) + 1)


def test_document_files_say_where_documents_begin(write_shard: Callable[..., Path], tmp_path: Path) -> None:
    shards = [Shard(write_shard(f"{i}.bin", range(5))) for i in range(2)]
    # documents without an opening token, which only the files can tell
    files = []
    for i, starts in enumerate(([0, 3], [1, 4])):
        files.append(tmp_path / f"{i}.docs")
        files[-1].write_bytes(np.array(starts, "<i8").tobytes())
    stream = TokenStream("train", shards, vocab_size=257, end_of_text=256, documents=files)
    assert stream.document_starts(0, 10).tolist() == [0, 3, 6, 9]
    assert stream.document_starts(1, 9).tolist() == [3, 6]
    assert stream.document_starts(4, 6).tolist() == []


@pytest.mark.parametrize(("vocab_size", "bad"), [(257, 257), (257, 65535), (50257, 50257), (70000, 70000)])
def test_an_id_outside_the_vocabulary_is_refused(
    make_stream: Callable[..., TokenStream], vocab_size: int, bad: int
) -> None:
    stream = make_stream([1] * 10, [*[1] * 5, bad, *[1] * 4], vocab_size=vocab_size)
    assert stream.read(0, 15).size == 15
    with pytest.raises(
        InputError, match=rf"train-1\.bin holds token id {bad} at position 5, .* of {vocab_size}"
    ):
        stream.read(12, 18)


def test_a_four_byte_id_that_int32_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(encode_header(UINT32, 1) + struct.pack("<I", 2**32 - 1))
    with pytest.raises(InputError, match="token id 4294967295"):
        Shard(path).read(0, 1)


def test_ids_take_two_bytes_as_long_as_all_fit() -> None:
    assert [token_dtype(size) for size in (257, 2**16, 2**16 + 1)] == [UINT16, UINT16, UINT32]
