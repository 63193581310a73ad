"""Where pairs come from: the layout of each source, what is held out, and what is refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiayn_jax.data import wmt14
from aiayn_jax.data.sources import open_corpus
from aiayn_jax.settings import DataSection
from gpt_data.errors import InputError, StoppedError
from gpt_data.sources import hub
from gpt_data.sources.hub import RetryPolicy

MULTI30K = Path(__file__).parents[4] / "shared" / "data" / "translation" / "multi30k"


def write_lines(path: Path, lines: list[str]) -> Path:
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_multi30k(folder: Path) -> Path:
    for part, count in (("train", 6), ("val", 3), ("test_2016_flickr", 2)):
        for language in ("en", "de"):
            write_lines(folder / f"{part}.{language}.gz", [f"{language} {part} {i}" for i in range(count)])
    return folder


@pytest.mark.parametrize(("direction", "first"), [("en-de", "en"), ("de-en", "de")])
def test_multi30k_in_both_directions(tmp_path: Path, direction: str, first: str) -> None:
    corpus = open_corpus(DataSection(f"multi30k:{write_multi30k(tmp_path)}", direction=direction))
    assert [len(part) for part in (corpus.train, corpus.val, corpus.test)] == [6, 3, 2]
    assert corpus.test.source[1] == f"{first} test_2016_flickr 1"
    assert corpus.test.target[1] == f"{({'en', 'de'} - {first}).pop()} test_2016_flickr 1"
    assert corpus.score == "bleu"


@pytest.mark.skipif(not MULTI30K.is_dir(), reason="the shared data is not here")
def test_the_real_multi30k() -> None:
    corpus = open_corpus(DataSection(f"multi30k:{MULTI30K}"))
    assert corpus.notes == ("pairs: 29,000 training, 1,014 validation, 1,000 test",)
    assert corpus.test.target[0] == "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt."


def test_without_validation_files_pairs_are_held_out_and_none_is_in_both(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "s", [f"s{i}" for i in range(120)])
    target = write_lines(tmp_path / "t", [f"t{i}" for i in range(120)])
    corpus = open_corpus(DataSection(f"pairs:{source},{target}"))
    assert list(corpus.val.source) == ["s0", "s50", "s100"]
    assert len(corpus.train) == 117
    assert not set(corpus.train.source) & set(corpus.val.source)
    assert corpus.test == corpus.val
    assert corpus.notes == (
        "pairs: 117 training, 3 validation, 3 test",
        "no --val: pair 1 of every 50 is held out, 3 in all",
        "no --test: the score at the end is that of the validation pairs",
    )


def test_given_files_are_used_as_they_are_and_notes_of_each_are_kept(tmp_path: Path) -> None:
    files = [write_lines(tmp_path / name, ["a", "", "c"]) for name in ("s", "t", "vs", "vt", "es", "et")]
    s, t, vs, vt, es, et = map(str, files)
    corpus = open_corpus(DataSection(f"pairs:{s},{t}", val=f"{vs},{vt}", test=f"{es},{et}", max_pairs=1))
    assert [len(part) for part in (corpus.train, corpus.val, corpus.test)] == [1, 2, 2]
    assert (
        sum("1 pair left out, the source and target is empty (line 2)" in note for note in corpus.notes) == 3
    )


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (DataSection("wmt15"), "--data wmt15 is none of numbers, wmt14, multi30k:DIR, pairs:SRC,TGT"),
        (DataSection("multi30k:"), "--data multi30k: is none of"),
        (DataSection("multi30k:nowhere"), "multi30k:nowhere: there is no such folder"),
        (DataSection("multi30k:."), r"holds no train\.en, nor that with \.bz2"),
        (DataSection("pairs:one"), "one is not two files with a comma"),
        (DataSection("pairs:one,"), "one, is not two files"),
        (DataSection("pairs:one,two"), "one is missing"),
        (DataSection("numbers", val="s,t"), "--val goes with --data pairs:SRC,TGT, not with --data numbers"),
        (DataSection("wmt14", test="s,t"), "--test goes with --data pairs"),
        (DataSection("wmt14", direction="en-fr"), "--direction en-fr: wmt14 here is de-en or en-de"),
        (DataSection("wmt14", direction="en"), "--direction en is not like en-de"),
    ],
    ids=lambda value: value.data if isinstance(value, DataSection) else "",
)
def test_what_is_not_a_source_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: DataSection, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        open_corpus(section)


def test_two_files_of_one_part_are_not_chosen_between(tmp_path: Path) -> None:
    write_lines(write_multi30k(tmp_path) / "val.de", ["another text"])
    with pytest.raises(InputError, match=r"holds val\.de and val\.de\.gz: leave one of them"):
        open_corpus(DataSection(f"multi30k:{tmp_path}"))


def test_a_lone_pair_cannot_be_held_out(tmp_path: Path) -> None:
    files = [str(write_lines(tmp_path / name, ["a"])) for name in ("s", "t")]
    with pytest.raises(InputError, match="give --val"):
        open_corpus(DataSection(f"pairs:{','.join(files)}"))


class Records:
    """Stands in for ``datasets``: streams records of three splits, in wmt14's form."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked: list[tuple[Any, ...]] = []

    def load_dataset(
        self, name: str, config: str | None, *, split: str, streaming: bool, revision: str
    ) -> Any:
        self.asked.append((name, config, split, streaming, revision))
        return [
            {"translation": {"de": f"Satz {i} {split}", "en": f"sentence {i}\n{split}"}}
            for i in range(self.count)
        ]


def test_wmt14_streams_its_three_splits_at_one_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(5)
    monkeypatch.setattr(hub, "_library", lambda: records)
    monkeypatch.setattr(hub.HubDataset, "_revision", lambda self: "abc")
    corpus = open_corpus(DataSection("wmt14", max_pairs=3))
    assert [len(part) for part in (corpus.train, corpus.val, corpus.test)] == [3, 5, 5]
    assert (corpus.train.source[2], corpus.train.target[2]) == ("sentence 2 train", "Satz 2 train")
    assert corpus.pin == {"revision": "abc"}
    assert records.asked == [
        ("wmt/wmt14", "de-en", split, True, "abc") for split in ("test", "validation", "train")
    ]
    german = open_corpus(DataSection("wmt14", direction="de-en"))
    assert (german.val.source[0], german.val.target[0]) == ("Satz 0 validation", "sentence 0 validation")


# the extra is not installed where this package's own tests run
def test_a_folder_of_the_same_form_through_the_real_library(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    rows = [{"translation": {"de": f"Satz {i}", "en": f"sentence {i}"}} for i in range(4)]
    rows[2]["translation"]["en"] = " "
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs, pin = wmt14.stream_pairs("train", ("de", "en"), max_pairs=None, dataset=str(tmp_path), pin={})
    assert list(pairs.source) == ["Satz 0", "Satz 1", "Satz 3"]
    assert pairs.notes == (f"{tmp_path} train: 1 pair left out, the target is empty (record 3)",)
    assert pin == {}


def test_a_stream_that_never_comes_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **named: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub, "_library", lambda: type("Broken", (), {"load_dataset": staticmethod(fail)}))
    monkeypatch.setattr(hub.HubDataset, "_revision", lambda self: "abc")
    notices: list[str] = []
    with pytest.raises(StoppedError, match=r"failed at record 0 \(ConnectionError: no route") as caught:
        wmt14.stream_pairs(
            "train", ("de", "en"), max_pairs=9, on_notice=notices.append, retry=RetryPolicy(0.01, 0.02, 0.05)
        )
    assert "\n" not in str(caught.value)
    assert notices


def test_records_of_another_form_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(self: hub.HubDataset, start: int = 0) -> Iterator[Mapping[str, Any]]:
        yield {"translation": {"de": "a", "fr": "b"}}

    monkeypatch.setattr(hub.HubDataset, "records", stream)
    monkeypatch.setattr(hub.HubDataset, "_revision", lambda self: "abc")
    with pytest.raises(InputError, match="train record 1 has no 'translation' with de and en"):
        wmt14.stream_pairs("train", ("de", "en"), max_pairs=None)
