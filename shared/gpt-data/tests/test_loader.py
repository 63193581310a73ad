from __future__ import annotations

import os
import threading
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
from gpt_data.batch import IGNORE, Batch
from gpt_data.errors import InputError
from gpt_data.loader import BatchLoader
from gpt_data.stream import TokenStream

MakeStream = Callable[..., TokenStream]
# 23 windows of 8, which no number of rows below divides; documents of many lengths
TOKENS = [256 if i % 11 in (0, 4) else i for i in range(23 * 8 + 5)]


def same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(x, y) if x is not None else y is None for x, y in zip(a, b, strict=True))


def loader(make_stream: MakeStream, **options: object) -> BatchLoader:
    stream = make_stream(TOKENS[:50], TOKENS[50:])
    return BatchLoader(stream, **({"rows": 4, "context": 8, "seed": 1} | options))  # type: ignore[arg-type]


def test_targets_are_the_tokens_that_follow(make_stream: MakeStream) -> None:
    batch = loader(make_stream).batch(0)
    assert batch.tokens.dtype == batch.targets.dtype == np.int32
    assert batch.segment_starts is None
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        places = [
            i for i in range(0, 23 * 8, 8) if TOKENS[i : i + 8] == tokens and TOKENS[i + 1 : i + 9] == targets
        ]
        assert places


@pytest.mark.parametrize("rows", [1, 4, 23, 50], ids=lambda n: f"{n} rows")
def test_an_epoch_shows_every_window_once_and_the_next_in_another_order(
    make_stream: MakeStream, rows: int
) -> None:
    data = loader(make_stream, rows=rows)
    order = [window for _, window in data.places(0, 3 * 23)]
    epochs = [order[:23], order[23:46], order[46:]]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    shown = np.concatenate([data.batch(step).tokens for step in range(-(-69 // rows))])[:69]
    assert shown.tolist() == [TOKENS[w * 8 : w * 8 + 8] for w in order]


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_any_step_can_be_gone_to_at_once(make_stream: MakeStream, packing: str) -> None:
    straight = loader(make_stream, packing=packing)
    with straight.prefetch() as batches:
        run = [next(batches) for _ in range(30)]
    for step in range(30):
        fresh = loader(make_stream, packing=packing)
        assert same(fresh.batch(step), run[step])
        with fresh.prefetch(step) as batches:
            assert same(next(batches), run[step])


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_ranks_share_the_same_batches(make_stream: MakeStream, world: int, packing: str) -> None:
    whole = loader(make_stream, packing=packing)
    parts = [loader(make_stream, packing=packing, rank=rank, world=world) for rank in range(world)]
    for step in range(12):
        assert same(join([part.batch(step) for part in parts]), whole.batch(step))
    for pieces, batch in zip(
        zip(*[part.sequential(9) for part in parts], strict=True), whole.sequential(9), strict=True
    ):
        assert same(join(list(pieces)), batch)


def join(batches: list[Batch]) -> Batch:
    starts = [batch.segment_starts for batch in batches if batch.segment_starts is not None]
    return Batch(
        np.concatenate([batch.tokens for batch in batches]),
        np.concatenate([batch.targets for batch in batches]),
        np.concatenate(starts) if starts else None,
    )


def test_documents_packing_sees_the_same_windows(make_stream: MakeStream) -> None:
    stream, documents = loader(make_stream), loader(make_stream, packing="documents")
    for step in range(8):
        a, b = stream.batch(step), documents.batch(step)
        assert np.array_equal(a.tokens, b.tokens)
        assert b.segment_starts is not None
        begins = b.segment_starts == np.arange(8)
        assert np.array_equal(begins[:, 1:], b.tokens[:, 1:] == 256)


@pytest.mark.parametrize(("max_rows", "rows"), [(None, 23), (1, 1), (4, 4), (6, 6), (1000, 23)])
def test_evaluation_goes_in_order_and_fills_up(
    make_stream: MakeStream, max_rows: int | None, rows: int
) -> None:
    data = loader(make_stream, packing="documents")
    batches = list(data.sequential(max_rows))
    assert all(batch.tokens.shape == (4, 8) for batch in batches)
    whole = join(batches)
    assert whole.tokens[:rows].tolist() == [TOKENS[w * 8 : w * 8 + 8] for w in range(rows)]
    assert (whole.targets[rows:] == IGNORE).all()
    assert len(batches) == -(-rows // 4)
    assert all(same(a, b) for a, b in zip(batches, data.sequential(max_rows), strict=True))


@pytest.mark.parametrize("tokens", [0, 1, 7, 8])
def test_too_little_for_one_row_is_an_error(make_stream: MakeStream, tokens: int) -> None:
    with pytest.raises(InputError, match=rf"split train has {tokens} tokens; one row of context 8 needs 9"):
        BatchLoader(make_stream(TOKENS[:tokens]), rows=4, context=8)


def test_one_window_repeats_rather_than_ends(make_stream: MakeStream) -> None:
    data = BatchLoader(make_stream(TOKENS[:9]), rows=4, context=8)
    assert data.batch(1000).tokens.tolist() == [TOKENS[:8]] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "rows=0"),
        ({"context": 0}, "context=0"),
        ({"world": 0}, "world=0"),
        ({"rank": 2, "world": 2}, r"rank=2 is not in \[0, 2\)"),
        ({"world": 3}, "rows=4 is not a multiple of world=3"),
        ({"packing": "dense"}, "packing='dense'"),
    ],
)
def test_bad_arguments_are_named(make_stream: MakeStream, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loader(make_stream, **options)
    with pytest.raises(ValueError, match="step=-1"):
        loader(make_stream).batch(-1)


def test_an_error_while_prefetching_reaches_the_consumer(make_stream: MakeStream) -> None:
    tokens = list(TOKENS)
    tokens[100] = 300
    data = BatchLoader(make_stream(tokens), rows=4, context=8)
    with data.prefetch() as batches, pytest.raises(InputError, match="token id 300"):
        list(islice(batches, 7))


def test_a_shard_cut_while_training_is_an_error(make_stream: MakeStream) -> None:
    data = loader(make_stream)
    os.truncate(data.streams[0]._shards[1].path, 1100)
    with pytest.raises(InputError, match=r"train-1\.bin was cut"):
        [data.batch(step) for step in range(6)]


def test_leaving_prefetch_ends_its_thread(make_stream: MakeStream) -> None:
    before = threading.active_count()
    with loader(make_stream).prefetch() as batches:
        next(batches)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    with pytest.raises(KeyError), loader(make_stream).prefetch():
        raise KeyError
    assert threading.active_count() == before
