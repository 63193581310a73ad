from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gpt_data.cache import cached_dataset
from gpt_data.errors import InputError
from gpt_data.loader import BatchLoader
from gpt_data.mixture import BLOCK, Mixture, long_enough, mix, parse_mixture, quotas_of
from gpt_data.prepare import prepare
from gpt_data.stream import TokenStream

MakeStream = Callable[..., TokenStream]


@pytest.fixture
def mixture(tmp_path: Path, make_stream: MakeStream) -> Mixture:
    """41, 7 and 13 windows of 8; the tokens say which stream and which window."""
    streams = {}
    for number, windows in enumerate((41, 7, 13)):
        streams["abc"[number]] = make_stream([50 * number + i // 8 for i in range(8 * windows + 1)])
        # the fixture gives all the same name
        (tmp_path / "train-0.bin").rename(tmp_path / f"s{number}.bin")
    return mix(streams, {"a": 7.0, "b": 2.0, "c": 1.0})


def shown(loader: BatchLoader, steps: range) -> list[int]:
    return np.concatenate([loader.batch(step).tokens[:, 0] for step in steps]).tolist()


def test_shares_hold_to_the_row_and_every_window_comes_once_an_epoch(mixture: Mixture) -> None:
    loader = BatchLoader(mixture, rows=100, context=8, seed=3)
    rows = shown(loader, range(2 * BLOCK // 100))
    assert Counter(token // 50 for token in rows) == {0: 14_000, 1: 4_000, 2: 2_000}
    # within a thousand rows, too, the shares are nearly those: ten standard deviations
    assert abs(sum(token < 50 for token in rows[:1000]) - 700) < 145
    for stream, windows in enumerate((41, 7, 13)):
        own = [token % 50 for token in rows if token // 50 == stream]
        epochs = [own[at : at + windows] for at in range(0, len(own) - windows, windows)]
        assert all(sorted(epoch) == list(range(windows)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 10
    assert loader.windows == min(41 * 10 // 7, 7 * 10 // 2, 13 * 10)


def test_a_batch_is_a_function_of_seed_and_step_and_ranks_share_it(mixture: Mixture) -> None:
    # steps on both sides of a block's end
    steps = [0, 1, 832, 833, 834, 5000]
    whole = {step: BatchLoader(mixture, rows=12, context=8, seed=5).batch(step).tokens for step in steps}
    for world in (2, 4):
        ranks = [
            BatchLoader(mixture, rows=12, context=8, seed=5, rank=rank, world=world) for rank in range(world)
        ]
        for step in reversed(steps):
            parts = np.concatenate([rank.batch(step).tokens for rank in ranks])
            assert np.array_equal(parts, whole[step])
    other = BatchLoader(mixture, rows=12, context=8, seed=6)
    assert not np.array_equal(other.batch(0).tokens, whole[0])


def test_the_order_is_frozen(mixture: Mixture) -> None:
    # runs that were begun with this order must go on with it
    places = BatchLoader(mixture, rows=6, context=8, seed=3).places(20_000, 20_008)
    assert places == [(0, 19), (0, 23), (1, 3), (0, 27), (0, 38), (0, 17), (0, 35), (0, 22)]


def test_streams_of_one_length_are_shuffled_each_in_an_order_of_its_own(
    tmp_path: Path, make_stream: MakeStream
) -> None:
    streams = {}
    for number in range(2):
        streams["ab"[number]] = make_stream([100 * number + i // 8 for i in range(8 * 50 + 1)])
        (tmp_path / "train-0.bin").rename(tmp_path / f"s{number}.bin")
    rows = shown(BatchLoader(mix(streams, {"a": 1.0, "b": 1.0}), rows=100, context=8, seed=3), range(5))
    orders = [[token % 100 for token in rows if token // 100 == stream][:50] for stream in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] != orders[1]


def test_a_row_that_rounding_leaves_goes_to_who_lost_most_by_it() -> None:
    assert quotas_of({"a": 0.33331, "b": 0.33335, "c": 0.33334}) == (3333, 3334, 3333)
    assert quotas_of({"a": 9999.0, "b": 1.0}) == (9999, 1)


def test_evaluation_takes_each_streams_first_rows_up_to_the_first_end(mixture: Mixture) -> None:
    loader = BatchLoader(mixture, rows=4, context=8)
    rows = [int(token) for batch in loader.sequential() for token in batch.tokens[:, 0]]
    for stream in range(3):
        own = [token % 50 for token in rows if token // 50 == stream]
        # rows without targets, which fill the last batch up, are zeros
        assert own[: max(own) + 1] == list(range(max(own) + 1))
    # the first row that its stream no longer has is the end, and comes later than the shares alone would say
    sources, owns = mixture.places(np.arange(BLOCK), 0)
    end = int(np.argmax(owns >= np.array([41, 7, 13])[sources]))
    assert end > loader.windows
    assert sum(batch.target_count for batch in loader.sequential()) == 8 * end
    assert next(loader.sequential(6)).tokens.tolist() == [[row] * 8 for row in rows[:4]]


def test_what_is_too_short_for_a_row_is_left_out(mixture: Mixture) -> None:
    kept = long_enough(mixture, 60)
    assert isinstance(kept, Mixture)
    assert str(kept) == "a (0.875), c (0.125)"
    assert long_enough(mixture, 1000) is None
    assert long_enough(mixture.streams[0], 8) is mixture.streams[0]


def test_names_and_weights_are_read_whatever_the_names_hold() -> None:
    text = "mix:hf:a/b:c:train:0.5,text:a,b:1/:.25,shards:/x:2.,stdlib:1"
    assert parse_mixture(text) == {
        "hf:a/b:c:train": 0.5,
        "text:a,b:1/": 0.25,
        "shards:/x": 2.0,
        "stdlib": 1.0,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mix:", "names no source"),
        ("mix:stdlib", "'stdlib' is no source and weight"),
        ("mix:stdlib:1,text:a", "'text:a' is no source and weight"),
        ("mix:stdlib:-1", "is no source and weight"),
        ("mix:stdlib:nan", "is no source and weight"),
        ("mix:stdlib:1,stdlib:2", "'stdlib' cannot stand here"),
        ("mix:mix:stdlib:1", "'mix:stdlib' cannot stand here"),
        ("mix:stdlib:1,text:TEXTS:0", "text:TEXTS has weight 0, less than a row in 10,000"),
        ("mix:stdlib:0", "stdlib has weight 0"),
    ],
)
def test_what_is_no_mixture_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.txt").write_text("some text\n" * 100)
    with pytest.raises(InputError, match=message.replace("TEXTS", str(tmp_path))):
        cached_dataset(text.replace("TEXTS", str(tmp_path)), "bytes", cache_dir=tmp_path / "cache")


def test_sources_share_the_first_ones_tokenizer(tmp_path: Path, corpus: Path) -> None:
    books = tmp_path / "books"
    books.mkdir()
    (books / "a.txt").write_text("a book about books\n" * 200)
    cache = tmp_path / "cache"
    weights = f"mix:text:{corpus}:3,text:{books}:1"
    dataset = cached_dataset(weights, "bpe-scratch:270", cache_dir=cache)
    assert [(entry["share"], name) for name, entry in dataset.sources.items()] == [
        (0.75, f"text:{corpus}"), (0.25, f"text:{books}"),
    ]  # fmt: skip
    assert isinstance(dataset.train, Mixture)
    assert dataset.opening(5).tolist() == dataset.val.streams[0].read(0, 5).tolist()  # type: ignore[union-attr]
    again = cached_dataset(weights, "bpe-scratch:270", cache_dir=cache)
    assert again.fingerprint == dataset.fingerprint
    others = [weights.replace(":3,", ":2,"), f"mix:text:{books}:1,text:{corpus}:3"]
    assert dataset.fingerprint not in {
        cached_dataset(other, "bpe-scratch:270", cache_dir=cache).fingerprint for other in others
    }
    prepare(f"text:{books}", "bytes", tmp_path / "bytes")
    with pytest.raises(InputError, match="was made with another tokenizer than"):
        cached_dataset(
            f"mix:text:{corpus}:1,shards:{tmp_path / 'bytes'}:1", "bpe-scratch:270", cache_dir=cache
        )
