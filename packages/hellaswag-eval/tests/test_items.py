"""Reading items: the original form, the reduced ones, and what is wrong with them, by line."""

from __future__ import annotations

import gzip
import json
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gpt_trainer.errors import InputError
from hellaswag_eval import choose, read_items, sources
from hellaswag_eval.items import Item, read_item

ORIGINAL = {
    "ind": 4,
    "activity_label": "Roof shingle removal",
    "ctx_a": "A man is sitting on a roof.",
    "ctx_b": "he",
    "ctx": "A man is sitting on a roof. he",
    "split": "val",
    "split_type": "indomain",
    "label": 3,
    "endings": ["wraps skis.", "rips tiles.", "holds a cube.", "pulls up roofing."],
    "source_id": "activitynet~v_-JhWjGDPHMY",
}


def test_the_original_form() -> None:
    item = read_item(ORIGINAL, 7, "x")
    assert item == Item(
        7,
        "A man is sitting on a roof. he",
        ("wraps skis.", "rips tiles.", "holds a cube.", "pulls up roofing."),
        3,
        "Roof shingle removal",
        ("A man is sitting on a roof.", "he"),
        wikihow=False,
    )


def test_reduced_forms() -> None:
    kept = {name: ORIGINAL[name] for name in ("ctx", "endings")}
    assert read_item({**kept, "label": "2"}, 0, "x") == Item(0, kept["ctx"], tuple(kept["endings"]), 2)
    parts = {name: ORIGINAL[name] for name in ("ctx_a", "ctx_b", "endings", "label")}
    assert read_item(parts, 0, "x").context == ORIGINAL["ctx"]
    assert read_item({**ORIGINAL, "source_id": "wikihow~6"}, 0, "x").wikihow is True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"endings": ["a", " \t", "b", "c"]}, "ending 1 is ' \\t'"),
        ({"endings": ["a", "", "b", "c"]}, "ending 1 is ''"),
        ({"endings": ["a"]}, "at least 2"),
        ({"endings": "abc"}, "expected a list"),
        ({"label": 4}, "label is 4, expected 0 to 3"),
        ({"label": -1}, "label is -1"),
        ({"label": ""}, "label is ''"),
        ({"label": True}, "label is True"),
        ({"label": None}, "label is None"),
        ({"ctx": " "}, "ctx is ' '"),
        ({"ctx": 5}, "ctx is 5"),
        ({"ctx_b": None}, "ctx_b is None"),
        ({"activity_label": 1}, "activity_label is 1"),
        ({"ctx": "a \ud83d b"}, "ctx is 'a \\ud83d b', expected a text"),
        ({"endings": ["a", "\udc00", "b"]}, "ending 1 is '\\udc00', expected a text"),
        ({"label": "1" * 5000}, "label is '1111"),
        ({"label": 10**4000}, "label is 1000"),
        ({"endings": {"a": ["b" * 9999]}}, "endings is {'a': ['bbb"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match="line 3") as caught:
        read_item({**ORIGINAL, **change}, 0, "line 3")
    assert words in str(caught.value)
    assert caught.value.exit_status == 65
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("pack", [lambda content: content, gzip.compress], ids=["plain", "gzip"])
def test_files(tmp_path: Path, pack: Any) -> None:
    # U+2028 is a line separator to str.splitlines and not to JSON lines
    odd = {**ORIGINAL, "ctx": "Grüße\u2028東京 🙂"}
    text = "\n \n".join(json.dumps(item, ensure_ascii=False) for item in (ORIGINAL, odd)) + "\n\n"
    path = tmp_path / "items"
    # a byte-order mark, as some editors put it
    path.write_bytes(pack(text.encode("utf-8-sig")))
    items = read_items(path)
    assert [item.row for item in items] == [0, 1]
    assert items[1].context == "Grüße\u2028東京 🙂"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no items"),
        (b"{}\n", "line 1: ctx is ''"),
        (json.dumps(ORIGINAL).encode() + b"\n{", "line 2 is not JSON"),
        (b"[1]\n", "line 1 is a JSON array, expected an object"),
        (b"\xff\n", "line 1 is not UTF-8 at byte 0"),
        (gzip.compress(b"{}", mtime=0)[:-9], "ended before the end of the stream"),
        (b"[" * 100_000, "line 1 is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 1 is not JSON"),
        (gzip.compress(b" " * 2**21, mtime=0), "line 1 is longer than 1048576 bytes"),
    ],
    ids=[
        "empty",
        "no fields",
        "half a line",
        "no object",
        "not UTF-8",
        "half a gzip",
        "deep",
        "digits",
        "long",
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_items(path)
    assert words in str(caught.value)
    assert caught.value.exit_status == 65
    assert len(str(caught.value)) < 300


def test_a_file_that_unpacks_to_more_than_memory_holds_costs_none(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl.gz"
    path.write_bytes(gzip.compress(b"a" * 2**26))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="line 1 is longer"):
            read_items(path)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl is missing"):
        read_items(tmp_path / "none.jsonl")


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(HF_HUB_OFFLINE=False)

    def library(load_dataset: Any) -> None:
        config.HF_HUB_OFFLINE = False
        found = SimpleNamespace(load_dataset=load_dataset, config=config)
        monkeypatch.setitem(sys.modules, "datasets", found)

    def load_dataset(name: str, *, split: str) -> list[dict[str, Any]]:
        assert (name, split) == ("Rowan/hellaswag", "validation")
        return [{**ORIGINAL, "label": "3"}]

    def broken(name: str, *, split: str) -> None:
        raise ConnectionError("no such\nfile")

    def no_answer(question: Any) -> None:
        raise InputError("the hub does not answer (no route)")

    monkeypatch.setattr(sources, "ask", lambda question: None)
    library(load_dataset)
    assert read_items(None) == [read_item(ORIGINAL, 0, "x")]
    assert not config.HF_HUB_OFFLINE
    library(broken)
    with pytest.raises(InputError, match=r"cannot read Rowan/hellaswag: no such; or name a file with --data"):
        read_items(None)
    # no answer, but a copy of an earlier day; then none
    monkeypatch.setattr(sources, "ask", no_answer)
    library(load_dataset)
    assert read_items(None) == [read_item(ORIGINAL, 0, "x")]
    assert config.HF_HUB_OFFLINE
    library(broken)
    with pytest.raises(InputError, match=r"the hub does not answer \(no route\); or name a file"):
        read_items(None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"hellaswag-eval\[data\]"):
        read_items(None)


def test_a_subset_is_decided_by_its_seed() -> None:
    items = [read_item(ORIGINAL, row, "x") for row in range(50)]
    rows = {seed: [item.row for item in choose(items, 9, seed)] for seed in (None, 1, 2)}
    assert rows[None] == list(range(9))
    assert rows[1] == sorted(set(rows[1]))
    assert rows[1] != rows[2]
    assert rows[1] == [item.row for item in choose(items, 9, 1)]
    assert choose(items, 99, 1) == choose(items, None, None) == items
    with pytest.raises(InputError, match="--limit 0"):
        choose(items, 0, None)
