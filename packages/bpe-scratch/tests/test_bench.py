"""What is timed is what the tables say: fresh objects, then one whose results are released; the same ids."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bpe_scratch import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import bench_tokenizers as bench


class Result:
    pass


def test_cold_runs_are_of_fresh_objects_and_warm_ones_of_one() -> None:
    made: list[int] = []
    ran: list[int] = []
    kept: list[weakref.ref[Result]] = []

    def make() -> Callable[[], Result]:
        made.append(len(made))
        own = made[-1]

        def run() -> Result:
            assert all(old() is None for old in kept), "an earlier result is still held"
            ran.append(own)
            result = Result()
            kept.append(weakref.ref(result))
            return result

        return run

    seen: list[Any] = []
    cold, warm = bench.cold_and_warm(make, bench.Effort(3, 60.0), lambda result: seen.append(type(result)))
    assert (len(cold), len(warm), seen) == (3, 3, [Result])
    # the fourth is run once untimed, and its ids are looked at
    assert ran == [0, 1, 2, 3, 3, 3, 3]


@pytest.mark.parametrize(("each", "runs"), [(1.0, 5), (30.0, 2), (59.0, 2), (61.0, 1)])
def test_a_slow_run_is_not_repeated(each: float, runs: int) -> None:
    assert bench.Effort(5, 60.0)(lambda: each) == [each] * runs


def test_other_ids_are_no_time_worth_reporting(monkeypatch: pytest.MonkeyPatch) -> None:
    def encoders(tokenizer: Tokenizer, documents: list[str]) -> dict[str, Any]:
        return {"one": lambda: lambda: np.array([1, 2], np.uint16), "other": lambda: lambda: [[1], [3]]}

    monkeypatch.setattr(bench, "encoders", encoders)
    with pytest.raises(AssertionError, match="other gives other ids"):
        bench._encoding(Tokenizer.from_bytes(), ["ab"], bench.Effort(1, 1.0))


def test_the_tables_show_what_they_should(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpus.txt").write_text("the cat sat on the mat\nthat's the cat's hat\n" * 20, "utf-8")
    Tokenizer.from_bytes().save(tmp_path / "tokenizer.json")
    given = [tmp_path / "corpus.txt", "--tokenizer", tmp_path / "tokenizer.json", "--repeats=2", "--train=10"]
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, given)])
    bench.main()
    shown = capsys.readouterr().out
    assert shown.count("tiktoken") >= 4
    for told in ("Cold:", "Warm:", "spread", "a list per document to text", "train 10 merges"):
        assert told in shown
