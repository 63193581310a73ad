"""The command line, from a corpus to ids and back."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from bpe_scratch.commands import main
from bpe_scratch.corpus import read_documents
from bpe_scratch.tokenizer import Tokenizer

TEXT = "the cat sat on the mat\nthat's the cat's hat\n" * 20


@pytest.fixture
def trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, Path]:
    corpus, out = tmp_path / "corpus.txt", tmp_path / "tokenizer.json"
    corpus.write_text(TEXT, "utf-8")
    main(["train", str(corpus), "--vocab-size", "300", "--out", str(out)])
    assert "ids, sha256" in capsys.readouterr().err
    return corpus, out


def test_train_encode_decode(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    corpus, out = trained
    main(["encode", str(corpus), "--tokenizer", str(out)])
    ids = capsys.readouterr().out.split()
    assert [int(i) for i in ids] == Tokenizer.load(out).encode(TEXT)
    main(["decode", *ids, "--tokenizer", str(out)])
    assert capsys.readouterr().out == TEXT


def test_encode_to_a_file(trained: tuple[Path, Path], tmp_path: Path) -> None:
    corpus, out = trained
    main(["encode", str(corpus), str(corpus), "--tokenizer", str(out), "--out", str(tmp_path / "ids.bin")])
    tokenizer = Tokenizer.load(out)
    once = [*tokenizer.encode(TEXT), tokenizer.end_of_text]
    assert np.fromfile(tmp_path / "ids.bin", dtype="<u2").tolist() == once * 2


def test_inspect_and_bench_show_what_they_should(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, out = trained
    main(["inspect", "--tokenizer", str(out), "--text", "the cat's", "--files", str(corpus)])
    shown = capsys.readouterr().out
    assert "bytes per token" in shown
    assert "|the| cat|'s" in shown
    main(["bench", str(corpus), "--tokenizer", str(out), "--repeats", "2", "--train", "10"])
    shown = capsys.readouterr().out
    assert shown.count("tiktoken") >= 4
    for told in ("Cold:", "Warm:", "spread", "a list per document to text", "train 10 merges"):
        assert told in shown


def test_bad_input_is_one_line_and_a_status(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = trained
    with pytest.raises(SystemExit) as stopped:
        main(["decode", "99999", "--tokenizer", str(out)])
    assert stopped.value.code == 65
    assert "id 99999 at position 0" in capsys.readouterr().err
    # a negative number is no option, wherever it stands
    for order in (["-1", "--tokenizer", str(out)], ["--tokenizer", str(out), "--", "-1"]):
        with pytest.raises(SystemExit) as stopped:
            main(["decode", *order])
        assert stopped.value.code == 65
        assert "id -1 at position 0" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["encode", "missing.txt", "--tokenizer", str(out)])
    assert stopped.value.code == 74


def test_documents_come_from_text_and_json_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"line {i}"}) for i in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    with gzip.open(tmp_path / "b.txt.gz", "wt", encoding="utf-8") as file:
        file.write("one\ntwo\n")
    found = list(read_documents([tmp_path / "a.jsonl", tmp_path / "b.txt.gz"]))
    assert found == ["line 0", "line 1", "line 2", "one\ntwo\n"]


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [("a.jsonl", b'{"text": "x"}\n{"y": 1}\n', "line 2"), ("a.jsonl", b'{"text": 1}\n', "line 1"),
     ("a.txt", b"ok\n\xff", "line 2"),
     ("a.jsonl", b'{"text": "x"}\n{"text": "ab\\ud800"}\n', "line 2: lone surrogate U.D800 at character 2")],
)  # fmt: skip
def test_bad_documents_are_named_by_line(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        list(read_documents([tmp_path / name]))
