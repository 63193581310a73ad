from __future__ import annotations

import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gpt_data.dataset import Dataset
from gpt_data.prepare_command import prepare_command
from gpt_data.terminal import guarded

COMMAND = [sys.executable, "-c", "from gpt_data.command import main; main()"]


def run(argv: list[str]) -> int:
    return guarded("gpt-data-prepare", lambda: prepare_command(argv))


def arguments(source: str, out: Path, *more: str) -> list[str]:
    return ["--data", source, "--tokenizer", "bytes", "--out", str(out), *more]


def test_it_prepares_and_says_what_to_type_next(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(arguments(f"text:{corpus}", tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert f"{Dataset.open(tmp_path / 'out').train.tokens:,} tokens to train on" in said
    assert f"--data shards:{tmp_path / 'out'}" in said
    assert " held out (1 document in 50, or the last 5% of the text of fewer), " in said


def test_fewer_ids_than_asked_for_are_said(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run([*arguments(f"text:{corpus}", tmp_path / "out"), "--tokenizer", "bpe-scratch:50257"]) == 0
    size = Dataset.open(tmp_path / "out").vocabulary.size
    assert f"vocabulary {size:,} of 50,257 asked for; " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "tokenizer", "message", "status"),
    [
        ("nothing", "bytes", "unknown source 'nothing'", 65),
        ("text:/no/such", "bytes", "/no/such: there is no such file or folder", 65),
        ("shards:/tmp", "bytes", "nothing to prepare", 65),
        ("stdlib", "bpe", "unknown tokenizer 'bpe'; choose one of bytes, bpe-scratch:VOCAB", 65),
        ("stdlib", "bpe-scratch:256", "at least 257", 65),
        (
            "stdlib",
            "bpe-scratch",
            "bpe-scratch needs a vocabulary of at least 257, as in bpe-scratch:4096",
            65,
        ),
        ("stdlib", "bpe-scratch:-1", "bpe-scratch:-1 needs a vocabulary", 65),
        ("stdlib", "/no/tokenizer.json", "/no/tokenizer.json is missing", 65),
        (f"text:{'x' * 300}", "bytes", f"cannot read {'x' * 300}: File name too long", 65),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, source: str, tokenizer: str, message: str, status: int
) -> None:
    assert run(["--data", source, "--tokenizer", tokenizer, "--out", str(tmp_path / "out")]) == status
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("gpt-data-prepare: ")
    assert message in error


def test_missing_gpt2_files_are_named(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["--data", f"text:{corpus}", "--tokenizer", "gpt2", "--out", str(tmp_path / "out")]
    assert run([*flags, "--tokenizer-files", str(corpus)]) == 65
    assert f"{corpus} holds neither encoder.json with vocab.bpe or" in capsys.readouterr().err
    assert run([*flags, "--tokenizer-files", str(corpus / "none")]) == 65
    assert f"--tokenizer-files {corpus / 'none'}: there is no such folder\n" in capsys.readouterr().err


def test_a_damaged_tokenizer_is_named(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    flags = ["--data", f"text:{corpus}", "--tokenizer", str(tmp_path / "tokenizer.json")]
    assert run([*flags, "--out", str(tmp_path / "out")]) == 65
    assert "tokenizer.json" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_status_73(corpus: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("000.txt", "x" * 300):
        assert run(arguments(f"text:{corpus}", corpus / name)) == 73
        assert "cannot write" in capsys.readouterr().err


def test_a_full_disk_is_status_73_and_the_same_command_goes_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 100_000)

    def limit() -> None:
        # a file may not pass this size, which is what a full disk looks like to one process
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))

    command = [*COMMAND, *arguments(f"text:{tmp_path}", tmp_path / "out")]
    # Python itself would keep half of a module that it compiled, and fail at it ever after
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    failed = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=limit, timeout=60, env=environment
    )
    assert failed.returncode == 73
    assert failed.stderr.splitlines()[-1].startswith(f"gpt-data-prepare: cannot write {tmp_path / 'out'}")
    assert "Traceback" not in failed.stderr
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert Dataset.open(tmp_path / "out").train.tokens == 95_001


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_with_status_75_and_it_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    for i in range(60):
        (tmp_path / f"{i:03d}.txt").write_text("some text\n" * 20_000)
    command = [*COMMAND, *arguments(f"text:{tmp_path}", tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        while not (tmp_path / "out" / "train-00000.bin.partial").exists():
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(number)
        _, error = child.communicate(timeout=60)
    assert child.returncode == 75
    assert error.splitlines()[-1].startswith("gpt-data-prepare: stopped; the same command goes on")
    assert "Traceback" not in error
    seen: list[int] = []
    from gpt_data.prepare import prepare

    dataset = prepare(
        f"text:{tmp_path}",
        "bytes",
        tmp_path / "out",
        # that the folder "out" is left out of the text is a notice
        on_progress=lambda p: seen.append(p.documents) if p.stage == "tokens" else None,
    )
    assert seen[0] > 0
    assert dataset.train.tokens + dataset.val.tokens == 60 * 200_001


def test_a_second_process_is_refused(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from gpt_data.store.lock import FolderLock

    (tmp_path / "out").mkdir()
    with FolderLock(tmp_path / "out"):
        assert run(arguments(f"text:{corpus}", tmp_path / "out")) == 73
    assert f"is in use by process {os.getpid()} on " in capsys.readouterr().err


def test_nothing_heavy_is_imported_with_the_library() -> None:
    heavy = {"datasets", "huggingface_hub", "tyro", "rich", "torch", "jax", "pyarrow"}
    modules = "gpt_data.prepare, gpt_data.dataset, gpt_data.loader"
    code = f"import sys, {modules}; print(*({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"\n"


def prepared(tmp_path: Path, shell: str = "", out: str = "out", **environment: str) -> Any:
    (tmp_path / "a.txt").write_text("some text\n" * 50)
    quoted = shlex.join([*COMMAND, *arguments(f"text:{tmp_path / 'a.txt'}", tmp_path / out)])
    return subprocess.run(
        ["bash", "-c", f"{quoted} {shell}"],
        capture_output=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_an_output_that_is_full_is_73_and_the_shards_are_there(tmp_path: Path) -> None:
    done = prepared(tmp_path, "> /dev/full")
    assert done.returncode == 73
    *_, last = done.stderr.decode().splitlines()
    assert last == "gpt-data-prepare: cannot write to the standard output: No space left on device"
    assert b"Traceback" not in done.stderr
    assert Dataset.open(tmp_path / "out").train.tokens


def test_a_standard_error_that_is_full_ends_nothing(tmp_path: Path) -> None:
    assert prepared(tmp_path, "2> /dev/full").returncode == 0


def test_a_folder_that_the_terminal_cannot_show_is_prepared(tmp_path: Path) -> None:
    done = prepared(tmp_path, out="o_\u00fcn\u00ef", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout.count(b"o_?n?")) == (0, 2)
    done = prepared(tmp_path, out="o_\udcff", PYTHONIOENCODING="utf-8")
    assert (done.returncode, done.stdout.count(b"\n")) == (0, 1)


@pytest.mark.parametrize("columns", ["1", "5", "0", "x"])
def test_help_ends_in_the_narrowest_window(columns: str) -> None:
    done = subprocess.run(
        [*COMMAND, "--help"], capture_output=True, timeout=60, env={**os.environ, "COLUMNS": columns}
    )
    assert done.returncode == 0
    assert b"--max-document-bytes" in done.stdout


@pytest.mark.parametrize("seconds", [0.02, 0.05, 0.1, 0.2, 0.4])
def test_ctrl_c_during_the_imports_is_130_and_not_a_word(tmp_path: Path, seconds: float) -> None:
    code = "from gpt_data.command import main; print(flush=True); main()"
    command = [sys.executable, "-c", code, *arguments("stdlib", tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(seconds)
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=60)
    # the last of these moments may already be one of work, which says what it was stopped at
    assert (child.returncode, error) == (130, b"") or (child.returncode == 75 and b"Traceback" not in error)
