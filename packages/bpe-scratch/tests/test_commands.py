"""The command line, from a corpus to ids and back; and what it says when something is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bpe_scratch import Tokenizer
from bpe_scratch.commands import main
from bpe_scratch.corpus import read_parts

TEXT = "the cat sat on the mat\nthat's the cat's hat\n" * 20


@pytest.fixture
def trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, Path]:
    corpus, out = tmp_path / "corpus.txt", tmp_path / "tokenizer.json"
    corpus.write_text(TEXT, "utf-8")
    main(["train", str(corpus), "--vocab-size", "270", "--out", str(out)])
    assert "tokenizer.json: 270 ids, sha256" in capsys.readouterr().err
    return corpus, out


def run(*words: object, **given: Any) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own."""
    environment = os.environ | given.pop("environment", {})
    command = [sys.executable, "-m", "bpe_scratch", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output="stdout" not in given, timeout=60, **given)


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


# once a text of 4 MiB had the end of text in its middle, and was two lines
def test_a_long_text_is_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = "a" * 4_194_300 + "\n\nb\n c\n", tmp_path / "tokenizer.json"
    (tmp_path / "a.txt").write_text(text, "utf-8")
    assert len(list(read_parts([tmp_path / "a.txt"], pattern="gpt2"))) == 2
    tokenizer = Tokenizer(Tokenizer.from_bytes().vocabulary, special_tokens={"<|endoftext|>": 256})
    tokenizer.save(out)
    main(["encode", str(tmp_path / "a.txt"), "--tokenizer", str(out), "--out", str(tmp_path / "ids.bin")])
    ids = np.fromfile(tmp_path / "ids.bin", dtype="<u2")
    assert ids.tolist() == [*tokenizer.encode(text), 256]
    capsys.readouterr()
    main(["encode", str(tmp_path / "a.txt"), "--tokenizer", str(out)])
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    assert shown.split()[-4:] == list(map(str, ids[-5:-1]))


@pytest.mark.parametrize("size", [999, 10**15], ids=["999", "no memory holds"])
def test_fewer_ids_than_asked_for_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    (tmp_path / "a.txt").write_text("ab ab", "utf-8")
    main(["train", str(tmp_path / "a.txt"), f"--vocab-size={size}", "--out", str(tmp_path / "t.json")])
    told = capsys.readouterr().err
    assert f"258 ids of {size} asked for: no other pair occurs 2 times, sha256" in told


def test_bad_input_is_one_line_and_a_status(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, out = trained
    (corpus.parent / "cut.txt.gz").write_bytes(b"\x1f\x8b")
    cases = [
        (["decode", "99999"], "id 99999 at position 0"),
        # a negative number is no option, wherever it stands
        (["decode", "-1"], "id -1 at position 0"),
        (["decode", "--", "-1"], "id -1 at position 0"),
        (["encode", "missing.txt"], "cannot read missing.txt: No such file or directory"),
        (["encode", str(corpus.parent / "cut.txt.gz")], "cut.txt.gz cannot be unpacked: "),
    ]
    for words, message in cases:
        with pytest.raises(SystemExit) as stopped:
            main([words[0], "--tokenizer", str(out), *words[1:]])
        assert stopped.value.code == 65
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1
    for pattern, said in (
        ("gpt-2", "pattern 'gpt-2' is none of gpt2, cl100k"),
        ("x\udcff", "lone surrogate"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["train", str(corpus), "--vocab-size=260", f"--pattern={pattern}"])
        assert stopped.value.code == 65
        assert said in capsys.readouterr().err


# once a page of a box and status 2
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["train", "a.txt", "--vocabsize", "300"],
            "unknown flag --vocabsize, perhaps --vocab-size; bpe-scratch train",
        ),
        (
            ["train", "a.txt", "--vocab", "300"],
            "unknown flag --vocab, perhaps --vocab-size; bpe-scratch train --help",
        ),
        (["decode", "--zzz"], "unknown flag --zzz; bpe-scratch decode --help"),
        (["--zzz=1", "train", "a.txt"], "unknown flag --zzz=1; bpe-scratch --help"),
        (["train", "a.txt", "--vocab-size", "many"], "argument --vocab-size: invalid int value: 'many'"),
        (["train"], "the following arguments are required: PATH"),
        (["decode", "64x"], "argument ids: invalid int value: '64x'"),
        (["inspect"], "invalid choice: 'inspect'"),
        ([], "the following arguments are required: train|encode|decode"),
    ],
)
def test_what_is_mistyped_is_65(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    told = capsys.readouterr().err
    assert stopped.value.code == 65
    assert told.startswith("bpe-scratch: ")
    assert message in told
    assert told.count("\n") == 1


# encodings that lack the characters: once a traceback
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_what_cannot_be_shown_is_replaced(tmp_path: Path, encoding: str) -> None:
    Tokenizer.from_bytes().save(tmp_path / "ü.json")
    tokenizer, out = ["--tokenizer", tmp_path / "ü.json"], tmp_path / "日本.json"
    environment = {"PYTHONIOENCODING": encoding}
    shown = run("decode", "127", "102", "127", *tokenizer, environment=environment)
    want = {"ascii": "??", "utf-8": "é\ufffd"}[encoding]
    assert (shown.returncode, shown.stdout.decode(encoding), shown.stderr) == (0, want, b"")
    (tmp_path / "a.txt").write_text("ab ab", "utf-8")
    shown = run("train", tmp_path / "a.txt", "--vocab-size=258", "--out", out, environment=environment)
    assert (shown.returncode, shown.stdout) == (0, b"")
    assert b"258 ids" in shown.stderr
    assert out.exists()


def test_help_shows_what_a_flag_takes() -> None:
    # once help for terminals of up to five columns never ended
    shown = run("encode", "--help", environment={"COLUMNS": "1", "LINES": "1"}).stdout
    assert b"--out PATH" in shown
    assert b"{None}" not in shown


@pytest.mark.parametrize("words", [["decode", "64"], ["--help"], ["train", "--help"]])
def test_output_that_cannot_be_written_is_73(tmp_path: Path, words: list[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    Tokenizer.from_bytes().save(tmp_path / "tokenizer.json")
    with Path("/dev/full").open("wb") as full:
        ended = run(*words, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 73
    assert ended.stderr == b"bpe-scratch: cannot write the output: No space left on device\n"


def test_files_that_cannot_be_written_are_73(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab ab", "utf-8")
    Tokenizer.from_bytes().save(tmp_path / "tokenizer.json")
    for words in (["train", "a.txt", "--vocab-size=257"], ["encode", "a.txt"]):
        ended = run(*words, "--out", tmp_path / "none" / "x", cwd=tmp_path)
        assert ended.returncode == 73
        assert ended.stderr.decode() == (
            f"bpe-scratch: cannot write {tmp_path}/none/x: No such file or directory\n"
        )


def test_files_may_be_pipes(tmp_path: Path) -> None:
    Tokenizer.from_bytes().save(tmp_path / "tokenizer.json")
    ended = run("encode", "/dev/stdin", cwd=tmp_path, input=b"a")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"64\n", b"")


def test_a_reader_that_leaves_is_no_error_to_tell(tmp_path: Path) -> None:
    Tokenizer.from_bytes().save(tmp_path / "tokenizer.json")
    read, write = os.pipe()
    os.close(read)
    ended = run("decode", "64", cwd=tmp_path, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, b"")


# once each of these ended in a traceback of KeyboardInterrupt
@pytest.mark.parametrize("module", ["numpy", "argparse", "numpy.typing", "regex"])
def test_ctrl_c_while_modules_are_imported_says_nothing(tmp_path: Path, module: str) -> None:
    path = tmp_path / (module.replace(".", "/") + ".py")
    path.parent.mkdir(exist_ok=True)
    for folder in path.parents[: module.count(".")]:
        (folder / "__init__.py").touch()
    path.write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n", "utf-8")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    ended = run("--help", environment={"PYTHONPATH": paths})
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"")


# Python prints a traceback where it falls into an object's end, and goes on
def test_ctrl_c_in_the_end_of_what_an_import_makes_is_not_lost(tmp_path: Path) -> None:
    end = "class E:\n def __del__(self): os.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / "numba.py").write_text(f"import os, signal, time\n{end}E()\ntime.sleep(9)\n", "utf-8")
    (tmp_path / "a.txt").write_text("ab ab", "utf-8")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    ended = run("train", tmp_path / "a.txt", environment={"PYTHONPATH": paths}, cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"")


def test_ctrl_c_ends_the_work_without_a_word(tmp_path: Path) -> None:
    Tokenizer.from_bytes().save(tmp_path / "tokenizer.json")
    command = [sys.executable, "-m", "bpe_scratch", "decode"]
    child = subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdin is not None
    child.stdin.write(b"64 " * 1000)
    child.stdin.flush()
    time.sleep(2)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (130, b"", b"")


def test_an_output_that_a_shell_closed_is_no_fault(trained: tuple[Path, Path]) -> None:
    corpus, out = trained
    for words in (
        ["encode", str(corpus), "--tokenizer", str(out)],
        ["decode", "65", "--tokenizer", str(out)],
    ):
        shell = ["bash", "-c", '"$0" -m bpe_scratch "$@" >&-', sys.executable, *words]
        done = subprocess.run(shell, capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stderr) == (0, "")
